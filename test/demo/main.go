// Command demo takes four small but real tasks through deckhand, on a real
// Docker Engine and with images from a registry on loopback, and shows what
// deckhand did. It ends with 1 when anything is not as it says.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/deckhand/deckhand/test/rig"
)

const program = "bin/deckhand"

func main() {
	// An interrupt ends the deckhand in the foreground; the demo then sees it
	// fail and cleans up.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	s := &stage{}
	s.play()
	s.end(0)
}

// stage is where the demo plays: a directory, an engine and a registry.
type stage struct {
	cleanups []func()
	dir      string
	host     string
	registry *rig.Registry
}

func (s *stage) play() {
	dir, err := os.MkdirTemp("", "deckhand-demo")
	s.check(err)
	s.Cleanup(func() { os.RemoveAll(dir) })
	s.dir = dir
	s.host = rig.Docker(s)
	s.registry = rig.NewRegistry(s)
	sorter := rig.Image(s, s.registry, "sorter:1.0", rig.Spec{Size: 4 << 20}).Tag
	stepper := rig.Image(s, s.registry, "stepper:2.1", rig.Spec{Size: 4 << 20, Marker: "other"}).Tag
	s.writeInput()
	say("Engine %s, registry %s, everything else under %s.", s.host, s.registry.Addr(), dir)

	title("1. A task: two executors, an input file, a directory as output")
	first := s.sortTask("sort-1", sorter)
	show(first)
	s.run(first, "pulled")
	s.inspect(first)
	say("Each line is one step forward, on disk before anything else happens: scrub the node, get the image,")
	say("stage the input, run, publish, done. Lines that are no move announce an effect, or record that it is there.")

	title("2. The next task wants the same image: it is reused")
	second := s.sortTask("sort-2", sorter)
	s.run(second, "reused")
	s.inspect(second)
	say("The tag was compared with the registry, and no layer was loaded.")

	title("3. Another task wants another image: the old one goes first, then the new one comes")
	third := s.sortTask("sort-3", stepper)
	s.run(third, "pulled")
	s.inspect(third)
	s.deckhand(0, "journal", "images")
	if images := s.docker("image", "ls", "--quiet", sorter); images != "" {
		s.Fatalf("%s is still on the node", sorter)
	}
	say("%s is gone: deckhand had pulled it. An image that was there before would have stayed.", sorter)

	title("4. The node dies in the middle of a task: deckhand is killed with SIGKILL, then started again")
	fourth := s.stepTask("steps-4", stepper)
	s.kill(fourth)
	s.deckhand(3, "status", fourth.Name)
	say("Now the same command again, as a batch engine would.")
	s.run(fourth, "reused")
	s.inspect(fourth)
	starts := strings.Count(s.read("steps-4/log.txt"), "start")
	if starts != 1 {
		s.Fatalf("the command was started %d times, want once", starts)
	}
	say("The new deckhand found its container by the journal, waited for it and went on. The command ran once.")

	title("What is left on the node")
	for _, task := range []string{"sort-1", "sort-2", "sort-3", "steps-4"} {
		s.list(filepath.Join(dir, "out", task))
	}
	for _, task := range []document{first, second, third, fourth} {
		if left := s.docker("ps", "--all", "--quiet", "--filter", "label=deckhand.task="+task.Name); left != "" {
			s.Fatalf("containers of %s are left: %s", task.Name, left)
		}
	}
	trees, err := os.ReadDir(filepath.Join(s.root(), "tasks"))
	s.check(err)
	if len(trees) > 0 {
		s.Fatalf("the directory of %s is left", trees[0].Name())
	}
	say("Containers: none. Task directories: none. Images: %s, in case the next task wants it.",
		strings.ReplaceAll(s.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", s.registry.Addr()+"/*"), "\n", " "))
	say("The outputs and the journal are all that is left, and the demo deletes them now.")
}

// document is the part of a TES task that the demo needs.
type document struct {
	Name      string     `json:"id"`
	Inputs    []file     `json:"inputs,omitempty"`
	Outputs   []file     `json:"outputs"`
	Volumes   []string   `json:"volumes,omitempty"`
	Executors []executor `json:"executors"`
}

type file struct {
	URL  string `json:"url"`
	Path string `json:"path"`
	Type string `json:"type"`
}

type executor struct {
	Image   string   `json:"image"`
	Command []string `json:"command"`
	Stdout  string   `json:"stdout,omitempty"`
}

// sortTask sorts the input, then cuts it into the files of a directory.
func (s *stage) sortTask(name, image string) document {
	return document{
		Name:    name,
		Inputs:  []file{{"file://" + filepath.Join(s.dir, "words.txt"), "/in/words.txt", "FILE"}},
		Volumes: []string{"/work"},
		Outputs: []file{
			{"file://" + filepath.Join(s.dir, "out", name, "parts"), "/out/parts", "DIRECTORY"},
			{"file://" + filepath.Join(s.dir, "out", name, "count.txt"), "/out/count.txt", "FILE"},
		},
		Executors: []executor{
			{Image: image, Command: []string{"sort", "-o", "/work/sorted.txt", "/in/words.txt"}},
			{
				Image:   image,
				Command: []string{"sh", "-c", `mkdir -p /out/parts && awk '{ print > ("/out/parts/" int((NR-1)/50000)) }' /work/sorted.txt && wc -l /out/parts/*`},
				Stdout:  "/out/count.txt",
			},
		},
	}
}

// stepTask runs long enough to be killed in the middle.
func (s *stage) stepTask(name, image string) document {
	return document{
		Name:    name,
		Outputs: []file{{"file://" + filepath.Join(s.dir, "out", name, "log.txt"), "/out/log.txt", "FILE"}},
		Executors: []executor{{
			Image:   image,
			Command: []string{"sh", "-c", "echo start; for i in 1 2 3 4 5; do echo step $i; sleep 1; done"},
			Stdout:  "/out/log.txt",
		}},
	}
}

// writeInput writes 4 MiB of lines in no order.
func (s *stage) writeInput() {
	var text bytes.Buffer
	for n := uint32(1); text.Len() < 4<<20; {
		n = n*1664525 + 1013904223 // Numerical Recipes' generator: the same file each time
		fmt.Fprintf(&text, "line %08x of the input\n", n)
	}
	s.check(os.WriteFile(filepath.Join(s.dir, "words.txt"), text.Bytes(), 0o644))
}

func (s *stage) root() string { return filepath.Join(s.dir, "root") }

// command is deckhand with the demo's own root and engine.
func (s *stage) command(args ...string) *exec.Cmd {
	cmd := exec.Command(program, append(args, "--root", s.root(), "--docker-host", s.host)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	fmt.Printf("\n$ deckhand %s\n", strings.Join(args, " "))
	return cmd
}

// deckhand runs a command that only shows something, and expects that exit code.
func (s *stage) deckhand(code int, args ...string) {
	cmd := s.command(args...)
	if err := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != code {
		s.Fatalf("deckhand %s: %v, want exit code %d", strings.Join(args, " "), err, code)
	}
}

func (s *stage) runCommand(task document) *exec.Cmd {
	path := filepath.Join(s.dir, task.Name+".json")
	s.check(os.WriteFile(path, task.json(), 0o644))
	return s.command("run", path, "--result", filepath.Join(s.dir, task.Name+".result.json"))
}

// run takes the task to its end and checks that it is Complete and how its
// image was come by: pulled or reused.
func (s *stage) run(task document, image string) {
	s.registry.Reset()
	start := time.Now()
	if err := s.runCommand(task).Run(); err != nil {
		s.Fatalf("deckhand run %s: %v", task.Name, err)
	}
	var result struct {
		State string
		Logs  []struct{ Metadata map[string]string }
	}
	text, err := os.ReadFile(filepath.Join(s.dir, task.Name+".result.json"))
	s.check(err)
	s.check(json.Unmarshal(text, &result))
	if result.State != "COMPLETE" || len(result.Logs) == 0 {
		s.Fatalf("%s ended as %s", task.Name, text)
	}
	meta := result.Logs[len(result.Logs)-1].Metadata
	if meta["deckhand.image_pull"] != image {
		s.Fatalf("%s: the image was %q, want %q", task.Name, meta["deckhand.image_pull"], image)
	}
	layers := 0
	for _, r := range s.registry.Requests() {
		if strings.Contains(r.Path, "/blobs/") {
			layers++
		}
	}
	say("%s in %.1f s. Image %s (%d requests to the registry, %d for content), %s bytes in, %s bytes out.",
		result.State, time.Since(start).Seconds(), image, len(s.registry.Requests()), layers,
		meta["deckhand.bytes_in"], meta["deckhand.bytes_out"])
}

// kill starts the task and kills deckhand as soon as the container runs.
func (s *stage) kill(task document) {
	cmd := s.runCommand(task)
	s.check(cmd.Start())
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
		close(ended)
	}()
	container := ""
	for container == "" {
		select {
		case <-ended:
			s.Fatalf("deckhand ended before it could be killed: %v", cmd.ProcessState)
		case <-time.After(100 * time.Millisecond):
			container = s.docker("ps", "--quiet", "--filter", "label=deckhand.task="+task.Name)
		}
	}
	s.check(cmd.Process.Kill())
	<-ended
	say("deckhand is dead; its container %s runs on.", container)
}

func (s *stage) inspect(task document) { s.deckhand(0, "journal", "inspect", task.Name) }

func (s *stage) docker(args ...string) string { return rig.DockerCmd(s, args...) }

func (s *stage) read(output string) string {
	text, err := os.ReadFile(filepath.Join(s.dir, "out", output))
	s.check(err)
	return string(text)
}

// list prints the files below dir; there must be some.
func (s *stage) list(dir string) {
	files, size := 0, int64(0)
	s.check(filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			files, size = files+1, size+info.Size()
		}
		return err
	}))
	if files == 0 {
		s.Fatalf("no outputs in %s", dir)
	}
	say("%s: %d files, %d bytes", dir, files, size)
}

func (d document) json() []byte {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	_ = enc.Encode(d) // strings into a buffer
	return text.Bytes()
}

func show(d document) { fmt.Printf("\n%s", d.json()) }

func title(text string) {
	fmt.Printf("\n%s\n%s\n", text, strings.Repeat("=", len(text)))
}

func say(format string, args ...any) { fmt.Printf("# "+format+"\n", args...) }
