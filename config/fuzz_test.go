package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// FuzzFile holds that a configuration file, whatever is in it, is an error that
// names it or gives settings that, written down, give the same again.
func FuzzFile(f *testing.F) {
	for _, seed := range []string{
		"root: /a\nrun: {stop_grace: 20s, time_limit: 2h}\n", "run:\n  gpus: 0,1\n  devices: /dev/fuse\n", "image: {keep: 0x10}", "history: {age: none, keep: 7}",
		"run: [", "- a", "a: &b {c: *b}", "root: !!binary aGk=", "lock.wait: 5s", "disk: {floor: 1e9}", "\xff", "log: {level: on}", "root: |\n  /a\n",
	} {
		f.Add(seed)
	}
	name := filepath.Join(f.TempDir(), "config.yaml")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 2000 {
			return
		}
		setup(t)
		first, err := loadText(t, name, text)
		if err != nil {
			if !strings.Contains(err.Error(), name) {
				t.Errorf("the error does not name the file: %v", err)
			}
			return
		}
		var all strings.Builder
		for _, s := range first.Settings() {
			if strings.Contains(s.Value, "REDACTED") {
				return // it is not to be read again
			}
			all.WriteString(s.Key + ": " + quoted(s.Value) + "\n")
		}
		second, err := loadText(t, name, all.String())
		if err != nil {
			t.Fatalf("%q gives settings that are refused: %v", text, err)
		}
		if first.Config != second.Config {
			t.Errorf("%q gives\n%+v, and written down\n%+v", text, first.Config, second.Config)
		}
	})
}

// FuzzValue holds that a text means the same from the file, the environment and
// a flag.
func FuzzValue(f *testing.F) {
	for i := range keys {
		f.Add(i, samples[keys[i].name][0])
		f.Add(i, keys[i].fallback+" ")
	}
	name := filepath.Join(f.TempDir(), "config.yaml")
	f.Fuzz(func(t *testing.T, i int, text string) {
		if text == "" || len(text) > 200 || strings.Contains(text, "\x00") || !printable(text) {
			return // an empty variable counts as none
		}
		k := keys[uint(i)%uint(len(keys))]
		setup(t)
		file, fileErr := loadText(t, name, k.name+": "+quoted(text))
		t.Setenv(k.variable(), text)
		env, envErr := load(t)
		if (fileErr == nil) != (envErr == nil) {
			t.Fatalf("%s is %q: from the file %v, from the environment %v", k.name, text, fileErr, envErr)
		}
		if fileErr == nil && file.Config != env.Config {
			t.Errorf("%s is %q: from the file %+v, from the environment %+v", k.name, text, file.Config, env.Config)
		}
		if k.flag == "" {
			return
		}
		flag, flagErr := load(t, "--"+k.flag+"="+text)
		if (flagErr == nil) != (envErr == nil) || flagErr == nil && flag.Config != env.Config {
			t.Errorf("%s is %q: by flag %v, from the environment %v", k.name, text, flagErr, envErr)
		}
	})
}

func loadText(t *testing.T, name, text string) (*Loaded, error) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	AddCommonFlags(flags)
	if err := flags.Parse([]string{"--config", name}); err != nil {
		t.Fatal(err)
	}
	return Load(flags)
}

// quoted is a text as YAML takes it whatever is in it.
func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// printable says whether YAML can hold a text as it is.
func printable(text string) bool {
	for _, r := range text {
		if r < ' ' || r == 0x7f || r >= 0x80 {
			return false
		}
	}
	return true
}
