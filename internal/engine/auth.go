package engine

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"slices"

	"github.com/docker/cli/cli/config"
	"github.com/docker/docker/api/types/registry"
)

// auth returns the credentials for a registry as Docker's API takes them; empty
// without any: a public image needs none.
func (d *Docker) auth(ctx context.Context, domain string) (string, error) {
	a, err := d.credentials(ctx, domain)
	if err != nil || a == (registry.AuthConfig{ServerAddress: a.ServerAddress}) {
		return "", err
	}
	return registry.EncodeAuthConfig(a)
}

// credentials returns those for a registry, from the Docker configuration file
// ($DOCKER_CONFIG, else ~/.docker) and the credential helpers that it names. It
// reads them each time, because helpers hand out tokens that expire.
func (d *Docker) credentials(ctx context.Context, domain string) (registry.AuthConfig, error) {
	found := make(chan registry.AuthConfig, 1)
	go func() { // a helper is a program and may hang
		a, err := readCredentials(domain)
		if err != nil {
			d.log.Warn("cannot read the credentials for a registry; going on without", "registry", domain, "error", err)
		}
		found <- a
	}()
	select {
	case a := <-found:
		return a, nil
	case <-ctx.Done():
		return registry.AuthConfig{}, ctx.Err()
	}
}

func readCredentials(domain string) (registry.AuthConfig, error) {
	file, err := config.Load(config.Dir())
	if err != nil {
		return registry.AuthConfig{}, err
	}
	c, err := file.GetAuthConfig(domain)
	if err != nil {
		return registry.AuthConfig{}, err
	}
	return registry.AuthConfig{
		Username: c.Username, Password: c.Password, Auth: c.Auth, ServerAddress: c.ServerAddress,
		IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken,
	}, nil
}

// Logins says for which registries the Docker configuration file holds credentials
// or names a helper, and what is wrong with it. It asks no helper.
func Logins() (registries []string, problems error) {
	file, err := config.Load(config.Dir())
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for name := range file.AuthConfigs {
		found[name] = true
	}
	helpers := maps.Clone(file.CredentialHelpers)
	for name := range helpers {
		found[name] = true
	}
	if file.CredentialsStore != "" {
		if helpers == nil {
			helpers = map[string]string{}
		}
		helpers["all others"] = file.CredentialsStore
	}
	for _, name := range slices.Sorted(maps.Keys(helpers)) {
		program := "docker-credential-" + helpers[name]
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%s names the helper %s for %s, which is not in the PATH", file.Filename, program, name)
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}
