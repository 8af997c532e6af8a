package system

import (
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/internal/storage/storagetest"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/test/rig"
)

// rounds is how often each of the rivals of a transfer runs, in turn.
const rounds = 5

// large is the size of a large file, in bytes.
const large = 1 << 30

// transfers measures what moves the same bytes: a state of whole runs of the
// program, beside the tools that people know.
type transfers struct {
	*World
	image  string
	at     string // where peers write
	rivals []rival
}

// rival moves the bytes once. It returns what that took, and the most memory
// that a process of it had, in bytes.
type rival struct {
	name string
	run  func(b *testing.B) (time.Duration, int64)
}

func newTransfers(b *testing.B) *transfers {
	w := NewWorld(b)
	return &transfers{World: w, image: w.Image(b, "transfer", rig.Spec{Marker: "transfer"}).Digest, at: w.Dir}
}

// ours adds the program: the time that its tasks are in a state, verification,
// journal and syncing of files included.
func (x *transfers) ours(state string, task tes.Task) {
	if len(task.Executors) == 0 {
		task.Executors = []tes.Executor{{Image: x.image, Command: []string{"true"}}}
	}
	round := 0
	x.rivals = append(x.rivals, rival{"deckhand", func(b *testing.B) (time.Duration, int64) {
		round++
		task.ID = fmt.Sprint("transfer-", round)
		result := filepath.Join(x.Dir, "result.json")
		cmd := x.Command(b, "run", x.Save(b, task), "--result", result)
		peak := observe(b, cmd)
		return stateTime(b, result, state), peak
	}})
}

// peer adds a command, which runs in an empty directory beside the root.
func (x *transfers) peer(name string, line ...string) {
	x.rivals = append(x.rivals, rival{name, func(b *testing.B) (time.Duration, int64) {
		dir := filepath.Join(x.at, "peer")
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		defer os.RemoveAll(dir)
		cmd := exec.Command(line[0], line[1:]...)
		cmd.Dir = dir
		start := time.Now()
		peak := observe(b, cmd)
		return time.Since(start), peak
	}})
}

// measure runs the rivals in turn and reports medians: seconds, how many times a
// rival's time the program took, and the most memory.
func (x *transfers) measure(b *testing.B) {
	times := map[string][]time.Duration{}
	memory := map[string]int64{}
	for b.Loop() {
		for range rounds {
			for _, r := range x.rivals {
				unix.Sync() // nobody writes back what another one wrote
				took, peak := r.run(b)
				times[r.name] = append(times[r.name], took)
				memory[r.name] = max(memory[r.name], peak)
			}
		}
	}
	b.ReportMetric(0, "ns/op") // of all together: it says nothing
	ours := median(times["deckhand"]).Seconds()
	for name, all := range times {
		b.ReportMetric(median(all).Seconds(), name+"-s")
		b.ReportMetric(float64(memory[name])/(1<<20), name+"-MiB")
		if name != "deckhand" {
			b.ReportMetric(ours/median(all).Seconds(), "of-"+name)
		}
	}
}

// stateTime reads from a result how long the task was in a state.
func stateTime(b *testing.B, result, state string) time.Duration {
	b.Helper()
	text, err := os.ReadFile(result)
	if err != nil {
		b.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), `"deckhand.seconds.`+state+`": "`)
	number, _, closed := strings.Cut(rest, `"`)
	seconds, err := strconv.ParseFloat(number, 64)
	if !found || !closed || err != nil {
		b.Fatalf("the result does not say how long it was in %s:\n%s", state, text)
	}
	return time.Duration(seconds * float64(time.Second))
}

// random makes a file that nobody can compress.
func random(b *testing.B, name string, size int64) string {
	b.Helper()
	f, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, err := io.CopyN(f, rand.Reader, size); err != nil {
		b.Fatal(err)
	}
	return name
}

// BenchmarkFetchHTTP fetches 1 GiB from nginx.
func BenchmarkFetchHTTP(b *testing.B) {
	x := newTransfers(b)
	url, dir := storagetest.Nginx(b)
	file := random(b, filepath.Join(dir, "large"), large)
	x.ours("Download", tes.Task{Inputs: []tes.Input{{URL: url + "/large", Path: "/in/large"}}})
	x.peer("curl", "curl", "--silent", "--fail", "--output", "large", url+"/large")
	x.peer("aria2c", "aria2c", "--quiet", "--split=8", "--max-connection-per-server=8", url+"/large")
	x.peer("cp", "cp", file, "large")
	x.measure(b)
}

