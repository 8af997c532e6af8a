package node

import "testing"

// Linux tells of write errors in syncfs since 5.8.
func TestSyncfsTells(t *testing.T) {
	for release, want := range map[string]bool{
		"5.8.0": true, "5.8": true, "5.8-rc1": true, "5.10.0-28-amd64": true, "5.15.153.1-microsoft-standard-WSL2": true, "6.1": true, "10.0.1": true,
		"5.7.19": false, "5.0.0": false, "4.18.0-553.el8_10.x86_64": false, "4.19.300": false, "3.10.0-1160.el7.x86_64": false,
		"": false, "linux": false, "5": false, "5.": false,
	} {
		if got := syncfsTells(release); got != want {
			t.Errorf("%q: %v", release, got)
		}
	}
}
