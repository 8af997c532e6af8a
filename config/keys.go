package config

import (
	"os"
	"path/filepath"
	"strings"
	"time"
)

// key is one setting. This table is the only place that names it: flags,
// environment, file, defaults and docs/configuration.md follow from it.
type key struct {
	name string
	// fallback is the default as one would write it in the file.
	fallback string
	doc      string
	kind     kind
	// flag is the command line's name for it, without dashes; empty for none.
	flag string
	// common flags belong to every command.
	common bool
	// inherit looks for a value in what the node's own software sets, when we
	// were told nothing; it returns the variable that it found.
	inherit func() (value, variable string)
}

var keys = []key{
	{name: "root", fallback: "/var/lib/deckhand", flag: "root", common: true, inherit: inheritRoot,
		kind: path(func(c *Config) *string { return &c.Root }),
		doc:  "Directory of the journal and the task directories; on a disk of this node. Without a value: `$AZ_BATCH_NODE_SHARED_DIR/deckhand`, then the first of `$STATE_DIRECTORY`, then the default."},
	{name: "docker.host", fallback: "unix:///var/run/docker.sock", flag: "docker-host", common: true, inherit: inheritDockerHost,
		kind: dockerHost(func(c *Config) *string { return &c.Docker.Host }),
		doc:  "The Docker Engine to use. Without a value: `$DOCKER_HOST`, then the default."},
	{name: "log.format", fallback: "text", flag: "log-format", common: true,
		kind: oneOf(func(c *Config) *string { return &c.Log.Format }, "text", "json"),
		doc:  "Form of the log on standard error."},
	{name: "log.level", fallback: "info", flag: "log-level", common: true,
		kind: oneOf(func(c *Config) *string { return &c.Log.Level }, "debug", "info", "warn", "error"),
		doc:  "Least important message that is logged."},
	{name: "progress", fallback: "auto", flag: "progress", common: true,
		kind: oneOf(func(c *Config) *string { return &c.Progress }, "auto", "plain", "none"),
		doc:  "Progress on standard error: `auto` draws on a terminal and writes lines elsewhere."},

	{name: "image.pull", fallback: "auto",
		kind: oneOf(func(c *Config) *string { return &c.Image.Pull }, "auto", "always", "missing", "never"),
		doc:  "When the registry is asked: `auto` asks for the digest of a tag and uses the local image when the registry is silent; a digest reference on disk is never asked for."},
	{name: "image.keep", fallback: "1",
		kind: count(func(c *Config) *int { return &c.Image.Keep }, 1, 1000),
		doc:  "How many tasks' sets of images stay on disk, the last used first."},
	{name: "image.retry_for", fallback: "15m",
		kind: duration(func(c *Config) *time.Duration { return &c.Image.RetryFor }),
		doc:  "How long a pull that fails for a passing reason is tried again."},

	{name: "transfer.retry_for", fallback: "15m",
		kind: duration(func(c *Config) *time.Duration { return &c.Transfer.RetryFor }),
		doc:  "How long a transfer that fails for a passing reason is tried again."},
	{name: "transfer.parallel", fallback: "8",
		kind: count(func(c *Config) *int { return &c.Transfer.Parallel }, 1, 256),
		doc:  "How many streams all transfers of a task use together."},
	{name: "transfer.memory", fallback: "64MiB",
		kind: size(func(c *Config) *int64 { return &c.Transfer.Memory }, 1<<20),
		doc:  "Most memory that transfers use for buffers, whatever the size of the files."},
	{name: "transfer.bandwidth", fallback: "none",
		kind: sizeOrNone(func(c *Config) *int64 { return &c.Transfer.Bandwidth }),
		doc:  "Most bytes a second that all transfers use together."},

	{name: "run.max_attempts", fallback: "3",
		kind: count(func(c *Config) *int { return &c.Run.MaxAttempts }, 1, 100),
		doc:  "How often a task is started over after its container was lost."},
	{name: "run.stop_grace", fallback: "10s", flag: "stop-grace",
		kind: duration(func(c *Config) *time.Duration { return &c.Run.StopGrace }),
		doc:  "Time between SIGTERM and SIGKILL for a task's container."},
	{name: "run.time_limit", fallback: "none",
		kind: durationOrNone(func(c *Config) *time.Duration { return &c.Run.TimeLimit }),
		doc:  "Longest time that the executors of a task may take together."},
	{name: "run.cgroup_parent", fallback: "",
		kind: text(func(c *Config) *string { return &c.Run.CgroupParent }),
		doc:  "Parent cgroup of the task's containers, so that a batch engine's limits bind them. Empty: Docker's own."},
	{name: "run.clear_entrypoint", fallback: "false",
		kind: boolean(func(c *Config) *bool { return &c.Run.ClearEntrypoint }),
		doc:  "Whether an executor's command replaces the image's entrypoint instead of becoming its arguments."},

	{name: "lock.wait", fallback: "0", flag: "lock-wait",
		kind: duration(func(c *Config) *time.Duration { return &c.Lock.Wait }),
		doc:  "How long to wait for a node that another task keeps busy."},
	{name: "engine.wait", fallback: "2m",
		kind: duration(func(c *Config) *time.Duration { return &c.Engine.Wait }),
		doc:  "How long to wait for a Docker Engine that does not answer."},
	{name: "disk.floor", fallback: "1GiB",
		kind: size(func(c *Config) *int64 { return &c.Disk.Floor }, 0),
		doc:  "Free bytes that must be left on the node's disk beyond what the task is known to need."},

	{name: "outputs.missing", fallback: "warn", flag: "missing-outputs",
		kind: oneOf(func(c *Config) *string { return &c.Outputs.Missing }, "warn", "error"),
		doc:  "What an output that the task did not make is: a warning in the result, or the task's failure."},
	{name: "workdir.keep", fallback: "never", flag: "keep-workdir",
		kind: oneOf(func(c *Config) *string { return &c.Workdir.Keep }, "never", "on-failure", "always"),
		doc:  "Whether the task's directory stays after its end, until the next task."},
	{name: "exit.policy", fallback: "task", flag: "exit-policy",
		kind: oneOf(func(c *Config) *string { return &c.Exit.Policy }, "task", "engine"),
		doc:  "Exit code: `task` tells how the task ended, `engine` is 0 for every end that was reported."},

	{name: "history.keep", fallback: "1000",
		kind: countOrNone(func(c *Config) *int { return &c.History.Keep }),
		doc:  "How many finished tasks the journal remembers."},
	{name: "history.age", fallback: "30d",
		kind: durationOrNone(func(c *Config) *time.Duration { return &c.History.Age }),
		doc:  "How long the journal remembers a finished task."},
}

// variable is the environment variable of k.
func (k key) variable() string {
	return prefix + strings.ToUpper(strings.ReplaceAll(k.name, ".", "_"))
}

// inheritRoot asks Azure Batch and systemd for a directory that outlives the task.
func inheritRoot() (string, string) {
	if dir := os.Getenv("AZ_BATCH_NODE_SHARED_DIR"); dir != "" {
		return filepath.Join(dir, "deckhand"), "AZ_BATCH_NODE_SHARED_DIR"
	}
	// systemd.exec(5): several directories are separated by colons.
	if dir, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":"); dir != "" {
		return dir, "STATE_DIRECTORY"
	}
	return "", ""
}

func inheritDockerHost() (string, string) {
	return os.Getenv("DOCKER_HOST"), "DOCKER_HOST"
}
