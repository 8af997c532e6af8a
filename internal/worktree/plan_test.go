package worktree

import (
	"fmt"
	"slices"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
)

func TestPlan(t *testing.T) {
	file := func(p string) tes.Input { return tes.Input{Path: p, Type: tes.File} }
	dir := func(p string) tes.Input { return tes.Input{Path: p, Type: tes.Directory} }
	out := func(p string) tes.Output { return tes.Output{Path: p, Type: tes.File} }
	for name, test := range map[string]struct {
		task     tes.Task
		mounts   []string // single files end with !, merged directories with +
		captured []string
	}{
		"nothing":             {},
		"volumes":             {tes.Task{Volumes: []string{"/vol/B/", "/vol/A", "/usr/local"}}, []string{"/usr/local", "/vol/A", "/vol/B"}, nil},
		"no common prefix":    {tes.Task{Volumes: []string{"/out", "/out2", "/out/in"}}, []string{"/out", "/out2"}, nil},
		"input files":         {tes.Task{Inputs: []tes.Input{file("/a/b/x"), file("/a/y")}}, []string{"/a"}, nil},
		"input in the image":  {tes.Task{Inputs: []tes.Input{file("/etc/x"), file("/x"), file("/usr/lib/y")}}, []string{"/etc/x!", "/usr/lib/y!", "/x!"}, nil},
		"scratch in /var":     {tes.Task{Inputs: []tes.Input{file("/var/tmp/x"), file("/var/x")}}, []string{"/var/tmp", "/var/x!"}, nil},
		"home":                {tes.Task{Inputs: []tes.Input{file("/home/x"), file("/home/me/x"), file("/homes/x")}}, []string{"/home/me", "/homes", "/home/x!"}, nil},
		"input directory":     {tes.Task{Inputs: []tes.Input{dir("/etc/conf"), file("/etc/conf/x"), file("/etc/y")}}, []string{"/etc/y!", "/etc/conf+"}, nil},
		"own directory":       {tes.Task{Inputs: []tes.Input{dir("/etc/own/"), file("/etc/own/x")}}, []string{"/etc/own"}, nil},
		"nested directories":  {tes.Task{Inputs: []tes.Input{dir("/opt/a/b"), dir("/opt/a"), dir("/opt/ab")}}, []string{"/opt/a+", "/opt/ab+"}, nil},
		"directory as volume": {tes.Task{Inputs: []tes.Input{dir("/opt/a")}, Volumes: []string{"/opt/a"}}, []string{"/opt/a"}, nil},
		"volume in an input":  {tes.Task{Inputs: []tes.Input{dir("/opt/a"), file("/opt/a/v/x")}, Volumes: []string{"/opt/a/v"}}, []string{"/opt/a/v", "/opt/a+"}, nil},
		"input in a volume":   {tes.Task{Inputs: []tes.Input{dir("/opt/v/a")}, Volumes: []string{"/opt/v"}}, []string{"/opt/v"}, nil},
		"stream in an input":  {tes.Task{Inputs: []tes.Input{dir("/opt/a")}, Executors: []tes.Executor{{Stdout: "/opt/a/o"}}, Outputs: []tes.Output{out("/opt/a/o")}}, []string{"/opt/a/o!", "/opt/a+"}, nil},
		"output of a merge":   {tes.Task{Inputs: []tes.Input{dir("/opt/a"), file("/opt/a/x")}, Outputs: []tes.Output{out("/opt/a/x"), out("/opt/a/*")}}, []string{"/opt/a+"}, []string{"/opt/a/*", "/opt/a/x"}},
		"input of devices":    {tes.Task{Inputs: []tes.Input{dir("/dev/a")}}, []string{"/dev/a"}, nil},
		"output file":         {tes.Task{Outputs: []tes.Output{out("/out/x"), out("/root/x"), out("/x")}}, []string{"/out"}, []string{"/root/x", "/x"}},
		"output directory":    {tes.Task{Outputs: []tes.Output{{Path: "/out", Type: tes.Directory}, {Path: "/opt/out", Type: tes.Directory}}}, []string{"/out"}, []string{"/opt/out"}},
		"output pattern":      {tes.Task{Outputs: []tes.Output{out("/out/*/x"), out("/root/a*"), out("/t*")}}, []string{"/out"}, []string{"/root/a*", "/t*"}},
		"quoted pattern":      {tes.Task{Outputs: []tes.Output{out(`/o\*t/x`), out(`/root/\*`)}}, []string{"/o*t"}, []string{`/root/\*`}},
		"output in a volume":  {tes.Task{Volumes: []string{"/root/vol"}, Outputs: []tes.Output{out("/root/vol/x"), out("/root/vol/*")}}, []string{"/root/vol"}, nil},
		"output of an input":  {tes.Task{Inputs: []tes.Input{file("/etc/x")}, Outputs: []tes.Output{out("/etc/x")}}, []string{"/etc/x!"}, nil},
		"streams":             {tes.Task{Executors: []tes.Executor{{Stdout: "/logs/o", Stderr: "/root/e", Stdin: "/nowhere/i"}}}, []string{"/logs", "/root/e!"}, nil},
		"streams and outputs": {tes.Task{Executors: []tes.Executor{{Stdout: "/root/o"}}, Outputs: []tes.Output{out("/root/o")}}, []string{"/root/o!"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			p := NewPlan(&test.task, "/etc/own")
			var mounts []string
			sources := map[string]bool{}
			for _, m := range p.Mounts {
				sources[m.Source] = true
				if m.File {
					m.Target += "!"
				}
				mounts = append(mounts, m.Target)
			}
			for _, m := range p.Merges {
				mounts, sources[m.Source] = append(mounts, m.Target+"+"), true
			}
			if !slices.Equal(mounts, test.mounts) || !slices.Equal(p.Captured, test.captured) {
				t.Errorf("mounts %q and captures %q, want %q and %q", mounts, p.Captured, test.mounts, test.captured)
			}
			if len(sources) != len(p.Mounts)+len(p.Merges) {
				t.Errorf("two mounts have one source: %v", p.Mounts)
			}
			if again := NewPlan(&test.task, "/etc/own"); fmt.Sprint(again) != fmt.Sprint(p) {
				t.Errorf("planned again it is %v, not %v", again, p)
			}
		})
	}
}
