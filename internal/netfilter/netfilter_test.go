package netfilter

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary plays a network namespace when it is told to.
func TestMain(m *testing.M) {
	if os.Getenv("NAMESPACE") == "" {
		os.Exit(m.Run())
	}
	if err := play(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

const (
	metadata4, metadata6 = "169.254.169.254", "fd00:ec2::254"
	other4, other6       = "192.0.2.7", "fd00:db8::7"
	near4                = "169.254.169.253"
	// The answers go to an address of the namespace that nobody closes.
	self4, self6 = "198.51.100.1", "2001:db8::1"
)

var addresses = []string{metadata4, metadata6, near4, other4, other6}

// play listens on every address and then asks, before and after the addresses
// are closed. It prints what can be reached.
func play() error {
	setup := []string{"link set lo up"}
	for _, address := range append(addresses, self4, self6) {
		if strings.Contains(address, ":") {
			setup = append(setup, "-6 addr add "+address+"/128 dev lo nodad")
		} else {
			setup = append(setup, "addr add "+address+"/32 dev lo")
		}
	}
	for _, args := range setup {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	for _, port := range []string{"80", "53"} {
		l, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		defer l.Close()
		for _, address := range addresses {
			u, err := net.ListenPacket("udp", net.JoinHostPort(address, port))
			if err != nil {
				return err
			}
			defer u.Close()
			go echo(u)
		}
	}
	fmt.Println(strings.Join(reachable(), " "))
	prefixes := []netip.Prefix{netip.MustParsePrefix(metadata4 + "/32"), netip.MustParsePrefix("fd00:ec2::/64")}
	for _, step := range []struct {
		blocked   []netip.Prefix
		resolvers []netip.Addr
	}{
		{blocked: prefixes}, {blocked: prefixes}, // again changes nothing
		{blocked: prefixes, resolvers: []netip.Addr{netip.MustParseAddr(metadata4), netip.MustParseAddr(metadata6)}},
		{blocked: []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fd00::/8")}},
		{},
	} {
		if err := Block(0, step.blocked, step.resolvers); err != nil {
			return err
		}
		fmt.Println(strings.Join(reachable(), " "))
	}
	return nil
}

func echo(u net.PacketConn) {
	buf := make([]byte, 64)
	for {
		n, from, err := u.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = u.WriteTo(buf[:n], from)
	}
}

// reachable lists addresses, ports and ways. What is closed is refused at once: nobody
// waits who is not to be answered.
func reachable() (found []string) {
	bound := func(_, _ string, c syscall.RawConn) error {
		var failed error
		return errors.Join(c.Control(func(fd uintptr) { failed = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo") }), failed)
	}
	for _, address := range addresses {
		for _, port := range []string{"80", "53"} {
			for _, network := range []string{"tcp", "udp"} {
				for way, d := range map[string]net.Dialer{"": {Timeout: time.Minute}, "-bound": {Timeout: time.Minute, Control: bound}} {
					if answers(d, network, net.JoinHostPort(address, port)) {
						found = append(found, address+"/"+network+port+way)
					}
				}
			}
		}
	}
	slices.Sort(found)
	return found
}

func answers(d net.Dialer, network, address string) bool {
	from := self4
	if strings.HasPrefix(address, "[") {
		from = self6
	}
	if d.LocalAddr = (&net.UDPAddr{IP: net.ParseIP(from)}); network == "tcp" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	c, err := d.Dial(network, address)
	if err != nil {
		return false
	}
	defer c.Close()
	if network == "tcp" {
		return true
	}
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := c.Write([]byte("?")); err != nil {
		return false
	}
	_, err = c.Read(make([]byte, 1))
	return err == nil
}

func TestBlock(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("only root can make a network namespace")
		}
		t.Skip("only root can make a network namespace")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "NAMESPACE=1", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ways := func(address string, ports ...string) (all []string) {
		for _, port := range ports {
			all = append(all, address+"/tcp"+port, address+"/tcp"+port+"-bound", address+"/udp"+port, address+"/udp"+port+"-bound")
		}
		return all
	}
	both := []string{"53", "80"}
	others := slices.Concat(ways(near4, both...), ways(other4, both...), ways(other6, both...))
	all := slices.Concat(others, ways(metadata4, both...), ways(metadata6, both...))
	want := [][]string{
		all, others, others,
		slices.Concat(others, ways(metadata4, "53"), ways(metadata6, "53")),
		ways(other4, both...),
		all,
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d lines:\n%s", len(lines), out)
	}
	for i, line := range lines {
		slices.Sort(want[i])
		if w := strings.Join(want[i], " "); line != w {
			t.Errorf("step %d: reachable are\n%s\nwant\n%s", i, line, w)
		}
	}
}

func TestResolvers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	text := "# nameserver 1.1.1.1\nsearch x\nnameserver 169.254.169.254\n nameserver\tfe80::1%eth0\nnameserver ::ffff:10.0.0.1\nnameserver\nnameserver nonsense\noptions ndots:1"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(Resolvers(file)); got != "[169.254.169.254 fe80::1 10.0.0.1]" {
		t.Errorf("the name servers are %s", got)
	}
	if got := Resolvers(file + "x"); got != nil {
		t.Errorf("of no file: %v", got)
	}
}

func TestParsePrefix(t *testing.T) {
	for text, want := range map[string]string{
		"169.254.169.254": "169.254.169.254/32", "fd00:ec2::254": "fd00:ec2::254/128", "10.1.2.3/8": "10.0.0.0/8", "::ffff:1.2.3.4": "1.2.3.4/32", "::/0": "::/0",
		"": "!", "x": "!", "1.2.3": "!", "1.2.3.4/33": "!", "fe80::1%eth0": "!", "::ffff:1.2.3.4/120": "!", "metadata.google.internal": "!",
	} {
		p, err := ParsePrefix(text)
		got := p.String()
		if err != nil {
			got = "!"
		}
		if got != want {
			t.Errorf("%q is %s, %v; want %s", text, got, err, want)
		}
	}
}
