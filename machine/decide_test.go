package machine

import "testing"

func TestDecide(t *testing.T) {
	unfinished := func(s State) Head { return Head{Task: "t", State: s, Document: "doc"} }
	rolling := func(outcome State, fault Fault) Head {
		return Head{Task: "t", State: RollingBack, Outcome: outcome, Fault: fault, Document: "doc"}
	}
	for _, c := range []struct {
		name     string
		head     Head
		known    bool
		document string
		fresh    bool
		want     Decision
	}{
		{"nothing active", Head{}, false, "doc", false, StartNew},
		{"unfinished", unfinished(Run), true, "doc", false, Resume},
		{"accepted only", unfinished(Accepted), true, "doc", false, Resume},
		{"unfinished, other document", unfinished(Run), true, "other", false, Refuse},
		{"unfinished, other document, fresh", unfinished(Run), true, "other", true, Restart},
		{"unfinished, fresh", unfinished(Upload), true, "doc", true, Restart},
		{"complete", unfinished(Complete), true, "doc", false, Repeat},
		{"complete, fresh", unfinished(Complete), true, "doc", true, StartNew},
		{"complete, other document", unfinished(Complete), true, "other", false, StartNew},
		{"executor error", unfinished(ExecutorError), true, "doc", false, StartNew},
		{"interrupted", unfinished(Interrupted), true, "doc", false, StartNew},
		{"canceled", unfinished(Canceled), true, "doc", false, StartNew},
		{"rolling back to canceled", rolling(Canceled, ""), true, "doc", false, Resume},
		{"rolling back to system error", rolling(SystemError, TaskFault), true, "doc", false, Resume},
		{"rolling back from the node's fault", rolling(SystemError, NodeFault), true, "doc", false, Restart},
		{"rolling back from the engine's fault", rolling(SystemError, EngineFault), true, "doc", false, Restart},
		{"rolling back to interrupted", rolling(Interrupted, RetryLater), true, "doc", false, Restart},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Decide(c.head, c.known, c.document, c.fresh); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}
