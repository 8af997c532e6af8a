package journaltest

import (
	"context"
	"errors"
	"testing"

	"github.com/deckhand/deckhand/machine"
)

func TestMemory(t *testing.T) {
	Run(t, func(_ *testing.T, s Settings) Journal {
		m := NewMemory()
		m.BootID, m.Now = s.BootID, s.Now
		m.Tell(s.Sinks...)
		return m
	})
}

func TestMemoryFailure(t *testing.T) {
	for _, written := range []bool{false, true} {
		m := NewMemory()
		broken := errors.New("broken")
		m.Fail = func(machine.Entry) (bool, error) { return written, broken }
		for range 2 {
			if _, err := m.Append(context.Background(), Task("t1", 1)[0]); !errors.Is(err, broken) {
				t.Errorf("error %v", err)
			}
		}
		m.Reopen()
		want := 0
		if written {
			want = 1
		}
		if got := len(Records(t, m, "t1")); got != want {
			t.Errorf("written %v: %d records", written, got)
		}
		if _, err := m.Append(context.Background(), Task("t1", 1)[0]); err != nil {
			t.Error(err)
		}
	}
}
