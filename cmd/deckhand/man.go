package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func newManCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "man DIRECTORY",
		Short: "Write the manual pages into a directory",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			header := &doc.GenManHeader{Title: "DECKHAND", Section: "1", Source: "deckhand " + version, Manual: "Deckhand"}
			if err := doc.GenManTree(cmd.Root(), header, args[0]); err != nil {
				return fmt.Errorf("cannot write the manual pages: %w", err)
			}
			_, err := fmt.Fprintln(a.stderr, "wrote the manual pages into", args[0])
			return err
		},
	}
}
