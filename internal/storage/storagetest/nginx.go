package storagetest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Nginx starts a real nginx on loopback that serves and takes the files of a
// directory, and stops it at the end of the test. It returns its base URL and
// the directory. Without nginx on the machine the test is skipped, in CI it fails.
func Nginx(t testing.TB) (url, dir string) {
	t.Helper()
	program, err := exec.LookPath("nginx")
	if err != nil {
		program = "/usr/sbin/nginx" // not in everybody's PATH
		if _, err := os.Stat(program); err != nil {
			missing(t, "nginx is not installed; apt-get install nginx-light")
		}
	}
	base := t.TempDir()
	dir = filepath.Join(base, "files")
	for _, d := range []string{dir, filepath.Join(base, "tmp")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	address := freeAddress(t)
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;" // the directories are root's
	}
	conf := filepath.Join(base, "nginx.conf")
	text := fmt.Sprintf(`%s
daemon off;
worker_processes 2;
pid %[2]s/nginx.pid;
error_log %[2]s/error.log;
events { worker_connections 512; }
http {
	access_log off;
	sendfile on;
	keepalive_requests 1000000;
	client_max_body_size 0;
	client_body_temp_path %[2]s/tmp;
	proxy_temp_path %[2]s/tmp;
	fastcgi_temp_path %[2]s/tmp;
	uwsgi_temp_path %[2]s/tmp;
	scgi_temp_path %[2]s/tmp;
	server {
		listen %[3]s;
		root %[2]s/files;
		dav_methods PUT;
		create_full_put_path on;
		location /noranges/ { alias %[2]s/files/; max_ranges 0; }
	}
}
`, user, base, address)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(base, "error.log")
	serve(t, exec.Command(program, "-p", base, "-e", log, "-c", conf), address, log)
	return "http://" + address, dir
}
