package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newValidateCommand(a *app) *cobra.Command {
	var encoded string
	cmd := &cobra.Command{
		Use:   "validate [TASK]",
		Short: "Check a task document; exits 0 or 2",
		Example: `  deckhand validate task.json
  deckhand validate https://tes.example.org/task`,
		Args: optionalArgument("TASK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			source := ""
			if len(args) > 0 {
				source = args[0]
			}
			d, err := a.readDocument(cmd.Context(), source, encoded)
			if err != nil {
				return err
			}
			for _, w := range d.warnings {
				if _, err := fmt.Fprintln(a.stdout, "warning:", printable(w)); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(a.stdout, "task %s is valid\n", d.id)
			return err
		},
	}
	cmd.Flags().StringVar(&encoded, "task-base64", "", "the task document itself, in base64 `text`")
	return cmd
}
