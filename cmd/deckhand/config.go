package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/deckhand/deckhand/config"
)

func newConfigCommand(a *app) *cobra.Command {
	var asJSON, example bool
	cmd := &cobra.Command{
		Use:   "config",
		Short: "The configuration in force, and where each value came from",
		Args:  noArguments,
		Example: `  deckhand config
  deckhand config --example`,
		// The example is wanted where the file is broken, too.
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if example {
				return nil
			}
			return a.configure(cmd)
		},
		RunE: func(*cobra.Command, []string) error {
			if example && asJSON {
				return usage("--example is YAML, not JSON; give one of --example and --json")
			}
			if example {
				_, err := io.WriteString(a.stdout, config.Example())
				return err
			}
			if asJSON {
				return printJSON(a.stdout, a.conf.Settings())
			}
			w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			for _, s := range a.conf.Settings() {
				if _, err := fmt.Fprintf(w, "%s\t%s\t%s\n", s.Key, s.Value, s.Source); err != nil {
					return err
				}
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&example, "example", false, "print a configuration file that has every setting, commented out at its default")
	return cmd
}
