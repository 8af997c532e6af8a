package config

import (
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write the table of docs/configuration.md")

// setup makes an empty world: no configuration file, none of our variables.
// It returns a directory for files.
func setup(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(pair, "=")
		if strings.HasPrefix(name, prefix) || slices.Contains([]string{"XDG_CONFIG_HOME", "AZ_BATCH_NODE_SHARED_DIR", "STATE_DIRECTORY", "DOCKER_HOST",
			"SLURM_JOB_ID", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"}, name) {
			t.Setenv(name, "") // restored in the end
			os.Unsetenv(name)
		}
	}
	old := systemFile
	systemFile = filepath.Join(dir, "etc", "config.yaml")
	t.Cleanup(func() { systemFile = old })
	return dir
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// load parses args as a command with every flag of this package would.
func load(t *testing.T, args ...string) (*Loaded, error) {
	t.Helper()
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	AddCommonFlags(flags)
	for _, k := range keys {
		if k.flag != "" && !k.common {
			AddFlags(flags, k.name)
		}
	}
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return Load(flags)
}

func setting(t *testing.T, l *Loaded, name string) Setting {
	t.Helper()
	for _, s := range l.Settings() {
		if s.Key == name {
			return s
		}
	}
	t.Fatalf("no setting %s", name)
	return Setting{}
}

func TestDefaults(t *testing.T) {
	setup(t)
	l, err := load(t)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Root:     "/var/lib/deckhand",
		Docker:   Docker{Host: "unix:///var/run/docker.sock"},
		Log:      Log{Format: "text", Level: "info"},
		Progress: "auto",
		Image:    Image{Pull: "auto", Keep: 1, RetryFor: 15 * time.Minute},
		Transfer: Transfer{RetryFor: 15 * time.Minute, Parallel: 8, Memory: 64 << 20},
		Run: Run{User: "image", MaxAttempts: 3, StopGrace: 10 * time.Second, GPUs: "all",
			NoNewPrivileges: true, PidsLimit: 16384, CapDrop: "NET_RAW",
			BlockAddresses: "169.254.169.254/32,fd00:ec2::254/128,fd20:ce::254/128,fd00:c1::a9fe:a9fe/128,100.100.100.200/32,168.63.129.16/32,169.254.170.2/32", BlockFailure: "refuse"},
		Engine:  Engine{Wait: 2 * time.Minute},
		Disk:    Disk{Floor: 1 << 30, InodeFloor: 1000},
		Outputs: Outputs{Missing: "warn", MaxFiles: 1_000_000},
		Workdir: Workdir{Keep: "never"},
		Exit:    Exit{Policy: "task"},
		History: History{Keep: 10000, Age: 30 * 24 * time.Hour},
		Events:  Events{Drain: 5 * time.Second},
		Funnel:  Funnel{Poll: 5 * time.Second, RetryFor: 15 * time.Minute, GiveUpAfter: 7 * 24 * time.Hour},
	}
	if l.Config != want {
		t.Errorf("got  %+v\nwant %+v", l.Config, want)
	}
	for _, s := range l.Settings() {
		if s.Source != "default" || s.Doc == "" {
			t.Errorf("%+v", s)
		}
	}
	if len(l.Settings()) != len(keys) || l.File != "" {
		t.Errorf("%d settings, file %q", len(l.Settings()), l.File)
	}
}

// samples has, for each key, a text for the file, one for the environment and one for the flag.
var samples = map[string][3]string{
	"root":                  {"/a", "/b", "/c"},
	"docker.host":           {"unix:///a", "tcp://b:1", "https://c"},
	"log.format":            {"json", "text", "json"},
	"log.level":             {"debug", "warn", "error"},
	"progress":              {"plain", "none", "auto"},
	"image.pull":            {"always", "missing", "never"},
	"image.keep":            {"2", "3", "4"},
	"image.keep_bytes":      {"1GiB", "2GiB", "3GiB"},
	"image.retry_for":       {"1m", "2m", "3m"},
	"transfer.retry_for":    {"1m", "2m", "3m"},
	"transfer.parallel":     {"1", "2", "3"},
	"transfer.memory":       {"2MiB", "3MiB", "4MiB"},
	"transfer.bandwidth":    {"1MiB", "2MiB", "3MiB"},
	"run.max_attempts":      {"1", "2", "4"},
	"run.stop_grace":        {"1s", "2s", "3s"},
	"run.time_limit":        {"1h", "2h", "3h"},
	"run.cgroup_parent":     {"/a", "b.slice", "auto"},
	"run.user":              {"caller", "image", "caller"},
	"run.clear_entrypoint":  {"true", "false", "true"},
	"run.shell_commands":    {"true", "false", "true"},
	"run.gpus":              {"none", "0,1", "GPU-1a2b"},
	"run.devices":           {"/dev/fuse", "/dev/fuse,/dev/dri/*", "nvidia.com/gpu=*"},
	"run.no_new_privileges": {"false", "true", "false"},
	"run.pids_limit":        {"1", "2", "none"},
	"storage.file.mount":    {"/ref", "/ref/a/, /cvmfs//data", "none"},
	"run.cap_add":           {"SYS_PTRACE", "sys_nice, CAP_KILL", "none"},
	"run.cap_drop":          {"ALL", "MKNOD,NET_RAW", "none"},
	"run.block_addresses":   {"1.2.3.4", "10.0.0.0/8, fd00::1", "none"},
	"run.block_failure":     {"warn", "refuse", "warn"},
	"lock.wait":             {"1s", "2s", "3s"},
	"engine.wait":           {"1s", "2s", "3s"},
	"disk.floor":            {"1MiB", "2MiB", "3MiB"},
	"disk.any_filesystem":   {"true", "false", "true"},
	"outputs.missing":       {"error", "warn", "error"},
	"outputs.max_files":     {"1", "2", "3"},
	"workdir.keep":          {"always", "on-failure", "never"},
	"exit.policy":           {"engine", "task", "engine"},
	"history.keep":          {"1", "2", "none"},
	"history.age":           {"1h", "2d", "none"},
	"disk.inode_floor":      {"1", "2", "3"},

	"events.file":                {"/a", "/b", "/c"},
	"events.webhook.url":         {"http://127.0.0.1:1", "https://b/path", "https://c"},
	"events.webhook.secret_file": {"/a", "/b", "/c"},
	"events.exec":                {"/a", "/b", "/c"},
	"events.drain":               {"1s", "2s", "0"},
	"metrics.textfile":           {"/a.prom", "/b.prom", "/c.prom"},

	"funnel.url":           {"http://127.0.0.1:8000", "https://b/path", "https://c"},
	"funnel.rpc":           {"127.0.0.1:9090", "[::1]:9090", "https://c:9090"},
	"funnel.user":          {"a", "b", "c"},
	"funnel.password_file": {"/a", "/b", "/c"},
	"funnel.token_file":    {"/a", "/b", "/c"},
	"funnel.poll":          {"1s", "2s", "3s"},
	"funnel.retry_for":     {"1m", "2m", "3m"},
	"funnel.give_up_after": {"1h", "2d", "none"},

	"storage.s3.endpoint":   {"http://127.0.0.1:7070", "https://b/path", "https://c"},
	"storage.s3.region":     {"a", "b", "c"},
	"storage.s3.path_style": {"true", "false", "true"},
	"storage.s3.anonymous":  {"true", "false", "true"},

	"storage.gcs.endpoint":  {"http://127.0.0.1:1", "https://b", "https://c"},
	"storage.gcs.anonymous": {"true", "false", "true"},

	"storage.azure.account":   {"a", "b", "c"},
	"storage.azure.endpoint":  {"http://127.0.0.1:1/{account}", "https://{account}.b", "https://c"},
	"storage.azure.anonymous": {"true", "false", "true"},
}

// Every key can be set in every way, and the stronger way wins.
func TestPrecedence(t *testing.T) {
	for _, k := range keys {
		t.Run(k.name, func(t *testing.T) {
			setup(t)
			values, ok := samples[k.name]
			if !ok {
				t.Fatal("no samples")
			}
			check := func(value, source string, args ...string) {
				t.Helper()
				l, err := load(t, args...)
				if err != nil {
					t.Fatal(err)
				}
				if s := setting(t, l, k.name); s.Value != value || s.Source != source {
					t.Errorf("%+v; want %q from %s", s, value, source)
				}
				var want Config
				if err := k.kind.set(&want, value); err != nil {
					t.Fatal(err)
				}
				// Only this key differs from a configuration without it.
				got := l.Config
				for _, other := range keys {
					if other.name != k.name {
						if err := other.kind.set(&want, other.fallback); err != nil {
							t.Fatal(err)
						}
					}
				}
				if got != want {
					t.Errorf("got  %+v\nwant %+v", got, want)
				}
			}
			section, leaf, nested := strings.Cut(k.name, ".")
			text := fmt.Sprintf("%s: %s\n", section, values[0])
			if nested {
				text = fmt.Sprintf("%s:\n  %s: %s\n", section, leaf, values[0])
			}
			if inner, key, deeper := strings.Cut(leaf, "."); deeper {
				text = fmt.Sprintf("%s:\n  %s:\n    %s: %s\n", section, inner, key, values[0])
			}
			file := write(t, systemFile, text)
			check(values[0], "file "+file)
			t.Setenv(k.variable(), values[1])
			check(values[1], "environment "+k.variable())
			if k.flag != "" {
				check(values[2], "flag --"+k.flag, "--"+k.flag, values[2])
			}
			t.Setenv(k.variable(), "")
			check(values[0], "file "+file)
			if k.flag != "" {
				check(values[2], "flag --"+k.flag, "--"+k.flag+"="+values[2])
			}
		})
	}
}

func TestFiles(t *testing.T) {
	dir := setup(t)
	keep := func(want int, args ...string) {
		t.Helper()
		l, err := load(t, args...)
		if err != nil {
			t.Fatal(err)
		}
		if l.Image.Keep != want {
			t.Errorf("image.keep is %d, want %d; file %s", l.Image.Keep, want, l.File)
		}
	}
	text := func(n int) string { return fmt.Sprintf("image: {keep: %d}\n", n) }

	write(t, systemFile, text(2))
	keep(2)
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "home"))
	keep(2)
	write(t, filepath.Join(dir, "home", "deckhand", "config.yaml"), text(3))
	keep(3)
	t.Setenv("DECKHAND_CONFIG", write(t, filepath.Join(dir, "variable.conf"), text(4)))
	keep(4)
	keep(5, "--config", write(t, filepath.Join(dir, "flag"), text(5)))

	// A named file must be there, an unnamed one must be readable.
	for _, args := range [][]string{{"--config", filepath.Join(dir, "missing")}, {"--config", ""}, {"--config", dir}} {
		if _, err := load(t, args...); err == nil || !strings.Contains(err.Error(), args[1]) {
			t.Errorf("%v: %v", args, err)
		}
	}
	t.Setenv("DECKHAND_CONFIG", filepath.Join(dir, "missing"))
	if _, err := load(t); err == nil {
		t.Error("missing file of DECKHAND_CONFIG")
	}
}

