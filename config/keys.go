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
	{name: "image.keep_bytes", fallback: "none",
		kind: sizeOrNone(func(c *Config) *int64 { return &c.Image.KeepBytes }),
		doc:  "Most bytes that the images which deckhand pulled and keeps may take together; those that were used longest ago go first, the running task's never. A layer that several of them have counts once."},
	{name: "image.retry_for", fallback: "15m",
		kind: duration(func(c *Config) *time.Duration { return &c.Image.RetryFor }),
		doc:  "How long a pull that fails for a passing reason is tried again."},

	{name: "transfer.retry_for", fallback: "15m",
		kind: duration(func(c *Config) *time.Duration { return &c.Transfer.RetryFor }),
		doc:  "How long a transfer that fails for a passing reason is tried again. Three attempts are made in any case."},
	{name: "transfer.parallel", fallback: "8",
		kind: count(func(c *Config) *int { return &c.Transfer.Parallel }, 1, 256),
		doc:  "How many streams all transfers of a task use together."},
	{name: "transfer.memory", fallback: "64MiB",
		kind: size(func(c *Config) *int64 { return &c.Transfer.Memory }, 1<<20),
		doc:  "Most memory that transfers use for buffers, whatever the size of the files."},
	{name: "transfer.bandwidth", fallback: "none",
		kind: sizeOrNone(func(c *Config) *int64 { return &c.Transfer.Bandwidth }),
		doc:  "Most bytes a second that all transfers use together."},

	{name: "storage.file.mount", fallback: "none",
		kind: directories(func(c *Config) *string { return &c.Storage.File.Mount }),
		doc:  "Directories of the node with data that does not change while tasks run. A local input FILE of 1 MiB and more from them is mounted read-only into containers instead of being copied, where that is safe. See [storage.md](storage.md)."},
	{name: "storage.s3.endpoint", fallback: "",
		kind: endpoint(func(c *Config) *string { return &c.Storage.S3.Endpoint }),
		doc:  "Service that `s3://` means. Empty: what the AWS configuration of the node says (`AWS_ENDPOINT_URL_S3`), else Amazon S3."},
	{name: "storage.s3.region", fallback: "",
		kind: text(func(c *Config) *string { return &c.Storage.S3.Region }),
		doc:  "Region that requests are signed for. Empty: that of the AWS configuration, else `us-east-1`; a bucket of Amazon S3 in another region is found."},
	{name: "storage.s3.path_style", fallback: "false",
		kind: boolean(func(c *Config) *bool { return &c.Storage.S3.PathStyle }),
		doc:  "Whether the bucket stands in the path of the URL instead of the host's name, as many services need."},
	{name: "storage.s3.anonymous", fallback: "false",
		kind: boolean(func(c *Config) *bool { return &c.Storage.S3.Anonymous }),
		doc:  "Whether `s3://` is asked without credentials, even where the node has some."},
	{name: "storage.gcs.endpoint", fallback: "",
		kind: endpoint(func(c *Config) *string { return &c.Storage.GCS.Endpoint }),
		doc:  "Service that `gs://` means. Empty: that of `STORAGE_EMULATOR_HOST`, else Google's own."},
	{name: "storage.gcs.anonymous", fallback: "false",
		kind: boolean(func(c *Config) *bool { return &c.Storage.GCS.Anonymous }),
		doc:  "Whether `gs://` is asked without credentials, even where the node has some."},
	{name: "storage.azure.account", fallback: "",
		kind: text(func(c *Config) *string { return &c.Storage.Azure.Account }),
		doc:  "Account whose containers `az://` URLs name. Empty: `AZURE_STORAGE_ACCOUNT`, or that of `AZURE_STORAGE_CONNECTION_STRING`."},
	{name: "storage.azure.endpoint", fallback: "",
		kind: endpoint(func(c *Config) *string { return &c.Storage.Azure.Endpoint }),
		doc:  "Blob service of every account, with `{account}` for its name, such as `https://{account}.blob.core.usgovcloudapi.net`. Empty: the host of the URL, else `https://{account}.blob.core.windows.net`."},
	{name: "storage.azure.anonymous", fallback: "false",
		kind: boolean(func(c *Config) *bool { return &c.Storage.Azure.Anonymous }),
		doc:  "Whether blobs are asked for without other credentials than a signature in their URL."},

	{name: "run.max_attempts", fallback: "3",
		kind: count(func(c *Config) *int { return &c.Run.MaxAttempts }, 1, 100),
		doc:  "How often a task is started over after its container was lost."},
	{name: "run.stop_grace", fallback: "10s", flag: "stop-grace",
		kind: duration(func(c *Config) *time.Duration { return &c.Run.StopGrace }),
		doc:  "Time between SIGTERM and SIGKILL for a task's container."},
	{name: "run.time_limit", fallback: "none",
		kind: durationOrNone(func(c *Config) *time.Duration { return &c.Run.TimeLimit }),
		doc:  "Longest time that the executors of a task may take together."},
	{name: "run.cgroup_parent", fallback: "none", inherit: inheritCgroupParent,
		kind: cgroupParent(func(c *Config) *string { return &c.Run.CgroupParent }),
		doc:  "Parent cgroup of the task's containers, so that a batch engine's limits bind them. `auto`: that of the job, where Docker can take it, else a warning. `none`: Docker's own. Without a value: `auto` where `$SLURM_JOB_ID` is set, then the default."},
	{name: "run.user", fallback: "image",
		kind: oneOf(func(c *Config) *string { return &c.Run.User }, "image", "caller"),
		doc:  "Who executors run as: the user that their image names, or the user and group that deckhand runs as."},
	{name: "run.clear_entrypoint", fallback: "false",
		kind: boolean(func(c *Config) *bool { return &c.Run.ClearEntrypoint }),
		doc:  "Whether an executor's command replaces the image's entrypoint instead of becoming its arguments."},

	{name: "run.shell_commands", fallback: "false",
		kind: boolean(func(c *Config) *bool { return &c.Run.ShellCommands }),
		doc:  "Whether a command of one element is a line for `/bin/sh -c`, as Funnel takes it, instead of a program."},
	{name: "run.gpus", fallback: "all", inherit: inheritGPUs,
		kind: gpus(func(c *Config) *string { return &c.Run.GPUs }),
		doc:  "Which GPUs a task may ask for by the backend parameter `gpus`. Without a value: `$SLURM_STEP_GPUS`, `$SLURM_JOB_GPUS`, `$CUDA_VISIBLE_DEVICES` or `$NVIDIA_VISIBLE_DEVICES`, then the default."},
	{name: "run.devices", fallback: "",
		kind: devices(func(c *Config) *string { return &c.Run.Devices }),
		doc:  "Which devices a task may ask for by the backend parameter `devices`, as patterns such as `/dev/fuse` or `/dev/dri/*`. Empty: none."},
	{name: "run.no_new_privileges", fallback: "true",
		kind: boolean(func(c *Config) *bool { return &c.Run.NoNewPrivileges }),
		doc:  "Whether set-uid programs in containers gain nothing."},
	{name: "run.pids_limit", fallback: "16384",
		kind: countOrNone(func(c *Config) *int { return &c.Run.PidsLimit }),
		doc:  "Most processes and threads in one container."},
	{name: "run.cap_add", fallback: "none",
		kind: capabilities(func(c *Config) *string { return &c.Run.CapAdd }),
		doc:  "Capabilities that containers have beyond Docker's own."},
	{name: "run.cap_drop", fallback: "NET_RAW",
		kind: capabilities(func(c *Config) *string { return &c.Run.CapDrop }),
		doc:  "Capabilities of Docker's own that containers do not have. A task that keeps `NET_RAW`, or is given `NET_ADMIN`, can get past `run.block_addresses`."},
	{name: "run.block_addresses", fallback: "169.254.169.254,fd00:ec2::254,fd20:ce::254,fd00:c1::a9fe:a9fe,100.100.100.200,168.63.129.16,169.254.170.2",
		kind: addresses(func(c *Config) *string { return &c.Run.BlockAddresses }),
		doc:  "Addresses that containers cannot reach; by default those at which clouds hand out what belongs to the node: credentials and certificates. Name servers among them still answer on port 53."},
	{name: "run.block_failure", fallback: "refuse",
		kind: oneOf(func(c *Config) *string { return &c.Run.BlockFailure }, "refuse", "warn"),
		doc:  "What happens on a node where they cannot be closed: the task is refused, or runs with a warning in its result."},

	{name: "lock.wait", fallback: "0", flag: "lock-wait",
		kind: duration(func(c *Config) *time.Duration { return &c.Lock.Wait }),
		doc:  "How long to wait for a node that another task keeps busy."},
	{name: "engine.wait", fallback: "2m",
		kind: duration(func(c *Config) *time.Duration { return &c.Engine.Wait }),
		doc:  "How long to wait for a Docker Engine that does not answer."},
	{name: "disk.floor", fallback: "1GiB",
		kind: size(func(c *Config) *int64 { return &c.Disk.Floor }, 0),
		doc:  "Free bytes that must be left, beyond what the task is known to need, on the filesystem of the root and on that of Docker's images."},
	{name: "disk.inode_floor", fallback: "1000",
		kind: number(func(c *Config) *int64 { return &c.Disk.InodeFloor }),
		doc:  "Free inodes that must be left there, beyond the files of the inputs."},
	{name: "disk.any_filesystem", fallback: "false",
		kind: boolean(func(c *Config) *bool { return &c.Disk.AnyFilesystem }),
		doc:  "Whether the root may lie where the journal cannot keep its promises: on btrfs, ZFS and the like a full disk may then kill a run, on a network filesystem a power cut may lose records and two nodes that share the root may destroy it."},

	{name: "outputs.missing", fallback: "warn", flag: "missing-outputs",
		kind: oneOf(func(c *Config) *string { return &c.Outputs.Missing }, "warn", "error"),
		doc:  "What an output that the task did not make is: a warning in the result, or the task's failure."},
	{name: "outputs.max_files", fallback: "1000000",
		kind: count(func(c *Config) *int { return &c.Outputs.MaxFiles }, 1, 100_000_000),
		doc:  "Most files, directories and links that are looked at to find the outputs of a task. A task with more fails: a few links can make a tree endless."},
	{name: "workdir.keep", fallback: "never", flag: "keep-workdir",
		kind: oneOf(func(c *Config) *string { return &c.Workdir.Keep }, "never", "on-failure", "always"),
		doc:  "Whether the task's directory stays after its end, until the next task."},
	{name: "exit.policy", fallback: "task", flag: "exit-policy",
		kind: oneOf(func(c *Config) *string { return &c.Exit.Policy }, "task", "engine"),
		doc:  "Exit code: `task` tells how the task ended, `engine` is 0 for every end that was reported."},

	{name: "history.keep", fallback: "10000",
		kind: countOrNone(func(c *Config) *int { return &c.History.Keep }),
		doc:  "How many finished tasks the journal remembers."},
	{name: "history.age", fallback: "30d",
		kind: durationOrNone(func(c *Config) *time.Duration { return &c.History.Age }),
		doc:  "How long the journal remembers a finished task."},

	{name: "events.file", fallback: "",
		kind: file(func(c *Config) *string { return &c.Events.File }),
		doc:  "File to which each event is appended as a line of JSON. Empty: none. See [events.md](events.md), also for the next four."},
	{name: "events.webhook.url", fallback: "",
		kind: webhook(func(c *Config) *string { return &c.Events.Webhook.URL }),
		doc:  "Server that is sent each event by POST. Empty: none."},
	{name: "events.webhook.secret_file", fallback: "",
		kind: file(func(c *Config) *string { return &c.Events.Webhook.SecretFile }),
		doc:  "File with the secret that requests to it are signed with: 24 to 64 bytes in base64, with `whsec_` in front or not. Empty: they are not signed."},
	{name: "events.exec", fallback: "",
		kind: file(func(c *Config) *string { return &c.Events.Exec }),
		doc:  "Program that is started for each event, with the event on its standard input. Empty: none."},
	{name: "events.drain", fallback: "5s",
		kind: duration(func(c *Config) *time.Duration { return &c.Events.Drain }),
		doc:  "How long a process that has done its work goes on delivering events. What is left then is delivered by the next."},
	{name: "funnel.url", fallback: "", flag: "funnel",
		kind: endpoint(func(c *Config) *string { return &c.Funnel.URL }),
		doc:  "Server of Funnel that `--task-id` takes a task from. See [funnel.md](engines/funnel.md), also for the next seven."},
	{name: "funnel.rpc", fallback: "", flag: "funnel-rpc",
		kind: rpc(func(c *Config) *string { return &c.Funnel.RPC }),
		doc:  "Its gRPC service, in clear text or, with `https://`, by TLS."},
	{name: "funnel.user", fallback: "",
		kind: text(func(c *Config) *string { return &c.Funnel.User }),
		doc:  "User of the server, with `funnel.password_file`."},
	{name: "funnel.password_file", fallback: "",
		kind: file(func(c *Config) *string { return &c.Funnel.PasswordFile }),
		doc:  "File with the user's password."},
	{name: "funnel.token_file", fallback: "",
		kind: file(func(c *Config) *string { return &c.Funnel.TokenFile }),
		doc:  "File with a bearer token, instead of a user."},
	{name: "funnel.poll", fallback: "5s",
		kind: duration(func(c *Config) *time.Duration { return &c.Funnel.Poll }),
		doc:  "How often the server is asked whether the task was canceled."},
	{name: "funnel.retry_for", fallback: "15m",
		kind: duration(func(c *Config) *time.Duration { return &c.Funnel.RetryFor }),
		doc:  "How long a server that is away is waited for, when a run begins and again when its task has ended."},
	{name: "funnel.give_up_after", fallback: "7d",
		kind: durationOrNone(func(c *Config) *time.Duration { return &c.Funnel.GiveUpAfter }),
		doc:  "How long after a task was handed back `recover` ends it on the server, where nobody has run it again. Under Slurm, which is asked for the job, it does not count."},
	{name: "metrics.textfile", fallback: "",
		kind: textfile(func(c *Config) *string { return &c.Metrics.Textfile }),
		doc:  "File for the textfile collector of Prometheus' node exporter, one for each root. Empty: none. See [metrics.md](metrics.md)."},
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

// inheritGPUs asks batch engines which GPUs they gave the job. Slurm's own
// variables come first: with constrained devices it counts those of CUDA anew.
func inheritGPUs() (string, string) {
	for _, name := range []string{"SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"} {
		switch value := os.Getenv(name); value {
		case "":
		case "-1", "void", "NoDevFiles", "10000": // in the words of CUDA, NVIDIA, Slurm and HTCondor
			return none, name
		default:
			return value, name
		}
	}
	return "", ""
}

// inheritCgroupParent asks whether an engine that puts its jobs into control groups
// has started this process.
func inheritCgroupParent() (string, string) {
	if os.Getenv("SLURM_JOB_ID") == "" {
		return "", ""
	}
	return "auto", "SLURM_JOB_ID"
}

func inheritDockerHost() (string, string) {
	return os.Getenv("DOCKER_HOST"), "DOCKER_HOST"
}
