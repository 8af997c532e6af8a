// Command good is a program with effects of all shapes.
package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
)

// Docker is somebody who changes the world.
type Docker interface {
	Start(name string) (id string, n int, err error)
	Pull(report func(string)) error
	Stop()
	Image(name string) error
}

type docker struct{ dir string }

func (d docker) Start(name string) (string, int, error) {
	return name, 1, os.Mkdir(filepath.Join(d.dir, name), 0o700)
}
func (d docker) Pull(report func(string)) error { report("layer"); report("layer"); return nil }
func (d docker) Stop()                          {}
func (d docker) Image(string) error             { return nil }

func main() {
	dir := os.Args[1]
	if err := work(dir, docker{dir}); err != nil {
		panic(err)
	}
}

func work(dir string, d Docker) (err error) {
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "a"), 0o700), os.Mkdir(filepath.Join(dir, "b"), 0o700)); err != nil {
		return err
	}
	// Effects inside the arguments of an effect.
	if err := os.Rename(made(dir, "c"), filepath.Join(made(dir, "d"), "c")); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "f"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if old, err := os.OpenFile(filepath.Join(dir, "f"), os.O_RDONLY, 0); err == nil {
		old.Close()
	}
	if _, err := io.Copy(f, io.LimitReader(f, 0)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Sync(), f.Close()) }()
	if _, _, err := d.Start("s"); err != nil {
		return err
	}
	d.Stop()
	if err := d.Image("s"); err != nil {
		return err
	}
	if err := d.Pull(func(string) {}); err != nil {
		return err
	}
	return nil
}

func made(dir, name string) string {
	name = filepath.Join(dir, name)
	_ = os.Mkdir(name, 0o700) // checked by the test
	return name
}
