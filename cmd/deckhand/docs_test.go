package main

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Every command that the documentation shows exists, with its flags.
func TestDocumentedCommands(t *testing.T) {
	checked := 0
	for _, file := range documents(t) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range shownCommands(string(text)) {
			checked++
			if err := knows(c); err != nil {
				t.Errorf("%s shows %q: %v", file, strings.Join(c, " "), err)
			}
		}
	}
	if checked < 10 {
		t.Errorf("only %d commands were found in the documentation", checked)
	}
}

// So do those in the examples of the help texts.
func TestExamples(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, line := range strings.Split(cmd.Example, "\n") {
			for _, c := range commandsIn(line) {
				if err := knows(c); err != nil {
					t.Errorf("%s --help shows %q: %v", cmd.CommandPath(), line, err)
				}
			}
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(newRootCommand(&app{}))
}

// A test that cannot fail would be a defect.
func TestKnowsWhatIsWrong(t *testing.T) {
	for _, c := range []string{"nope", "run a b", "run a --nope", "journal verfy", "status --stderr", "graph x", "run --result"} {
		if knows(append([]string{"deckhand"}, strings.Fields(c)...)) == nil {
			t.Errorf("deckhand %s passes", c)
		}
	}
}

// The settings in force are those of the documentation, in its order.
func TestDocumentedSettings(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9._]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		documented = append(documented, m[1])
	}
	r := newNode(t).deckhand(t, "config", "--json")
	var settings []struct{ Key string }
	if err := json.Unmarshal([]byte(r.stdout), &settings); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	var inForce []string
	for _, s := range settings {
		inForce = append(inForce, s.Key)
	}
	if len(documented) == 0 || !slices.Equal(documented, inForce) {
		t.Errorf("docs/configuration.md lists %v\ndeckhand config %v", documented, inForce)
	}
}

// The exit codes are the same wherever they are told.
func TestDocumentedExitCodes(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	codes := func(pattern, text string) (found []string) {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			found = append(found, m[1])
		}
		return found
	}
	help, readme := codes(`(?m)^ {4,}(\d+)  `, exitCodesHelp), codes(`(?m)^\| (\d+) \|`, string(text))
	if len(help) != 8 || !slices.Equal(help, readme) {
		t.Errorf("help exit-codes has %v, README.md has %v", help, readme)
	}
}

// Each row of these documents links to tests that prove it, and they exist.
func TestDocumentedProofs(t *testing.T) {
	for name, least := range map[string]int{"recovery.md": 30, "security.md": 25, "engines/slurm.md": 12} {
		t.Run(name, func(t *testing.T) { checkProofs(t, "../../docs/"+name, least) })
	}
}

// checkProofs checks that a document has at least so many rows and different tests.
func checkProofs(t *testing.T, document string, least int) {
	t.Helper()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	rows, linked := 0, map[string]bool{}
	link := regexp.MustCompile(`\[(Test\w+)\]\((\.\./[^)]+)\)`)
	for _, line := range strings.Split(string(text), "\n") {
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") || strings.HasSuffix(line, "| proven by |") {
			continue
		}
		rows++
		proofs := link.FindAllStringSubmatch(line[strings.LastIndex(strings.TrimSuffix(line, "|"), "|"):], -1)
		if len(proofs) == 0 {
			t.Errorf("nothing proves %s", line)
		}
		for _, p := range proofs {
			linked[p[0]] = true
			code, err := os.ReadFile(filepath.Join(filepath.Dir(document), p[2]))
			if err != nil || !strings.Contains(string(code), "\nfunc "+p[1]+"(t *testing.T)") {
				t.Errorf("%s has no %s (%v)", p[2], p[1], err)
			}
		}
	}
	if rows < least || len(linked) < least {
		t.Errorf("only %d rows with %d tests were found", rows, len(linked))
	}
}

func documents(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(files) == 0 {
		t.Fatal("no documentation: ", err)
	}
	engines, err := filepath.Glob("../../docs/engines/*.md")
	if err != nil {
		t.Fatal(err)
	}
	return append(slices.Concat(files, engines), "../../README.md", "../../CONTRIBUTING.md")
}

