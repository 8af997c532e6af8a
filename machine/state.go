// Package machine takes one task through its states. It owns the states, the
// events, the transition table, the Step interface, the loop that runs the
// steps and the decision what a new run does with what an earlier one left.
// It imports no other package of this module: the journal, the engine and the
// steps come to it through the interfaces it declares.
package machine

// State is where an attempt at a task stands.
type State string

// Entering a state means that its step may have begun.
const (
	Accepted   State = "Accepted"
	Scrub      State = "Scrub"
	ImageCheck State = "ImageCheck"
	Download   State = "Download"
	Run        State = "Run"
	Upload     State = "Upload"
	// RollingBack undoes what the attempt made on the node; Head.Outcome says
	// which final state follows.
	RollingBack State = "RollingBack"

	Complete      State = "Complete"
	ExecutorError State = "ExecutorError"
	SystemError   State = "SystemError"
	Canceled      State = "Canceled"
	// Interrupted is final for the attempt, not for the task: the task was
	// handed back to the engine, which runs it again.
	Interrupted State = "Interrupted"
)

// States lists every state, in the order in which a task meets them.
var States = []State{
	Accepted, Scrub, ImageCheck, Download, Run, Upload, RollingBack,
	Complete, ExecutorError, SystemError, Canceled, Interrupted,
}

// Working lists the states that have a step, in order.
var Working = []State{Scrub, ImageCheck, Download, Run, Upload}

// Final says whether an attempt in this state has ended.
func (s State) Final() bool {
	switch s {
	case Complete, ExecutorError, SystemError, Canceled, Interrupted:
		return true
	}
	return false
}

// Event is what happened to an attempt, in the past tense.
type Event string

const (
	// AcceptedTask is the event of an attempt's first record, which has no
	// state before it.
	AcceptedTask      Event = "accepted"
	Started           Event = "started"
	Scrubbed          Event = "scrubbed"
	ImageReady        Event = "image_ready"
	InputsStaged      Event = "inputs_staged"
	ExecutorsFinished Event = "executors_finished"
	Completed         Event = "completed"
	ExecutorFailed    Event = "executor_failed"
	StepFailed        Event = "step_failed"
	CanceledByUser    Event = "canceled"
	InterruptedByUs   Event = "interrupted"
	RolledBack        Event = "rolled_back"
)
