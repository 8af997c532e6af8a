package node

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/deckhand/deckhand/machine"
)

// ErrFilesystem refuses a root on a filesystem where the journal cannot keep
// what it promises.
var ErrFilesystem = errors.New("choose a directory on ext4 or xfs (--root), or take the risk with disk.any_filesystem")

const (
	network     = "other machines may share it, and locks, memory maps and durability are only promised by a local disk"
	copyOnWrite = "it takes new blocks for what is overwritten, so that a full disk kills whoever writes to a memory map"
	unreserved  = "no space can be set aside on it for a full disk"
	unknown     = "what is below it is not known, often a network"
)

// unfit filesystems by the f_type of statfs(2).
var unfit = map[uint32]struct{ name, why string }{
	unix.AFS_SUPER_MAGIC:   {"AFS", network},
	unix.CEPH_SUPER_MAGIC:  {"CephFS", network},
	unix.CIFS_SUPER_MAGIC:  {"CIFS", network},
	unix.CODA_SUPER_MAGIC:  {"Coda", network},
	unix.NCP_SUPER_MAGIC:   {"NCP", network},
	unix.NFS_SUPER_MAGIC:   {"NFS", network},
	unix.OCFS2_SUPER_MAGIC: {"OCFS2", network},
	unix.SMB2_SUPER_MAGIC:  {"SMB", network},
	unix.SMB_SUPER_MAGIC:   {"SMB", network},
	unix.V9FS_MAGIC:        {"9P", network},

	unix.BTRFS_SUPER_MAGIC: {"btrfs", copyOnWrite},
	unix.F2FS_SUPER_MAGIC:  {"F2FS", copyOnWrite},
	unix.NILFS_SUPER_MAGIC: {"NILFS2", copyOnWrite},

	unix.MSDOS_SUPER_MAGIC: {"FAT", unreserved},
	unix.EXFAT_SUPER_MAGIC: {"exFAT", unreserved},
	unix.FUSE_SUPER_MAGIC:  {"FUSE", unknown},

	// Not in the kernel's magic.h; from their own sources.
	0x01161970: {"GFS2", network},
	0x0BD00BD0: {"Lustre", network},
	0x19830326: {"BeeGFS", network},
	0x47504653: {"GPFS", network},
	0xAAD7AAEA: {"PanFS", network},
	0x2FC12FC1: {"ZFS", copyOnWrite},
	0xCA451A4E: {"bcachefs", copyOnWrite},
}

// CheckFilesystem refuses a directory, which need not exist yet, on a filesystem
// that cannot keep the journal's promises: ErrFilesystem with the reason, as a
// machine.NodeFault. A directory that cannot be looked at is left to PrepareRoot.
func CheckFilesystem(dir string) error {
	_, st, err := statfsNearest(dir)
	if err != nil {
		return nil
	}
	if f, ok := unfit[uint32(st.Type)]; ok {
		return machine.Faultf(machine.NodeFault, "cannot use %s: it is on %s: %s; %w", dir, f.name, f.why, ErrFilesystem)
	}
	return nil
}
