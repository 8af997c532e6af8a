package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/deckhand/deckhand/machine"
)

func newGraphCommand(a *app) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "graph",
		Short: "Draw the state machine",
		Args:  noArguments,
		RunE: func(*cobra.Command, []string) error {
			picture := ""
			switch format {
			case "mermaid":
				picture = machine.Mermaid()
			case "dot":
				picture = machine.DOT()
			default:
				return usage("--format is %q; it can be mermaid or dot", format)
			}
			_, err := io.WriteString(a.stdout, picture)
			return err
		},
	}
	cmd.Flags().StringVar(&format, "format", "mermaid", "mermaid or dot")
	return cmd
}
