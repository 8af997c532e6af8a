// Package crash proves by crash injection that every task is resumed or rolled
// back: runs of all shapes are traced, killed at each crash point, some of them
// again at each point of the recovery, and package check looks at what has become
// of the node.
package crash

import (
	"regexp"
	"strings"

	"github.com/deckhand/deckhand/test/crash/point"
)

// durable matches the points around a sync.
var durable = regexp.MustCompile(`/(File\.Sync|fdatasync|unix\.Fdatasync)(~[0-9]+)? `)

// Distinct returns the points of a trace at which a kill leaves different
// worlds: the first one, and the first after each effect, or within it. From
// there to the next effect nothing changes that could be seen from outside. To
// make something durable changes nothing either that a kill could undo.
func Distinct(trace []string) []string {
	var found []string
	began := true // an effect, or the program
	for _, here := range trace {
		name, _, _ := strings.Cut(here, "#")
		switch {
		case durable.MatchString(name):
		case strings.HasSuffix(name, point.Before):
			if len(found) == 0 {
				found = append(found, here)
			}
			began = true
		case strings.HasSuffix(name, point.Called):
			found = append(found, here)
			began = true // it goes on
		case began:
			found = append(found, here)
			began = false
		}
	}
	return found
}
