package system

import (
	"strings"
	"testing"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

func TestBackendParameters(t *testing.T) {
	t.Parallel()
	w := NewWorld(t)
	image := w.Image(t, "parameters", rig.Spec{})
	type parameters = map[string]string
	for name, test := range map[string]struct {
		parameters parameters
		strict     bool
		script     string
		config     string
		code       int
		want       string     // what the first executor says
		kept       parameters // in the result
		says       []string   // in its system logs, or on standard error when there is none
	}{
		"devices": {
			parameters: parameters{"DEVICES": "/dev/loop-control:/dev/own:r", "Shm_Size": "96m"}, strict: true,
			script: "(: < /dev/own) && (: > /dev/own) 2>/dev/null || echo read only; df -k /dev/shm | awk 'END {print $2}'",
			config: "run: {devices: '/dev/loop-*'}", want: "read only\n98304\n",
			kept: parameters{"devices": "/dev/loop-control:/dev/own:r", "shm_size": "96m"},
		},
		"not granted": {
			parameters: parameters{"devices": "/dev/loop-control:/dev/own", "VmSize": "S_D64"}, script: "ls /dev/own 2>/dev/null || echo none", want: "none\n",
			says: []string{"resources.backend_parameters.VmSize: is not supported here; ignored", "resources.backend_parameters.devices: has a value that is not supported here"},
		},
		"not granted and strict": {
			parameters: parameters{"devices": "/dev/loop-control:/dev/own"}, strict: true, script: "true", code: 2,
			says: []string{"run.devices", "backend_parameters_strict is set"},
		},
		"a device that is not there": {
			parameters: parameters{"devices": "/dev/none"}, script: "true", config: "run: {devices: /dev/none}", code: 78,
			says: []string{"does not have a device", "/dev/none"},
		},
		"a GPU that is not there": {
			parameters: parameters{"gpus": "device=no-such-gpu"}, script: "true", code: 78, says: []string{"does not have a device", "run.gpus"},
		},
		"no GPU": {
			parameters: parameters{"gpus": "all"}, script: "echo runs", config: "run: {gpus: none}", want: "runs\n", says: []string{"gives tasks no GPUs (run.gpus)"},
		},
		"time limit": {
			parameters: parameters{"time_limit": "20s"}, script: "exec sleep 1000", code: 1, kept: parameters{"time_limit": "20s"},
			says: []string{"executor 0 ended with exit code 143: the time limit of 20s was reached (resources.backend_parameters.time_limit)"},
		},
		"the node's time limit": {
			parameters: parameters{"time_limit": "2h"}, script: "exec sleep 1000", config: "run: {time_limit: 20s}", code: 1, kept: parameters{"time_limit": "2h"},
			says: []string{"the time limit of 20s was reached (run.time_limit)"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := w.apart(t)
			// Errors are ignored, which no limit of time is.
			first := Sh(image.Tag, test.script)
			first.IgnoreError = true
			o := w.MustRun(t, test.code, tes.Task{
				ID: "parameters", Executors: []tes.Executor{first, Sh(image.Tag, "true")},
				Resources: tes.Resources{BackendParameters: test.parameters, BackendParametersStrict: test.strict},
			}, "--stop-grace", "10m", "--config", w.Write(t, "config.yaml", test.config))
			if test.code == 2 {
				for _, text := range test.says {
					if !strings.Contains(o.Stderr, text) {
						t.Errorf("standard error does not say %q:\n%s", text, o.Stderr)
					}
				}
				return
			}
			logs := o.Log(t).Logs
			switch test.code {
			case 0:
				if len(logs) != 2 || logs[0].Stdout != test.want {
					t.Errorf("the executors' logs are %+v, want %q", logs, test.want)
				}
			case 1:
				if len(logs) != 1 || o.Task.State != tes.ExecutorError {
					t.Errorf("the task is %s with %+v", o.Task.State, logs)
				}
			default:
				if len(logs) != 0 || o.Task.State != tes.SystemError {
					t.Errorf("the task is %s with %+v", o.Task.State, logs)
				}
			}
			if test.code != 78 {
				same(t, "parameters of the result", o.Task.Resources.BackendParameters, test.kept)
			}
			o.warned(t, test.says...)
			w.Clean(t)
		})
	}
}