// BenchmarkFetchHTTPS fetches 1 GiB from nginx by https.
func BenchmarkFetchHTTPS(b *testing.B) {
	x := newTransfers(b)
	url, dir, authority := storagetest.NginxTLS(b)
	random(b, filepath.Join(dir, "large"), large)
	x.Env = append(x.Env, "SSL_CERT_FILE="+authority)
	x.ours("Download", tes.Task{Inputs: []tes.Input{{URL: url + "/large", Path: "/in/large"}}})
	x.peer("curl", "curl", "--silent", "--fail", "--cacert", authority, "--output", "large", url+"/large")
	x.peer("aria2c", "aria2c", "--quiet", "--ca-certificate="+authority, "--split=8", "--max-connection-per-server=8", url+"/large")
	x.measure(b)
}

// BenchmarkFetchMany fetches 10,000 files of 4 KiB from nginx, onto a filesystem of its own: an ext4
// without a journal, which the tester's may be, looks for the inodes of what was just deleted, and
// takes as long for that as all else.
func BenchmarkFetchMany(b *testing.B) {
	x := newTransfers(b)
	x.at = rig.Filesystem(b, "ext4", 4<<30)
	x.Root = filepath.Join(x.at, "root")
	url, dir := storagetest.Nginx(b)
	const files, size = 10_000, 4 << 10
	all := random(b, filepath.Join(x.Dir, "all"), files*size)
	f, err := os.Open(all)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	var task tes.Task
	var list strings.Builder
	content := make([]byte, size)
	for i := range files {
		name := fmt.Sprintf("file-%05d", i)
		if _, err := f.ReadAt(content, int64(i*size)); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			b.Fatal(err)
		}
		task.Inputs = append(task.Inputs, tes.Input{URL: url + "/" + name, Path: "/in/" + name})
		fmt.Fprintf(&list, "url = %q\noutput = %q\n", url+"/"+name, name)
	}
	config := x.Write(b, "curl.conf", list.String())
	x.ours("Download", task)
	x.peer("curl", "curl", "--silent", "--fail", "--config", config)
	x.peer("curl-parallel", "curl", "--silent", "--fail", "--parallel", "--config", config)
	x.measure(b)
}

// bucket starts an S3 server, with one bucket, that the program and rclone find.
// It returns a URL and what rclone calls the same.
func (x *transfers) bucket(b *testing.B) (url, remote string) {
	b.Helper()
	s, _ := storagetest.Versitygw(b)
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} {
		x.Env = append(x.Env, name+"="+os.Getenv(name))
	}
	b.Setenv("AWS_CA_BUNDLE", "") // the tester's own, which rclone does not take
	endpoint := s.Options.S3.Endpoint
	x.Env = append(x.Env, "DECKHAND_STORAGE_S3_ENDPOINT="+endpoint)
	for name, value := range map[string]string{
		"": "/dev/null", "_S_TYPE": "s3", "_S_PROVIDER": "Other", "_S_ENV_AUTH": "true", "_S_ENDPOINT": endpoint, "_S_REGION": "us-east-1",
	} {
		b.Setenv("RCLONE_CONFIG"+name, value)
	}
	return s.URL, strings.Replace(s.URL, "s3://", "s:", 1)
}

// BenchmarkFetchS3 fetches 1 GiB from versitygw.
func BenchmarkFetchS3(b *testing.B) {
	x := newTransfers(b)
	url, remote := x.bucket(b)
	file := random(b, filepath.Join(x.Dir, "large"), large)
	if out, err := exec.Command("rclone", "copyto", file, remote+"/large").CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	x.ours("Download", tes.Task{Inputs: []tes.Input{{URL: url + "/large", Path: "/in/large"}}})
	x.peer("rclone", "rclone", "copyto", remote+"/large", "large")
	x.measure(b)
}

// BenchmarkSendS3 sends 1 GiB to versitygw.
func BenchmarkSendS3(b *testing.B) {
	x := newTransfers(b)
	url, remote := x.bucket(b)
	x.ours("Upload", tes.Task{
		Executors: []tes.Executor{Sh(x.image, fmt.Sprintf("head -c %d /dev/urandom > /out/large", large))},
		Outputs:   []tes.Output{{Path: "/out/large", URL: url + "/large"}},
	})
	file := random(b, filepath.Join(x.Dir, "large"), large)
	x.peer("rclone", "rclone", "copyto", "--ignore-times", file, remote+"/large-too") // else it sends once
	x.measure(b)
}

// BenchmarkFetchLocal copies 1 GiB within a filesystem.
func BenchmarkFetchLocal(b *testing.B) {
	x := newTransfers(b)
	file := random(b, filepath.Join(x.Dir, "large"), large)
	x.ours("Download", tes.Task{Inputs: []tes.Input{{URL: file, Path: "/in/large"}}})
	x.peer("cp", "cp", file, "large")
	x.measure(b)
}
