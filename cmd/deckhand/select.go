package main

import (
	"strings"

	"github.com/deckhand/deckhand/machine"
)

// last names the task with the newest record.
const last = "last"

func matches(task, name string) bool { return strings.HasPrefix(task, name) }

// find returns the task that a name means: its id, a prefix that only it has,
// or "last". heads come newest first.
func find(heads []machine.Head, name string) (machine.Head, bool, error) {
	heads = tasksOnly(heads)
	if name == last {
		if len(heads) == 0 {
			return machine.Head{}, false, nil
		}
		return heads[0], true, nil
	}
	var found []machine.Head
	for _, h := range heads {
		if h.Task == name {
			return h, true, nil
		}
		if matches(h.Task, name) {
			found = append(found, h)
		}
	}
	switch len(found) {
	case 0:
		return machine.Head{}, false, nil
	case 1:
		return found[0], true, nil
	}
	var ids []string
	for _, h := range found {
		ids = append(ids, h.Task)
	}
	return machine.Head{}, false, usage("%q means several tasks: %s; give more of its id", name, strings.Join(ids, ", "))
}

// tasksOnly leaves out the account that the node keeps of itself.
func tasksOnly(heads []machine.Head) []machine.Head {
	var tasks []machine.Head
	for _, h := range heads {
		if h.Task != machine.NodeTask {
			tasks = append(tasks, h)
		}
	}
	return tasks
}