var (
	shellBlock = regexp.MustCompile("(?s)```(?:sh|console)\n(.*?)```")
	inlineCode = regexp.MustCompile("`(deckhand [^`\n]+)`")
)

// shownCommands are the deckhand commands in the shell blocks of a document and
// in its running text.
func shownCommands(text string) (commands [][]string) {
	for _, block := range shellBlock.FindAllStringSubmatch(text, -1) {
		for _, line := range strings.Split(block[1], "\n") {
			commands = append(commands, commandsIn(line)...)
		}
	}
	for _, code := range inlineCode.FindAllStringSubmatch(text, -1) {
		commands = append(commands, commandsIn(code[1])...)
	}
	return commands
}

// commandsIn finds the deckhand commands of a shell line: at its beginning,
// after a prompt, an operator, or words such as sudo or exec.
func commandsIn(line string) (commands [][]string) {
	line, _, _ = strings.Cut(" "+line, " #")
	for _, part := range regexp.MustCompile(`[|;&]+`).Split(line, -1) {
		part = regexp.MustCompile(`\d?>+ *\S+`).ReplaceAllString(part, "") // where its output goes
		words := strings.Fields(part)
		i := slices.IndexFunc(words, func(w string) bool { return w == "deckhand" || strings.HasSuffix(w, "/deckhand") })
		if i < 0 || i > 0 && strings.HasPrefix(words[0], "-") {
			continue
		}
		words = words[i:]
		for j, w := range words {
			words[j] = strings.Trim(w, `"'`)
		}
		commands = append(commands, words)
	}
	return commands
}

// knows says what the command line has against a command.
func knows(words []string) error {
	root := newRootCommand(&app{})
	cmd, args, err := root.Find(words[1:])
	if err != nil {
		return err
	}
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	if err := cmd.ParseFlags(args); err != nil && !errors.Is(err, pflag.ErrHelp) {
		return err
	}
	// In running text a command may stand without what it needs.
	if rest := cmd.Flags().Args(); len(rest) > 0 && cmd.Args != nil {
		return cmd.Args(cmd, rest)
	}
	return nil
}

// Every message of docs/troubleshooting.md is one that the code has; … stands in
// it for what differs.
func TestDocumentedMessages(t *testing.T) {
	text, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	code := productStrings(t)
	rows := regexp.MustCompile("(?m)^\\| `(.*?)` \\|").FindAllStringSubmatch(string(text), -1)
	if len(rows) < 25 {
		t.Errorf("only %d messages were found", len(rows))
	}
	for _, row := range rows {
		for _, part := range strings.Split(row[1], "…") {
			if part = strings.TrimSpace(part); !strings.Contains(code, part) {
				t.Errorf("no message has %q of %q", part, row[1])
			}
		}
	}
	codes := regexp.MustCompile(`(?m)^ {4,}(\d+)  `).FindAllStringSubmatch(exitCodesHelp, -1)
	for _, m := range codes {
		if m[1] != "0" && !strings.Contains(string(text), "\n## "+m[1]+": ") {
			t.Errorf("exit code %s has no section", m[1])
		}
	}
}

// productStrings are the texts in the code of the product, one a line.
func productStrings(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, dir := range []string{"cmd", "machine", "journal", "steps", "config", "internal"} {
		err := filepath.WalkDir(filepath.Join("../..", dir), func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
					s, err := strconv.Unquote(l.Value)
					if err != nil {
						t.Error(err)
					}
					all.WriteString(s + "\n")
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all.String()
}

// The checks of doctor are those that the documentation lists.
func TestDocumentedChecks(t *testing.T) {
	text, err := os.ReadFile("../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(text), "\n| check | what it looks at |\n")
	table, _, closed := strings.Cut(table, "\n\n")
	if !ok || !closed {
		t.Fatal("operating.md has no table of checks")
	}
	var documented, all []string
	for _, row := range strings.Split(table, "\n") {
		first, _, _ := strings.Cut(strings.TrimPrefix(row, "|"), "|")
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(first, -1) {
			documented = append(documented, m[1])
		}
	}
	for _, c := range checks {
		all = append(all, c.name)
	}
	if !slices.Equal(documented, all) {
		t.Errorf("operating.md lists %q\ndoctor has %q", documented, all)
	}
}
