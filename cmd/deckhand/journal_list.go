package main

import (
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/deckhand/deckhand/machine"
)

func newListCommand(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "The tasks that the journal knows, one line each, newest first",
		Args:  noArguments,
		RunE:  func(*cobra.Command, []string) error { return a.list(asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	return cmd
}

// listed is a line of journal list. Its JSON form is public.
type listed struct {
	Task    string        `json:"task"`
	State   machine.State `json:"state"`
	Attempt int           `json:"attempt"`
	Since   time.Time     `json:"since"`
	Reason  string        `json:"reason"`
}

func (a *app) list(asJSON bool) (err error) {
	v, ok, err := a.view()
	if err != nil || !ok {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	heads, err := v.Heads()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, h := range tasksOnly(heads) {
		if asJSON {
			err = printJSON(a.stdout, listed{h.Task, h.State, h.Attempt, h.Since, h.Reason})
		} else {
			_, err = fmt.Fprintf(w, "%s\t%s\tattempt %d\t%s\t%s\n", h.Task, h.State, h.Attempt, h.Since.Local().Format(time.DateTime), printable(h.Reason))
		}
		if err != nil {
			return err
		}
	}
	return w.Flush()
}
