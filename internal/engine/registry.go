package engine

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/registry"
	"github.com/docker/docker/api/types/system"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

const (
	// reachLimit bounds how long a registry is waited for that may be reached
	// through Docker alone, by a mirror or a proxy of its own.
	reachLimit = 5 * time.Second
	// certsDir is where Docker keeps the certificates of registries.
	certsDir = "/etc/docker/certs.d"
)

// errDockerOnly: the question must go through Docker.
var errDockerOnly = errors.New("only Docker can reach the registry")

// remoteImage is a reference whose registry is asked without Docker, by the same
// rules: Docker's API does not tell how large an image is before it is pulled,
// and asks twice where once will do.
type remoteImage struct {
	ref      name.Reference
	puller   *remote.Puller
	client   *http.Client // for what the library does not offer
	platform v1.Platform
}

// remote opens the registry of an image with the user's credentials, and with
// the trust that Docker has in it.
func (d *Docker) remote(ctx context.Context, named reference.Named) (*remoteImage, error) {
	var info system.Info
	err := d.ask(ctx, func(ctx context.Context) (err error) {
		info, err = d.api.Info(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	domain := reference.Domain(named)
	if info.RegistryConfig != nil && domain == "docker.io" && len(info.RegistryConfig.Mirrors) > 0 {
		return nil, errDockerOnly
	}
	insecure := isInsecure(ctx, info.RegistryConfig, domain)
	if !insecure && hostIsInsecure(info.RegistryConfig, domain) {
		if insecure, err = d.IsPodman(ctx); err != nil {
			return nil, err
		}
	}
	options := []name.Option{name.WeakValidation}
	if insecure {
		options = append(options, name.Insecure)
	}
	ref, err := name.ParseReference(named.String(), options...)
	if err != nil {
		return nil, err
	}
	credentials, err := d.credentials(ctx, domain)
	if err != nil {
		return nil, err
	}
	repository := ref.Context()
	auth := authn.FromConfig(authn.AuthConfig{
		Username: credentials.Username, Password: credentials.Password, Auth: credentials.Auth,
		IdentityToken: credentials.IdentityToken, RegistryToken: credentials.RegistryToken,
	})
	agent := transport.NewUserAgent(dialer(domain, insecure), "deckhand")
	round, err := transport.NewWithContext(ctx, repository.Registry, auth, agent, []string{repository.Scope(transport.PullScope)})
	if err != nil {
		return nil, err
	}
	platform := v1.Platform{OS: info.OSType, Architecture: goarch(info.Architecture)}
	puller, err := remote.NewPuller(remote.WithTransport(round), remote.WithPlatform(platform))
	if err != nil {
		return nil, err
	}
	return &remoteImage{ref: ref, puller: puller, client: &http.Client{Transport: round}, platform: platform}, nil
}

// dialer connects to a registry as Docker does: an insecure one may have any
// certificate or none, another has one that the node or certsDir trusts.
func dialer(domain string, insecure bool) http.RoundTripper {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: reachLimit}).DialContext,
		TLSHandshakeTimeout:   reachLimit,
		ResponseHeaderTimeout: digestLimit,
		TLSClientConfig:       &tls.Config{InsecureSkipVerify: insecure}, // as Docker's insecure-registries ask
	}
	if insecure {
		return t
	}
	// What cannot be read is not there: the connection then says what is missing.
	dir := filepath.Join(certsDir, domain)
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	authorities, _ := filepath.Glob(filepath.Join(dir, "*.crt"))
	for _, file := range authorities {
		if pem, err := os.ReadFile(file); err == nil {
			roots.AppendCertsFromPEM(pem)
		}
	}
	t.TLSClientConfig.RootCAs = roots
	clients, _ := filepath.Glob(filepath.Join(dir, "*.cert"))
	for _, file := range clients {
		if pair, err := tls.LoadX509KeyPair(file, strings.TrimSuffix(file, "cert")+"key"); err == nil {
			t.TLSClientConfig.Certificates = append(t.TLSClientConfig.Certificates, pair)
		}
	}
	return httpsOnly{t}
}

// httpsOnly keeps credentials from a registry that offers no encryption though
// it should: the library tries http where addresses are private.
type httpsOnly struct{ inner http.RoundTripper }

func (h httpsOnly) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, fmt.Errorf("%s is no insecure registry of Docker's: %w", r.URL.Host, errDockerOnly)
	}
	return h.inner.RoundTrip(r)
}

// isInsecure says whether Docker's settings allow a registry to be spoken to
// without encryption.
func isInsecure(ctx context.Context, config *registry.ServiceConfig, domain string) bool {
	if config == nil {
		return false
	}
	if index := config.IndexConfigs[domain]; index != nil {
		return !index.Secure
	}
	host, _, err := net.SplitHostPort(domain)
	if err != nil {
		host = domain
	}
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return false
	}
	for _, cidr := range config.InsecureRegistryCIDRs {
		if cidr == nil {
			continue
		}
		network, err := netip.ParsePrefix(cidr.String())
		if err != nil {
			continue
		}
		for _, a := range addresses {
			if network.Contains(a.Unmap()) {
				return true
			}
		}
	}
	return false
}

// end reads the last bytes of a blob.
func (i *remoteImage) end(ctx context.Context, blob v1.Hash, size int64, into []byte) error {
	registry := i.ref.Context().Registry
	url := fmt.Sprintf("%s://%s/v2/%s/blobs/%s", registry.Scheme(), registry.RegistryStr(), i.ref.Context().RepositoryStr(), blob)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", size-int64(len(into)), size-1))
	response, err := i.client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }() // read-only
	if response.StatusCode != http.StatusPartialContent {
		return fmt.Errorf("asked for the end of %s: %s", blob, response.Status)
	}
	_, err = io.ReadFull(response.Body, into)
	return err
}
