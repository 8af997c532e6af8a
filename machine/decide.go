package machine

import "fmt"

// Decision is what a new run does about a task, given what the journal holds.
type Decision int

const (
	// StartNew begins a new attempt.
	StartNew Decision = iota
	// Resume goes on with the unfinished attempt in its journaled state.
	Resume
	// Restart rolls the unfinished attempt back, then begins a new one.
	Restart
	// Repeat prints the recorded result again and runs nothing.
	Repeat
	// Refuse ends the run: the unfinished attempt belongs to another document.
	Refuse
)

func (d Decision) String() string {
	return [...]string{"start new", "resume", "restart", "repeat", "refuse"}[d]
}

// Decide says what to do about a task. The owner of an unfinished attempt is
// dead by then: whoever asks holds the root.
func Decide(head Head, known bool, document string, fresh bool) Decision {
	switch {
	case !known:
		return StartNew
	case head.State.Final():
		if head.State == Complete && !fresh {
			if head.Document != document {
				return StartNew
			}
			return Repeat
		}
		return StartNew
	case fresh:
		return Restart
	case head.Document != document:
		return Refuse
	case head.handedBack():
		// Only the end of its roll-back is missing, and this run is the one
		// that the task was handed back for.
		return Restart
	default:
		return Resume
	}
}

// handedBack says whether the attempt's roll-back leads to another run of the
// task: by exit code 75, or by 78, when what ails the node may be mended by then.
func (h Head) handedBack() bool {
	return h.Outcome == Interrupted || h.Fault == NodeFault || h.Fault == EngineFault
}

// NextInWords says what the next run of the task would do, for people.
func NextInWords(head Head) string {
	switch {
	case head.State == Complete:
		return "nothing: the recorded result is printed again"
	case head.State == Interrupted:
		return "a new attempt, when the engine runs the task again"
	case head.State.Final():
		return "nothing, unless it is run again: that is a new attempt"
	case head.State == RollingBack && head.handedBack():
		return "will finish rolling back, then begin a new attempt"
	case head.State == RollingBack:
		return fmt.Sprintf("will finish rolling back and end %s", head.Outcome)
	default:
		return fmt.Sprintf("will resume at %s", head.State)
	}
}
