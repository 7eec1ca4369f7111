package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

const (
	// putWait is how long a manifest's answer waits for the Store, so that a tag
	// is there for the next request; a slow Store goes on without anyone waiting.
	putWait = time.Second
	// putTimeout is what a Store gets for one manifest.
	putTimeout = time.Minute

	maxSizes = 16384
)

// running is what a Proxy keeps in memory. It is made on first use.
type running struct {
	upstream  *upstream
	manifests flight.Group[objectKey, *Manifest]
	blobs     flight.Group[objectKey, *fill]
	sizes     *lru.Cache[sizeKey, int64] // from manifests that passed through here
	orphans   orphanage
}

// objectKey is what may be shared between requests: the same object of the
// same repository by the same rule.
type objectKey struct {
	rule routeID
	repo string
	ref  string
}

type sizeKey struct {
	rule   routeID
	digest digest.Digest
}

func (rt *route) key(ref string) objectKey { return objectKey{rt.id, rt.repo.Name, ref} }

func (p *Proxy) state() *running {
	p.once.Do(func() {
		p.run = &running{upstream: newUpstream(p), sizes: lru.New[sizeKey, int64](maxSizes)}
		p.run.blobs.Acquire, p.run.blobs.Release = (*fill).retain, (*fill).release
	})
	return p.run
}

// manifest is the one resolver of HEAD and GET.
func (p *Proxy) manifest(ctx context.Context, r Request) (*Manifest, error) {
	if err := p.admit(ctx, r); err != nil {
		return nil, err
	}
	have, storeErr := p.storedManifest(ctx, r.Repo, r.Ref)
	if have != nil && (ocipath.IsDigest(r.Ref) || p.Policy == nil && !(Policy{}).due(have.CheckedAt, p.now())) {
		return have, nil
	}
	rt, err := p.route(ctx, r.Repo)
	switch {
	case have != nil && (err != nil || !rt.policy.due(have.CheckedAt, p.now())):
		return have, nil // what is stored is served, also without a rule
	case err != nil:
		return nil, missed(err, storeErr)
	}
	if err := p.authorize(ctx, ActionImport, r); err != nil {
		if have != nil {
			return have, nil
		}
		return nil, maskedImport(err)
	}
	m, shared, err := p.state().manifests.Do(ctx, rt.key(r.Ref), func(call *manifestCall) (*Manifest, error) {
		return p.resolve(call, rt, r.Ref)
	})
	if err != nil {
		return nil, err
	}
	return answerTo(m, r.Ref, shared), nil
}

type manifestCall = flight.Call[objectKey, *Manifest]

// admit checks the grammar before anything else, then the right to pull.
func (p *Proxy) admit(ctx context.Context, r Request) error {
	err := ocipath.CheckName(r.Repo.Name)
	if err == nil {
		err = ocipath.CheckRef(r.Ref)
	}
	if err != nil {
		return invalid(r.Repo, r.Ref, err)
	}
	return p.authorize(ctx, ActionPull, r)
}

func (p *Proxy) authorize(ctx context.Context, a Action, r Request) error {
	if p.Authorize == nil {
		return nil
	}
	err := guarded("Authorize", func() error { return p.Authorize(ctx, a, r) })
	if _, typed := errors.AsType[*Error](err); err == nil || typed {
		return err
	}
	return &Error{Kind: ErrDenied, Message: err.Error(), Err: err}
}

// maskedImport refuses an import as Amazon ECR does: not found, since a refusal
// would tell what exists upstream. An error.Is still finds the refusal.
func maskedImport(err error) error {
	if errors.Is(err, ErrDenied) {
		return &Error{Kind: ErrNotFound, Err: err}
	}
	return err
}

// missed is the error for a miss that no rule can fill. A Store that failed
// must not be read as one that has nothing.
func missed(err, storeErr error) error {
	if storeErr != nil && errors.Is(err, ErrNoRule) {
		return storeErr
	}
	return err
}

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

// answerTo is the flight's manifest as the answer to one of its waiters.
func answerTo(m *Manifest, ref string, shared bool) *Manifest {
	shared = shared && m.Source == SourceFill
	tag := ref
	if ocipath.IsDigest(ref) {
		tag = ""
	}
	if !shared && m.Tag == tag {
		return m
	}
	own := *m
	own.Tag = tag
	if shared {
		own.Source = SourceShared
	}
	return &own
}

