package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/image"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/deckhand/deckhand/internal/group"
	"github.com/deckhand/deckhand/machine"
)

// PullProgress is how far a pull has come. Docker tells the size of a layer
// when it begins to load it, so Total grows.
type PullProgress struct {
	Done, Total int64  // bytes of the layers that are loaded
	Status      string // what happens now, in words
	// Named: Docker says that it gave the image the reference, which it did not have.
	Named bool
}

const (
	// digestLimit bounds the question what a tag names. A registry that drops
	// packets would otherwise hold it for minutes.
	digestLimit = 30 * time.Second
	// pullSilence is how long a pull may go without a sign of progress.
	pullSilence = 10 * time.Minute
	// unknownTries is how often a pull is tried that fails in an unknown way.
	unknownTries = 3
	// unsynced is how long what comes out of a layer may wait for being synced.
	unsynced = time.Second
	// doubtFor is how long a registry is asked again that says, not in the words of
	// registries, that there is no such thing: some answer so when they throttle.
	doubtFor = 2 * time.Minute
)

var (
	errStalled = fmt.Errorf("no progress in %s", pullSilence)
	errBroke   = errors.New("Docker broke off the pull")
)

// RemoteDigest asks the registry once which digest (sha256:…) the reference
// names now. A reference with a digest is its own answer. Errors are
// machine.TaskFault when the registry has no such image or refuses it, and
// machine.RetryLater when it does not answer.
func (d *Docker) RemoteDigest(ctx context.Context, ref string) (string, error) {
	named, err := parse(ref)
	if err != nil {
		return "", err
	}
	if digested, ok := named.(reference.Digested); ok {
		return digested.Digest().String(), nil
	}
	limited, cancel := context.WithTimeout(ctx, digestLimit)
	defer cancel()
	digest, err := d.digestOf(limited, named)
	if err != nil && !overloaded(err) && limited.Err() == nil {
		d.log.Debug("asking the registry through Docker", "image", ref, "error", err)
		digest, err = d.digestByDocker(limited, named)
	}
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		err = machine.Faultf(machine.RetryLater, "no answer in %s", digestLimit)
	}
	if err != nil {
		_, err = pullFault("ask the registry about", named, err)
		return "", err
	}
	return digest, nil
}

// overloaded says whether a registry answered in a way that forbids to ask it
// again at once, even by another way.
func overloaded(err error) bool {
	var answer *transport.Error
	return errors.As(err, &answer) &&
		(answer.StatusCode == http.StatusTooManyRequests || answer.StatusCode >= http.StatusInternalServerError)
}

// digestByDocker asks a registry through Docker, which may know a way to it that
// this process does not. For some images Docker also fetches the configuration.
func (d *Docker) digestByDocker(ctx context.Context, named reference.Named) (string, error) {
	var digest string
	err := d.ask(ctx, func(ctx context.Context) error {
		auth, err := d.auth(ctx, reference.Domain(named))
		if err != nil {
			return err
		}
		i, err := d.api.DistributionInspect(ctx, named.String(), auth)
		digest = i.Descriptor.Digest.String()
		return err
	})
	return digest, err
}

