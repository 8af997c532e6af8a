package run

import (
	"errors"
	"fmt"
	"math"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"

	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/storage/glob"
	"github.com/deckhand/deckhand/internal/tes"
)

// Backend parameters that a task may give (docs/tasks.md).
const (
	gpusParameter      = "gpus"
	devicesParameter   = "devices"
	shmSizeParameter   = "shm_size"
	timeLimitParameter = "time_limit"
)

// Grants says what of the node a task may ask for by backend parameters.
type Grants struct {
	// GPUs is "all", "none", or the ids of those that a task may be given,
	// separated by commas.
	GPUs string
	// Devices are patterns of device paths and of CDI names, separated by commas.
	Devices string
}

// Parameters are the backend parameters that are supported, with the values
// that the node grants.
func (g Grants) Parameters() []tes.Parameter {
	return []tes.Parameter{
		{Key: gpusParameter, Check: func(v string) error { _, err := g.gpus(v); return err }},
		{Key: devicesParameter, Check: func(v string) error { _, err := g.devices(v); return err }},
		{Key: shmSizeParameter, Check: func(v string) error { _, err := shmSize(v); return err }},
		{Key: timeLimitParameter, Check: func(v string) error { _, err := timeLimit(v); return err }},
	}
}

// request puts what a task asks for by backend parameters into the container.
func (g Grants) request(s *engine.Spec, parameters map[string]string) (err error) {
	for key, value := range parameters {
		var failed error
		switch key {
		case gpusParameter:
			s.GPUs, failed = g.gpus(value)
		case devicesParameter:
			s.Devices, failed = g.devices(value)
		case shmSizeParameter:
			s.ShmBytes, failed = shmSize(value)
		}
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("resources.backend_parameters.%s: %w", key, failed))
		}
	}
	return err
}

// gpus reads the value of gpus, which is written as docker's --gpus: all, a
// number, or device= and ids.
func (g Grants) gpus(value string) (engine.GPUs, error) {
	granted := fields(g.GPUs)
	everything := g.GPUs == "all"
	if g.GPUs == "none" || len(granted) == 0 {
		return engine.GPUs{}, errors.New("this node gives tasks no GPUs (run.gpus)")
	}
	if ids, ok := strings.CutPrefix(value, "device="); ok {
		wanted := fields(ids)
		for _, id := range wanted {
			if !everything && !slices.Contains(granted, id) {
				return engine.GPUs{}, errors.New("this node does not give tasks each of these GPUs (run.gpus)")
			}
		}
		if len(wanted) == 0 {
			return engine.GPUs{}, errGPUs
		}
		return engine.GPUs{IDs: wanted}, nil
	}
	count, err := strconv.Atoi(value)
	switch {
	case value == "all" && everything:
		return engine.GPUs{Count: engine.AllGPUs}, nil
	case value == "all":
		return engine.GPUs{IDs: granted}, nil
	case err != nil || count < 0 || count > math.MaxInt16:
		return engine.GPUs{}, errGPUs
	case count == 0:
		return engine.GPUs{}, nil
	case everything:
		return engine.GPUs{Count: count}, nil
	case count > len(granted):
		return engine.GPUs{}, fmt.Errorf("this node gives a task %d GPUs at most (run.gpus)", len(granted))
	}
	return engine.GPUs{IDs: granted[:count]}, nil
}

var errGPUs = errors.New("write all, a number, or device= and ids separated by commas")

// cdiName is how the Container Device Interface names devices.
var cdiName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*=[A-Za-z0-9][A-Za-z0-9_.:-]*$`)

// devices reads the value of devices, a list of docker's --device: a path, for
// the container another path, permissions; or a CDI name.
func (g Grants) devices(value string) ([]engine.Device, error) {
	var devices []engine.Device
	for _, item := range fields(value) {
		d := engine.Device{Host: item}
		if !cdiName.MatchString(item) {
			parts := strings.Split(item, ":")
			d = engine.Device{Host: parts[0], Target: parts[0], Permissions: "rwm"}
			switch {
			case len(parts) == 2 && !strings.HasPrefix(parts[1], "/"):
				d.Permissions = parts[1]
			case len(parts) > 1:
				d.Target = parts[1]
			}
			if len(parts) == 3 {
				d.Permissions = parts[2]
			}
			if len(parts) > 3 || !absolute(d.Host) || !absolute(d.Target) || !permissions.MatchString(d.Permissions) {
				return nil, errors.New("write paths such as /dev/fuse or /dev/fuse:/dev/other:rw, or CDI names, separated by commas")
			}
		}
		if !g.grantsDevice(d.Host) {
			return nil, errors.New("this node does not give tasks each of these devices (run.devices)")
		}
		devices = append(devices, d)
	}
	return devices, nil
}

var permissions = regexp.MustCompile(`^[rwm]{1,3}$`)

func absolute(p string) bool { return path.IsAbs(p) && path.Clean(p) == p && p != "/" }

func (g Grants) grantsDevice(device string) bool {
	return slices.ContainsFunc(fields(g.Devices), func(pattern string) bool { return glob.Match(pattern, device) })
}

// shmSize reads the size of /dev/shm, as docker's --shm-size does: powers of 1024.
func shmSize(value string) (int64, error) {
	n, err := units.RAMInBytes(value)
	if err != nil || n < 1 {
		return 0, errors.New("write a size such as 512m or 2g")
	}
	return n, nil
}

func timeLimit(value string) (time.Duration, error) {
	d, err := time.ParseDuration(value)
	if err != nil || d <= 0 {
		return 0, errors.New("write a duration such as 90s, 15m or 48h")
	}
	return d, nil
}

// limitOf returns how long the executors of a task may take together, and which
// setting says so: the least of the node's limit and the task's own. Zero is none.
func limitOf(t *tes.Task, node time.Duration) (time.Duration, string) {
	own, err := timeLimit(t.Resources.BackendParameters[timeLimitParameter])
	if err != nil || node > 0 && node <= own { // not given, for it is checked
		return node, "run.time_limit"
	}
	return own, "resources.backend_parameters." + timeLimitParameter
}

// fields splits a list at its commas; what is empty is left out.
func fields(list string) []string {
	var items []string
	for _, item := range strings.Split(list, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}