// resolve runs in the flight. It looks into the Store once more: the flight
// before may have committed since our caller looked.
func (p *Proxy) resolve(call *manifestCall, rt *route, ref string) (*Manifest, error) {
	ctx, requests := withCounter(call.Context())
	start := p.now()
	have, _ := p.storedManifest(ctx, rt.repo, ref)
	if have != nil && (ocipath.IsDigest(ref) || !rt.policy.due(have.CheckedAt, start)) {
		return have, nil
	}
	m, refs, err := p.fetchManifest(ctx, rt, ref, have)
	if err == nil {
		p.remember(rt, refs)
		m = p.commitManifest(call, rt, ref, m)
	}
	e := Event{Kind: EventFetch, Source: SourceFill, Upstream: int(requests.Load()), Duration: p.now().Sub(start), Err: err}
	e.Request = Request{Repo: rt.repo, Ref: ref}
	if err == nil {
		e.Source, e.Digest, e.Bytes = m.Source, m.Descriptor.Digest.String(), m.Descriptor.Size
	}
	p.tell(call.Context(), e)
	if err != nil && have != nil {
		p.log().Warn("serving a stored tag that could not be checked", "repository", rt.repo.Name, "tag", ref, "err", err)
		stale := *have
		stale.Source = SourceStale
		return &stale, nil
	}
	return m, err
}

// fetchManifest asks upstream. With a copy in hand it first asks by HEAD
// whether the tag has moved.
func (p *Proxy) fetchManifest(ctx context.Context, rt *route, ref string, have *Manifest) (*Manifest, []ocispec.Descriptor, error) {
	u := p.state().upstream
	now := p.now()
	if have == nil {
		return stamped(now)(u.manifest(ctx, rt, ref))
	}
	d, err := u.head(ctx, rt, ref)
	if err != nil {
		return nil, nil, err
	}
	if d == have.Descriptor.Digest {
		same := *have
		same.CheckedAt, same.Source = now, SourceRevalidated
		return &same, nil, nil
	}
	if d != "" {
		m, refs, err := u.manifest(ctx, rt, d.String())
		if err == nil {
			m.Tag = ref
		}
		if !errors.Is(err, ErrNotFound) {
			return stamped(now)(m, refs, err)
		}
		// The tag moved on between the two requests: the body decides now.
	}
	return stamped(now)(u.manifest(ctx, rt, ref))
}

// stamped notes when upstream confirmed the tag: before we asked, to be safe.
func stamped(now time.Time) func(*Manifest, []ocispec.Descriptor, error) (*Manifest, []ocispec.Descriptor, error) {
	return func(m *Manifest, refs []ocispec.Descriptor, err error) (*Manifest, []ocispec.Descriptor, error) {
		if err == nil && m.Tag != "" {
			m.CheckedAt = now
		}
		return m, refs, err
	}
}

// remember keeps the sizes of what a manifest refers to, for upstreams that do
// not say how long a blob is.
func (p *Proxy) remember(rt *route, refs []ocispec.Descriptor) {
	for _, d := range refs {
		p.state().sizes.Put(sizeKey{rt.id, d.Digest}, d.Size)
	}
}

// commitManifest stores m and returns the answer. A Store that is slow or fails
// changes nothing for those who wait.
func (p *Proxy) commitManifest(call *manifestCall, rt *route, ref string, m *Manifest) *Manifest {
	call.Link(rt.key(m.Descriptor.Digest.String()))
	late := time.AfterFunc(putWait, func() { call.Publish(m) })
	defer late.Stop()
	// The fetch is done: that the last client leaves must not undo it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(call.Context()), putTimeout)
	defer cancel()
	if !p.unchanged(ctx, rt) {
		return m
	}
	err := guarded("Store.PutManifest", func() error { return p.Store.PutManifest(ctx, rt.repo, m) })
	if errors.Is(err, ErrImmutable) {
		if have, _ := p.storedManifest(ctx, rt.repo, ref); have != nil {
			return have
		}
	}
	if err != nil {
		p.storeFailed(ctx, rt.repo, ref, err)
	}
	return m
}

// unchanged reports whether the rule is still the one that the fetch began
// with: what came by a rule that is gone is served, not stored.
func (p *Proxy) unchanged(ctx context.Context, rt *route) bool {
	now, err := p.route(ctx, rt.repo)
	return err == nil && now.id == rt.id
}

// guarded calls code of the host. A panic in there becomes an error, so that
// everyone who waits for this call is released.
func guarded(what string, f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s panicked: %v", what, r)
		}
	}()
	return f()
}
