package engine

import (
	"errors"
	"strings"
	"testing"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/distribution/reference"

	"github.com/deckhand/deckhand/machine"
)

func TestStartErrorsOfRuntimes(t *testing.T) {
	for _, c := range []struct {
		said string
		code int // 0: not about the command
	}{
		// runc 1.0, 1.1, 1.2
		{`OCI runtime create failed: container_linux.go:380: starting container process caused: exec: "nosuch": executable file not found in $PATH: unknown`, 127},
		{`failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: exec: "/no/such": stat /no/such: no such file or directory: unknown`, 127},
		{`OCI runtime create failed: runc create failed: unable to start container process: error during container init: exec: "nosuch": executable file not found in $PATH: unknown`, 127},
		{`unable to start container process: exec: "/etc/passwd": permission denied: unknown`, 126},
		{`unable to start container process: exec: "/etc": is a directory: unknown`, 126},
		{`unable to start container process: exec: "/etc/passwd/x": stat /etc/passwd/x: not a directory: unknown: Are you trying to mount a directory onto a file (or vice-versa)?`, 127},
		{`unable to start container process: chdir to cwd ("/secret") set in config.json failed: permission denied: unknown`, 126},
		{`unable to start container process: exec /opt/tool: exec format error: unknown`, 126},
		{`unable to start container process: error during container init: mkdir /abs/path: not a directory: unknown: Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type`, 127},
		// crun
		{"crun: executable file `nosuch` not found in $PATH: No such file or directory: OCI runtime attempted to invoke a command that was not found", 127},
		{"crun: executable file not found in `$PATH`: No such file or directory: unknown", 127},
		{"crun: executable file `/no/such` not found: No such file or directory: unknown", 127},
		{"crun: open executable: Permission denied: OCI permission denied", 126},
		// not about the command
		{`runc create failed: unable to start container process: error mounting "/a" to rootfs at "/b": mount /a:/b: no such file or directory: unknown`, 0},
		{`error gathering device information while adding custom device "/dev/x": no such file or directory`, 0},
		{`failed to create task for container: cgroup: permission denied`, 0},
		{`No such container: x`, 0},
	} {
		got := startError(errors.New("Error response from daemon: " + c.said))
		switch {
		case got == nil && c.code == 0:
		case got == nil || got.ExitCode != c.code:
			t.Errorf("%s\ngives %+v, want exit code %d", c.said, got, c.code)
		case got.Message != c.said:
			t.Errorf("message %q, want %q", got.Message, c.said)
		}
	}
}

// A container that is being removed is gone, whatever it is asked for.
func TestContainersThatGo(t *testing.T) {
	for _, said := range []string{
		"can not get logs from container which is dead or marked for removal",
		"container is marked for removal and cannot be started",
	} {
		if err := explain(cerrdefs.ErrConflict.WithMessage(said), "use it"); !errors.Is(err, ErrNotFound) || errors.Is(err, ErrInUse) {
			t.Errorf("%s\ngives %v", said, err)
		}
	}
	if err := explain(cerrdefs.ErrConflict.WithMessage("image is being used by running container x"), "use it"); !errors.Is(err, ErrInUse) {
		t.Errorf("an image in use: %v", err)
	}
}

func TestDevicesOfRuntimes(t *testing.T) {
	for said, want := range map[string]bool{
		`error gathering device information while adding custom device "/dev/x": no such file or directory`: true,
		`could not select device driver "" with capabilities: [[gpu]]`:                                      true,
		`CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=9`:                            true,
		`OCI runtime create failed: nvidia-container-cli: device error: 9: unknown device: unknown`:         true,
		`failed to create task for container: cgroup: permission denied`:                                    false,
		`error mounting "/a" to rootfs at "/dev/b": no such file or directory: unknown`:                     false,
	} {
		if noDevice.MatchString(said) != want {
			t.Errorf("%s\nis taken for a missing device: %t", said, !want)
		}
	}
}

