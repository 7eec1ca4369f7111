package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

const (
	// lookUpTimeout is what a fetch gives the Store for a look-up, putTimeout for
	// a manifest, and for a blob as long as it reads.
	lookUpTimeout = 10 * time.Second
	putTimeout    = time.Minute
	// maxStuck bounds the calls to a Store that we gave up waiting for.
	maxStuck = 8
	// stuckGrace is for a Store to notice that its context has ended.
	stuckGrace = time.Second
)

var errStuck = errors.New("the Store does not answer")

// storedManifest returns what the Store has for ref; nil for a miss. What
// cannot be right counts as a miss too, and is fetched again: a damaged Store
// heals.
func (p *Proxy) storedManifest(ctx context.Context, repo Repo, ref string) (m *Manifest, err error) {
	err = guarded("Store.Manifest", func() (err error) {
		m, err = p.Store.Manifest(ctx, repo, ref)
		return err
	})
	if err == nil {
		err = checkStored(m, ref)
	}
	switch {
	case err == nil:
		return answerFromStore(m), nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case ctx.Err() == nil:
		p.storeFailed(ctx, repo, ref, err)
	}
	return nil, err
}

// answerFromStore is m as a hit, without writing to what the Store has.
func answerFromStore(m *Manifest) *Manifest {
	if m.Source == SourceHit {
		return m
	}
	hit := *m
	hit.Source = SourceHit
	return &hit
}

func checkStored(m *Manifest, ref string) error {
	if m == nil {
		return errors.New("no manifest and no error")
	}
	d := m.Descriptor.Digest
	if !validDigest(d) || d.Algorithm().FromBytes(m.Content) != d {
		return fmt.Errorf("stored manifest does not have its digest %.80q", string(d))
	}
	if ocipath.IsDigest(ref) && d.String() != ref {
		return fmt.Errorf("asked for %s, the Store has %s", ref, d)
	}
	return nil
}

func validDigest(d digest.Digest) bool { return ocipath.ValidDigest(string(d)) }

func (p *Proxy) storeFailed(ctx context.Context, repo Repo, ref string, err error) {
	p.log().Error("store failed", "repository", repo.Name, "ref", ref, "err", err)
	p.tell(ctx, Event{Kind: EventStoreFailed, Request: Request{Repo: repo, Ref: ref}, Err: err})
}

// storedBlob returns the Store's blob with its size, nil for a miss.
func (p *Proxy) storedBlob(ctx context.Context, repo Repo, d digest.Digest) (b *Blob, err error) {
	err = guarded("Store.Blob", func() (err error) {
		b, err = p.Store.Blob(ctx, repo, d)
		if err == nil {
			b, err = sized(b, d)
		}
		return err
	})
	switch {
	case err == nil:
		return b, nil
	case !errors.Is(err, fs.ErrNotExist) && ctx.Err() == nil:
		p.storeFailed(ctx, repo, d.String(), err)
		return nil, err
	}
	return nil, nil
}

// sized is the Store's blob as a hit whose size is known.
func sized(b *Blob, d digest.Digest) (*Blob, error) {
	if b == nil || b.Body == nil {
		return nil, errors.New("no blob and no error")
	}
	hit := &Blob{Descriptor: b.Descriptor, Body: b.Body}
	hit.Descriptor.Digest, hit.Descriptor.MediaType = d, mediaTypeBlob
	if _, ok := b.Body.(http.Handler); ok {
		return hit, nil // it answers by itself
	}
	size, err := sizeOf(b)
	if err == nil && size == 0 && d != d.Algorithm().FromString("") {
		err = fmt.Errorf("stored blob %s is empty", d)
	}
	if err != nil {
		return nil, errors.Join(err, b.Body.Close())
	}
	hit.Descriptor.Size = size
	return hit, nil
}

