package node

import "testing"

func TestSuccessor(t *testing.T) {
	root := t.TempDir()
	self, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	other := self
	other.PID++
	if Successor(root) {
		t.Error("a root that nobody has ever held has a successor")
	}
	lock, err := Lock(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lock.Unlock() }) // unlocked already, in a test that passes
	succeed := func(p Process) (done func() error) {
		t.Helper()
		done, err := Succeed(root, p)
		if err != nil {
			t.Fatal(err)
		}
		return done
	}
	check := func(want bool, what string) {
		t.Helper()
		if got := Successor(root); got != want {
			t.Errorf("%s: has a successor: %v, want %v", what, got, want)
		}
	}
	check(false, "without an announcement")
	succeed(other)
	check(false, "announced to another process")
	first, second := succeed(self), succeed(self)
	check(true, "announced twice")
	if _, err := flock(root); err == nil {
		t.Error("an announcement gave the root away")
	}
	if err := first(); err != nil {
		t.Fatal(err)
	}
	check(true, "one of two announcements taken back")
	if err := second(); err != nil {
		t.Fatal(err)
	}
	check(false, "both announcements taken back")
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
}
