package ecrapi

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

const (
	// arrivalWait is how long after an answer a read waits for the Store.
	arrivalWait = time.Second
	// maxArrivals bounds the memory. A read does not wait for what finds no room.
	maxArrivals = 1024
)

// arrivals are the manifests that clients were answered with and that the Store may
// not have yet: a [pullthrough.Proxy] answers as soon as a manifest is verified.
// A read of the catalog waits for them, so that it shows what its caller has just
// pulled. The zero value is ready for use.
type arrivals struct {
	mu      sync.Mutex
	pending map[arrival]pending
}

// arrival names a manifest that is on its way into the Store. It is comparable.
type arrival struct {
	imageKey
	tag string // "": a client asked for the digest
}

// pending is what a read waits for.
type pending struct {
	until time.Time     // reads give up
	ended chan struct{} // closed when the fetch has ended
}

// hear notes what an event of the Proxy tells of arrivals.
//
// The answer and the put run side by side, so either may come first. The manifest is
// expected first and looked up in the notes afterwards. If it is not in the notes by
// then, the put ends later, and the event of the fetch comes after the put. So an
// arrival that the Store gets is always ended. If the Store fails before the answer is
// told, nothing ends the arrival, and reads give up after [arrivalWait].
func (c *Catalog) hear(e pullthrough.Event) {
	if e.Err == nil && e.Kind == pullthrough.EventManifest && (e.Source == pullthrough.SourceFill || e.Source == pullthrough.SourceShared) {
		c.arrivals.expect(arrivalOf(e))
		if known, _ := c.lookUp(e.Request.Repo, e.Request.Ref); known.String() == e.Digest {
			c.arrivals.end(e)
		}
	}
	// The Proxy tells of a fetch when the Store has the manifest or will not get it:
	// because it has failed, the rule has changed, or the rest of the image is missing.
	if e.Kind == pullthrough.EventFetch && e.Object == pullthrough.EventManifest {
		c.arrivals.end(e)
	}
}

func arrivalOf(e pullthrough.Event) arrival {
	a := arrival{imageKey: imageKey{e.Request.Repo, digest.Digest(e.Digest)}}
	if !ocipath.IsDigest(e.Request.Ref) {
		a.tag = e.Request.Ref
	}
	return a
}

// isOf reports whether the event is about the arrival. A fetch by tag brings what was
// asked for by digest, too. It may end with another digest than it was answered with,
// if the Store does not let the tag move.
func (a arrival) isOf(e pullthrough.Event) bool {
	switch {
	case a.repo != e.Request.Repo:
		return false
	case a.tag != "":
		return a.tag == e.Request.Ref
	}
	return a.digest.String() == e.Digest || a.digest.String() == e.Request.Ref
}

// expect makes reads wait for the arrival from now on.
func (a *arrivals) expect(key arrival) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if len(a.pending) >= maxArrivals {
		maps.DeleteFunc(a.pending, func(_ arrival, p pending) bool { return now.After(p.until) })
	}
	if a.pending == nil {
		a.pending = map[arrival]pending{}
	}
	p, known := a.pending[key]
	if !known {
		if len(a.pending) >= maxArrivals {
			return
		}
		p.ended = make(chan struct{})
	}
	p.until = now.Add(arrivalWait)
	a.pending[key] = p
}

// end releases the reads that wait for what the event is about.
func (a *arrivals) end(e pullthrough.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, p := range a.pending {
		if key.isOf(e) {
			close(p.ended)
			delete(a.pending, key)
		}
	}
}

// wait returns when everything that the repositories expect now has arrived, when it
// is given up, or when ctx ends. It does not wait for what is expected later.
func (a *arrivals) wait(ctx context.Context, concerns func(pullthrough.Repo) bool) {
	for _, p := range a.find(concerns) {
		timer := time.NewTimer(time.Until(p.until))
		select {
		case <-p.ended:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// find returns what the repositories expect.
func (a *arrivals) find(concerns func(pullthrough.Repo) bool) (all []pending) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, p := range a.pending {
		if concerns(key.repo) {
			all = append(all, p)
		}
	}
	return all
}

// await waits for the images of a repository.
func (c *Catalog) await(ctx context.Context, repo pullthrough.Repo) {
	c.arrivals.wait(ctx, func(r pullthrough.Repo) bool { return r == repo })
}

// awaitNew waits for the repositories of an account in a Region that are not known
// and expect an image. A repository that a pull creates is known before the pull is
// answered. One that the Store had already is not, if the notes on it are lost.
func (c *Catalog) awaitNew(ctx context.Context, account, region string) {
	c.arrivals.wait(ctx, func(r pullthrough.Repo) bool {
		return r.Account == account && r.Region == region && !c.has(r)
	})
}
