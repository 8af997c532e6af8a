package main

import (
	"context"
	"fmt"
	neturl "net/url"
	"time"

	"github.com/deckhand/deckhand/internal/engine"
	together "github.com/deckhand/deckhand/internal/group"
	"github.com/deckhand/deckhand/internal/redact"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/machine"
)

const (
	// reachWait is how long one source or registry is waited for.
	reachWait = 10 * time.Second
	// reachURLs is how many URLs of one place are asked for: the others are likely
	// to be as far away.
	reachURLs = 5
	// imagesAtOnce is how many images are asked for at a time.
	imagesAtOnce = 20
)

// taskURL is an input or output of the task.
type taskURL struct {
	url       string
	directory bool
	output    bool
}

func (e *examination) urls() (urls []taskURL) {
	for _, in := range e.task.task.Inputs {
		if in.URL != "" && (in.Content == nil || *in.Content == "") { // else it is ignored
			urls = append(urls, taskURL{in.URL, in.Type == tes.Directory, false})
		}
	}
	for _, out := range e.task.task.Outputs {
		if out.URL != "" {
			urls = append(urls, taskURL{out.URL, out.Type == tes.Directory || out.Wildcard(), true})
		}
	}
	return urls
}

// place is the host or bucket of a URL, or the node itself.
func (u taskURL) place() string {
	side := "inputs from "
	if u.output {
		side = "outputs to "
	}
	if _, local := storage.LocalPath(u.url); local {
		return side + "this node"
	}
	parsed, err := neturl.Parse(u.url)
	if err != nil {
		return side + redact.URL(u.url)
	}
	return side + parsed.Scheme + "://" + parsed.Host
}

// reach asks for what the URLs of the task lead to. Nothing is written: of an output
// it is only seen whether somebody answers.
func (e *examination) reach(ctx context.Context) (found []finding) {
	if e.task == nil {
		return nil
	}
	places, order := map[string][]taskURL{}, []string{}
	for _, u := range e.urls() {
		if at := u.place(); len(places[at]) == 0 {
			order = append(order, at)
		}
		places[u.place()] = append(places[u.place()], u)
	}
	c := e.conf
	store := storage.New(storage.Options{
		RetryFor: time.Nanosecond, Memory: c.Transfer.Memory, S3: storage.S3(c.Storage.S3), GCS: storage.GCS(c.Storage.GCS), Azure: storage.Azure(c.Storage.Azure),
	})
	for _, at := range order {
		found = append(found, e.reachPlace(ctx, store, at, places[at]))
	}
	return found
}

func (e *examination) reachPlace(ctx context.Context, store *storage.Storage, at string, urls []taskURL) finding {
	asked := urls[:min(len(urls), reachURLs)]
	for _, u := range asked {
		if err := ask(ctx, store, u); err != nil {
			return broken(fmt.Sprintf("%s: %s", at, message(err)),
				"see whether this node reaches it (name service, routes, proxy, firewall, certificates), and whether its name is right and credentials hold (docs/storage.md)")
		}
	}
	if len(asked) < len(urls) {
		return fine("%s: %d of %d were asked for and answer", at, len(asked), len(urls))
	}
	return fine("%s: %s", at, map[bool]string{false: "there", true: "answers"}[urls[0].output])
}

// ask looks for what is at one URL.
func ask(ctx context.Context, all *storage.Storage, u taskURL) error {
	ctx, cancel := context.WithTimeoutCause(ctx, reachWait, fmt.Errorf("%s: no answer in %s", redact.URL(u.url), reachWait))
	defer cancel()
	_, local := storage.LocalPath(u.url)
	switch {
	case u.output && local:
		return nil // its directories are made as needed
	case u.directory && !u.output:
		for _, err := range all.List(ctx, u.url) {
			return err // the first will do
		}
		return nil
	}
	_, err := all.Stat(ctx, u.url)
	// Whoever says no to reading an output is there; whether it takes the output, only
	// the output can tell.
	if u.output && ctx.Err() == nil && machine.FaultOf(err) == machine.TaskFault {
		return nil
	}
	return err
}

// images asks for the images of the task that are not on the node, side by side: those
// of a registry that is silent are waited for together.
func (e *examination) images(ctx context.Context) []finding {
	if e.task == nil || e.silent != nil {
		return nil
	}
	refs := e.task.task.Images()
	found := make([]finding, len(refs))
	all, ctx := together.WithContext(ctx)
	all.SetLimit(imagesAtOnce)
	for i, ref := range refs {
		all.Go(func() error {
			found[i] = e.image(ctx, ref)
			return nil
		})
	}
	_ = all.Wait() // none fails
	return found
}

func (e *examination) image(ctx context.Context, ref string) finding {
	ctx, cancel := context.WithTimeoutCause(ctx, reachWait, fmt.Errorf("image %s: no answer in %s", ref, reachWait))
	defer cancel()
	if _, err := e.docker.Image(ctx, ref); err == nil {
		return fine("%s is on the node", ref)
	}
	manifest, err := e.docker.Manifest(ctx, ref)
	var need engine.PullNeed
	if err == nil {
		need, err = e.docker.PullNeed(ctx, []*engine.Manifest{manifest}) // of images that share layers, each as if alone
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return broken(message(err), "see whether the name is right, the registry can be reached, and \"docker login\" has been done for this user")
	}
	return fine("%s is in its registry: %s to pull, %s", ref, counted(need.Layers, "layer"), bytesSize(uint64(need.Compressed)))
}
