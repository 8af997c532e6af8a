package system

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// The unit for recovery at boot is one that systemd takes without a word, and its
// command rolls back what a crash left.
func TestRecoverUnit(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile(filepath.Join("..", "..", "docs", "systemd", "deckhand-recover.service"))
	if err != nil {
		t.Fatal(err)
	}
	const program, root = "/usr/bin/deckhand", "/var/lib/deckhand"
	w := NewWorld(t)
	unit := filepath.Join(t.TempDir(), "deckhand-recover.service")
	here := strings.ReplaceAll(string(raw), program, Build(t))
	if err := os.WriteFile(unit, []byte(here), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}

	image := w.Image(t, "task:1", rig.Spec{})
	run := w.Start(t, tes.Task{ID: "t", Executors: []tes.Executor{Sh(image.Tag, "sleep 1000")}})
	run.Until(t, "executor started")
	if err := run.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	run.End(t)
	_, line, found := strings.Cut(string(raw), "\nExecStart="+program+" ")
	line, _, _ = strings.Cut(line, "\n")
	line, rooted := strings.CutSuffix(line, " --root "+root)
	if !found || !rooted {
		t.Fatalf("the unit does not run %s on %s", program, root)
	}
	r := w.Deckhand(t, append(strings.Fields(line), "--stop-grace", "1s")...)
	if r.Code != 0 || !strings.Contains(r.Stdout, "rolled back task t") {
		t.Errorf("%s: %+v", line, r)
	}
	w.Clean(t)
}