func TestRefusals(t *testing.T) {
	for _, tc := range []struct {
		name, file string
		env        map[string]string
		args       []string
		want       []string // all in the error
	}{
		{name: "unknown key", file: "run: {max_attempt: 3}", want: []string{"config.yaml", "unknown key run.max_attempt;", "did you mean run.max_attempts?"}},
		{name: "unknown section", file: "images: {pull: auto}", want: []string{"unknown key images.pull", "did you mean image.pull?"}},
		{name: "forgotten section", file: "stop_grace: 3s", want: []string{"did you mean run.stop_grace?"}},
		{name: "nothing near", file: "colour: blue", want: []string{"unknown key colour", "\"deckhand config --example\" lists"}},
		{name: "two unknown keys", file: "colour: blue\nsize: 3", want: []string{"colour", "size"}},
		{name: "section as value", file: "run: 5", want: []string{"run is a section"}},
		{name: "value as section", file: "root: {dir: /x}", want: []string{"unknown key root.dir"}},
		{name: "no value", file: "run: {stop_grace: }", want: []string{"run.stop_grace has no value"}},
		{name: "list", file: "root: [/x]", want: []string{"root", "config.yaml", "not a single value"}},
		{name: "date", file: "run: {stop_grace: 2026-01-01}", want: []string{"run.stop_grace", "not a single value"}},
		{name: "not YAML", file: "run: [", want: []string{"config.yaml", "cannot read"}},
		{name: "list of keys", file: "- root", want: []string{"config.yaml", "cannot read"}},
		{name: "twice", file: "root: /a\nroot: /b", want: []string{"config.yaml", "root"}},
		{name: "duration without unit", file: "run: {stop_grace: 10}", want: []string{`run.stop_grace is "10"`, "config.yaml", "such as 10s"}},
		{name: "negative duration", env: map[string]string{"DECKHAND_LOCK_WAIT": "-1s"}, want: []string{`lock.wait is "-1s"`, "environment DECKHAND_LOCK_WAIT"}},
		{name: "word", args: []string{"--exit-policy", "slurm"}, want: []string{`exit.policy is "slurm"`, "flag --exit-policy", "task, engine"}},
		{name: "upper case", args: []string{"--log-level", "WARN"}, want: []string{"log.level"}},
		{name: "empty flag", args: []string{"--root", ""}, want: []string{"root", "flag --root"}},
		{name: "count", env: map[string]string{"DECKHAND_IMAGE_KEEP": "0"}, want: []string{"image.keep", "from 1 to"}},
		{name: "count with fraction", file: "image: {keep: 1.5}", want: []string{"image.keep", `"1.5"`}},
		{name: "size", env: map[string]string{"DECKHAND_DISK_FLOOR": "much"}, want: []string{"disk.floor", "1GiB"}},
		{name: "number", env: map[string]string{"DECKHAND_DISK_INODE_FLOOR": "-1"}, want: []string{"disk.inode_floor", "whole number from 0"}},
		{name: "small size", file: "transfer: {memory: 1000}", want: []string{"transfer.memory", "at least 1MiB"}},
		{name: "address", file: "run: {block_addresses: \"1.2.3.4,metadata\"}", want: []string{"run.block_addresses", "CIDRs", "or none"}},
		{name: "mount of all", env: map[string]string{"DECKHAND_STORAGE_FILE_MOUNT": "/ref,/"}, want: []string{"storage.file.mount", "but not of /"}},
		{name: "mount not absolute", env: map[string]string{"DECKHAND_STORAGE_FILE_MOUNT": "ref"}, want: []string{"storage.file.mount", "absolute"}},
		{name: "capability", env: map[string]string{"DECKHAND_RUN_CAP_ADD": "ROOT"}, want: []string{"run.cap_add", "NET_RAW"}},
		{name: "boolean", file: "run: {clear_entrypoint: 1}", want: []string{"run.clear_entrypoint", "true or false"}},
		{name: "none where there is a need", env: map[string]string{"DECKHAND_RUN_STOP_GRACE": "none"}, want: []string{"run.stop_grace"}},
		{name: "docker host", args: []string{"--docker-host", "/var/run/docker.sock"}, want: []string{"docker.host", "unix://PATH"}},
		{name: "gpus", args: nil, env: map[string]string{"DECKHAND_RUN_GPUS": "0, 1"}, want: []string{`run.gpus is "0, 1"`, "all, none"}},
		{name: "line's end", file: "root: |\n  /a\n", want: []string{`root is "/a\n"`, "a directory"}},
		{name: "devices elsewhere", file: "run: {devices: /etc/passwd}", want: []string{"run.devices", "paths in /dev"}},
		{name: "devices that climb", file: "run: {devices: '/dev/fuse,/dev/../etc/passwd'}", want: []string{"run.devices"}},
		{name: "no device between commas", file: "run: {devices: '/dev/fuse,,/dev/kfd'}", want: []string{"run.devices"}},
		{name: "relative cgroup", file: "run: {cgroup_parent: batch}", want: []string{"run.cgroup_parent", "auto", "none"}},
		{name: "docker host inherited", env: map[string]string{"DOCKER_HOST": "ssh://me@there"}, want: []string{"docker.host", "environment DOCKER_HOST"}},
		{name: "secret in a refused value", args: []string{"--docker-host", "ftp://me:hunter2@there"}, want: []string{"docker.host"}},
		{name: "unknown variable", env: map[string]string{"DECKHAND_RUN_MAX_ATTEMPT": "3"}, want: []string{"DECKHAND_RUN_MAX_ATTEMPT ", "did you mean DECKHAND_RUN_MAX_ATTEMPTS?"}},
		{name: "two unknown variables", env: map[string]string{"DECKHAND_A": "1", "DECKHAND_B": "1"}, want: []string{"DECKHAND_A ", "DECKHAND_B "}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			setup(t)
			if tc.file != "" {
				write(t, systemFile, tc.file)
			}
			for name, value := range tc.env {
				t.Setenv(name, value)
			}
			_, err := load(t, tc.args...)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\nlacks %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("tells a secret: %v", err)
			}
		})
	}
}

