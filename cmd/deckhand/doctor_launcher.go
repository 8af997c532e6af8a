package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/deckhand/deckhand/internal/engine"
)

// launchers are batch engines by the variable in which each names its job.
var launchers = []struct{ name, variable, page string }{
	{"Slurm", "SLURM_JOB_ID", "slurm"},
	{"Nomad", "NOMAD_ALLOC_ID", "nomad"},
	{"HTCondor", "_CONDOR_SLOT", "htcondor"},
	{"Azure Batch", "AZ_BATCH_TASK_ID", "azure-batch"},
	{"AWS Batch", "AWS_BATCH_JOB_ID", "aws-batch"},
	{"Kubernetes", "KUBERNETES_SERVICE_HOST", "kubernetes"},
}

func (e *examination) launcher(context.Context) []finding {
	for _, l := range launchers {
		if id := os.Getenv(l.variable); id != "" {
			return []finding{fine("%s (%s=%s); see docs/engines/%s.md", l.name, l.variable, id, l.page)}
		}
	}
	return []finding{fine("none is known by its variables")}
}

// ofJob are the variables in which batch engines name directories that go with the job.
var ofJob = []string{"_CONDOR_SCRATCH_DIR", "NOMAD_TASK_DIR", "NOMAD_ALLOC_DIR", "NOMAD_SECRETS_DIR", "AZ_BATCH_TASK_DIR"}

// jobDirs says whether the root is to outlive the job, as it must: the next run of the task
// looks for it there. So must the outputs of a task.
func (e *examination) jobDirs(context.Context) (found []finding) {
	if e.task != nil {
		for _, w := range privateOutputs(e.task.task) {
			found = append(found, doubt(w, "choose a directory that the node has too for the outputs"))
		}
	}
	root, err := filepath.Abs(e.conf.Root)
	if err != nil {
		return found
	}
	const fix = "choose a directory of the node with --root, such as /var/lib/deckhand"
	for _, name := range ofJob {
		dir := os.Getenv(name)
		if !filepath.IsAbs(dir) {
			continue
		}
		if below, err := filepath.Rel(dir, root); err == nil && filepath.IsLocal(below) {
			return append(found, doubt(fmt.Sprintf("the root %s is in %s, which goes with the job: what a dead run has left is not found again", root, name), fix))
		}
	}
	if point, private := e.privateRoot(); private {
		found = append(found, doubt(fmt.Sprintf("the root %s is on %s", root, ofJobAlone(point)), fix))
	}
	return found
}

// htcondor reads what the job asks of HTCondor from the description that it gives to each.
func (e *examination) htcondor(context.Context) (found []finding) {
	name := os.Getenv("_CONDOR_JOB_AD")
	if name == "" {
		return nil
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return []finding{doubt(fmt.Sprintf("the description of the job (_CONDOR_JOB_AD) cannot be read: %s", message(cause(err))), "see whether the job runs as the user who looks")}
	}
	if s := strings.Trim(setting(string(text), "KillSig"), `"`); !slices.Contains([]string{unset, "SIGTERM", "15"}, s) {
		found = append(found, doubt(fmt.Sprintf("KillSig is %s: a job that is vacated is not handed back", s), "set kill_sig = SIGTERM in the submit file"))
	}
	// Without it the machine's own bound holds, which is ten minutes if nobody has set it;
	// what is no number is an expression that only HTCondor can work out.
	grace, err := strconv.Atoi(setting(string(text), "JobMaxVacateTime"))
	if least := e.conf.Run.StopGrace + rollBack; err == nil && time.Duration(grace)*time.Second < least {
		found = append(found, doubt(fmt.Sprintf("JobMaxVacateTime is %d seconds: deckhand is killed before it has rolled back", grace),
			fmt.Sprintf("set job_max_vacate_time = %d or more in the submit file, or lower run.stop_grace", int(least.Seconds()))))
	}
	if len(found) == 0 {
		found = append(found, fine("KillSig and JobMaxVacateTime of the job are as they should be"))
	}
	return found
}

// scontrolWait is how long a controller that does not answer is waited for.
const scontrolWait = 10 * time.Second

