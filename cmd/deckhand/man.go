package main

import (
	"bytes"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func newManCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "man [DIRECTORY]",
		Short: "Print the manual page, or write the pages of all commands into a directory",
		Example: `  deckhand man | man -l -
  deckhand man /usr/local/share/man/man1`,
		Args: optionalArgument("DIRECTORY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			root.DisableAutoGenTag = true
			root.Long += "\n\n" + exitCodesHelp
			header := &doc.GenManHeader{Title: "DECKHAND", Section: "1", Source: "deckhand " + version, Manual: "Deckhand"}
			// The same source gives the same pages.
			if released, err := time.Parse(time.RFC3339, date); err == nil {
				header.Date = &released
			}
			if len(args) > 0 {
				if err := doc.GenManTree(root, header, args[0]); err != nil {
					return usage("cannot write the manual pages: %w; name a directory that exists and is writable", err)
				}
				_, err := fmt.Fprintln(a.stderr, "wrote the manual pages into", args[0])
				return err
			}
			var page bytes.Buffer
			if err := doc.GenMan(root, header, &page); err != nil {
				return fmt.Errorf("cannot make the manual page: %w", err)
			}
			_, err := a.stdout.Write(page.Bytes())
			return err
		},
	}
}