// sizeOf is how long the content is, which must be what the Store says it is: a
// file that was cut must not become a short answer that looks complete.
func sizeOf(b *Blob) (int64, error) {
	seeker, ok := b.Body.(io.Seeker)
	if !ok {
		return b.Descriptor.Size, nil
	}
	size, err := seeker.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = seeker.Seek(0, io.SeekStart)
	}
	if err == nil && b.Descriptor.Size != 0 && b.Descriptor.Size != size {
		err = fmt.Errorf("stored blob has %d bytes instead of %d", size, b.Descriptor.Size)
	}
	return size, err
}

// lookUpManifest is storedManifest for a fetch, which a Store must not block.
func (p *Proxy) lookUpManifest(ctx context.Context, repo Repo, ref string) *Manifest {
	var found atomic.Pointer[Manifest] // a look-up that was given up may still end
	err := p.bounded(ctx, "Store.Manifest", lookUpTimeout, func(ctx context.Context) error {
		m, err := p.storedManifest(ctx, repo, ref)
		found.Store(m)
		return err
	})
	if err != nil {
		return nil
	}
	return found.Load()
}

// lookUpBlob is storedBlob for a fetch, which a Store must not block.
func (p *Proxy) lookUpBlob(ctx context.Context, repo Repo, d digest.Digest) (*Blob, error) {
	found := make(chan *Blob, 1)
	err := p.bounded(ctx, "Store.Blob", lookUpTimeout, func(ctx context.Context) error {
		b, err := p.storedBlob(ctx, repo, d)
		if b != nil && ctx.Err() != nil {
			return errors.Join(ctx.Err(), b.Body.Close()) // nobody waits any more
		}
		found <- b
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-found, nil
}

// bounded calls the Store and gives up after limit.
func (p *Proxy) bounded(ctx context.Context, what string, limit time.Duration, f func(context.Context) error) error {
	return p.watched(ctx, what, limit, new(atomic.Int64), f)
}

// watched calls the Store in a goroutine and gives up when progress has not
// moved for limit, or ctx ends. What was given up may go on, but not many may.
func (p *Proxy) watched(ctx context.Context, what string, limit time.Duration, progress *atomic.Int64, f func(context.Context) error) error {
	stuck := &p.state().stuck
	if stuck.Load() >= maxStuck {
		return fmt.Errorf("%s was not called: %w", what, errStuck)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &storeCall{what: what, stuck: stuck, done: make(chan error, 1)}
	go c.run(func() error { return f(ctx) })
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for seen := progress.Load(); ; {
		select {
		case err := <-c.done:
			return err
		case <-ctx.Done():
			return c.giveUp(stuckGrace)
		case <-timer.C:
		}
		now := progress.Load()
		if now == seen {
			cancel()
			return c.giveUp(stuckGrace)
		}
		seen = now
		timer.Reset(limit)
	}
}

// storeCall is one call that may be given up.
type storeCall struct {
	what  string
	stuck *atomic.Int64
	done  chan error // has room for the result

	mu     sync.Mutex
	ended  bool
	gaveUp bool
}

func (c *storeCall) run(f func() error) {
	err := guarded(c.what, f)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	if c.gaveUp {
		c.stuck.Add(-1)
	}
	c.done <- err
}

// giveUp waits a little for a call whose context has ended, then no more.
func (c *storeCall) giveUp(grace time.Duration) error {
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case err := <-c.done:
		return err
	case <-timer.C:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return <-c.done
	}
	c.gaveUp = true
	c.stuck.Add(1)
	return fmt.Errorf("%s: %w", c.what, errStuck)
}

// panicError is a panic of the host's code.
type panicError struct {
	what  string
	value any
}

func (e *panicError) Error() string { return fmt.Sprintf("%s panicked: %v", e.what, e.value) }

// guarded calls code of the host. A panic in there becomes an error, so that
// everyone who waits for this call is released.
func guarded(what string, f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = &panicError{what, r}
		}
	}()
	return f()
}
