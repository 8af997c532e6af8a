package storagetest

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http/httptest"
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
	url, dir = nginx(t, "", "")
	return "http://" + url, dir
}

// NginxTLS is Nginx by https. Clients need the certificate in the file authority.
func NginxTLS(t testing.TB) (url, dir, authority string) {
	t.Helper()
	// The certificate that net/http/httptest has for 127.0.0.1.
	s := httptest.NewTLSServer(nil)
	s.Close()
	own := s.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "key.pem")
	authority = filepath.Join(filepath.Dir(secret), "certificate.pem")
	for file, block := range map[string]*pem.Block{
		authority: {Type: "CERTIFICATE", Bytes: own.Certificate[0]},
		secret:    {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	url, dir = nginx(t, " ssl", fmt.Sprintf("ssl_certificate %s; ssl_certificate_key %s;", authority, secret))
	return "https://" + url, dir, authority
}

// nginx is Nginx with words about how to listen. It returns the address.
func nginx(t testing.TB, listen, tls string) (address, dir string) {
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
	address = freeAddress(t)
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
		listen %[3]s%[4]s; %[5]s
		root %[2]s/files;
		dav_methods PUT;
		create_full_put_path on;
		location /noranges/ { alias %[2]s/files/; max_ranges 0; }
	}
}
`, user, base, address, listen, tls)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(base, "error.log")
	serve(t, exec.Command(program, "-p", base, "-e", log, "-c", conf), address, log)
	return address, dir
}
