package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
)

// finding is one check of doctor. Its JSON form is public.
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

func newDoctorCommand(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check this node, with a fix for each thing that is wrong",
		Long:  "Doctor checks this node and changes nothing. It exits 1 when something fails.",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings := a.examine(cmd.Context())
			if err := printFindings(a.stdout, findings, asJSON); err != nil {
				return err
			}
			for _, f := range findings {
				if f.Result == checkFail {
					return &exit{code: 1}
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) examine(ctx context.Context) []finding {
	findings := []finding{a.examineRoot(), a.examineSpace()}
	if exists(a.journalDir()) {
		findings = append(findings, a.examineReserve(), a.examineJournal(), a.examineTasks(), a.examineHoldings(ctx))
	}
	return append(findings, a.examineDocker(ctx)...)
}

func (a *app) examineRoot() finding {
	f := finding{Check: "root", Result: checkOK, Found: a.conf.Root}
	if err := a.checkRoot(); err != nil {
		f.Result, f.Found, f.Fix = checkFail, message(err), "choose a directory on a disk of this node with --root"
	} else if err := node.CheckFilesystem(a.conf.Root); err != nil {
		f.Result, f.Found, f.Fix = checkWarn, message(err), "disk.any_filesystem takes the risk; better choose another directory with --root"
	}
	return f
}

func (a *app) examineSpace() finding {
	f := finding{Check: "space", Result: checkOK}
	space, err := node.SpaceAt(a.conf.Root)
	if err != nil {
		f.Result, f.Found = checkFail, message(err)
		return f
	}
	f.Found = fmt.Sprintf("%s of %s and %d inodes free", bytesSize(space.FreeBytes), bytesSize(space.TotalBytes), space.FreeInodes)
	if floor := uint64(max(0, a.conf.Disk.Floor)); space.FreeBytes < floor {
		f.Result = checkFail
		f.Fix = fmt.Sprintf("free space: %s must stay free (disk.floor); \"deckhand scrub\" removes what earlier tasks left", bytesSize(floor))
	}
	return f
}

func (a *app) examineReserve() finding {
	f := finding{Check: "journal reserve", Result: checkOK}
	r, err := journal.ReserveOf(a.journalDir())
	if err != nil {
		f.Result, f.Found = checkWarn, message(err)
		return f
	}
	f.Found = reserveInWords(r)
	if r.Ballast < r.BallastWanted {
		f.Result, f.Fix = checkWarn, "free space; the next run fills the reserve again"
	}
	return f
}

func (a *app) examineJournal() finding {
	f := finding{Check: "journal", Result: checkOK}
	report, err := journal.Verify(a.journalDir(), machine.Legal)
	switch {
	case err != nil:
		f.Result, f.Found = checkFail, message(err)
	case len(report.Problems) > 0:
		f.Result = checkFail
		f.Found = fmt.Sprintf("%d problems, the first: %s", len(report.Problems), report.Problems[0].What)
		f.Fix = "look at \"deckhand journal verify\"; the next run moves a journal that cannot be opened aside and begins a new one"
	default:
		f.Found = fmt.Sprintf("%d tasks, %d records, sound", report.Tasks, report.Records)
	}
	return f
}

func (a *app) examineTasks() (f finding) {
	f = finding{Check: "unfinished task", Result: checkOK, Found: "none"}
	v, ok, err := a.view()
	if err != nil || !ok {
		f.Result, f.Found = checkFail, fmt.Sprint(err)
		return f
	}
	defer func() {
		if err := v.Close(); err != nil {
			f.Result, f.Found = checkWarn, message(err)
		}
	}()
	n, err := v.Node()
	switch {
	case err != nil:
		f.Result, f.Found = checkFail, message(err)
	case n.Active != nil:
		f.Found = fmt.Sprintf("task %s, attempt %d", n.Active.Task, n.Active.Attempt)
		if _, alive, err := a.owner(); err == nil && !alive {
			f.Result = checkWarn
			f.Fix = "run the task again to resume it, or \"deckhand recover\" to roll it back"
		}
	}
	return f
}

// examineHoldings tells what takes space on the node.
func (a *app) examineHoldings(ctx context.Context) (f finding) {
	f = finding{Check: "held", Result: checkOK}
	v, ok, err := a.view()
	if err != nil || !ok {
		f.Result, f.Found = checkWarn, fmt.Sprint(err)
		return f
	}
	n, err := v.Node()
	if err = errors.Join(err, v.Close()); err != nil {
		f.Result, f.Found = checkWarn, message(err)
		return f
	}
	ours, others := a.holdings(ctx, n, doctorLimit).inWords()
	f.Found = fmt.Sprintf("by deckhand: %s; by others: %s", ours, others)
	return f
}

func (a *app) examineDocker(ctx context.Context) []finding {
	f := finding{Check: "docker", Result: checkOK}
	docker, err := a.connect(ctx)
	if err != nil {
		f.Result, f.Found, f.Fix = checkFail, message(err), "start the Docker Engine, or name another with --docker-host"
		return []finding{f}
	}
	info, err := docker.Info(ctx)
	if err = errors.Join(err, docker.Close()); err != nil {
		f.Result, f.Found, f.Fix = checkFail, message(err), "look at the log of the Docker Engine"
		return []finding{f}
	}
	f.Found = fmt.Sprintf("%s, API %s, %s, cgroup v%s by %s", info.Version, info.APIVersion, info.StorageDriver, info.CgroupVersion, info.CgroupDriver)
	restart := finding{Check: "docker live-restore", Result: checkOK, Found: "on: containers outlive a restart of the daemon"}
	if !info.LiveRestore {
		restart.Result, restart.Found = checkWarn, "off: a restart of the daemon ends running tasks, which are then run again"
		restart.Fix = "set \"live-restore\": true in daemon.json"
	}
	return []finding{f, restart}
}

func bytesSize(b uint64) string { return units.BytesSize(float64(b)) }

func printFindings(w io.Writer, findings []finding, asJSON bool) error {
	if asJSON {
		return printJSON(w, findings)
	}
	for _, f := range findings {
		line := fmt.Sprintf("%-5s %s: %s", f.Result, f.Check, f.Found)
		if f.Fix != "" {
			line += "\n      " + strings.ToUpper(f.Fix[:1]) + f.Fix[1:] + "."
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}
