package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
)

func newVerifyCommand(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check every record: exits 0 when the journal is sound, 1 when it is not",
		Args:  noArguments,
		RunE:  func(*cobra.Command, []string) error { return a.verify(asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// verified is what journal verify prints. Its JSON form is public.
type verified struct {
	Sound    bool              `json:"sound"`
	Tasks    int               `json:"tasks"`
	Records  int               `json:"records"`
	Problems []journal.Problem `json:"problems"`
}

func (a *app) verify(asJSON bool) error {
	r := verified{Sound: true, Problems: []journal.Problem{}}
	known, err := a.hasJournal()
	if err != nil {
		return err
	}
	if known {
		report, err := journal.Verify(a.journalDir(), machine.Legal)
		if err != nil {
			return err
		}
		r.Tasks, r.Records, r.Problems = report.Tasks, report.Records, append(r.Problems, report.Problems...)
		r.Sound = len(r.Problems) == 0
	}
	if err := printVerified(a.stdout, r, asJSON); err != nil {
		return err
	}
	if !r.Sound {
		return &exit{code: 1}
	}
	return nil
}

func printVerified(w io.Writer, r verified, asJSON bool) error {
	if asJSON {
		return printJSON(w, r)
	}
	for _, p := range r.Problems {
		where := "the journal"
		switch {
		case p.Task != "" && p.Seq > 0:
			where = fmt.Sprintf("task %s, record %d", printable(p.Task), p.Seq)
		case p.Task != "":
			where = "task " + printable(p.Task)
		}
		if _, err := fmt.Fprintf(w, "%s: %s\n", where, printable(p.What)); err != nil {
			return err
		}
	}
	word := "sound"
	if !r.Sound {
		word = "NOT sound: " + counted(len(r.Problems), "problem")
	}
	_, err := fmt.Fprintf(w, "%s, %s: %s\n", counted(r.Tasks, "task"), counted(r.Records, "record"), word)
	return err
}
