package system

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// The addresses of a cloud's metadata service, and of another host.
const (
	metadata4, metadata6 = "169.254.169.254", "fd00:ec2::254"
	elsewhere            = "192.0.2.80"
)

// metadataService makes a network namespace that plays a cloud's metadata
// service, to which this one has routes. Every file that is asked for there says
// "of the cloud".
func metadataService(t *testing.T) {
	t.Helper()
	run := func(args ...string) {
		t.Helper()
		if out, err := command(args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	later := func(args ...string) { t.Cleanup(func() { _ = command(args...).Run() }) }
	name := fmt.Sprintf("dkmd%d", os.Getpid())
	run("ip", "netns", "add", name)
	later("ip", "netns", "delete", name)
	inside := func(args ...string) { t.Helper(); run(append([]string{"ip", "netns", "exec", name}, args...)...) }
	run("ip", "link", "add", name, "type", "veth", "peer", "name", "cloud", "netns", name)
	later("ip", "link", "delete", name)
	run("ip", "addr", "add", "198.51.100.1/30", "dev", name)
	run("ip", "-6", "addr", "add", "fd00:c::1/64", "dev", name, "nodad")
	run("ip", "link", "set", name, "up")
	inside("ip", "link", "set", "lo", "up")
	inside("ip", "link", "set", "cloud", "up")
	inside("ip", "addr", "add", "198.51.100.2/30", "dev", "cloud")
	inside("ip", "-6", "addr", "add", "fd00:c::2/64", "dev", "cloud", "nodad")
	inside("ip", "route", "add", "default", "via", "198.51.100.1")
	inside("ip", "-6", "route", "add", "default", "via", "fd00:c::1")
	for _, a := range []string{metadata4, elsewhere} {
		inside("ip", "addr", "add", a+"/32", "dev", "lo")
		run("ip", "route", "add", a+"/32", "via", "198.51.100.2")
	}
	inside("ip", "-6", "addr", "add", metadata6+"/128", "dev", "lo", "nodad")
	run("ip", "-6", "route", "add", metadata6+"/128", "via", "fd00:c::2")
	// Another engine on this machine may have closed forwarding to everybody.
	for _, program := range []string{"iptables", "ip6tables"} {
		for _, way := range []string{"-i", "-o"} {
			if command(program, "-I", "FORWARD", way, name, "-j", "ACCEPT").Run() == nil {
				later(program, "-D", "FORWARD", way, name, "-j", "ACCEPT")
			}
		}
	}
	www := t.TempDir()
	if err := os.WriteFile(filepath.Join(www, "credentials"), []byte("of the cloud\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	server := command("ip", "netns", "exec", name, "busybox", "httpd", "-f", "-p", "[::]:80", "-h", www)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	eventually(t, "the metadata service", func() bool {
		conn, err := net.Dial("tcp", elsewhere+":80")
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

func command(args ...string) *exec.Cmd {
	cmd := exec.Command("/usr/bin/env", args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	return cmd
}

// ask prints what each address answers, in a shell.
const ask = `ask() { for a in ` + metadata4 + ` [` + metadata6 + `] ` + elsewhere + `; do echo "$a $(wget -q -O - http://$a/credentials || echo nothing)"; done; }; ask; `

// answers is what ask prints when only the given addresses answer.
func answers(open ...string) string {
	var b strings.Builder
	for _, a := range []string{metadata4, "[" + metadata6 + "]", elsewhere} {
		said := "nothing"
		for _, o := range open {
			if a == o || a == "["+o+"]" {
				said = "of the cloud"
			}
		}
		fmt.Fprintf(&b, "%s %s\n", a, said)
	}
	return b.String()
}

// withoutRights runs a program without the right to enter a namespace, as for a
// user who is a member of the group docker.
var withoutRights = []string{"setpriv", "--bounding-set", "-sys_admin,-sys_ptrace"}

// noNetlink is a seccomp profile for containers in which nobody can talk to the
// kernel about the network: socket(AF_NETLINK) is forbidden.
const noNetlink = `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
	{"names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 16, "op": "SCMP_CMP_EQ"}]}]}`

// A cloud hands out the node's own credentials at its metadata address. A task
// gets no answer from there, whatever happens to Docker meanwhile.
func TestMetadataAddress(t *testing.T) {
	t.Parallel()
	d := rig.NewDaemon(t)
	d.Options = append(d.Options, "--live-restore", "--ipv6", "--fixed-cidr-v6=fd00:d:e:c::/64")
	d.Restart(t)
	metadataService(t)
	w := NewWorldOn(t, d)
	image := w.Image(t, "metadata", rig.Spec{})
	for i, test := range []struct {
		name, config, want string
		user               string
		under              []string
	}{
		{"off", "run: {block_addresses: none}\n", answers(metadata4, metadata6, elsewhere), "", nil},
		{"on", "", answers(elsewhere), "", nil},
		{"of a user, by a run without rights", "", answers(elsewhere), "1000", withoutRights},
		{"others", "run: {block_addresses: \"192.0.2.0/24, fd00:ec2::/32\"}\n", answers(metadata4), "", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			of := image
			if test.user != "" {
				of = w.Image(t, "metadata-user", rig.Spec{Marker: "u", User: test.user})
			}
			e := Sh(of.Tag, ask)
			w.Under = test.under
			defer func() { w.Under = nil }()
			executors := []tes.Executor{e}
			if test.name == "on" {
				executors = append(executors, e)
			}
			o := w.MustRun(t, 0, tes.Task{ID: fmt.Sprint("metadata-", i), Executors: executors}, "--fresh", "--config", w.Write(t, "config.yaml", test.config))
			for n, log := range o.Log(t).Logs {
				if log.Stdout != test.want {
					t.Errorf("executor %d got\n%s%s\nwant\n%s", n, log.Stdout, log.Stderr, test.want)
				}
			}
			w.Clean(t)
		})
	}
	t.Run("Docker is restarted", func(t *testing.T) {
		b := w.Start(t, tes.Task{
			ID: "restart", Volumes: []string{"/vol"}, Outputs: []tes.Output{{Path: "/vol/answers", URL: w.Dir + "/answers"}},
			Executors: []tes.Executor{Sh(image.Tag, "{ "+ask+" : > /vol/asked; until [ -e /vol/restarted ]; do sleep 0.1; done; ask; } > /vol/answers")},
		})
		b.Until(t, "executor started")
		vol := filepath.Join(w.Root, "tasks/restart/1/dirs/0")
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			if _, err := os.Stat(filepath.Join(vol, "asked")); err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the executor does not begin")
			}
		}
		d.Restart(t)
		if err := os.WriteFile(filepath.Join(vol, "restarted"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if code, log := b.End(t); code != 0 {
			t.Fatalf("exit code %d\n%s", code, log)
		}
		if got := w.Read(t, "answers"); got != answers(elsewhere)+answers(elsewhere) {
			t.Errorf("before and after the restart it got\n%s", got)
		}
		w.Clean(t)
	})
	profile := w.Write(t, "no-netlink.json", noNetlink)
	d.Options = append(d.Options, "--seccomp-profile="+profile)
	d.Restart(t)
	for policy, want := range map[string]struct {
		code int
		said string
	}{
		"refuse": {78, "cannot close the addresses of run.block_addresses to the task"},
		"warn":   {0, "the addresses of run.block_addresses are open to the task"},
	} {
		t.Run("they cannot be closed, "+policy, func(t *testing.T) {
			w.Under = withoutRights
			defer func() { w.Under = nil }()
			o := w.MustRun(t, want.code, tes.Task{
				ID: "open", Volumes: []string{"/vol"}, Outputs: []tes.Output{{Path: "/vol/answers", URL: w.Dir + "/" + policy}},
				Executors: []tes.Executor{Sh(image.Tag, "{ "+ask+"} > /vol/answers")},
			}, "--fresh", "--config", w.Write(t, "config.yaml", "run: {block_failure: "+policy+"}\n"))
			if logs := strings.Join(o.Log(t).SystemLogs, "\n"); !strings.Contains(logs, want.said) || !strings.Contains(logs, "operation not permitted") {
				t.Errorf("the system logs do not say why:\n%s", logs)
			}
			got, err := os.ReadFile(filepath.Join(w.Dir, policy))
			if began := err == nil; began != (policy == "warn") {
				t.Errorf("the command has begun: %t", began)
			}
			if err == nil && string(got) != answers(metadata4, metadata6, elsewhere) {
				t.Errorf("it got\n%s", got)
			}
			w.Clean(t)
		})
	}
}