func TestAccepted(t *testing.T) {
	setup(t)
	write(t, systemFile, "# nothing but comments below\nrun:\n#  stop_grace: 3s\nlog.level: debug\nImage: {Keep: 0x10}\nhistory: {age: none}\n")
	t.Setenv("DECKHAND_LONG", "1")
	t.Setenv("DECKHAND_SERVICE_HOST", "10.0.0.1")
	t.Setenv("DECKHAND_PORT_80_TCP_ADDR", "10.0.0.1")
	l, err := load(t)
	if err != nil {
		t.Fatal(err)
	}
	if l.Log.Level != "debug" || l.Image.Keep != 16 || l.History.Age != 0 {
		t.Errorf("%+v", l.Config)
	}
}

// A batch engine says which GPUs are the job's, and a file knows better.
func TestGPUs(t *testing.T) {
	setup(t)
	check := func(value, source string) {
		t.Helper()
		l, err := load(t)
		if err != nil {
			t.Fatal(err)
		}
		if s := setting(t, l, "run.gpus"); l.Run.GPUs != value || s.Value != value || s.Source != source {
			t.Errorf("%s, %+v; want %s from %s", l.Run.GPUs, s, value, source)
		}
	}
	check("all", "default")
	t.Setenv("NVIDIA_VISIBLE_DEVICES", "void")
	check("none", "environment NVIDIA_VISIBLE_DEVICES")
	for _, nothing := range []string{"-1", "NoDevFiles", "10000"} {
		t.Setenv("CUDA_VISIBLE_DEVICES", nothing)
		check("none", "environment CUDA_VISIBLE_DEVICES")
	}
	t.Setenv("CUDA_VISIBLE_DEVICES", "GPU-1a2b")
	check("GPU-1a2b", "environment CUDA_VISIBLE_DEVICES")
	t.Setenv("SLURM_JOB_GPUS", "2,3")
	check("2,3", "environment SLURM_JOB_GPUS")
	t.Setenv("SLURM_STEP_GPUS", "3")
	check("3", "environment SLURM_STEP_GPUS")
	write(t, systemFile, "run: {gpus: 1}")
	check("1", "file "+systemFile)
}

