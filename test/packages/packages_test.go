// Package packages tests what make dist makes: the same source gives the same
// bytes, and the deb and the rpm are installed, used and removed.
package packages

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/test/rig"
)

const (
	version  = "v1.2.3-4-g0123abc"
	packaged = "deckhand_1.2.3+4.g0123abc_linux_"
	// maintainer is whoever makes the packages.
	maintainer = "A Site <admins@site.example>"
)

// Two copies of the source, under other names and umasks, give the same bytes.
// What comes of one is then installed.
func TestPackages(t *testing.T) {
	rig.Program(t, "rpm", "rpm")
	first := dist(t, "one", "022", "amd64 arm64")
	a, b := sums(t, first), sums(t, dist(t, "another/deeper", "077", runtime.GOARCH))
	for name, sum := range b {
		if name != "SHA256SUMS" && a[name] != sum {
			t.Errorf("%s is another one from the same source in another place", name)
		}
	}
	names := slices.Sorted(maps.Keys(a))
	want := []string{"SHA256SUMS"}
	for _, arch := range []string{"amd64", "arm64"} {
		for _, suffix := range []string{"", ".cdx.json", ".deb", ".rpm"} {
			want = append(want, packaged+arch+suffix)
		}
		want = append(want, "image/"+arch+"/ca-certificates.crt", "image/"+arch+"/deckhand")
	}
	if slices.Sort(want); len(b) != 7 || !slices.Equal(names, want) {
		t.Fatalf("got %q, want %q", names, want)
	}

	t.Run("checksums", func(t *testing.T) {
		run(t, first, "sha256sum", "--check", "--strict", "SHA256SUMS")
		listed := strings.Count(read(t, filepath.Join(first, "SHA256SUMS")), "\n")
		if listed != 8 {
			t.Errorf("SHA256SUMS has %d files", listed)
		}
	})
	t.Run("bill of materials", func(t *testing.T) { checkBill(t, first) })
	t.Run("architectures", func(t *testing.T) { checkArchitectures(t, first) })
	t.Run("deb", func(t *testing.T) { installDeb(t, first) })
	t.Run("rpm", func(t *testing.T) { installRPM(t, first) })
}

// dist makes everything in a copy of the work tree and returns where it is.
func dist(t *testing.T, name, umask, arches string) string {
	t.Helper()
	const top = "../.."
	tree := filepath.Join(t.TempDir(), name)
	script := `umask ` + umask + ` && mkdir -p "$1" && git ls-files -z -c -o --exclude-standard | tar -c --null -T - --ignore-failed-read | tar -x -C "$1" &&
ln -s "$PWD/.tools" "$1/.tools" && make --silent -C "$1" dist VERSION=` + version + ` COMMIT=0123abc SOURCE_DATE_EPOCH=1700000000 MAINTAINER='` + maintainer + `' ARCHES="$2"`
	run(t, top, "sh", "-c", script, "sh", tree, arches)
	return filepath.Join(tree, "bin", "dist")
}

// sums has the checksum of every file below dir.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		sum := sha256.Sum256([]byte(read(t, path)))
		name, err := filepath.Rel(dir, path)
		found[name] = hex.EncodeToString(sum[:])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// The bill names the modules of go.mod that the program is made of.
func checkBill(t *testing.T, dir string) {
	var bill struct {
		BomFormat  string
		Components []struct{ Name, Version string }
	}
	if err := json.Unmarshal([]byte(read(t, filepath.Join(dir, packaged+"amd64.cdx.json"))), &bill); err != nil {
		t.Fatal(err)
	}
	named := map[string]string{}
	for _, c := range bill.Components {
		named[c.Name] = c.Version
	}
	for _, module := range []string{"github.com/looplab/fsm", "github.com/docker/docker", "github.com/dgraph-io/badger/v4", "github.com/spf13/viper"} {
		wanted := strings.TrimSpace(run(t, "../..", "go", "list", "-m", "-f", "{{.Version}}", module))
		if named[module] != wanted {
			t.Errorf("%s is %q in the bill of materials, %q in go.mod", module, named[module], wanted)
		}
	}
	if bill.BomFormat != "CycloneDX" || named["std"] == "" {
		t.Errorf("format %q, standard library %q", bill.BomFormat, named["std"])
	}
}

