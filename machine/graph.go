package machine

import (
	"fmt"
	"strings"
)

// arrow is a drawn edge: every event that leads from one state to another.
type arrow struct {
	from, to State
	label    string
}

func arrows() []arrow {
	var drawn []arrow
	at := map[[2]State]int{}
	for _, t := range Table {
		key := [2]State{t.From, t.To}
		if i, ok := at[key]; ok {
			drawn[i].label += ", " + string(t.Event)
			continue
		}
		at[key] = len(drawn)
		drawn = append(drawn, arrow{t.From, t.To, string(t.Event)})
	}
	return drawn
}

// Mermaid draws the machine as a Mermaid state diagram.
func Mermaid() string {
	var b strings.Builder
	fmt.Fprintf(&b, "stateDiagram-v2\n    [*] --> %s\n", Accepted)
	for _, a := range arrows() {
		fmt.Fprintf(&b, "    %s --> %s: %s\n", a.from, a.to, a.label)
	}
	for _, s := range States {
		if s.Final() {
			fmt.Fprintf(&b, "    %s --> [*]\n", s)
		}
	}
	return b.String()
}

// DOT draws the machine for Graphviz.
func DOT() string {
	var b strings.Builder
	b.WriteString("digraph deckhand {\n    rankdir=LR;\n")
	for _, s := range States {
		shape := "box"
		if s.Final() {
			shape = "doubleoctagon"
		}
		fmt.Fprintf(&b, "    %q [shape=%s];\n", s, shape)
	}
	for _, a := range arrows() {
		fmt.Fprintf(&b, "    %q -> %q [label=%q];\n", a.from, a.to, a.label)
	}
	b.WriteString("}\n")
	return b.String()
}
