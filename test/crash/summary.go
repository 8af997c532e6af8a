package crash

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/deckhand/deckhand/internal/tes"
)

// Summary tells what a result document says, without what differs from run to run.
func Summary(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	var task tes.Task
	if err := json.Unmarshal(text, &task); err != nil {
		return "", err
	}
	said := string(task.State)
	if len(task.Logs) > 0 {
		last := task.Logs[len(task.Logs)-1]
		for _, l := range last.Logs {
			said += fmt.Sprintf("; exit code %d, stdout %q, stderr %q", l.ExitCode, l.Stdout, l.Stderr)
		}
		for _, o := range last.Outputs {
			said += fmt.Sprintf("; %s %d", o.Path, o.SizeBytes)
		}
	}
	return said, nil
}
