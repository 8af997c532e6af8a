package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/machine"
)

func TestCheckFilesystem(t *testing.T) {
	needRoot(t)
	btrfs := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(btrfs, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(btrfs, 128<<20); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "mkfs.btrfs", "-q", btrfs)
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		missing(t, "/dev/fuse")
	}
	defer dev.Close()
	for _, tc := range []struct{ fstype, source, options, refused string }{
		{"btrfs", btrfs, "loop", "on btrfs: it takes new blocks"},
		// Nobody serves this mount; it tells its magic number all the same.
		{"fuse.sshfs", "test", fmt.Sprintf("fd=%d,rootmode=40000,user_id=65534,group_id=65534", dev.Fd()), "on FUSE: what is below it is not known"},
		{"tmpfs", "test", "", ""},
	} {
		t.Run(tc.fstype, func(t *testing.T) {
			at := t.TempDir()
			if tc.options == "loop" {
				if out, err := exec.Command("mount", "-o", "loop", tc.source, at).CombinedOutput(); err != nil {
					missing(t, fmt.Sprintf("a mount of %s (%s)", tc.fstype, strings.TrimSpace(string(out))))
				}
			} else if err := unix.Mount(tc.source, at, tc.fstype, 0, tc.options); err != nil {
				missing(t, tc.fstype+": "+err.Error())
			}
			t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
			dir := at
			if tc.fstype != "fuse.sshfs" {
				dir = filepath.Join(at, "not", "yet", "there")
			}
			err := CheckFilesystem(dir)
			if tc.refused == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, ErrFilesystem) || machine.FaultOf(err) != machine.NodeFault || !strings.Contains(err.Error(), tc.refused) {
				t.Errorf("%v, want %s", err, tc.refused)
			}
		})
	}
}

// The magic numbers of filesystems that cannot be mounted here.
func TestUnfit(t *testing.T) {
	for magic, want := range map[uint32]string{
		0x6969: "NFS", 0xff534d42: "CIFS", 0xfe534d42: "SMB", 0x0bd00bd0: "Lustre", 0x01021997: "9P", 0x2fc12fc1: "ZFS",
		unix.EXT4_SUPER_MAGIC: "", unix.XFS_SUPER_MAGIC: "", unix.TMPFS_MAGIC: "", unix.OVERLAYFS_SUPER_MAGIC: "",
	} {
		if got := unfit[magic].name; got != want {
			t.Errorf("%#x: %q, want %q", magic, got, want)
		}
	}
}
