package crash

import (
	"slices"
	"testing"
)

func TestDistinct(t *testing.T) {
	t.Parallel()
	trace := []string{
		"outer before#1", "inner before#1", "inner after#1", "outer after#1",
		"outer before#2", "inner before#2", "inner after#2", "other before#1", "other after#1", "outer after#2",
		"x/File.Sync before#1", "x/File.Sync after#1", "y/fdatasync~2 before#1", "y/fdatasync~2 after#1",
		"pull before#1", "pull called#1", "pull called#2", "pull after#1",
	}
	want := []string{
		"outer before#1", "inner after#1", "inner after#2", "other after#1", "pull called#1", "pull called#2", "pull after#1",
	}
	if got := Distinct(trace); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}
