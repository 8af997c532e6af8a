package main

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"

	"github.com/deckhand/deckhand/internal/engine"
)

// fixCredentials tells where more is said.
const fixCredentials = "see docs/storage.md for what is looked for; a node's own identity, which is not asked here, may do instead"

// credentials tells which ones are there, never what they are. Those that a node has
// from its cloud are found out by asking for the URLs of a task.
func (e *examination) credentials(context.Context) (found []finding) {
	logins, err := engine.Logins()
	if err != nil {
		found = append(found, doubt(message(err), "mend Docker's configuration file, or install the helper; images are pulled without credentials until then"))
	}
	there := []string{}
	if len(logins) > 0 {
		there = append(there, "registries "+strings.Join(logins, ", "))
	}
	for _, c := range clouds {
		by, missing := c.find()
		if missing != "" {
			found = append(found, doubt(fmt.Sprintf("%s: %s", c.name, missing), "make the file readable for this user, or unset the variable"))
		}
		if by != "" {
			there = append(there, c.name+" by "+by)
		} else if missing == "" && e.wants(c.schemes) && !c.anonymous(e) {
			found = append(found, doubt(fmt.Sprintf("%s: the task needs it, and neither the environment nor a file has any", c.name), fixCredentials))
		}
	}
	if len(found) == 0 && len(there) == 0 {
		return []finding{fine("none in the environment or in files")}
	}
	if len(there) > 0 {
		found = append(found, fine("%s", strings.Join(there, "; ")))
	}
	return found
}

// cloud is where credentials of one are looked for.
type cloud struct {
	name    string
	schemes []string
	// variables hold credentials, files name files with them; a path is below the
	// home directory.
	variables []string
	files     []string
	paths     []string
	anonymous func(*examination) bool
}

var clouds = []cloud{
	{"AWS", []string{"s3://"}, []string{"AWS_ACCESS_KEY_ID", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"},
		[]string{"AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE"}, []string{".aws/credentials"},
		func(e *examination) bool { return e.conf.Storage.S3.Anonymous }},
	{"Google", []string{"gs://"}, nil, []string{"GOOGLE_APPLICATION_CREDENTIALS"}, []string{".config/gcloud/application_default_credentials.json"},
		func(e *examination) bool {
			return e.conf.Storage.GCS.Anonymous || os.Getenv("STORAGE_EMULATOR_HOST") != ""
		}},
	{"Azure", []string{"az://"}, []string{"AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_CLIENT_SECRET"},
		[]string{"AZURE_FEDERATED_TOKEN_FILE", "AZURE_CLIENT_CERTIFICATE_PATH"}, nil,
		func(e *examination) bool { return e.conf.Storage.Azure.Anonymous }},
}

// find says where the first credentials are, by name, and what is missing of those
// that the environment names.
func (c cloud) find() (by, missing string) {
	for _, name := range c.variables {
		if os.Getenv(name) != "" {
			return name, ""
		}
	}
	for _, name := range c.files {
		if file := os.Getenv(name); file != "" {
			if err := readable(file); err != nil {
				return "", fmt.Sprintf("%s names %s, which cannot be read: %s", name, file, message(cause(err)))
			}
			return name, ""
		}
	}
	for _, path := range c.paths {
		if file := filepath.Join(home(), path); filepath.IsAbs(file) && readable(file) == nil {
			return file, ""
		}
	}
	return "", ""
}

// home is where the libraries of the clouds look: what HOME says and, as for a unit of
// systemd, which has none, what the system knows of the user. Empty when nobody does.
func home() string {
	if dir, err := os.UserHomeDir(); err == nil {
		return dir
	}
	if u, err := user.Current(); err == nil {
		return u.HomeDir
	}
	return ""
}

func readable(name string) error {
	f, err := os.Open(name)
	if err == nil {
		_ = f.Close() // nothing was read
	}
	return err
}

// wants says whether the task has a URL of such a scheme.
func (e *examination) wants(schemes []string) bool {
	if e.task == nil {
		return false
	}
	return slices.ContainsFunc(e.urls(), func(u taskURL) bool {
		return slices.ContainsFunc(schemes, func(s string) bool { return strings.HasPrefix(strings.ToLower(u.url), s) })
	})
}
