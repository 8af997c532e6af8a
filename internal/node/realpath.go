package node

import "path/filepath"

// RealPath follows the links of the part of a path that exists.
func RealPath(p string) string {
	rest := ""
	for at := filepath.Clean(p); ; at = filepath.Dir(at) {
		if found, err := filepath.EvalSymlinks(at); err == nil {
			return filepath.Join(found, rest)
		}
		if at == "/" {
			return filepath.Clean(p)
		}
		rest = filepath.Join(filepath.Base(at), rest)
	}
}