// Without a value the containers go below the job's group where Slurm has started
// the process, and only there.
func TestCgroupParent(t *testing.T) {
	setup(t)
	for _, test := range []struct{ job, file, want string }{
		{"", "", ""},
		{"7", "", "auto"},
		{"7", "run: {cgroup_parent: none}", ""},
		{"7", "run: {cgroup_parent: /site}", "/site"},
	} {
		t.Setenv("SLURM_JOB_ID", test.job)
		write(t, systemFile, test.file)
		l, err := load(t)
		if err != nil {
			t.Fatal(err)
		}
		if got := l.Run.CgroupParent; got != test.want {
			t.Errorf("job %q, file %q: %q, want %q", test.job, test.file, got, test.want)
		}
	}
}

func TestRoot(t *testing.T) {
	setup(t)
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	check := func(value, source string, args ...string) {
		t.Helper()
		l, err := load(t, args...)
		if err != nil {
			t.Fatal(err)
		}
		if s := setting(t, l, "root"); l.Root != value || s.Value != value || s.Source != source {
			t.Errorf("%s, %+v; want %s from %s", l.Root, s, value, source)
		}
	}
	check("/var/lib/deckhand", "default")
	t.Setenv("STATE_DIRECTORY", "/state/a:/state/b")
	check("/state/a", "environment STATE_DIRECTORY")
	t.Setenv("AZ_BATCH_NODE_SHARED_DIR", "/mnt/shared")
	check("/mnt/shared/deckhand", "environment AZ_BATCH_NODE_SHARED_DIR")
	write(t, systemFile, "root: /file")
	check("/file", "file "+systemFile)
	t.Setenv("DECKHAND_ROOT", "variable")
	check(filepath.Join(wd, "variable"), "environment DECKHAND_ROOT")
	check(filepath.Join(wd, "flag"), "flag --root", "--root", "./x/../flag")
}

