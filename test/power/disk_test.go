package power

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// What was flushed outlives a cut. What was not is kept or lost by the sector,
// and a machine reads after the cut what is left.
func TestDisk(t *testing.T) {
	const sectors = 1000
	fill := func(b byte) []byte { return bytes.Repeat([]byte{b}, sectors*sector) }
	for _, keep := range []float64{0, 0.5, 1} {
		image := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(image, fill('a'), 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := openDisk(image, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		d.power(io.NopCloser(nil))
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(d.write(fill('b'), 0))
		must(d.flush())
		must(d.write(fill('c'), 0))
		got := make([]byte, sectors*sector)
		must(d.read(got, 0))
		if !bytes.Equal(got, fill('c')) {
			t.Error("the disk does not hold what was written last")
		}
		loss, err := d.Cut(rand.New(rand.NewPCG(1, 1)), keep)
		must(err)
		if err := d.read(got, 0); err == nil {
			t.Error("a disk without power answers")
		}
		d.power(io.NopCloser(nil))
		must(d.read(got, 0))
		lost := bytes.Count(got, fill('b')[:sector])
		if kept := bytes.Count(got, fill('c')[:sector]); kept+lost != sectors || lost != loss.Lost || loss.Cached != sectors {
			t.Errorf("keep %v: %d sectors are kept and %d are lost; said was %+v", keep, kept, lost, loss)
		}
		if keep == 0 && lost != sectors || keep == 1 && lost != 0 || keep == 0.5 && (lost < sectors/3 || lost > sectors*2/3) {
			t.Errorf("keep %v: %d of %d sectors are lost", keep, lost, sectors)
		}
		d.now.Close()
		d.safe.Close()
	}
}
