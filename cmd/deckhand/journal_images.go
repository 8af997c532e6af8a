package main

import (
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/deckhand/deckhand/machine"
)

// imageAccount is what journal images prints. Its JSON form is public.
type imageAccount struct {
	Last   []machine.ImageRecord `json:"last"`
	Ledger []machine.ImageRecord `json:"ledger"`
}

func newImagesCommand(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "images",
		Short: "The image ledger and the last-image record",
		Args:  noArguments,
		RunE:  func(*cobra.Command, []string) error { return a.images(asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) images(asJSON bool) (err error) {
	account := imageAccount{Last: []machine.ImageRecord{}, Ledger: []machine.ImageRecord{}}
	v, ok, err := a.view()
	if err != nil {
		return err
	}
	if ok {
		defer func() { err = errors.Join(err, v.Close()) }()
		n, err := v.Node()
		if err != nil {
			return err
		}
		account.Ledger = append(account.Ledger, n.Images...)
	}
	for _, r := range account.Ledger {
		if r.Last {
			account.Last = append(account.Last, r)
		}
	}
	if asJSON {
		return printJSON(a.stdout, account)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, r := range account.Ledger {
		origin, use := "was on the node before", "kept"
		if r.PulledByUs {
			origin = "pulled by deckhand"
		}
		if r.Last {
			use = "last used"
		}
		if _, err := fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s by task %s\n", r.Reference, shortID(r.ImageID), r.Phase, origin, use, r.Task); err != nil {
			return err
		}
	}
	return w.Flush()
}