// Programs are static, and packages say what they are for.
func checkArchitectures(t *testing.T, dir string) {
	for arch, inRPM := range map[string]string{"amd64": "x86_64", "arm64": "aarch64"} {
		name := filepath.Join(dir, packaged+arch)
		if interp := run(t, dir, "readelf", "--program-headers", "--file-header", name); strings.Contains(interp, "INTERP") {
			t.Errorf("%s is linked dynamically:\n%s", arch, interp)
		}
		got := run(t, dir, "dpkg-deb", "--field", name+".deb", "Architecture", "Version", "Depends", "Maintainer")
		if want := "Architecture: " + arch + "\nVersion: 1.2.3+4.g0123abc-1\nMaintainer: " + maintainer + "\n"; got != want {
			t.Errorf("the deb says %q, want %q", got, want)
		}
		got = run(t, dir, "rpm", "-qp", "--qf", "%{ARCH} %{VERSION}-%{RELEASE} %{BUILDHOST} %{BUILDTIME} %{PACKAGER}", name+".rpm")
		if want := inRPM + " 1.2.3+4.g0123abc-1 localhost 1700000000 " + maintainer; got != want {
			t.Errorf("the rpm says %q, want %q", got, want)
		}
	}
}

// machine is this machine as it is, but for what happens in it: that is in a layer
// of its own, and goes when the test ends.
type machine struct {
	root  string // the machine from outside
	upper string // what has changed in it
}

// newMachine lays a machine over this one. The files of packages are in its /mnt.
func newMachine(t *testing.T, packages string) *machine {
	t.Helper()
	rig.Program(t, "dpkg", "dpkg")
	dir := rig.Filesystem(t, "tmpfs", 2<<30)
	m := &machine{root: filepath.Join(dir, "root"), upper: filepath.Join(dir, "upper")}
	work := filepath.Join(dir, "work")
	for _, d := range []string{m.root, m.upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, mount := range []struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}{
		{"overlay", m.root, "overlay", 0, "lowerdir=/,upperdir=" + m.upper + ",workdir=" + work},
		{"proc", m.root + "/proc", "proc", 0, ""},
		{"/dev", m.root + "/dev", "", unix.MS_BIND, ""},
		{"tmpfs", m.root + "/run", "tmpfs", 0, ""},
		{"tmpfs", m.root + "/tmp", "tmpfs", 0, ""},
		{packages, m.root + "/mnt", "", unix.MS_BIND, ""},
	} {
		if err := unix.Mount(mount.source, mount.target, mount.kind, mount.flags, mount.data); err != nil {
			t.Fatalf("mount %s at %s: %v", mount.source, mount.target, err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(mount.target, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", mount.target, err)
			}
		})
	}
	return m
}

