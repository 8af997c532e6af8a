package engine

import (
	"context"

	"github.com/docker/cli/cli/config"
	"github.com/docker/docker/api/types/registry"
)

// auth returns the credentials for a registry as Docker's API takes them, from
// the Docker configuration file ($DOCKER_CONFIG, else ~/.docker) and the
// credential helpers that it names. Without any it is empty: a public image
// needs none. It reads them each time, because helpers hand out tokens that expire.
func (d *Docker) auth(ctx context.Context, domain string) (string, error) {
	encoded := make(chan string, 1)
	go func() { // a helper is a program and may hang
		e, err := credentials(domain)
		if err != nil {
			d.log.Warn("cannot read the credentials for a registry; going on without", "registry", domain, "error", err)
		}
		encoded <- e
	}()
	select {
	case e := <-encoded:
		return e, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func credentials(domain string) (string, error) {
	file, err := config.Load(config.Dir())
	if err != nil {
		return "", err
	}
	c, err := file.GetAuthConfig(domain)
	if err != nil {
		return "", err
	}
	a := registry.AuthConfig{
		Username: c.Username, Password: c.Password, Auth: c.Auth, ServerAddress: c.ServerAddress,
		IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken,
	}
	if a == (registry.AuthConfig{ServerAddress: a.ServerAddress}) {
		return "", nil
	}
	return registry.EncodeAuthConfig(a)
}
