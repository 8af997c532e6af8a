package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"

	"github.com/deckhand/deckhand/internal/netfilter"
)

// none is the text for "no limit".
const none = "none"

// kind is a type of setting: what is allowed, in words, and how a text that is
// allowed gets into the Config.
type kind struct {
	allowed string
	// placeholder stands for the value in a command's help.
	placeholder string
	set         func(c *Config, text string) error
}

var errNotAllowed = errors.New("not allowed")

func text(field func(*Config) *string) kind {
	return kind{"a text", "text", func(c *Config, s string) error {
		*field(c) = s
		return nil
	}}
}

func path(field func(*Config) *string) kind {
	return kind{"a directory", "dir", func(c *Config, s string) error {
		abs, err := filepath.Abs(s)
		if err != nil || s == "" {
			return errNotAllowed
		}
		*field(c) = abs
		return nil
	}}
}

// cgroupParent is a name that Docker's cgroupfs driver takes, or its systemd driver.
func cgroupParent(field func(*Config) *string) kind {
	k := kind{"", "cgroup", func(c *Config, s string) error {
		absolute := filepath.IsAbs(s) && filepath.Clean(s) == s && s != "/"
		if s != "auto" && !absolute && !strings.HasSuffix(s, ".slice") {
			return errNotAllowed
		}
		*field(c) = s
		return nil
	}}
	return orNone(k, "auto, an absolute path, the name of a slice", func(c *Config) { *field(c) = "" })
}

// file is the absolute name of a file, or empty.
func file(field func(*Config) *string) kind {
	return kind{"an absolute path, or empty", "file", func(c *Config, s string) error {
		if s != "" && !filepath.IsAbs(s) {
			return errNotAllowed
		}
		*field(c) = s
		return nil
	}}
}

// textfile is the absolute name of a file that the node exporter reads, or empty.
func textfile(field func(*Config) *string) kind {
	return kind{"an absolute path that ends in .prom, or empty", "file", func(c *Config, s string) error {
		if s != "" && (!filepath.IsAbs(s) || filepath.Ext(s) != ".prom") {
			return errNotAllowed
		}
		*field(c) = s
		return nil
	}}
}

// webhook is the URL of a server, or empty; it may hold secrets.
func webhook(field func(*Config) *string) kind {
	return kind{"an address such as http://host:8000/path or https://…, or empty", "url", func(c *Config, s string) error {
		u, err := url.Parse(s)
		if err != nil || s != "" && (u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Fragment != "") {
			return errNotAllowed
		}
		*field(c) = s
		return nil
	}}
}

func gpus(field func(*Config) *string) kind {
	allowed := regexp.MustCompile(`^[^,\s]+(,[^,\s]+)*$`) // whatever their driver names them
	return kind{"all, none, or the numbers or UUIDs of GPUs with commas between", "gpus", func(c *Config, s string) error {
		if !allowed.MatchString(s) {
			return errNotAllowed
		}
		*field(c) = s
		return nil
	}}
}

func devices(field func(*Config) *string) kind {
	// A path, which must stay in /dev, or a name of the Container Device Interface.
	allowed := regexp.MustCompile(`^(/dev/[^,]+|[A-Za-z0-9_.*?-]+/[A-Za-z0-9_.*?-]+=[^,]+)$`)
	return kind{"paths in /dev and CDI names with commas between, wildcards allowed", "devices", func(c *Config, s string) error {
		for _, item := range strings.Split(s, ",") {
			if s != "" && (!allowed.MatchString(item) || slices.Contains(strings.Split(item, "/"), "..")) {
				return errNotAllowed
			}
		}
		*field(c) = s
		return nil
	}}
}

func dockerHost(field func(*Config) *string) kind {
	return kind{"unix://PATH, tcp://HOST:PORT, http://HOST:PORT or https://HOST:PORT", "url", func(c *Config, s string) error {
		u, err := url.Parse(s)
		if err != nil {
			return errNotAllowed
		}
		switch u.Scheme {
		case "unix":
			if u.Host != "" || !strings.HasPrefix(u.Path, "/") {
				return errNotAllowed
			}
		case "tcp", "http", "https":
			if u.Host == "" {
				return errNotAllowed
			}
		default:
			return errNotAllowed
		}
		*field(c) = s
		return nil
	}}
}

// endpoint is the URL of a service, or empty.
func endpoint(field func(*Config) *string) kind {
	return kind{"an address such as http://host:8000/path or https://…, or empty", "url", func(c *Config, s string) error {
		u, err := url.Parse(strings.ReplaceAll(s, "{account}", "account"))
		if err != nil || s != "" && (u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "") {
			return errNotAllowed
		}
		*field(c) = s
		return nil
	}}
}

// rpc is where a gRPC service is, or empty.
func rpc(field func(*Config) *string) kind {
	return kind{"HOST:PORT or https://HOST:PORT, or empty", "address", func(c *Config, s string) error {
		host, port, err := net.SplitHostPort(strings.TrimPrefix(s, "https://"))
		if s != "" && (err != nil || host == "" || port == "" || strings.ContainsAny(host+port, "/@ ")) {
			return errNotAllowed
		}
		*field(c) = s
		return nil
	}}
}