func TestMisuseOfRuntimes(t *testing.T) {
	for said, want := range map[string]bool{
		`error mounting "/a" to rootfs at "/sys/x": open /overlay/merged/sys/x: read-only file system: unknown`:             true,
		`error mounting "/a" to rootfs at "/proc": "/overlay/merged/proc" cannot be mounted because it is not of type proc`: true,
		`Cannot mkdir: /etc/passwd is not a directory`:                                                                      true,
		`mkdir /overlay/merged/w/nnn: file name too long`:                                                                   true,
		`unable to find user nobody: no matching entries in passwd file`:                                                    true,
		`error mounting "/proc/x" to rootfs at "/data": open /data: read-only file system`:                                  false,
		`mkdir /var/lib/docker/overlay2/x: not a directory`:                                                                 false,
		`failed to create task for container: write /run/x.pid: read-only file system`:                                      false,
	} {
		if misused.MatchString(said) != want {
			t.Errorf("%s\nis taken for the task's own mistake: %t", said, !want)
		}
	}
}

func TestPullFailures(t *testing.T) {
	named, err := reference.ParseNormalizedNamed("registry.example:5000/tool:1")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		said    string
		verdict verdict
		fault   machine.Fault
	}{
		{"toomanyrequests: You have reached your pull rate limit.", passing, machine.RetryLater},
		{"received unexpected HTTP status: 503 Service Unavailable", passing, machine.RetryLater},
		{"error pulling image configuration: download failed after attempts=6: unexpected status code 429", passing, machine.RetryLater},
		{"Get https://registry.example/v2/: dial tcp 192.0.2.1:443: connect: connection refused", passing, machine.RetryLater},
		{"Get https://registry.example/v2/: net/http: request canceled while waiting for connection (Client.Timeout exceeded while awaiting headers)", passing, machine.RetryLater},
		{"Get https://registry.example/v2/: dial tcp: lookup registry.example: no such host", passing, machine.RetryLater},
		{"unexpected EOF", passing, machine.RetryLater},
		{"expected HTTP 206 from byte range request", passing, machine.RetryLater},
		{"unknown: unexpected status from GET request to https://auth.example/token: 502 Bad Gateway", passing, machine.RetryLater},
		{`error adding content digest to lease: sha256:eedff14ab82a: lease "moby-image-sha256:795e8fecc7cf": not found`, passing, machine.RetryLater},

		{"manifest for registry.example:5000/tool:1 not found: manifest unknown: manifest unknown", final, machine.TaskFault},
		{"manifest for registry.example:5000/lease:1 not found: manifest unknown: manifest unknown", final, machine.TaskFault},
		{"pull access denied for tool, repository does not exist or may require 'docker login': denied: requested access to the resource is denied", final, machine.TaskFault},
		{"unauthorized: authentication required", final, machine.TaskFault},
		{"Head https://registry.example/v2/tool/manifests/1: no basic auth credentials", final, machine.TaskFault},
		{"no matching manifest for linux/amd64 in the manifest list entries", final, machine.TaskFault},
		{"unsupported media type application/vnd.oci.empty.v1+json", final, machine.TaskFault},

		{"failed to register layer: Error processing tar file(exit status 1): write /big: no space left on device", final, machine.NodeFault},
		{"open /var/lib/docker/tmp/GetImageBlob1: read-only file system", final, machine.NodeFault},
		{"Get https://registry.example/v2/: x509: certificate signed by unknown authority", final, machine.NodeFault},
		{"Get https://registry.example/v2/: http: server gave HTTP response to HTTPS client", final, machine.NodeFault},

		{"failed to register layer: archive/tar: invalid tar header", unknown, machine.TaskFault},
	} {
		v, err := pullFault("pull", named, errors.New(c.said))
		if v != c.verdict || machine.FaultOf(err) != c.fault {
			t.Errorf("%s\ngives verdict %d and %s, want %d and %s", c.said, v, machine.FaultOf(err), c.verdict, c.fault)
		}
		if full := strings.Contains(c.said, "no space left"); errors.Is(err, ErrNoSpace) != full {
			t.Errorf("%s: is ErrNoSpace: %v", c.said, !full)
		}
		if !strings.HasPrefix(err.Error(), "cannot pull image registry.example:5000/tool:1: ") {
			t.Errorf("error %q", err)
		}
	}
	_, err = pullFault("pull", named, errors.New(`Get "https://cdn.example/blob?X-Amz-Signature=secret": EOF`))
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("a signature in %v", err)
	}
}

func TestStatesOfPodman(t *testing.T) {
	for said, want := range map[string]State{
		"created": Created, "initialized": Created, "running": Running, "stopping": Running, "stopped": Exited, "exited": Exited,
	} {
		if got := stateOf(said); got != want {
			t.Errorf("%s is %s, want %s", said, got, want)
		}
	}
}