// run runs a command in the machine and returns what it prints.
func (m *machine) run(t *testing.T, args ...string) string {
	t.Helper()
	clean := []string{"-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "TERM=dumb"}
	return run(t, "/", "chroot", slices.Concat([]string{m.root, "env"}, clean, args)...)
}

// shell is run for a line of shell.
func (m *machine) shell(t *testing.T, line string) string {
	t.Helper()
	return m.run(t, "sh", "-ec", line)
}

// left are the files that came, changed or went, and directories of ours; not the
// own records of package managers and manual pages.
func (m *machine) left(t *testing.T) (names []string) {
	t.Helper()
	own := []string{"/var/lib/dpkg", "/var/lib/rpm", "/var/log/dpkg.log", "/var/cache/man", "/root/.rpmdb"}
	err := filepath.WalkDir(m.upper, func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, m.upper)
		if slices.Contains(own, name) && d.IsDir() {
			return filepath.SkipDir
		}
		if err == nil && !slices.Contains(own, name) && (!d.IsDir() || strings.Contains(name, "deckhand")) {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// links are the units that somebody has enabled.
func (m *machine) links(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(m.root + "/etc/systemd/system/*.wants/deckhand*")
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range found {
		found[i] = filepath.Base(name)
	}
	return found
}

const (
	config   = "/etc/deckhand/config.yaml"
	enable   = "systemctl enable --quiet deckhand-recover.service deckhand@a.service"
	makeTask = "mkdir -p /var/lib/deckhand/journal && echo kept > /var/lib/deckhand/journal/file && echo kept > /var/spool/deckhand/a.json"
)

var (
	state   = []string{"/var/lib/deckhand", "/var/lib/deckhand/journal", "/var/lib/deckhand/journal/file", "/var/spool/deckhand", "/var/spool/deckhand/a.json"}
	enabled = []string{"deckhand-recover.service", "deckhand@a.service"}
)

func installDeb(t *testing.T, dir string) {
	m := newMachine(t, dir)
	install := "dpkg --path-include='/usr/share/*' -i /mnt/" + packaged + runtime.GOARCH + ".deb"
	m.shell(t, install)
	m.use(t)
	m.runTask(t)
	m.shell(t, enable+" && "+makeTask)
	m.shell(t, install)
	if got := m.shell(t, "deckhand config"); !strings.Contains(got, "file "+config) || !slices.Equal(m.links(t), enabled) {
		t.Errorf("installed anew, with %v enabled, it has\n%s", m.links(t), got)
	}
	m.shell(t, "dpkg -r deckhand")
	if want := slices.Concat([]string{"/etc/deckhand", config}, state); !slices.Equal(m.left(t), want) {
		t.Errorf("removed, it leaves %q, want %q", m.left(t), want)
	}
	m.shell(t, "dpkg -P deckhand")
	if !slices.Equal(m.left(t), state) {
		t.Errorf("purged, it leaves %q, want %q", m.left(t), state)
	}
	m.shell(t, install)
	m.upgrade(t, dir, "deb", "dpkg -i --force-confold ", ".dpkg-dist")
}

func installRPM(t *testing.T, dir string) {
	m := newMachine(t, dir)
	// Debian's rpm keeps its records elsewhere, and wants to be asked twice.
	const rpm = "rpm --dbpath /var/lib/rpm --force-debian --nodeps "
	name := "/mnt/" + packaged + runtime.GOARCH + ".rpm"
	for _, file := range strings.Fields(m.shell(t, "rpm -qlp "+name)) {
		if strings.Contains(file, "/local/") || !strings.Contains(file, "deckhand") {
			t.Errorf("the rpm has %s", file)
		}
	}
	m.shell(t, rpm+"-i "+name+" && "+rpm+"-V deckhand")
	m.use(t)
	m.runTask(t)
	m.shell(t, enable+" && "+makeTask)
	m.shell(t, rpm+"-U --replacepkgs "+name)
	if got := m.shell(t, "deckhand config"); !strings.Contains(got, "file "+config) || !slices.Equal(m.links(t), enabled) {
		t.Errorf("installed anew, with %v enabled, it has\n%s", m.links(t), got)
	}
	m.shell(t, rpm+"-e deckhand 2>&1")
	if want := slices.Concat([]string{"/etc/deckhand", config + ".rpmsave"}, state); !slices.Equal(m.left(t), want) {
		t.Errorf("removed, it leaves %q, want %q", m.left(t), want)
	}
	m.shell(t, "rm "+config+".rpmsave && "+rpm+"-i "+name)
	m.upgrade(t, dir, "rpm", rpm+"-U ", ".rpmnew")
}

// upgrade goes, with nobody there to answer, to a version that brings another configuration:
// the one that somebody has changed stays, with the new one beside it.
func (m *machine) upgrade(t *testing.T, dir, packager, command, beside string) {
	t.Helper()
	m.shell(t, "sed -i 's/^#progress: auto/progress: none/' "+config)
	stage := t.TempDir()
	const newer = "{name: deckhand, arch: " + runtime.GOARCH + ", version: 9.0.0, maintainer: nobody, contents: [{src: config.yaml, dst: " + config + ", type: config|noreplace}]}"
	if err := errors.Join(os.WriteFile(filepath.Join(stage, "nfpm.yaml"), []byte(newer), 0o600), os.WriteFile(filepath.Join(stage, "config.yaml"), []byte("#new: 1\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	nfpm, err := filepath.Abs("../../.tools/bin/nfpm")
	if err != nil {
		t.Fatal(err)
	}
	run(t, stage, nfpm, "package", "-p", packager, "-t", filepath.Join(dir, "newer."+packager))
	m.shell(t, command+"/mnt/newer."+packager+" </dev/null")
	if got := m.shell(t, "grep ^progress "+config+"; cat "+config+beside); got != "progress: none\n#new: 1\n" {
		t.Errorf("after the upgrade there are %q", got)
	}
}

// use does what users and shells do with an installed deckhand, and changes a setting.
func (m *machine) use(t *testing.T) {
	t.Helper()
	for _, c := range []struct{ line, says string }{
		{"deckhand version", "deckhand " + version + " (commit 0123abc, 2023-11-14T22:13:20Z,"},
		{"grep -c '^#[a-z]' " + config, ""},
		{"! deckhand config | grep -v ' default$'", ""},
		{"sed -i 's/^#progress: auto/progress: none/' " + config + " && deckhand config", "none"},
		{"MANPAGER=cat man deckhand", "Exit codes of"},
		{"MANPAGER=cat man deckhand-journal-verify", "deckhand-journal-verify"},
		{"systemd-analyze verify deckhand-recover.service deckhand@a.service 2>&1", ""},
		{`bash -c '. /usr/share/bash-completion/bash_completion; _completion_loader deckhand
			compopt() { :; }; COMP_WORDS=(deckhand journal ver) COMP_CWORD=2 COMP_LINE="deckhand journal ver" COMP_POINT=20
			__start_deckhand; echo "${COMPREPLY[@]}"'`, "verify"},
		{`fish -c 'complete -C "deckhand journal ver"'`, "verify"},
		// The rpm's place is that of Fedora and its relatives.
		{`zsh -fc 'fpath+=(/usr/share/zsh/site-functions); autoload -U compinit; compinit -u -D; echo $_comps[deckhand]'`, "_deckhand"},
	} {
		if got := m.shell(t, c.line); !strings.Contains(got, c.says) {
			t.Errorf("%s says %q, without %q", c.line, got, c.says)
		} else if strings.HasPrefix(c.line, "systemd-analyze") && got != "" {
			t.Errorf("systemd says %s", got)
		}
	}
	pages, err := filepath.Glob(m.root + "/usr/share/man/man1/deckhand*")
	if err != nil || len(pages) < 20 {
		t.Fatalf("%d manual pages: %v", len(pages), err)
	}
	for _, page := range pages {
		if got := m.shell(t, "man --warnings -E UTF-8 -l -Tutf8 -Z /usr/share/man/man1/"+filepath.Base(page)+" 2>&1 >/dev/null"); got != "" {
			t.Errorf("groff says of %s: %s", filepath.Base(page), got)
		}
	}
}

// runTask has the installed deckhand take a task to its end, on a real engine. What the engine
// mounts has the same path in the machine and outside of it.
func (m *machine) runTask(t *testing.T) {
	t.Helper()
	shared, engine := t.TempDir(), strings.TrimPrefix(rig.Docker(t), "unix://")
	socket := filepath.Join(shared, "docker.sock")
	if err := errors.Join(os.WriteFile(socket, nil, 0o600), os.MkdirAll(m.root+shared, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, mount := range [][2]string{{engine, socket}, {shared, m.root + shared}} {
		if err := unix.Mount(mount[0], mount[1], "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(mount[1], unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", mount[1], err)
			}
		})
	}
	image := rig.Image(t, rig.NewRegistry(t), "installed:1", rig.Spec{Marker: t.Name()}).Tag
	t.Cleanup(func() { rig.DockerCmd(t, "rmi", image) })
	document := fmt.Sprintf(`{"id": "installed", "executors": [{"image": %q, "command": ["sh", "-c", "echo made > /out/file"]}],
		"outputs": [{"path": "/out/file", "url": %q}]}`, image, shared+"/file")
	if err := os.WriteFile(filepath.Join(shared, "task.json"), []byte(document), 0o600); err != nil {
		t.Fatal(err)
	}
	on := " --root " + shared + "/root --docker-host unix://" + socket
	m.shell(t, "deckhand run "+shared+"/task.json --result "+shared+"/result.json"+on)
	if got := read(t, shared+"/file") + read(t, shared+"/result.json"); !strings.HasPrefix(got, "made\n") || !strings.Contains(got, `"COMPLETE"`) {
		t.Errorf("the task has left %s", got)
	}
	if got := m.shell(t, "deckhand status last"+on+" && deckhand journal verify"+on); !strings.Contains(got, "Complete since") || !strings.Contains(got, ": sound") {
		t.Errorf("afterwards deckhand says %s", got)
	}
}

// run runs a command to its end and returns its standard output.
func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