func oneOf(field func(*Config) *string, values ...string) kind {
	return kind{strings.Join(values, ", "), strings.Join(values, "|"), func(c *Config, s string) error {
		if !slices.Contains(values, s) {
			return errNotAllowed
		}
		*field(c) = s
		return nil
	}}
}

func boolean(field func(*Config) *bool) kind {
	return kind{"true or false", "bool", func(c *Config, s string) error {
		switch s {
		case "true", "false":
			*field(c) = s == "true"
			return nil
		}
		return errNotAllowed
	}}
}

func count(field func(*Config) *int, least, most int) kind {
	return kind{fmt.Sprintf("a whole number from %d to %d", least, most), "n", func(c *Config, s string) error {
		n, err := strconv.Atoi(s)
		if err != nil || n < least || n > most {
			return errNotAllowed
		}
		*field(c) = n
		return nil
	}}
}

func number(field func(*Config) *int64) kind {
	return kind{"a whole number from 0", "n", func(c *Config, s string) error {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 0 {
			return errNotAllowed
		}
		*field(c) = n
		return nil
	}}
}

func countOrNone(field func(*Config) *int) kind {
	return orNone(count(field, 1, math.MaxInt32), "a whole number from 1", func(c *Config) { *field(c) = 0 })
}

func duration(field func(*Config) *time.Duration) kind {
	return kind{"a duration such as 10s, 15m, 2h or 7d", "duration", func(c *Config, s string) error {
		d, err := ParseDuration(s)
		if err != nil || d < 0 {
			return errNotAllowed
		}
		*field(c) = d
		return nil
	}}
}

func durationOrNone(field func(*Config) *time.Duration) kind {
	k := duration(field)
	return orNone(k, k.allowed, func(c *Config) { *field(c) = 0 })
}

// ParseDuration is time.ParseDuration that knows whole days too, such as 7d.
func ParseDuration(s string) (time.Duration, error) {
	days, ok := strings.CutSuffix(s, "d")
	if !ok {
		return time.ParseDuration(s)
	}
	const day = 24 * time.Hour
	n, err := strconv.ParseInt(days, 10, 64)
	if err != nil || n < 0 || n > int64(math.MaxInt64/day) {
		return 0, errNotAllowed
	}
	return time.Duration(n) * day, nil
}

func size(field func(*Config) *int64, least int64) kind {
	allowed := "a size such as 500MiB or 1GiB"
	if least > 1 {
		allowed += ", at least " + units.BytesSize(float64(least))
	}
	return kind{allowed, "size", func(c *Config, s string) error {
		n, err := units.RAMInBytes(s)
		if err != nil || n < least {
			return errNotAllowed
		}
		*field(c) = n
		return nil
	}}
}

func sizeOrNone(field func(*Config) *int64) kind {
	k := size(field, 1)
	return orNone(k, k.allowed, func(c *Config) { *field(c) = 0 })
}

// orNone adds the text "none" to k.
func orNone(k kind, allowed string, reset func(*Config)) kind {
	set := k.set
	k.allowed = allowed + ", or " + none
	k.set = func(c *Config, s string) error {
		if s == none {
			reset(c)
			return nil
		}
		return set(c, s)
	}
	return k
}

// list is values separated by commas, each of which check brings into its
// proper form, or "none".
func list(allowed string, field func(*Config) *string, check func(string) (string, error)) kind {
	k := kind{allowed, "list", func(c *Config, s string) error {
		var values []string
		for v := range strings.SplitSeq(s, ",") {
			v, err := check(strings.TrimSpace(v))
			if err != nil {
				return errNotAllowed
			}
			values = append(values, v)
		}
		*field(c) = strings.Join(values, ",")
		return nil
	}}
	return orNone(k, allowed, func(c *Config) { *field(c) = "" })
}

func directories(field func(*Config) *string) kind {
	return list("absolute paths of directories, but not of /, separated by commas", field, func(s string) (string, error) {
		if s = filepath.Clean(s); !filepath.IsAbs(s) || s == "/" {
			return "", errNotAllowed
		}
		return s, nil
	})
}

func addresses(field func(*Config) *string) kind {
	return list("IP addresses and CIDRs separated by commas", field, func(s string) (string, error) {
		p, err := netfilter.ParsePrefix(s)
		return p.String(), err
	})
}

func capabilities(field func(*Config) *string) kind {
	return list("capabilities such as NET_RAW separated by commas, or ALL", field, func(s string) (string, error) {
		s = strings.TrimPrefix(strings.ToUpper(s), "CAP_")
		if !slices.Contains(capabilityNames, s) {
			return "", errNotAllowed
		}
		return s, nil
	})
}

// capabilityNames are those of capabilities(7), without CAP_, and Docker's ALL.
var capabilityNames = []string{
	"ALL", "AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF", "CHECKPOINT_RESTORE", "CHOWN", "DAC_OVERRIDE",
	"DAC_READ_SEARCH", "FOWNER", "FSETID", "IPC_LOCK", "IPC_OWNER", "KILL", "LEASE", "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE",
	"MKNOD", "NET_ADMIN", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_RAW", "PERFMON", "SETFCAP", "SETGID", "SETPCAP", "SETUID",
	"SYSLOG", "SYS_ADMIN", "SYS_BOOT", "SYS_CHROOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO", "SYS_RESOURCE",
	"SYS_TIME", "SYS_TTY_CONFIG", "WAKE_ALARM",
}
