package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Holder is the process that has the lock of a root, 0 when nobody has it. It asks
// the kernel's list (proc_locks(5)): to try the lock would keep it, for that moment,
// from a run that starts. Processes of other PID namespaces are not in the list.
func Holder(root string) (pid int, err error) {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(root, lockFile), &st); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		}
		return 0, fmt.Errorf("cannot look at the lock of %s: %w", root, err)
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0, fmt.Errorf("cannot tell who holds the lock of %s: %w", root, err)
	}
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.Lines(string(locks)) {
		// number: FLOCK ADVISORY WRITE pid major:minor:inode from to; those that wait
		// for a lock have -> behind the number.
		f := strings.Fields(line)
		if len(f) > 5 && f[1] == "FLOCK" && f[5] == file {
			return strconv.Atoi(f[4])
		}
	}
	return 0, nil
}
