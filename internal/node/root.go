package node

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/machine"
)

// ErrNetworkFilesystem refuses a root that other machines may share: locks,
// memory maps and durability are only promised by a local disk.
var ErrNetworkFilesystem = errors.New("is on a network filesystem; choose a directory on a disk of this node (--root)")

// ErrRootName refuses a root whose name no filesystem takes.
var ErrRootName = errors.New("its name is too long; choose a shorter one (--root)")

// networkFilesystems by the f_type of statfs(2).
var networkFilesystems = map[uint32]string{
	unix.AFS_SUPER_MAGIC:   "AFS",
	unix.CEPH_SUPER_MAGIC:  "CephFS",
	unix.CIFS_SUPER_MAGIC:  "CIFS",
	unix.CODA_SUPER_MAGIC:  "Coda",
	unix.NCP_SUPER_MAGIC:   "NCP",
	unix.NFS_SUPER_MAGIC:   "NFS",
	unix.OCFS2_SUPER_MAGIC: "OCFS2",
	unix.SMB2_SUPER_MAGIC:  "SMB",
	unix.SMB_SUPER_MAGIC:   "SMB",
	unix.V9FS_MAGIC:        "9P",
	// Not in the kernel's magic.h; from their own sources.
	0x01161970: "GFS2",
	0x0BD00BD0: "Lustre",
	0x19830326: "BeeGFS",
	0x47504653: "GPFS",
	0xAAD7AAEA: "PanFS",
}

// networkFUSE are the subtypes of FUSE that reach other machines. FUSE in
// general is not refused: it is also the way to a virtual machine's own disk.
var networkFUSE = map[string]bool{
	"sshfs": true, "glusterfs": true, "ceph": true, "ceph-fuse": true, "cvmfs2": true,
	"s3fs": true, "gcsfuse": true, "blobfuse": true, "blobfuse2": true, "goofys": true,
	"mount-s3": true, "mountpoint-s3": true, "rclone": true, "juicefs": true, "JuiceFS": true,
	"davfs": true, "curlftpfs": true, "beegfs": true, "lizardfs": true, "mfs": true, "moosefs": true,
}

// PrepareRoot makes root a directory of mode 0700 that this user owns, on a
// local filesystem, with its parents. All checks come before the first change,
// and a refusal leaves nothing behind. Refusals carry machine.NodeFault; one for
// a network filesystem is ErrNetworkFilesystem.
func PrepareRoot(root string) error {
	root, err := filepath.Abs(root)
	if err != nil {
		return fmt.Errorf("cannot use %s as root: %w", root, err)
	}
	if err := prepareRoot(root); err != nil {
		return machine.Faultf(machine.NodeFault, "cannot use %s as root: %w", root, err)
	}
	return nil
}

// CheckRoot makes the checks of PrepareRoot that need no change.
func CheckRoot(root string) error {
	root, err := filepath.Abs(root)
	if err != nil {
		return fmt.Errorf("cannot use %s as root: %w", root, err)
	}
	if _, _, err := checkRoot(root); err != nil {
		return machine.Faultf(machine.NodeFault, "cannot use %s as root: %w", root, err)
	}
	return nil
}

// checkRoot returns the nearest directory of root that exists.
func checkRoot(root string) (at string, info os.FileInfo, err error) {
	at, st, err := statfsNearest(root)
	if errors.Is(err, unix.ENAMETOOLONG) {
		return "", nil, ErrRootName
	}
	if err != nil {
		return "", nil, err
	}
	if name := networkFilesystem(at, st); name != "" {
		return "", nil, fmt.Errorf("it %w (%s)", ErrNetworkFilesystem, name)
	}
	if info, err = os.Stat(at); err != nil {
		return "", nil, err
	}
	if !info.IsDir() {
		return "", nil, fmt.Errorf("%s is not a directory", at)
	}
	// AT_EACCESS: as the effective user, and with a read-only filesystem in mind.
	if err := unix.Faccessat(unix.AT_FDCWD, at, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return "", nil, fmt.Errorf("%s is not writable: %w; choose another directory (--root) or run as its owner", at, err)
	}
	return at, info, nil
}

func prepareRoot(root string) error {
	at, info, err := checkRoot(root)
	if err != nil {
		return err
	}
	if at != root {
		return makeRoot(root, at)
	}
	return tightenRoot(root, info)
}

// makeRoot creates root below the existing directory at, durably, or nothing.
func makeRoot(root, at string) (err error) {
	rel, err := filepath.Rel(at, root)
	if err != nil {
		return err
	}
	var made []string
	defer func() {
		if err != nil {
			for i := len(made) - 1; i >= 0; i-- {
				_ = os.Remove(made[i]) // not if somebody has put something into it
			}
		}
	}()
	dir := at
	for _, part := range strings.Split(rel, string(filepath.Separator)) {
		parent := dir
		dir = filepath.Join(dir, part)
		mode := os.FileMode(0o755)
		if dir == root {
			mode = 0o700
		}
		if err := os.Mkdir(dir, mode); errors.Is(err, os.ErrExist) && dir != root {
			continue // another process makes a root beside ours
		} else if errors.Is(err, os.ErrExist) {
			return prepareRoot(root)
		} else if err != nil {
			return err
		}
		made = append(made, dir)
		if err := syncDir(parent); err != nil {
			return err
		}
	}
	return nil
}

// tightenRoot takes an existing directory over.
func tightenRoot(root string, info os.FileInfo) error {
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		return err
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("it belongs to user %d and this is user %d; choose another directory (--root) or change its owner", st.Uid, os.Geteuid())
	}
	if info.Mode().Perm() == 0o700 {
		return nil
	}
	// Only a root of ours, or an empty directory, is closed to others: not /tmp
	// because somebody mistyped.
	if _, err := os.Lstat(filepath.Join(root, ownerFile)); err != nil {
		entries, err := os.ReadDir(root)
		if err != nil {
			return err
		}
		if len(entries) > 0 {
			return fmt.Errorf("it holds other things and its mode is %04o; choose an empty directory (--root), or chmod 0700 it", info.Mode().Perm())
		}
	}
	return os.Chmod(root, 0o700)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// networkFilesystem names the network filesystem that path is on, or returns "".
func networkFilesystem(path string, st unix.Statfs_t) string {
	if uint32(st.Type) == unix.FUSE_SUPER_MAGIC {
		if sub := fuseSubtype(path); networkFUSE[sub] {
			return "FUSE, " + sub
		}
		return ""
	}
	return networkFilesystems[uint32(st.Type)]
}

// fuseSubtype finds the mount that path is on by the longest mount point above
// it: asking the filesystem itself for its device could hang.
func fuseSubtype(path string) string {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		path = p
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	var best, subtype string
	for s := bufio.NewScanner(f); s.Scan(); {
		// proc_pid_mountinfo(5): the mount point is field 5, the type follows " - ".
		left, right, ok := strings.Cut(s.Text(), " - ")
		fields := strings.Fields(left)
		if !ok || len(fields) < 5 {
			continue
		}
		point := unescapeMount.Replace(fields[4])
		if (path == point || point == "/" || strings.HasPrefix(path, point+"/")) && len(point) >= len(best) {
			fstype, _, _ := strings.Cut(right, " ")
			best = point
			_, subtype, _ = strings.Cut(fstype, ".")
		}
	}
	return subtype
}

var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
