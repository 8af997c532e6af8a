package machine

// Transition is one arrow of the state machine.
type Transition struct {
	From  State
	Event Event
	To    State
}

// Table is the whole machine. An event may lead to several states from one
// state (rolled_back does); then the head's Outcome decides.
var Table = buildTable()

func buildTable() []Transition {
	t := []Transition{
		{Accepted, Started, Scrub},
		{Scrub, Scrubbed, ImageCheck},
		{ImageCheck, ImageReady, Download},
		{Download, InputsStaged, Run},
		{Run, ExecutorsFinished, Upload},
		{Upload, Completed, Complete},
		{Upload, ExecutorFailed, ExecutorError},
	}
	for _, from := range append([]State{Accepted}, Working...) {
		for _, e := range []Event{StepFailed, CanceledByUser, InterruptedByUs} {
			t = append(t, Transition{from, e, RollingBack})
		}
	}
	for _, to := range []State{SystemError, Canceled, Interrupted} {
		t = append(t, Transition{RollingBack, RolledBack, to})
	}
	return t
}

// Legal says whether the table holds this transition. The first record of an
// attempt, which comes from no state, is legal as well.
func Legal(from State, event Event, to State) bool {
	if from == "" {
		return event == AcceptedTask && to == Accepted
	}
	for _, t := range Table {
		if t == (Transition{from, event, to}) {
			return true
		}
	}
	return false
}

// success is the event that ends a step without a failure.
var success = map[State]Event{
	Scrub:      Scrubbed,
	ImageCheck: ImageReady,
	Download:   InputsStaged,
	Run:        ExecutorsFinished,
	Upload:     Completed,
}
