package check

import (
	"strings"
	"testing"
)

// An engine hands events on in an order that need not be that of their times, and
// tells some again when a connection has broken: each counts once.
func TestWatchTakesEachEventOnce(t *testing.T) {
	w := &Watch{began: 10, newest: 10, known: map[sign]bool{}}
	event := func(at int64, action, name string) {
		m := message{Type: "container", Action: action, TimeNano: at}
		m.Actor.ID, m.Actor.Attributes = "id of "+name, map[string]string{"name": name, labelRoot: "root"}
		w.take(m)
	}
	event(9, Start, "before")
	event(20, Start, "b")
	event(22, Start, "a")
	event(21, Die, "b")
	event(22, Start, "a")
	event(21, Die, "b")
	event(23, Die, "a")
	var got []string
	for _, e := range w.of("root") {
		got = append(got, e.Action+" "+e.Container)
	}
	if said := strings.Join(got, ", "); said != "start b, die b, start a, die a" || w.newest != 23 {
		t.Errorf("the events are %s, the newest at %d", said, w.newest)
	}
}
