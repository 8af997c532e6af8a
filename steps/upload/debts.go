package upload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/deckhand/deckhand/internal/group"
	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/machine"
)

// whatOwed is the kind of fact that tells of a debt: what an upload began and a roll-back
// could not remove, because its storage was away or did not let it.
const whatOwed = "owed"

// whatSettled is the kind of fact that tells how many debts were settled.
const whatSettled = "settled"

// owed is the detail of a debt.
type owed struct {
	URL string `json:"url"`
	storage.Unfinished
}

// maxDebts bounds the node record; the oldest are forgotten.
const maxDebts = 1000

const (
	// owedFor is how long a debt is kept: a storage that has refused so long, or is gone, stays so.
	owedFor = 30 * 24 * time.Hour
	// undoTime is how long a roll-back tries: an engine that waits for it may kill it.
	undoTime = time.Minute
	// settleTime is how long a scrub tries: a task waits for it.
	settleTime = 10 * time.Second
)

// read reads what is owed.
func read(d machine.Debt) (o owed, err error) {
	if err := json.Unmarshal(d.Detail, &o); err != nil {
		return o, fmt.Errorf("the journaled upload cannot be read: %w", err)
	}
	o.Before = d.Since
	return o, nil
}

// abort removes what is owed, and returns where that was.
func abort(ctx context.Context, s Storage, d machine.Debt) (url string, err error) {
	o, err := read(d)
	if err != nil {
		return "", err
	}
	return o.URL, s.Abort(ctx, o.URL, o.Unfinished)
}

// limited bounds what tries to remove what uploads began.
func limited(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("it could not be removed within %s", d))
}

// owe journals what could not be removed, for Settle.
func owe(ctx context.Context, n machine.Notes, t *machine.Task, left []owed) error {
	debts := n.Debts()
	var urls []string
	for _, o := range left {
		detail, err := json.Marshal(o)
		if err != nil {
			return fmt.Errorf("cannot encode what an upload has left: %w", err)
		}
		// A roll-back that is gone on with comes to the same again.
		debts = slices.DeleteFunc(debts, func(d machine.Debt) bool {
			return d.Task == t.ID && d.Attempt == t.Attempt && bytes.Equal(d.Detail, detail)
		})
		debts = append(debts, machine.Debt{Task: t.ID, Attempt: t.Attempt, Since: time.Now().UTC(), Detail: detail})
		urls = append(urls, o.URL)
	}
	return n.Done(ctx, machine.Fact{What: whatOwed, Detail: map[string][]string{"urls": urls}, Debts: debts[max(0, len(debts)-maxDebts):]})
}

// Settled is what the upload of a task had left, and what is gone.
type Settled struct{ Task, URL string }

// WouldSettle returns what Settle tries to remove. No storage is asked.
func WouldSettle(debts []machine.Debt) ([]Settled, error) {
	var settled []Settled
	for _, d := range debts {
		o, err := read(d)
		if err != nil {
			return nil, err
		}
		settled = append(settled, Settled{d.Task, o.URL})
	}
	return settled, nil
}

// Settle tries again to remove what uploads of earlier tasks began and their roll-backs
// could not remove, and returns what is gone. What cannot be removed now stays owed. Only the
// journal's errors, and that of the context, are returned.
func Settle(ctx context.Context, n machine.Notes, s Storage, log *slog.Logger) ([]Settled, error) {
	debts := n.Debts()
	if len(debts) == 0 {
		return nil, nil
	}
	trying, cancel := limited(ctx, settleTime)
	defer cancel()
	urls, failed := make([]string, len(debts)), make([]error, len(debts))
	tries, _ := group.WithContext(trying)
	for i, d := range debts {
		tries.Go(func() error {
			urls[i], failed[i] = abort(trying, s, d)
			return nil
		})
	}
	if err := errors.Join(tries.Wait(), ctx.Err()); err != nil {
		return nil, err
	}
	var settled []Settled
	left := []machine.Debt{}
	for i, d := range debts {
		said := "the next scrub tries again"
		switch {
		case failed[i] == nil:
			settled = append(settled, Settled{d.Task, urls[i]})
			continue
		case time.Since(d.Since) > owedFor:
			said = "nobody tries again"
		default:
			left = append(left, d)
		}
		log.Warn("what the upload of an earlier task began is still at its storage; "+said, "task", d.Task, "since", d.Since,
			"error", redact.Text(failed[i].Error()))
	}
	if len(left) == len(debts) {
		return nil, nil
	}
	log.Info("removed what uploads of earlier tasks had left at storages", "uploads", len(settled))
	return settled, n.Done(ctx, machine.Fact{What: whatSettled, Detail: map[string]int{"removed": len(settled)}, Debts: left})
}