// rollBack is about what a roll-back takes after the containers have ended.
const rollBack = 10 * time.Second

// slurm compares the settings of the cluster and the script of the job with
// docs/engines/slurm.md, where Slurm can be asked.
func (e *examination) slurm(ctx context.Context) (found []finding) {
	job := os.Getenv("SLURM_JOB_ID")
	if job == "" {
		return nil
	}
	text, err := scontrol(ctx, "show", "config")
	if err != nil {
		return []finding{doubt(message(err), "see whether scontrol is in the PATH of the job and slurmctld answers")}
	}
	if codes := setting(text, "RequeueExit"); !hasCode(codes, exitRetry) {
		found = append(found, doubt(fmt.Sprintf("RequeueExit is %s: a task that is to be run again (75) is not", codes), "set RequeueExit=75 in slurm.conf"))
	}
	if codes := setting(text, "RequeueExitHold"); !hasCode(codes, exitUnfit) {
		found = append(found, doubt(fmt.Sprintf("RequeueExitHold is %s: a task on an unfit node (78) fails", codes), "set RequeueExitHold=78 in slurm.conf"))
	}
	kill, err := strconv.Atoi(strings.TrimSuffix(setting(text, "KillWait"), " sec"))
	if least := e.conf.Run.StopGrace + rollBack; err != nil || time.Duration(kill)*time.Second < least {
		found = append(found, doubt(fmt.Sprintf("KillWait is %d seconds: deckhand is killed before it has rolled back", kill),
			fmt.Sprintf("set KillWait=%d or more in slurm.conf, or lower run.stop_grace", int(least.Seconds()))))
	}
	script, err := scontrol(ctx, "write", "batch_script", job, "-")
	switch {
	case err != nil:
		found = append(found, fine("the job has no script that can be looked at"))
	case startsDeckhand.MatchString(script) && !execsDeckhand.MatchString(script):
		found = append(found, doubt("the script of the job starts deckhand without exec: the shell keeps the signals of Slurm", "write exec in front of \"deckhand run\""))
	}
	if len(found) == 0 {
		found = append(found, fine("RequeueExit, RequeueExitHold, KillWait and the script of job %s are as they should be", job))
	}
	return found
}

// The line of a script that starts a run, and one that does it in place of the shell.
var (
	startsDeckhand = regexp.MustCompile(`(?m)^[^#\n]*\bdeckhand run\b`)
	execsDeckhand  = regexp.MustCompile(`(?m)^[^#\n]*\bexec\b[^#\n]*\bdeckhand run\b`)
)

func scontrol(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, scontrolWait)
	defer cancel()
	program := "scontrol"
	if os.Getenv("PATH") == "" { // as in an epilog
		program = "/usr/bin/scontrol"
	}
	out, err := exec.CommandContext(ctx, program, args...).Output()
	if err != nil {
		return "", fmt.Errorf("scontrol %s: %w", strings.Join(args, " "), err)
	}
	return string(out), nil
}

// unset is what setting returns for one that is not there.
const unset = "not set"

// setting is a value of "scontrol show config", or of another text of such lines.
func setting(text, name string) string {
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(line, "="); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return unset
}

// hasCode says whether a list such as 70-79,1 has a code.
func hasCode(list string, code int) bool {
	return slices.ContainsFunc(strings.Split(list, ","), func(part string) bool {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		low, err := strconv.Atoi(from)
		high, err2 := strconv.Atoi(to)
		return err == nil && err2 == nil && low <= code && code <= high
	})
}

// jobLimits says whether the limits of the engine's job bind the containers.
func (e *examination) jobLimits(context.Context) []finding {
	if e.conf.Run.CgroupParent != "auto" || e.silent != nil {
		return nil
	}
	group, err := e.jobGroup(func() (engine.Info, error) { return e.info, nil })
	if err != nil {
		return []finding{doubt("the limits of the job do not hold for the containers of a task: "+message(err), "see \"The job's limits\" in docs/engines/slurm.md")}
	}
	return []finding{fine("containers run below the control group of the job, %s", group)}
}
