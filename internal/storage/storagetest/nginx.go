package storagetest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
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
			if os.Getenv("CI") != "" {
				t.Fatal("nginx is not installed; apt-get install nginx-light")
			}
			t.Skip("nginx is not installed; apt-get install nginx-light")
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
	cmd := exec.Command(program, "-p", base, "-e", filepath.Join(base, "error.log"), "-c", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // it may have ended
		if why := <-ended; why != nil {
			t.Logf("nginx: %v", why)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return "http://" + address, dir
		}
		select {
		case why := <-ended:
			log, _ := os.ReadFile(filepath.Join(base, "error.log"))
			ended <- why
			t.Fatalf("nginx ended: %v\n%s", why, log)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("nginx does not listen: %v", err)
		}
	}
}

// freeAddress returns an address of loopback that nobody listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
