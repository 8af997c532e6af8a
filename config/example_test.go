package config

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// The example changes nothing as it is, and each of its lines can be uncommented:
// it is then that setting at its default.
func TestExample(t *testing.T) {
	setup(t)
	defaults, err := load(t)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "config.yaml")
	for _, c := range []struct{ source, text string }{
		{"default", Example()},
		{"file " + name, regexp.MustCompile(`(?m)^#([a-z])`).ReplaceAllString(Example(), "$1")},
	} {
		if err := os.WriteFile(name, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := load(t, "--config", name)
		if err != nil {
			t.Fatalf("%v in\n%s", err, c.text)
		}
		if l.Config != defaults.Config {
			t.Errorf("got  %+v\nwant %+v", l.Config, defaults.Config)
		}
		for _, s := range l.Settings() {
			if s.Source != c.source {
				t.Errorf("%s is from %s, not from %s", s.Key, s.Source, c.source)
			}
		}
	}
}
