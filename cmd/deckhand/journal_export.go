package main

import (
	"github.com/spf13/cobra"
)

func newExportCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "export",
		Short: "Every record as JSON lines",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.inspect(cmd.Context(), nil, inspectOptions{output: "json"})
		},
	}
}