func TestSettingsHideSecrets(t *testing.T) {
	setup(t)
	l, err := load(t, "--docker-host", "tcp://me:hunter2@there:2375")
	if err != nil {
		t.Fatal(err)
	}
	if l.Docker.Host != "tcp://me:hunter2@there:2375" {
		t.Errorf("the value itself is %s", l.Docker.Host)
	}
	if s := setting(t, l, "docker.host"); strings.Contains(s.Value, "hunter2") || !strings.Contains(s.Value, "there:2375") {
		t.Errorf("%+v", s)
	}
}

// A command has only the flags that it asked for.
func TestFlags(t *testing.T) {
	setup(t)
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	AddCommonFlags(flags)
	AddFlags(flags, "run.stop_grace")
	flags.Bool("fresh", false, "")
	var names []string
	flags.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	if want := []string{"config", "docker-host", "fresh", "log-format", "log-level", "progress", "root", "stop-grace"}; !slices.Equal(names, want) {
		t.Errorf("%v, want %v", names, want)
	}
	if err := flags.Parse([]string{"--fresh", "--stop-grace", "3s"}); err != nil {
		t.Fatal(err)
	}
	if l, err := Load(flags); err != nil || l.Run.StopGrace != 3*time.Second {
		t.Errorf("%+v, %v", l, err)
	}
	if help := flags.FlagUsages(); !strings.Contains(help, "--stop-grace duration") || !strings.Contains(help, "(default 10s)") || strings.Contains(help, "`") {
		t.Errorf("help:\n%s", help)
	}
	defer func() {
		if recover() == nil {
			t.Error("a flag for a key without one")
		}
	}()
	AddFlags(flags, "image.keep")
}

