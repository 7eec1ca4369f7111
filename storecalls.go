package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"sync/atomic"
	"time"
	"weak"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/quota"
)

const (
	// lookUpTimeout is what a fetch gives the Store for a look-up, putTimeout for
	// a manifest, and for a blob as long as it reads.
	lookUpTimeout = 10 * time.Second
	putTimeout    = time.Minute
	// So many calls of each kind run at a time, those that we gave up waiting for
	// included.
	maxPuts    = 8
	maxLookUps = 64
	// stuckGrace is for a Store to notice that its context has ended.
	stuckGrace = time.Second
)

var errStuck = errors.New("the Store does not answer")

// storedManifest returns what the Store has for ref; nil for a miss. What
// cannot be right counts as a miss too, and is fetched again: a damaged Store
// heals.
func (p *Proxy) storedManifest(ctx context.Context, repo Repo, ref string) (*Manifest, error) {
	m, err := p.findManifest(ctx, repo, ref)
	p.heed(ctx, repo, ref, err)
	return m, err
}

// heed reports the failure of a look-up, unless it is the caller's who left.
func (p *Proxy) heed(ctx context.Context, repo Repo, ref string, err error) {
	if err != nil && ctx.Err() == nil {
		p.storeFailed(ctx, repo, ref, err)
	}
}

func (p *Proxy) findManifest(ctx context.Context, repo Repo, ref string) (*Manifest, error) {
	m, err := p.askStore(ctx, repo, ref)
	if err == nil && !p.state().checked(m, ref) {
		err = checkStored(m, ref)
		if err == nil {
			p.state().noteChecked(m)
		}
	}
	switch {
	case err == nil:
		return answerFromStore(m), nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	}
	return nil, err
}

// askStore is on the way of every hit, and so without a closure.
func (p *Proxy) askStore(ctx context.Context, repo Repo, ref string) (m *Manifest, err error) {
	limited := &lookUpContext{Context: ctx}
	defer limited.stop()
	defer recovered("Store.Manifest", &err)
	return p.Store.Manifest(limited, repo, ref)
}

// checked reports whether these very bytes were found to have their digest
// before, and are the ones asked for.
func (run *running) checked(m *Manifest, ref string) bool {
	if m == nil || len(m.Content) == 0 {
		return false
	}
	seen, ok := run.verified.Get(m.Descriptor.Digest)
	return ok && seen.content == weak.Make(&m.Content[0]) && seen.size == len(m.Content) &&
		(!ocipath.IsDigest(ref) || ref == string(m.Descriptor.Digest))
}

func (run *running) noteChecked(m *Manifest) {
	if len(m.Content) > 0 {
		run.verified.Put(m.Descriptor.Digest, verified{weak.Make(&m.Content[0]), len(m.Content)})
	}
}

// verified is content that had its digest: a Store returns the same bytes for
// every hit, perhaps, and never changes them. It keeps nothing alive.
type verified struct {
	content weak.Pointer[byte]
	size    int
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
func (p *Proxy) storedBlob(ctx context.Context, repo Repo, d digest.Digest) (*Blob, error) {
	b, err := p.findBlob(ctx, repo, d)
	p.heed(ctx, repo, d.String(), err)
	return b, err
}

func (p *Proxy) findBlob(ctx context.Context, repo Repo, d digest.Digest) (b *Blob, err error) {
	limited := &lookUpContext{Context: ctx}
	defer limited.stop()
	err = guarded("Store.Blob", func() (err error) {
		b, err = p.Store.Blob(limited, repo, d)
		if err == nil {
			b, err = sized(b, d)
		}
		return err
	})
	switch {
	case err == nil:
		return b, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	}
	return nil, err
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
	m, err := found(ctx, p, "Store.Manifest", func(ctx context.Context) (*Manifest, error) {
		return p.findManifest(ctx, repo, ref)
	})
	p.heed(ctx, repo, ref, err)
	return m
}

// lookUpBlob is storedBlob for a fetch, which a Store must not block.
func (p *Proxy) lookUpBlob(ctx context.Context, repo Repo, d digest.Digest) *Blob {
	b, err := found(ctx, p, "Store.Blob", func(ctx context.Context) (*Blob, error) {
		b, err := p.findBlob(ctx, repo, d)
		if b != nil && ctx.Err() != nil {
			return nil, errors.Join(ctx.Err(), b.Body.Close()) // nobody waits any more
		}
		return b, err
	})
	p.heed(ctx, repo, d.String(), err)
	return b
}

// found is bounded for a call that returns something. What comes of a call that
// was given up is dropped.
func found[T any](ctx context.Context, p *Proxy, what string, look func(context.Context) (T, error)) (v T, err error) {
	answer := make(chan T, 1)
	err = p.bounded(ctx, what, func(ctx context.Context) error {
		v, err := look(ctx)
		answer <- v
		return err
	})
	if err != nil {
		return v, err
	}
	return <-answer, nil
}

// bounded looks something up at the host's and gives up after lookUpTimeout.
func (p *Proxy) bounded(ctx context.Context, what string, f func(context.Context) error) error {
	return watched(ctx, p.state().lookUps, what, lookUpTimeout, new(atomic.Int64), f)
}

// watched calls the host in a goroutine and gives up when progress has not
// moved for limit, or ctx ends. What was given up may go on, in its turn: no
// more calls run at a time than turns has room for.
func watched(ctx context.Context, turns *quota.Quota, what string, limit time.Duration, progress *atomic.Int64, f func(context.Context) error) error {
	wait, cancelWait := context.WithTimeout(ctx, limit)
	defer cancelWait()
	if err := turns.Take(wait, 1); err != nil {
		return fmt.Errorf("%s was not called: %w", what, errStuck)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		defer turns.Give(1)
		done <- guarded(what, func() error { return f(ctx) })
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for seen := progress.Load(); ; {
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
			return lastWord(what, done)
		case <-timer.C:
		}
		now := progress.Load()
		if now == seen {
			cancel()
			return lastWord(what, done)
		}
		seen = now
		timer.Reset(limit)
	}
}

// lastWord gives a call whose context has ended a little time to notice.
func lastWord(what string, done <-chan error) error {
	timer := time.NewTimer(stuckGrace)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return fmt.Errorf("%s: %w", what, errStuck)
	}
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
	defer recovered(what, &err)
	return f()
}

// recovered, deferred, is what guarded does.
func recovered(what string, err *error) {
	if r := recover(); r != nil {
		*err = &panicError{what, r}
	}
}
