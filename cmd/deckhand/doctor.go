package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/deckhand/deckhand/internal/engine"
)

// finding is what one check came to. Its JSON form is public.
type finding struct {
	Check  string `json:"check"`
	Result string `json:"result"` // ok, warn or fail
	Found  string `json:"found"`
	Fix    string `json:"fix"` // empty when nothing is to be done
}

// What a check comes to.
const (
	checkOK   = "ok"
	checkWarn = "warn"
	checkFail = "fail"
)

func fine(format string, args ...any) finding {
	return finding{Result: checkOK, Found: fmt.Sprintf(format, args...)}
}

func doubt(found, fix string) finding  { return finding{Result: checkWarn, Found: found, Fix: fix} }
func broken(found, fix string) finding { return finding{Result: checkFail, Found: found, Fix: fix} }

// Exit codes of doctor.
const (
	doctorFailed  = 1
	doctorDoubted = 2 // only with --strict
)

// dockerWait is how long a Docker that does not answer is waited for.
const dockerWait = 3 * time.Second

// checks are what doctor looks at, in the order in which it tells. A check that
// does not concern this node finds nothing.
var checks = []struct {
	name string
	look func(*examination, context.Context) []finding
}{
	{"root", (*examination).root},
	{"space", (*examination).space},
	{"inodes", (*examination).inodes},
	{"disk", (*examination).disk},
	{"user", (*examination).user},
	{"limits", (*examination).limits},
	{"clock", (*examination).clock},
	{"journal", (*examination).journal},
	{"journal reserve", (*examination).reserve},
	{"unfinished task", (*examination).unfinished},
	{"lock", (*examination).lock},
	{"docker", (*examination).reached},
	{"docker storage", (*examination).storageDriver},
	{"docker limits", (*examination).dockerLimits},
	{"docker runtime", (*examination).runtime},
	{"docker live-restore", (*examination).liveRestore},
	{"leftovers", (*examination).leftovers},
	{"held", (*examination).held},
	{"mounted inputs", (*examination).mounts},
	{"launcher", (*examination).launcher},
	{"job directories", (*examination).jobDirs},
	{"htcondor", (*examination).htcondor},
	{"slurm", (*examination).slurm},
	{"job limits", (*examination).jobLimits},
	{"events", (*examination).events},
	{"metrics", (*examination).metricsFile},
	{"credentials", (*examination).credentials},
	{"image", (*examination).images},
	{"storage", (*examination).reach},
}

// examination is what the checks of one doctor share.
type examination struct {
	*app
	task *document // whose images and URLs are looked for; nil for none
	// docker is nil when it does not answer, and silent says why.
	docker *engine.Docker
	info   engine.Info
	silent error
	now    func() time.Time
	// synced says whether the kernel's clock follows a source of time.
	synced func() (bool, error)
}

func newDoctorCommand(a *app) *cobra.Command {
	var asJSON, strict bool
	cmd := &cobra.Command{
		Use:   "doctor [TASK]",
		Short: "Check this node, with a fix for each thing that is wrong",
		Long: `Doctor checks this node and changes nothing: a small file with which it tries the
disk of the root is removed again. With a task document it also asks
for the images of the task and for what its URLs lead to. It exits 1 when something
fails and, with --strict, 2 when there are only warnings.`,
		Example: `  deckhand doctor
  deckhand doctor task.json --strict --json`,
		Args: optionalArgument("TASK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			e := &examination{app: a, now: time.Now, synced: clockSynced}
			if len(args) > 0 {
				var err error
				if e.task, err = a.readDocument(cmd.Context(), args[0], ""); err != nil {
					return err
				}
			}
			findings := e.examine(cmd.Context())
			if err := printFindings(a.stdout, findings, asJSON); err != nil {
				return err
			}
			return verdict(findings, strict)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&strict, "strict", false, "exit with 2 when there are warnings")
	return cmd
}

func (e *examination) examine(ctx context.Context) []finding {
	e.docker, e.silent = engine.Connect(ctx, engine.Options{Host: e.conf.Docker.Host, Wait: min(e.conf.Engine.Wait, dockerWait)})
	if e.silent == nil {
		defer func() { _ = e.docker.Close() }() // it was only asked
		e.info, e.silent = e.docker.Info(ctx)
	}
	findings := []finding{}
	for _, c := range checks {
		for _, f := range c.look(e, ctx) {
			f.Check = c.name
			findings = append(findings, f)
		}
	}
	return findings
}

// verdict is the findings in the form of an exit code.
func verdict(findings []finding, strict bool) error {
	code := 0
	for _, f := range findings {
		switch {
		case f.Result == checkFail:
			return &exit{code: doctorFailed}
		case f.Result == checkWarn && strict:
			code = doctorDoubted
		}
	}
	if code != 0 {
		return &exit{code: code}
	}
	return nil
}

func bytesSize(b uint64) string { return units.BytesSize(float64(b)) }

func printFindings(w io.Writer, findings []finding, asJSON bool) error {
	if asJSON {
		return printJSON(w, findings)
	}
	count := map[string]int{}
	for _, f := range findings {
		count[f.Result]++
		line := fmt.Sprintf("%-5s %s: %s", f.Result, f.Check, message(errors.New(f.Found)))
		if f.Fix != "" {
			line += "\n      " + strings.ToUpper(f.Fix[:1]) + f.Fix[1:] + "."
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%d ok, %s, %d failed\n", count[checkOK], counted(count[checkWarn], "warning"), count[checkFail])
	return err
}