// Each field of Config belongs to exactly one key.
func TestEveryFieldHasAKey(t *testing.T) {
	fields := 0
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		for i := range typ.NumField() {
			if f := typ.Field(i).Type; f.Kind() == reflect.Struct {
				walk(f)
			} else {
				fields++
			}
		}
	}
	walk(reflect.TypeFor[Config]())
	if fields != len(keys) {
		t.Errorf("%d fields, %d keys", fields, len(keys))
	}
}

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "90s": 90 * time.Second, "1h30m": 90 * time.Minute, "7d": 7 * 24 * time.Hour,
		"": -1, "d": -1, "1.5d": -1, "-1d": -1, "1d12h": -1, "ten": -1, "5": -1, fmt.Sprint(math.MaxInt64, "d"): -1,
	} {
		got, err := ParseDuration(text)
		if (err != nil) != (want < 0) || (err == nil && got != want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

// The documentation lists what the table of keys says.
func TestDocumentation(t *testing.T) {
	const name, begin, end = "../docs/configuration.md", "<!-- keys -->\n", "<!-- /keys -->"
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(b), begin)
	table, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no %q … %q", name, begin, end)
	}
	if want := markdown(); table != want {
		if !*update {
			t.Fatalf("%s is not what the code says; go test ./config -update writes it. Want:\n%s", name, want)
		}
		if err := os.WriteFile(name, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func markdown() string {
	var out strings.Builder
	out.WriteString("| key | default | flag | allowed | meaning |\n|---|---|---|---|---|\n")
	code := func(s string) string {
		if s == "" {
			return ""
		}
		return "`" + s + "`"
	}
	for _, k := range keys {
		flag := ""
		if k.flag != "" {
			flag = "--" + k.flag
		}
		fmt.Fprintf(&out, "| %s | %s | %s | %s | %s |\n", code(k.name), code(k.fallback), code(flag), k.kind.allowed, k.doc)
	}
	return out.String()
}
