package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
)

// last names the task with the newest record.
const last = "last"

// view opens a copy of the journal to read; false when nothing ever ran here.
func (a *app) view() (*journal.View, bool, error) {
	if known, err := a.hasJournal(); !known {
		return nil, false, err
	}
	v, err := journal.OpenView(a.journalDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	if doubt := v.Doubt(); doubt != nil {
		fmt.Fprintf(a.stderr, "deckhand: warning: the journal %s: %s; \"deckhand journal verify\" tells more, the next run sets it aside\n",
			a.journalDir(), message(doubt))
	}
	return v, true, nil
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// hasJournal says whether anything ever ran here. Who may not look does not know.
func (a *app) hasJournal() (bool, error) {
	_, err := os.Lstat(a.journalDir())
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return false, nil
	case errors.Is(err, fs.ErrPermission):
		return false, machine.Faultf(machine.NodeFault, "cannot look into %s: %w; run as its owner, or as root", a.conf.Root, cause(err))
	}
	return false, machine.Faultf(machine.NodeFault, "cannot look into %s: %w", a.conf.Root, cause(err))
}

// viewTask opens a copy of the journal and finds the task that a name means.
func (a *app) viewTask(name string) (*journal.View, machine.Head, error) {
	v, ok, err := a.view()
	if err != nil {
		return nil, machine.Head{}, err
	}
	if !ok {
		return nil, machine.Head{}, a.unknownTask(name)
	}
	head, err := a.find(v, name)
	if err != nil {
		return nil, head, errors.Join(err, v.Close())
	}
	return v, head, nil
}

// task finds the task that a name means.
func (a *app) task(name string) (machine.Head, error) {
	v, head, err := a.viewTask(name)
	if err != nil {
		return head, err
	}
	return head, v.Close()
}

// find returns the task that a name means: its id, a prefix that only it has,
// or "last".
func (a *app) find(v *journal.View, name string) (machine.Head, error) {
	heads, err := v.Heads()
	if err != nil {
		return machine.Head{}, err
	}
	heads = tasksOnly(heads)
	if name == last && len(heads) > 0 {
		return heads[0], nil
	}
	var found []machine.Head
	for _, h := range heads {
		if h.Task == name {
			return h, nil
		}
		if strings.HasPrefix(h.Task, name) {
			found = append(found, h)
		}
	}
	switch len(found) {
	case 0:
		return machine.Head{}, a.unknownTask(name)
	case 1:
		return found[0], nil
	}
	var ids []string
	for _, h := range found {
		ids = append(ids, h.Task)
	}
	return machine.Head{}, usage("%q means several tasks: %s; give more of its id", name, strings.Join(ids, ", "))
}

func (a *app) unknownTask(name string) error {
	if name == last {
		return &exit{statusUnknown, fmt.Errorf("no task is known on %s; is that the root you mean (--root)?", a.conf.Root)}
	}
	return &exit{statusUnknown, fmt.Errorf("no task %s is known on %s; \"deckhand journal list\" shows those that are", name, a.conf.Root)}
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

// completeTask offers the shell the ids of tasks, newest first.
func (a *app) completeTask(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	if len(args) > 0 || a.configure(cmd) != nil {
		return nil, none
	}
	v, ok, err := a.view()
	if err != nil || !ok {
		return nil, none
	}
	defer func() { _ = v.Close() }() // nobody to tell
	heads, err := v.Heads()
	if err != nil {
		return nil, none
	}
	var ids []cobra.Completion
	for _, h := range tasksOnly(heads) {
		if strings.HasPrefix(h.Task, prefix) {
			ids = append(ids, cobra.CompletionWithDesc(h.Task, fmt.Sprintf("%s since %s", h.State, h.Since.Local().Format(time.DateTime))))
		}
	}
	return ids, none | cobra.ShellCompDirectiveKeepOrder
}
