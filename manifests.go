package pullthrough

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// putWait is how long a manifest's answer waits for the Store, so that a tag is
// there for the next request; a slow Store goes on without anyone waiting.
const putWait = time.Second

// manifest is the one resolver of HEAD and GET.
func (p *Proxy) manifest(ctx context.Context, r Request) (*Manifest, error) {
	if err := p.admit(ctx, r); err != nil {
		return nil, err
	}
	have, storeErr := p.storedManifest(ctx, r.Repo, r.Ref)
	if have != nil && (ocipath.IsDigest(r.Ref) || p.Policy == nil && !(Policy{}).due(have, p.now())) {
		return have, nil
	}
	rt, err := p.route(ctx, r.Repo)
	switch {
	case have != nil && (err != nil || !rt.policy.due(have, p.now())):
		return have, nil // what is stored is served, also without a rule
	case err != nil:
		return nil, p.placed(ctx, r.Repo, missed(err, storeErr))
	}
	if err := p.authorize(ctx, ActionImport, r); err != nil {
		if have != nil {
			return have, nil
		}
		return nil, p.placed(ctx, r.Repo, maskedImport(err))
	}
	if have != nil {
		return p.pullManifest(ctx, rt, r)
	}
	absent, err := p.mayCreate(ctx, r)
	if err == nil {
		err = p.mayAsk(ctx, rt, r.Ref)
	}
	if err != nil {
		return nil, nameUnknownIf(absent, err)
	}
	m, err := p.pullManifest(ctx, rt, r)
	if err != nil {
		return nil, nameUnknownIf(absent, err)
	}
	return m, nil
}

// pullManifest has upstream asked, by us or by somebody who does it already.
func (p *Proxy) pullManifest(ctx context.Context, rt *route, r Request) (*Manifest, error) {
	for range maxRejoins {
		m, shared, err := p.joinManifest(ctx, rt, r, 0)
		if err != nil {
			return nil, rt.masked(err)
		}
		// A fetch by tag is found under the digest it brought too, and gives another
		// manifest after all if that tag turns out to be immutable.
		if !ocipath.IsDigest(r.Ref) || m.Descriptor.Digest.String() == r.Ref {
			return answerTo(m, r.Ref, shared), nil
		}
	}
	return nil, rt.error(ErrUnavailable, errors.New("the digest could not be fetched beside a tag that does not move"))
}

// joinManifest returns what the fetch of r.Ref gives, starting one if none runs.
func (p *Proxy) joinManifest(ctx context.Context, rt *route, r Request, depth int) (m *Manifest, shared bool, err error) {
	return p.state().manifests.Do(ctx, rt.key(r.Ref), func(call *manifestCall) (*Manifest, error) {
		return p.resolve(call, rt, r, depth)
	})
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
	err := p.askHost(ctx, a, r)
	if err == nil {
		return nil
	}
	_, typed := errors.AsType[*Error](err)
	_, panicked := errors.AsType[*panicError](err)
	switch {
	case typed, panicked, errors.Is(err, ErrUnauthorized), ctx.Err() != nil:
		return err
	}
	return &Error{Kind: ErrDenied, Message: err.Error(), Err: err}
}

