package system

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// An input directory in a place where the image has files hides none of them,
// whatever its place is: not the image's programs, nor what is linked there.
func TestInputsOverTheImage(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	links := map[string]string{"/opt/tool/round": "round", "/opt/tool/conf-too": "conf"}
	one := w.Image(t, "one", rig.Spec{User: "1234", Files: map[string]string{"/opt/tool/bin/run": "#!/bin/sh\necho tool", "/opt/tool/conf": "of the image", "/usr/share/data/kept": "kept\n"}, Links: links})
	two := w.Image(t, "two", rig.Spec{Files: map[string]string{"/opt/tool/bin/other": "#!/bin/sh\necho other"}})
	dir := func(p, source string) tes.Input {
		return tes.Input{Path: p, URL: filepath.Join(w.Dir, "src", source), Type: tes.Directory}
	}
	for name, text := range map[string]string{
		"tool/conf": "of the input", "tool/bin/more": "more\n", "tool/new/deep/file": "deep\n", "sub/file": "nested\n", "own/file": "own\n",
		"bin/hello": "hello\n", "etc/mine.conf": "mine\n", "etc/hosts": "none\n",
	} {
		w.Write(t, "src/"+name, text)
	}
	sources := w.tree(t, "src")
	look := "cat /opt/tool/conf /opt/tool/bin/more /opt/tool/new/deep/file /opt/tool/sub/dir/file /opt/tool/sub/content /opt/own/file /usr/bin/hello /etc/mine.conf; " +
		"[ -x /opt/tool/bin/more ] || echo not executable; grep -c root /etc/passwd; grep -c localhost /etc/hosts; ls -d /usr/bin/env; "
	saw := "of the inputmore\ndeep\nnested\ncontent\nown\nhello\nmine\nnot executable\n1\n2\n/usr/bin/env\n"
	first := Sh(one.Tag, look+"/opt/tool/bin/run; cat /usr/share/data/kept; echo changed > /opt/tool/conf; echo made > /opt/tool/new/made; rm /opt/tool/new/deep/file; "+
		"echo shared > /opt/own/shared; stat -c %a /opt/tool/bin /opt/tool/new")
	first.Stdout = "/opt/tool/first.log"
	second := Sh(two.Tag, look+"/opt/tool/bin/other; cat /opt/own/shared; ls /opt/tool/new; cat; echo made > /opt/tool/bin/made; echo of the second > /opt/tool/conf")
	second.Stdin = "/opt/tool/first.log"
	o := w.MustRun(t, 0, tes.Task{
		ID: "over",
		Inputs: []tes.Input{
			dir("/opt/tool/sub/dir", "sub"), dir("/opt/tool", "tool"), {Path: "/opt/tool/sub/content", Content: pointer("content\n")},
			dir("/opt/own", "own"), dir("/usr/bin", "bin"), dir("/etc", "etc"),
		},
		Executors: []tes.Executor{first, second},
		Outputs: []tes.Output{
			{Path: "/opt/tool/new/*", PathPrefix: "/opt/tool/new", URL: w.Dir + "/new"}, {Path: "/opt/tool/bin", URL: w.Dir + "/bin", Type: tes.Directory},
			{Path: "/opt/tool/conf", URL: w.Dir + "/conf"}, {Path: "/opt/own", URL: w.Dir + "/own", Type: tes.Directory}, {Path: "/opt/tool/first.log", URL: w.Dir + "/log"},
		},
	})
	log := o.Log(t)
	if got, want := log.Logs[0].Stdout, saw+"tool\nkept\n755\n777\n"; got != want {
		t.Errorf("the first executor saw\n%s%s\nwant\n%s", got, log.Logs[0].Stderr, want)
	}
	// Each executor has the inputs as they came; what no image has is shared.
	if got, want := log.Logs[1].Stdout, saw+"other\nshared\ndeep\n"+log.Logs[0].Stdout; got != want {
		t.Errorf("the second executor saw\n%s%s\nwant\n%s", got, log.Logs[1].Stderr, want)
	}
	same(t, "the outputs of a pattern", w.tree(t, "new"), map[string]string{"made": "made\n", "deep/file": "deep\n"})
	same(t, "the outputs of a directory", w.tree(t, "bin"), map[string]string{"other": "#!/bin/sh\necho other", "more": "more\n", "made": "made\n"})
	same(t, "the shared directory", w.tree(t, "own"), map[string]string{"file": "own\n", "shared": "shared\n"})
	if conf, text := w.Read(t, "conf"), w.Read(t, "log"); conf != "of the second\n" || text != log.Logs[0].Stdout {
		t.Errorf("the outputs are %q and %q", conf, text)
	}
	same(t, "sources", w.tree(t, "src"), sources)
	o.warned(t, "/etc/hosts of an input directory is left out")
	w.Clean(t)

	// What cannot be merged is the task's fault.
	w.Write(t, "src/wrong/bin", "a file")
	w.Write(t, "src/loop/round/file", "below a link to itself")
	w.Write(t, "src/astray/conf-too/file", "below a link to a file")
	for p, source := range map[string]string{"/opt/tool": "wrong", "/opt/tool/conf": "sub", "/opt/tool/": "loop", "/opt//tool": "astray"} {
		o := w.Run(t, tes.Task{ID: "wrong", Inputs: []tes.Input{dir(p, source)}, Executors: []tes.Executor{Sh(one.Tag, "true")}}, "--fresh")
		if o.Code != 3 || !strings.Contains(o.Stderr, fmt.Sprintf("cannot copy the input directory %s into the container of executor 0", path.Clean(p))) {
			t.Errorf("%s: exit code %d\n%s", p, o.Code, o.Stderr)
		}
		w.Clean(t)
	}
}
