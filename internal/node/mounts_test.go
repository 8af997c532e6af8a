package node

import "testing"

// What is mounted is told from where the kernel would find it.
func TestPrivate(t *testing.T) {
	const node = "22 1 8:1 / / rw - ext4 /dev/sda rw\n30 22 8:2 / /data rw - ext4 /dev/sdb rw\n31 22 0:30 / /proc rw - proc proc rw\n32 22 0:31 / /home rw shared:3 - autofs auto.home rw\n"
	for name, tc := range map[string]struct {
		own, file, point string
	}{
		"the same":                     {"52 1 8:1 / / rw - ext4 a rw\n53 52 8:2 / /data rw - ext4 b rw\n", "/data/out", ""},
		"a directory of the job":       {"52 1 8:1 / / rw - ext4 a rw\n53 52 8:1 /execute/dir_1/tmp /tmp rw - ext4 a rw\n", "/tmp/out", "/tmp"},
		"beside it":                    {"52 1 8:1 / / rw - ext4 a rw\n53 52 8:1 /execute/dir_1/tmp /tmp rw - ext4 a rw\n", "/tmpout", ""},
		"itself":                       {"52 1 8:1 / / rw - ext4 a rw\n53 52 8:1 /tmp /tmp ro - ext4 a rw\n", "/tmp/out", ""},
		"a filesystem of the job":      {"52 1 8:1 / / rw - ext4 a rw\n53 52 0:40 / /tmp rw - tmpfs a rw\n", "/tmp", "/tmp"},
		"what the job does not see":    {"52 1 8:1 / / rw - ext4 a rw\n", "/data/out", "/"},
		"a root of the job":            {"52 51 0:50 / / rw - overlay a rw\n53 52 8:2 / /data rw - ext4 b rw\n", "/out", "/"},
		"shared in a root of the job":  {"52 51 0:50 / / rw - overlay a rw\n53 52 8:2 / /data rw - ext4 b rw\n", "/data/out", ""},
		"hidden by another":            {"52 1 8:1 / / rw - ext4 a rw\n53 52 0:40 / /a/b rw - tmpfs a rw\n54 52 8:1 /a /a rw - ext4 a rw\n", "/a/b/out", ""},
		"the upper of two":             {"52 1 8:1 / / rw - ext4 a rw\n54 53 8:1 /tmp /tmp rw - ext4 a rw\n53 52 0:40 / /tmp rw - tmpfs a rw\n", "/tmp/out", ""},
		"with a space":                 {"52 1 8:1 / / rw - ext4 a rw\n53 52 0:40 / /a\\040b rw - tmpfs a rw\n", "/a b/out", "/a b"},
		"mounted when it is asked for": {"52 1 8:1 / / rw - ext4 a rw\n53 52 0:31 / /home rw - autofs auto.home rw\n54 53 0:44 / /home/a rw - nfs4 b rw\n", "/home/a/out", ""},
		"on itself":                    {"52 52 8:1 / / rw - ext4 a rw\n53 52 0:40 / /tmp rw - tmpfs a rw\n", "/tmp/out", "/tmp"},
		"nothing told":                 {"", "/tmp/out", ""},
	} {
		t.Run(name, func(t *testing.T) {
			point, private := Mounts{parseMounts(tc.own), parseMounts(node)}.Private(tc.file)
			if point != tc.point || private != (tc.point != "") {
				t.Errorf("%s is on %q (%t), want %q", tc.file, point, private, tc.point)
			}
			if point, private := (Mounts{parseMounts(tc.own), nil}).Private(tc.file); private {
				t.Errorf("without those of the node %s is on %q", tc.file, point)
			}
		})
	}
}
