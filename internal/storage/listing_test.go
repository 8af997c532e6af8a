package storage

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deckhand/deckhand/machine"
)

// list lists a directory of three pages, and returns what is in it until the first error.
func list(t *testing.T, page func(next string) ([]listed, string, error)) (names []string, err error) {
	t.Helper()
	s := Hasten(New(Options{RetryFor: time.Minute}), time.Minute)
	all := listPages(t.Context(), s, "s3://bucket/dir", bucketURL{"bucket", "dir"}, joinRaw, func(_ context.Context, next string) ([]listed, string, error) {
		return page(next)
	})
	for o, err := range all {
		if err != nil {
			return names, err
		}
		names = append(names, o.Name)
	}
	return names, nil
}

// A listing goes on with the page that failed, and not from its beginning.
func TestListingGoesOn(t *testing.T) {
	pages := map[string]struct{ key, next string }{"": {"dir/a", "2"}, "2": {"dir/b", "3"}, "3": {"dir/c", ""}}
	failed := map[string]bool{}
	names, err := list(t, func(next string) ([]listed, string, error) {
		if !failed[next] {
			failed[next] = true
			return nil, "", passing(errors.New("the connection is gone"))
		}
		return []listed{{key: pages[next].key}}, pages[next].next, nil
	})
	if err != nil || !slices.Equal(names, []string{"a", "b", "c"}) {
		t.Errorf("listed are %q, %v", names, err)
	}
}

// A server that does not get on is not listened to for ever.
func TestListingThatDoesNotGetOn(t *testing.T) {
	names, err := list(t, func(next string) ([]listed, string, error) {
		return []listed{{key: "dir/" + next + "x"}}, "2", nil
	})
	if machine.FaultOf(err) != machine.TaskFault || !strings.Contains(err.Error(), "the same page") || len(names) > 2 {
		t.Errorf("listed are %q, %v", names, err)
	}
}
