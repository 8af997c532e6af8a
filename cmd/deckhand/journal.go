package main

import (
	"github.com/spf13/cobra"
)

func newJournalCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "journal",
		Short: "Read and check the journal; works while a run holds it",
		Args:  noArguments,
	}
	cmd.AddCommand(newInspectCommand(a), newListCommand(a), newImagesCommand(a), newVerifyCommand(a), newExportCommand(a), newReportCommand(a), newPruneCommand(a))
	return cmd
}