func (p *Proxy) askHost(ctx context.Context, a Action, r Request) (err error) {
	defer recovered("Authorize", &err)
	return p.Authorize(ctx, a, r)
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
// before may have committed since our caller looked. depth is how many indexes
// we came through.
func (p *Proxy) resolve(call *manifestCall, rt *route, r Request, depth int) (*Manifest, error) {
	ref := r.Ref
	ctx, trace := withTrace(call.Context())
	start := p.now()
	have := p.lookUpManifest(ctx, rt.repo, ref)
	if have != nil && (ocipath.IsDigest(ref) || !rt.policy.due(have, start)) {
		return have, nil
	}
	late := func() bool { return false }
	refused := have != nil && p.state().checks.refused(rt, ref)
	if have != nil && !refused {
		if p.state().checks.paused(rt, start) {
			return stale(have), nil
		}
		late = p.limitCheck(call, rt, have)
	}
	m, info, err := p.fetchManifest(ctx, rt, ref, have)
	slow := late()
	if err == nil {
		p.state().checks.went(rt, ref)
		p.remember(rt, info)
		if have == nil {
			err = p.createRepo(ctx, rt, r)
		}
	}
	if err == nil {
		m = p.keepManifest(call, rt, ref, m, depth)
	}
	e := Event{Object: EventManifest, Part: depth > 0, Source: SourceFill}
	if err == nil {
		e.Source, e.Digest, e.Bytes = m.Source, m.Descriptor.Digest.String(), m.Descriptor.Size
	}
	p.tellFetch(ctx, rt, ref, e, trace, start, err)
	if err == nil {
		return m, nil
	}
	if have == nil {
		p.noteMissing(rt, ref, err)
		return nil, err
	}
	if errors.Is(err, ErrNotFound) && have.Origin == "" {
		// Upstream has nothing to put in place of what was pushed here.
		return p.commitManifest(call, rt, ref, confirmed(have, ref, start)), nil
	}
	if !rt.policy.mayServeStale(err) {
		p.state().checks.refuse(rt, ref)
		return nil, err
	}
	p.state().checks.failed(rt, err, slow, p.now())
	if refused {
		return nil, err // nobody has taken the refusal back
	}
	p.log().Warn("serving a stored tag that could not be checked", "repository", rt.repo.Name, "tag", ref, "err", err)
	return stale(have), nil
}

// tellFetch completes the event of a fetch and tells it.
func (p *Proxy) tellFetch(ctx context.Context, rt *route, ref string, e Event, trace *trace, start time.Time, err error) {
	e.Kind, e.Request, e.Rule = EventFetch, Request{Repo: rt.repo, Ref: ref}, rt.rule.Prefix
	e.Duration, e.Err = p.now().Sub(start), locate(err, rt.repo, ref)
	trace.report(&e)
	p.tell(ctx, e)
}

// keepManifest stores m and, as Fill says, what it is made of. Those who wait
// get m before that, whatever the order in the Store.
func (p *Proxy) keepManifest(call *manifestCall, rt *route, ref string, m *Manifest, depth int) *Manifest {
	if !call.Keep() {
		return m // everyone has left, and another fetch may be on its way
	}
	call.Link(rt.key(m.Descriptor.Digest.String()))
	if m.Source != SourceFill {
		return p.commitManifest(call, rt, ref, m)
	}
	switch p.Fill {
	case FillEager:
		call.Publish(m)
		if err := p.importAll(call.Context(), rt, m, ImportOptions{}, depth); err != nil {
			p.log().Warn("image is not complete and so not stored", "repository", rt.repo.Name, "ref", ref, "err", err)
			return m
		}
		return p.commitManifest(call, rt, ref, m)
	case FillBackground:
		m = p.commitManifest(call, rt, ref, m)
		if depth == 0 {
			p.importInBackground(rt, m)
		}
		return m
	}
	return p.commitManifest(call, rt, ref, m)
}

// fetchManifest asks upstream. With a copy in hand it first asks by HEAD
// whether the tag has moved.
func (p *Proxy) fetchManifest(ctx context.Context, rt *route, ref string, have *Manifest) (*Manifest, manifest.Info, error) {
	u := p.state().upstream
	now := p.now()
	if have == nil {
		return stamped(now)(u.manifest(ctx, rt, ref, rt.policy.effort()))
	}
	d, err := u.head(ctx, rt, ref)
	if err != nil {
		return nil, manifest.Info{}, err
	}
	if d == have.Descriptor.Digest {
		return confirmed(have, ref, now), manifest.Info{}, nil
	}
	if d != "" {
		m, info, err := u.manifest(ctx, rt, d.String(), checking)
		if err == nil {
			m.Tag = ref
		}
		if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrDigest) {
			return stamped(now)(m, info, err)
		}
		// The tag moved on between the two requests, or HEAD told a wrong digest:
		// the body decides now.
	}
	return stamped(now)(u.manifest(ctx, rt, ref, checking))
}

// confirmed is a stored tag that upstream has just been asked about.
func confirmed(have *Manifest, tag string, now time.Time) *Manifest {
	same := *have
	same.Tag, same.CheckedAt, same.Source = tag, now, SourceRevalidated
	return &same
}

// stamped notes when upstream confirmed the tag: before we asked, to be safe.
func stamped(now time.Time) func(*Manifest, manifest.Info, error) (*Manifest, manifest.Info, error) {
	return func(m *Manifest, info manifest.Info, err error) (*Manifest, manifest.Info, error) {
		if err == nil && m.Tag != "" {
			m.CheckedAt = now
		}
		return m, info, err
	}
}

// remember keeps the sizes of what a manifest refers to, for upstreams that do
// not say how long a blob is.
func (p *Proxy) remember(rt *route, info manifest.Info) {
	for _, d := range info.Manifests {
		p.state().children.Put(rt.key(d.Digest.String()), struct{}{})
	}
	for _, d := range info.Blobs {
		if !foreign(d.MediaType) {
			p.state().sizes.Put(rt.key(d.Digest.String()), d.Size)
		}
	}
}

// commitManifest stores m and returns the answer. A Store that is slow or fails
// changes nothing for those who wait.
func (p *Proxy) commitManifest(call *manifestCall, rt *route, ref string, m *Manifest) *Manifest {
	late := time.AfterFunc(putWait, func() { call.Publish(m) })
	defer late.Stop()
	ctx := call.Context() // it was kept: only a Shutdown that runs out of time ends it
	if err := p.unchanged(ctx, rt); err != nil {
		p.log().Warn("manifest is served and not stored", "repository", rt.repo.Name, "ref", ref, "err", err)
		return m
	}
	put := func(m *Manifest) error {
		return watched(ctx, p.state().manifestPuts, "Store.PutManifest", putTimeout, new(atomic.Int64), func(ctx context.Context) error {
			return p.Store.PutManifest(ctx, rt.repo, m)
		})
	}
	err := put(m)
	if errors.Is(err, ErrImmutable) {
		if have := p.lookUpManifest(ctx, rt.repo, ref); have != nil {
			m = confirmed(have, ref, m.CheckedAt)
			err = put(m) // that it was checked
		}
	}
	if err != nil {
		p.storeFailed(ctx, rt.repo, ref, err)
	}
	return m
}

// errRuleGone is why something is served and not stored.
var errRuleGone = errors.New("the rule is not what it was when the fetch began")

// unchanged returns nil if the rule is still the one that the fetch began with:
// what came by a rule that is gone is served, not stored.
func (p *Proxy) unchanged(ctx context.Context, rt *route) error {
	return p.bounded(ctx, "Rules", func(ctx context.Context) error {
		now, err := p.route(ctx, rt.repo)
		if errors.Is(err, ErrNoRule) || err == nil && now.id != rt.id {
			return errRuleGone
		}
		return err
	})
}
