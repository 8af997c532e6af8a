package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/test/check"
)

// say sends the host a line: a word, and what belongs to it.
func say(word string, rest ...string) {
	f, err := os.OpenFile(port, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err == nil {
		_, err = f.WriteString(strings.Join(append([]string{word}, rest...), " ") + "\n")
		f.Close()
	}
	if err != nil {
		fmt.Println(word, rest, err) // the console
	}
}

// start brings up the network and the Docker Engine.
func start() error {
	for _, line := range []string{
		"ip link set lo up", "ip link set eth0 up", "ip addr add 10.0.2.15/24 dev eth0",
		"ip link add bridge type bridge", "ip addr add 192.168.77.1/24 dev bridge", "ip link set bridge up",
	} {
		args := strings.Fields(line)
		if out, err := exec.Command("/bin/busybox", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, out)
		}
	}
	cache, err := os.ReadFile("/sys/block/vdb/queue/write_cache")
	if err != nil {
		return err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	say("boot", string(bytes.TrimSpace(boot)), string(bytes.TrimSpace(cache)))
	daemon := exec.Command("/bin/dockerd", "--host", "unix://"+socket, "--data-root", docker, "--exec-root", "/run/docker",
		"--bridge", "bridge", "--iptables=false", "--ip6tables=false", "--insecure-registry", os.Getenv("registry"), "--log-level", "warn")
	daemon.Stdout, daemon.Stderr = os.Stdout, os.Stderr
	if err := daemon.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- daemon.Wait() }()
	for ask(http.MethodGet, "/_ping", nil) != nil {
		select {
		case err := <-ended:
			return fmt.Errorf("dockerd has ended: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
	say("up")
	return nil
}

var engine = http.Client{Transport: &http.Transport{
	DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	},
}}

// ask makes a request of Docker's API and reads its answer to the end.
func ask(method, path string, body any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequest(method, "http://docker"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := engine.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var last string
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		last = lines.Text()
	}
	if response.StatusCode >= 300 || strings.Contains(last, `"error"`) {
		return fmt.Errorf("%s %s: %s: %s", method, path, response.Status, last)
	}
	return nil
}

// others puts an image, a container and a volume on the node that are somebody
// else's.
func others() error {
	image := os.Getenv("others")
	err := ask(http.MethodPost, "/images/create?fromImage="+image, nil)
	if err == nil {
		err = ask(http.MethodPost, "/containers/create?name=others", map[string]any{"Image": image, "Cmd": []string{"true"}})
	}
	if err == nil {
		err = ask(http.MethodPost, "/volumes/create", map[string]any{"Name": "others"})
	}
	if err != nil {
		return err
	}
	return look("others")
}

// run runs a task as an engine does, tells what its log says as it comes, and
// then what is on the node.
func run(name string, watch *check.Watch) error {
	state, err := stateOf(name)
	if err != nil {
		return err
	}
	say("found", state)
	result := filepath.Join(data, name+".result.json")
	cmd := exec.Command("/bin/"+os.Getenv("deckhand"), "run", filepath.Join(tasks, name+".json"), "--result", result)
	cmd.Env = []string{
		"PATH=/bin", "HOME=/tmp", "DECKHAND_ROOT=" + root, "DECKHAND_DOCKER_HOST=unix://" + socket,
		"DECKHAND_LOG_FORMAT=json", "DECKHAND_PROGRESS=none", "DECKHAND_DISK_FLOOR=16MiB",
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		say("log", lines.Text())
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	say("exit", fmt.Sprint(cmd.ProcessState.ExitCode()))
	var document json.RawMessage
	if text, err := os.ReadFile(result); err == nil {
		document = text
	}
	sayJSON("result", document)
	if err := records(name); err != nil {
		return err
	}
	// All of the events are told before the node is.
	id, err := os.ReadFile(filepath.Join(root, "journal", "ROOT_ID"))
	if err == nil {
		_, err = watch.Events(strings.TrimSpace(string(id)))
	}
	return errors.Join(err, look(name))
}

// sayJSON sends the host a value. One that is not valid JSON is sent as null.
func sayJSON(word string, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		text = []byte("null")
	}
	say(word, string(text))
}

// stateOf reads where the journal has a task; empty for nowhere.
func stateOf(task string) (state string, err error) {
	view, err := journal.OpenView(filepath.Join(root, "journal"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	head, _, err := view.Head(task)
	return string(head.State), errors.Join(err, view.Close())
}

// records tells all that the journal has of a task.
func records(task string) error {
	view, err := journal.OpenView(filepath.Join(root, "journal"))
	if err != nil {
		return err
	}
	all := []machine.Record{}
	for r, err := range view.Records(task) {
		if err != nil {
			return errors.Join(err, view.Close())
		}
		all = append(all, r)
	}
	sayJSON("records", all)
	return view.Close()
}

// look tells what is on the node, in the words of the checker.
func look(when string) error {
	n, err := check.Place{Root: root, Docker: "unix://" + socket, DataRoot: docker, Outputs: outputs}.Look()
	if err != nil {
		return err
	}
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	say("node", when, string(text))
	return nil
}
