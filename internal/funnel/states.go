package funnel

import "github.com/deckhand/deckhand/internal/tes"

// Way lists the states that lead the server from one state to another, by what it
// was measured to accept; none where it is there, or where nothing leads there.
func Way(from, to tes.State) []tes.State {
	switch from {
	case to:
		return nil
	case tes.Complete, tes.Canceled, tes.Canceling, tes.Preempted, tes.Paused:
		return nil // nothing leaves them
	case tes.Running:
		if to == tes.Initializing {
			return nil // an attempt that begins anew stays in what it had reached
		}
	case tes.ExecutorError, tes.SystemError:
		if to != tes.Initializing {
			return []tes.State{tes.Initializing, to} // as a retry
		}
	}
	return []tes.State{to}
}