// Pull loads an image from its registry and calls report, from one goroutine,
// as it comes along. When it returns nil the image outlives a power cut, as far as Sync goes.
// Failures that may pass are tried again for Options.PullRetryFor, counted from the first, and are machine.RetryLater
// after that. An image that does not exist, may not be had or is for another
// platform is machine.TaskFault at once, a full disk machine.NodeFault and ErrNoSpace.
func (d *Docker) Pull(ctx context.Context, ref string, report func(PullProgress)) error {
	named, err := parse(ref)
	if err != nil {
		return err
	}
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.Multiplier, pause.MaxInterval = time.Second, 2, 30*time.Second
	p := &progress{report: report, layers: map[string]*layer{}}
	var since time.Time
	mended := false
	for try := 1; ; try++ {
		err := d.pullOnce(ctx, named, p)
		if err == nil {
			if err = d.Sync(ctx); err == nil {
				err = d.checkPlatform(ctx, ref)
			}
			if err == nil || mended || !brokenLayer.MatchString(err.Error()) {
				return err
			}
			mended = true
			d.log.Warn("a power cut has broken a layer of the image; pulling all of it again", "image", ref, "error", err)
			if err := d.RemoveImage(ctx, ref); err != nil {
				return err
			}
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		verdict, err := pullFault("pull", named, err)
		if since.IsZero() {
			since = time.Now()
		}
		wait := pause.NextBackOff()
		switch {
		case verdict == final,
			verdict == unknown && try == unknownTries,
			verdict == doubtful && time.Since(since)+wait > doubtFor,
			time.Since(since)+wait > d.options.PullRetryFor:
			return err
		}
		d.log.Warn("the pull failed; trying again", "image", ref, "try", try, "in", wait.Round(time.Millisecond), "error", err)
		p.status("waiting to try again")
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

func (d *Docker) pullOnce(ctx context.Context, named reference.Named, p *progress) error {
	var unwritten error // what the disk says is not for ask: it would wait for Docker
	err := d.ask(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		stalled := time.AfterFunc(pullSilence, func() { cancel(errStalled) })
		defer stalled.Stop()
		layers := unpacking{wake: make(chan struct{}, 1)}
		syncing, _ := group.WithContext(ctx)
		syncing.Go(func() error {
			for range layers.wake {
				// What a disk has not written the kernel tells once. Docker can be asked again.
				if err := d.Sync(ctx); machine.FaultOf(err) == machine.NodeFault {
					return err
				}
			}
			return nil
		})
		err := d.stream(ctx, named, func(e pullEvent) {
			stalled.Reset(pullSilence)
			p.add(e)
			layers.add(e)
		})
		close(layers.wake)
		unwritten = cmp.Or(unwritten, syncing.Wait())
		if err != nil && errors.Is(context.Cause(ctx), errStalled) {
			return errStalled
		}
		return err
	})
	return cmp.Or(err, unwritten)
}

// unpacking has layers synced as they come. Docker syncs what it notes of a layer (moby,
// layer/filestore.go) and nothing of what is in it, which the kernel may hold back for
// half a minute. When the power goes by then, Docker takes what is left for the layer: no
// pull fetches it again, and every image that has it is broken.
type unpacking struct {
	wake chan struct{} // holds one
	last time.Time     // that something was to be synced
}

func (u *unpacking) add(e pullEvent) {
	whole := e.Status == "Pull complete"
	if !whole && (e.Status != "Extracting" || time.Since(u.last) < unsynced) {
		return // a whole layer has to wait for as little as possible of it
	}
	u.last = time.Now()
	select {
	case u.wake <- struct{}{}:
	default: // what is synced next has this too
	}
}

// brokenLayer is how Docker words a question about an image with a layer that lost in a
// power cut what names it (moby, daemon/graphdriver/overlay2). Docker takes the layer for
// whole until its last image goes.
var brokenLayer = regexp.MustCompile(`readlink \S+/overlay2/l: invalid argument`)

// stream makes one request for a pull and hands on what Docker tells of it.
func (d *Docker) stream(ctx context.Context, named reference.Named, each func(pullEvent)) error {
	auth, err := d.auth(ctx, reference.Domain(named))
	if err != nil {
		return err
	}
	body, err := d.api.ImagePull(ctx, named.String(), image.PullOptions{RegistryAuth: auth})
	if err != nil {
		return err
	}
	defer body.Close()
	for events := json.NewDecoder(body); ; {
		var e pullEvent
		switch err := events.Decode(&e); {
		case errors.Is(err, io.EOF):
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			// Not an error of the connection: a pull that brings the daemon down
			// each time must end with the budget for pulls.
			return fmt.Errorf("%w: %s", errBroke, err.Error())
		case e.Error != "":
			return errors.New(e.Error)
		}
		each(e)
	}
}

// checkPlatform refuses an image that this node's processor cannot run. Docker
// does not, when the registry offers no other.
func (d *Docker) checkPlatform(ctx context.Context, ref string) error {
	img, err := d.Image(ctx, ref)
	if err != nil {
		return err
	}
	node, err := d.Info(ctx)
	if err != nil {
		return err
	}
	return checkFor(ref, img.OS, img.Arch, node.OS, node.Arch)
}

// checkFor refuses an image for another system than the node's.
func checkFor(ref, system, arch, nodeSystem, nodeArch string) error {
	if system == nodeSystem && runsOn(arch, nodeArch) {
		return nil
	}
	return machine.Faultf(machine.TaskFault, "cannot use image %s: %w: it is for %s and this node is %s; name an image for this platform",
		ref, ErrPlatform, platform(system, arch), platform(nodeSystem, nodeArch))
}

// runsOn says whether a processor runs programs of an architecture. An image
// need not name its own.
func runsOn(program, processor string) bool {
	return program == "" || program == processor ||
		program == "386" && processor == "amd64" || program == "arm" && processor == "arm64"
}

// verdict is whether a failed pull is worth another try.
type verdict int

const (
	final verdict = iota
	passing
	doubtful
	unknown
)

// How Docker words the failures of a pull. It hands on what registries, their
// proxies and the kernel say, so the words are all there is.
var (
	passingTrouble = regexp.MustCompile(`(?i)too ?many ?requests|rate limit|\b429\b|status(?: code)?:? *5\d\d|` +
		`\b50[0-9] (?:internal|bad gateway|service|gateway)|service unavailable|bad gateway|gateway time-?out|internal server error|` +
		`connection refused|connection reset|broken pipe|time-?out|timed out|deadline exceeded|` +
		`no such host|server misbehaving|temporary failure|network is unreachable|no route to host|` +
		`\bEOF\b|request canceled|use of closed network connection|` +
		// A layer broke off, and what answers now gives it from the start only.
		`expected HTTP 206`)
	untrusted  = regexp.MustCompile(`(?i)x509:|certificate|server gave HTTP response to HTTPS client`)
	noPlatform = regexp.MustCompile(`(?i)no matching manifest|does not match the specified platform|image operating system`)
	refused    = regexp.MustCompile(`(?i)unauthorized|authentication required|access denied|access forbidden|\bdenied\b|no basic auth credentials|\b40[13]\b`)
	// A gateway says it without the registry's code for it; and a layer that the
	// manifest has just named is there.
	noAnswer   = regexp.MustCompile(`(?i)parsing HTTP 404 response|unknown blob|blob unknown`)
	wrongBytes = regexp.MustCompile(`(?i)verification failed|unexpected digest|digest mismatch`)
	// Docker says it of its own store, in which another client deletes an image with
	// the same configuration meanwhile. An image may be named lease.
	takenAway   = regexp.MustCompile(`lease "[^"]*": not found`)
	noSuchImage = regexp.MustCompile(`(?i)manifest unknown|name unknown|not found|unknown: (?:artifact|repository)|repository does not exist|\b404\b`)
	unusable    = regexp.MustCompile(`(?i)unsupported (?:media type|manifest)|invalid reference|not implemented|Encountered remote`)
)

// pullFault judges the failure of a question to a registry and makes it an
// error of ours.
func pullFault(doing string, named reference.Named, err error) (verdict, error) {
	name := reference.FamiliarString(named)
	var ours *machine.Error
	if isContext(err) || errors.As(err, &ours) {
		return final, explain(err, "%s image %s", doing, name)
	}
	said, domain := message(err), reference.Domain(named)
	fail := func(f machine.Fault, mend string) error {
		return machine.Faultf(f, "cannot %s image %s: %s; %s", doing, name, said, mend)
	}
	switch {
	case errors.Is(err, errStalled), errors.Is(err, errBroke):
		return passing, fail(machine.RetryLater, "it may work later")
	case noSpace.MatchString(said):
		return final, machine.Faultf(machine.NodeFault, "cannot %s image %s: %w; make room where Docker keeps its images", doing, name, full(said))
	case isNodeTrouble(said):
		return final, fail(machine.NodeFault, "make room where Docker keeps its images")
	case passingTrouble.MatchString(said):
		return passing, fail(machine.RetryLater, "registry "+domain+" may answer later")
	case untrusted.MatchString(said):
		return final, fail(machine.NodeFault, "let this node's Docker trust registry "+domain)
	case noPlatform.MatchString(said):
		return final, fail(machine.TaskFault, "name an image for this platform")
	case refused.MatchString(said):
		return final, fail(machine.TaskFault, "check the name, or log in to "+domain+" with docker login as the user that runs deckhand")
	case takenAway.MatchString(said):
		return passing, fail(machine.RetryLater, "something else on this node deletes what it shares with it; it may work later")
	case noAnswer.MatchString(said):
		return doubtful, fail(machine.TaskFault, "check the name; registry "+domain+" may also be overloaded, or have lost a layer")
	case wrongBytes.MatchString(said):
		return unknown, fail(machine.TaskFault, "registry "+domain+", or a cache before it, sends other bytes than the digest says: push the image anew or empty the cache")
	case noSuchImage.MatchString(said):
		return final, fail(machine.TaskFault, "check the name and the tag or digest")
	case unusable.MatchString(said):
		return final, fail(machine.TaskFault, "name an image that Docker can load")
	}
	return unknown, fail(machine.TaskFault, "look for the cause in the log of Docker")
}

// pullEvent is one message of a pull (Docker API, POST /images/create).
type pullEvent struct {
	ID     string `json:"id"` // of a layer
	Status string `json:"status"`
	Detail struct {
		Current int64 `json:"current"`
		Total   int64 `json:"total"`
	} `json:"progressDetail"`
	Error string `json:"error"`
}

type layer struct{ done, total int64 }

// progress sums up what Docker tells layer by layer. Its numbers only grow,
// also when a pull begins again.
type progress struct {
	report func(PullProgress)
	layers map[string]*layer
	sum    PullProgress
}

func (p *progress) add(e pullEvent) {
	l := p.layers[e.ID]
	switch e.Status {
	case "Downloading":
		if l == nil {
			l = &layer{}
			p.layers[e.ID] = l
		}
		l.total = max(l.total, e.Detail.Total)
		l.done = max(l.done, e.Detail.Current)
	case "Verifying Checksum", "Download complete", "Extracting", "Pull complete":
		if l != nil {
			l.done = l.total
		}
	}
	p.sum.Done, p.sum.Total = 0, 0
	for _, l := range p.layers {
		p.sum.Done += l.done
		p.sum.Total += l.total
	}
	p.status(e.Status)
}

func (p *progress) status(s string) {
	p.sum.Status = s
	p.sum.Named = p.sum.Named || strings.HasPrefix(s, "Status: Downloaded newer image for ")
	if p.report != nil {
		p.report(p.sum)
	}
}
