package node

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/machine"
)

func TestLockExcludes(t *testing.T) {
	root := t.TempDir()
	l, err := Lock(root)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Lock(root)
	var held *Held
	if !errors.As(err, &held) || held.Owner.PID != os.Getpid() || machine.FaultOf(err) != machine.RetryLater {
		t.Fatalf("second lock: %v", err)
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	if o, ok, err := ReadOwner(root); ok || err != nil {
		t.Errorf("owner after Unlock: %+v, %v", o, err)
	}
	if l, err = Lock(root); err != nil {
		t.Fatal(err)
	}
	_ = l.Unlock()
}

func TestLockDiesWithItsHolder(t *testing.T) {
	root := t.TempDir()
	cmd, p := start(t, "hold "+root)

	_, err := WaitLock(context.Background(), root, 0)
	var held *Held
	if !errors.As(err, &held) || held.Owner.Process != p || held.Owner.Task != "t1" || held.Owner.Document != "d1" {
		t.Fatalf("%v, owner %+v, want %+v", err, held, p)
	}
	if !strings.Contains(err.Error(), "task t1") {
		t.Errorf("the error does not name the task: %v", err)
	}

	got := make(chan error)
	go func() {
		l, err := WaitLock(context.Background(), root, time.Hour)
		if err == nil {
			err = l.Unlock()
		}
		got <- err
	}()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

// A child that outlives its parent must not keep the parent's lock.
func TestLockIsNotInherited(t *testing.T) {
	root := t.TempDir()
	l, err := Lock(root)
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("sleep", "1000")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer child.Process.Kill()
	if err := errors.Join(l.owner.Close(), l.lock.Close()); err != nil {
		t.Fatal(err)
	}
	l, err = Lock(root)
	if err != nil {
		t.Fatalf("the child has it: %v", err)
	}
	_ = l.Unlock()
}

func TestWaitLockStopsWithItsContext(t *testing.T) {
	root := t.TempDir()
	l, err := Lock(root)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := WaitLock(ctx, root, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestReadOwner(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, ownerFile)
	if _, ok, err := ReadOwner(root); ok || err != nil {
		t.Errorf("missing: %v, %v", ok, err)
	}
	for name, text := range map[string]string{
		"empty": "", "torn": `{"pid":12,"sta`, "nobody": "{}  \n", "zeros": strings.Repeat("\x00", 4096), "other JSON": "[1]",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if o, ok, err := ReadOwner(root); ok || err != nil {
			t.Errorf("%s: %+v, %v", name, o, err)
		}
	}
	l, err := Lock(root)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Unlock()
	self, _ := Self()
	want := Owner{Process: self, Task: strings.Repeat("long", 3000), Document: "d", Since: time.Unix(1, 0).UTC()}
	if err := l.SetOwner(want); err != nil {
		t.Fatal(err)
	}
	if got, ok, err := ReadOwner(root); !ok || err != nil || got != want {
		t.Errorf("%+v, %v, %v", got, ok, err)
	}
	want.Task = "short"
	if err := l.SetOwner(want); err != nil {
		t.Fatal(err)
	}
	if got, ok, err := ReadOwner(root); !ok || err != nil || got != want {
		t.Errorf("%+v, %v, %v", got, ok, err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"pid", "start", "host", "boot_id", "pid_namespace", "task", "document", "since"} {
		if _, ok := fields[f]; !ok {
			t.Errorf("no field %s in %s", f, b)
		}
	}
	if info, _ := os.Stat(file); info.Mode() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
}

// The owner can be written, and the lock taken, without a free byte.
func TestLockOnFullDisk(t *testing.T) {
	disk := mountExt4(t)
	for _, tc := range []struct {
		name  string
		taken bool // whether the root was locked when there was space
	}{{"used before", true}, {"never used", false}} {
		t.Run(tc.name, func(t *testing.T) {
			root := filepath.Join(disk, strings.ReplaceAll(tc.name, " ", "-"))
			if err := PrepareRoot(root); err != nil {
				t.Fatal(err)
			}
			if tc.taken {
				l, err := Lock(root)
				if err != nil {
					t.Fatal(err)
				}
				if err := l.Unlock(); err != nil {
					t.Fatal(err)
				}
				unix.Sync() // so that its block is allocated
			}
			filler := fill(t, disk)
			l, err := Lock(root)
			if err != nil {
				t.Fatal(err)
			}
			o, ok, err := ReadOwner(root)
			if err != nil || ok != tc.taken || (ok && o.PID != os.Getpid()) {
				t.Errorf("owner %+v, %v, %v", o, ok, err)
			}
			if err := l.Unlock(); err != nil {
				t.Error(err)
			}
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
		})
	}
}
