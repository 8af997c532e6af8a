package check

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
)

// Labels on what deckhand makes, as the outside may rely on them.
const (
	labelRoot     = "deckhand.root"
	labelTask     = "deckhand.task"
	labelAttempt  = "deckhand.attempt"
	labelExecutor = "deckhand.executor"
)

// Engine is what a Docker Engine holds.
type Engine struct {
	Containers []Container
	Volumes    []Volume
	Networks   []Network
	Images     []Image
	Layers     Usage // zero when it was not measured
}

// Container is one container.
type Container struct {
	ID, Name, Image, State string
	Labels                 map[string]string
}

func (c Container) String() string {
	return fmt.Sprintf("%s %s %s of image %s", c.Name, c.ID, c.State, c.Image)
}

// Volume is one volume.
type Volume struct {
	Name   string
	Labels map[string]string
}

func (v Volume) String() string { return fmt.Sprint(v.Name, " ", v.Labels) }

// Network is one network.
type Network struct {
	ID, Name string
	Labels   map[string]string
}

func (n Network) String() string {
	if n.Name == "bridge" { // a daemon makes it anew each time it starts
		return n.Name
	}
	return n.Name + " " + n.ID
}

// Image is one image with all of its names: tags and digests, sorted.
type Image struct {
	ID    string
	Names []string
}

func (i Image) String() string { return fmt.Sprint(i.ID, " ", i.Names) }

// ReadEngine asks a Docker Engine what it holds, in its own words: no code of
// deckhand takes part. dataRoot may be empty, see Place.
func ReadEngine(host, dataRoot string) (e Engine, err error) {
	api, err := dial(host)
	if err != nil {
		return e, err
	}
	defer api.client.CloseIdleConnections()
	var containers []struct {
		ID             string `json:"Id"`
		Names          []string
		ImageID, State string
		Labels         map[string]string
	}
	var volumes struct {
		Volumes []struct {
			Name   string
			Labels map[string]string
		}
	}
	var networks []struct {
		ID     string `json:"Id"`
		Name   string
		Labels map[string]string
	}
	var images []struct {
		ID                    string `json:"Id"`
		RepoTags, RepoDigests []string
	}
	var info struct{ Driver string }
	err = errors.Join(
		api.get("/containers/json?all=1", &containers), api.get("/volumes", &volumes),
		api.get("/networks", &networks), api.get("/images/json?all=1", &images), api.get("/info", &info),
	)
	if err != nil {
		return e, err
	}
	for _, c := range containers {
		e.Containers = append(e.Containers, Container{c.ID, strings.TrimPrefix(strings.Join(c.Names, " "), "/"), c.ImageID, c.State, c.Labels})
	}
	for _, v := range volumes.Volumes {
		e.Volumes = append(e.Volumes, Volume{v.Name, v.Labels})
	}
	for _, n := range networks {
		e.Networks = append(e.Networks, Network{n.ID, n.Name, n.Labels})
	}
	for _, i := range images {
		// What has no name has <none>.
		names := slices.DeleteFunc(slices.Concat(i.RepoTags, i.RepoDigests), func(s string) bool { return strings.Contains(s, "<none>") })
		slices.Sort(names)
		e.Images = append(e.Images, Image{i.ID, names})
	}
	if dataRoot != "" {
		e.Layers, err = usageOf(filepath.Join(dataRoot, info.Driver))
	}
	return e, err
}

// api is Docker's HTTP API.
type api struct {
	client *http.Client
	base   string
}

func dial(host string) (*api, error) {
	u, err := url.Parse(host)
	if err != nil {
		return nil, err
	}
	network, address := "tcp", u.Host
	if u.Scheme == "unix" {
		network, address = "unix", u.Path
	}
	return &api{base: "http://docker/v1.41", client: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}}}, nil
}

func (a *api) get(path string, into any) error {
	response, err := a.client.Get(a.base + path)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(response.Body) // the status says enough
		return fmt.Errorf("GET %s: %s: %s", path, response.Status, text)
	}
	return json.NewDecoder(response.Body).Decode(into)
}

func (a *api) send(method, path string, body any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequest(method, a.base+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := a.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode >= http.StatusBadRequest {
		text, _ := io.ReadAll(response.Body) // the status says enough
		return fmt.Errorf("%s %s: %s: %s", method, path, response.Status, text)
	}
	return nil
}
