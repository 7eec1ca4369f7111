package pullthrough

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
)

// resolver finds manifests: in the Store, or upstream.
//
// The way of a request is lookUp, then, for a miss or a tag that is due, join. What
// joins runs once for all callers, in a flight: resolve looks into the Store once
// more and then calls recheck for a tag that is stored, or fetch for what is not.
// Both end in keep.
type resolver struct {
	keeper
	checks  *checks
	flights flight.Group[objectKey, *Manifest]
}

func newResolver(c *core, fill FillMode, flights *flight.Set) *resolver {
	re := &resolver{keeper: keeper{core: c, fill: fill}, checks: newChecks()}
	re.flights.Join(flights, "manifest")
	return re
}

// pull answers HEAD and GET of a manifest.
func (re *resolver) pull(ctx context.Context, r Request) (*Manifest, outcome, error) {
	if err := re.admit(ctx, r); err != nil {
		return nil, outcome{}, err
	}
	have, storeErr := re.store.manifest(ctx, r.Repo, r.Ref)
	if have != nil {
		return re.pullStored(ctx, r, have)
	}
	rt, out, err := re.enter(ctx, r, storeErr)
	if err == nil {
		err = re.registries.refuse(ctx, rt, r.Ref)
	}
	if err != nil {
		return nil, out, err
	}
	m, err := re.join(ctx, rt, r, nil)
	return m, out, err
}

// pullStored answers with what is stored. A tag that is due is checked first, if the
// caller may cause that.
func (re *resolver) pullStored(ctx context.Context, r Request, have *Manifest) (*Manifest, outcome, error) {
	if ocipath.IsDigest(r.Ref) || re.router.isFresh(have, re.now()) {
		return have, outcome{}, nil
	}
	rt, err := re.router.route(ctx, r.Repo)
	switch {
	case err != nil && !errors.Is(err, ErrNoRule) && (Policy{}).due(have.Origin, have.CheckedAt, re.now()):
		re.logBroken(ctx, r.Repo, r.Ref, err)
		return asStale(have), outcome{}, nil
	case err != nil || !rt.isDue(have, re.now()):
		return have, outcome{}, nil // what is stored is served, also without a rule
	}
	if err := re.mayImport(ctx, r); err == nil {
		have, err = re.join(ctx, rt, r, have)
		return have, rt.outcome(present), err
	} else if re.checks.isRefused(rt, r.Ref) {
		return nil, rt.outcome(present), err // this caller cannot have the refusal taken back
	}
	return have, outcome{}, nil
}

// join returns what the fetch of r.Ref gives to this caller, who has found have in the
// Store (nil: nothing). With something to serve no failure of the fetch wins, but for
// an upstream that refuses the tag where RefuseStale is set.
//
// A fetch whose answer is out already is joined while that answer is fresh. When it is
// due again (the Policy may want a check on every pull), another fetch takes its
// place: see do. Where that answer is a stale one, the check still runs, or waits for
// the Store. This caller waits for it, too, no longer than for a check of its own, unless
// checks are paused.
func (re *resolver) join(ctx context.Context, rt *route, r Request, have *Manifest) (*Manifest, error) {
	if m, out := re.flights.Peek(rt.key(r.Ref)); out && m != nil && m.Source == SourceStale {
		if re.checks.arePaused(rt, re.now()) {
			return m, nil
		}
		wait, stop := context.WithTimeout(ctx, rt.checkTimeout())
		err := re.stored(wait, rt, r.Ref)
		stop()
		if err != nil && ctx.Err() == nil {
			return m, nil
		}
	}
	f := &fetching{rt: rt, r: r, have: have, start: re.now()}
	m, shared, err := re.do(ctx, f)
	switch {
	case err == nil:
		return asAnswer(m, r.Ref, shared), nil
	case f.have == nil || ctx.Err() != nil || re.checks.isRefused(rt, r.Ref) || !rt.mayServeStale(err):
		return nil, err
	}
	return asStale(f.have), nil
}

// do runs resolve for f, or waits for the fetch that runs already.
func (re *resolver) do(ctx context.Context, f *fetching) (m *Manifest, shared bool, err error) {
	return re.flights.Renew(ctx, f.rt.key(f.r.Ref), f.isTooOld, func(call *flight.Call[objectKey, *Manifest]) (*Manifest, error) {
		own := *f
		own.Call = call
		return re.resolve(&own)
	})
}

// isTooOld reports whether the answer m of the fetch before is due again. Then it is
// what this fetch has.
func (f *fetching) isTooOld(m *Manifest) bool {
	if ocipath.IsDigest(f.r.Ref) || m.Source == SourceStale || !f.rt.isDue(m, f.start) {
		return false
	}
	f.have, f.unstored = m, true
	return true
}

// asAnswer is the manifest of a flight as the answer to one caller. One who asked for a
// digest is answered with that: the content may have another one, too.
func asAnswer(m *Manifest, ref string, shared bool) *Manifest {
	shared = shared && m.Source == SourceFill
	tag, d := ref, m.Descriptor.Digest
	if ocipath.IsDigest(ref) {
		tag, d = "", digest.Digest(ref)
	}
	if !shared && m.Tag == tag && m.Descriptor.Digest == d {
		return m
	}
	own := *m
	own.Tag, own.Descriptor.Digest = tag, d
	if shared {
		own.Source = SourceShared
	}
	return &own
}

// resolve runs in the flight. It looks into the Store once more, since the flight
// before may have stored the manifest after our caller looked and before this
// flight began.
func (re *resolver) resolve(f *fetching) (*Manifest, error) {
	f.rt.begin(f)
	if !f.unstored {
		patience := lookupPatience
		if f.have != nil {
			patience = min(patience, f.rt.checkTimeout())
		}
		if have := re.store.findManifestWithin(f.Context(), patience, f.rt.repo, f.r.Ref); have != nil {
			f.have = have
		}
	}
	if f.have != nil && (ocipath.IsDigest(f.r.Ref) || !f.rt.isDue(f.have, f.start)) {
		return f.have, nil
	}
	if m := re.registries.memory.unwanted(f.rt, f.r.Ref); m != nil {
		return m, nil
	}
	switch {
	case f.have == nil:
		return re.first(f)
	case re.checks.isRefused(f.rt, f.r.Ref):
		// Nobody has taken the refusal back: it is asked again, and nothing else will do.
	case re.checks.arePaused(f.rt, f.start):
		return asStale(f.have), nil
	}
	return re.recheck(f)
}

// traced runs one exchange with upstream and tells it as an event.
func (re *resolver) traced(f *fetching, run func(context.Context, *fetching) (*Manifest, error)) (*Manifest, error) {
	event := re.fetchEvent(EventManifest, f.part)
	event.start = f.start
	ctx := event.Attach(f.Context())
	m, err := run(ctx, f)
	if err != nil {
		re.tellFetch(ctx, event, f.rt, f.r.Ref, ocispec.Descriptor{}, SourceFill, err)
		return nil, err
	}
	re.tellFetch(ctx, event, f.rt, f.r.Ref, m.Descriptor, m.Source, nil)
	return m, nil
}

// first fetches what is not here. The fetch before may have been told that upstream does not
// have it after our caller looked.
func (re *resolver) first(f *fetching) (*Manifest, error) {
	if !f.part {
		if err := re.registries.refuse(f.Context(), f.rt, f.r.Ref); err != nil {
			return nil, err
		}
	}
	return re.traced(f, re.fetch)
}

// fetch brings in a manifest that is not stored.
func (re *resolver) fetch(ctx context.Context, f *fetching) (*Manifest, error) {
	m, err := re.registries.manifest(ctx, f.rt, f.r.Ref, upstream.Pull)
	if err != nil {
		return nil, err
	}
	re.checks.confirm(f.rt, f.r.Ref)
	if !f.Keep() {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		return stamp(m, f.start), nil // it was deleted meanwhile: who waits gets it, and it is not stored
	}
	if err := re.createRepo(ctx, f.rt, f.r); err != nil {
		return nil, err
	}
	return re.keep(f, stamp(m, f.start)), nil
}

// stamp notes when upstream confirmed the tag: the time before it was asked, to be
// safe.
func stamp(m *Manifest, now time.Time) *Manifest {
	if m != nil && m.Tag != "" {
		m.CheckedAt = now
	}
	return m
}

// recheck asks upstream whether a stored tag is still what it was. It does not fail
// unless the Policy says so: callers get what is stored when upstream fails, or when it
// takes too long.
func (re *resolver) recheck(f *fetching) (*Manifest, error) {
	refused := re.checks.isRefused(f.rt, f.r.Ref)
	limit := new(checkLimit)
	if !refused {
		limit = re.limit(f)
	}
	defer func() { limit.stop() }()
	slow := false
	m, err := re.traced(f, func(ctx context.Context, f *fetching) (*Manifest, error) {
		m, err := re.confirm(ctx, f)
		slow = limit.answer(err)
		if err != nil {
			return nil, err
		}
		re.checks.confirm(f.rt, f.r.Ref)
		if refused { // no longer: what is stored may be served if the Store takes too long
			limit = re.limit(f)
			limit.answer(nil)
		}
		return re.keep(f, m), nil
	})
	if err == nil {
		return m, nil
	}
	return re.serveUnconfirmed(f, err, slow, refused)
}

// limit serves what is stored to the callers that wait when the time for the check is
// over.
func (re *resolver) limit(f *fetching) *checkLimit {
	return f.rt.startLimit(func(late bool) {
		if late && f.Context().Err() == nil {
			re.checks.pause(f.rt, ErrUnavailable, true, re.now())
		}
		f.Publish(asStale(f.have))
	})
}

// serveUnconfirmed decides what becomes of a stored tag whose check has failed. That we
// gave the check up, or had no room for it, says nothing of upstream.
func (re *resolver) serveUnconfirmed(f *fetching, err error, slow, refused bool) (*Manifest, error) {
	switch {
	case f.Context().Err() != nil:
		return nil, err
	case errors.Is(err, errBusy):
	case errors.Is(err, ErrNotFound) && f.have.Origin == "":
		// Upstream has nothing to put in place of what was pushed here.
		return re.keep(f, asConfirmed(f.have, f.r.Ref, f.start)), nil
	case !f.rt.mayServeStale(err):
		re.checks.refuse(f.rt, f.r.Ref)
		return nil, err
	default:
		re.checks.pause(f.rt, err, slow, re.now())
	}
	if refused {
		return nil, err
	}
	return asStale(f.have), nil
}

// confirm asks upstream for the tag: by HEAD whether it has moved, and only then for
// the manifest, by the digest that HEAD told.
func (re *resolver) confirm(ctx context.Context, f *fetching) (*Manifest, error) {
	d, err := re.registries.head(ctx, f.rt, f.r.Ref)
	switch {
	case err != nil:
		return nil, err
	case d == f.have.Descriptor.Digest:
		return asConfirmed(f.have, f.r.Ref, f.start), nil
	case d != "":
		m, err := re.registries.manifest(ctx, f.rt, d.String(), upstream.Check)
		if err == nil {
			m.Tag = f.r.Ref
			return stamp(m, f.start), nil
		}
		if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrDigest) {
			return nil, err
		}
		// The tag moved on between the two requests, or HEAD told a wrong digest: the
		// body decides now.
	}
	m, err := re.registries.manifest(ctx, f.rt, f.r.Ref, upstream.Check)
	return stamp(m, f.start), err
}

// child returns the manifest d of an index. It is stored when h is released. begin is
// called if the manifest must be fetched.
func (re *resolver) child(ctx context.Context, rt *route, d digest.Digest, h *hold, begin func()) (*Manifest, error) {
	if m := re.store.findManifest(ctx, rt.repo, d.String()); m != nil {
		return m, nil
	}
	begin()
	m, _, err := re.do(ctx, &fetching{rt: rt, r: Request{Repo: rt.repo, Ref: d.String()}, part: true, hold: h, start: re.now()})
	return m, err
}

// stored waits until the fetch of ref, if one runs, has ended: its answer is out
// before the Store has it.
func (re *resolver) stored(ctx context.Context, rt *route, ref string) error {
	return re.flights.Wait(ctx, rt.key(ref))
}

// isStored is stored, and reports whether the Store has the manifest d by then.
func (re *resolver) isStored(ctx context.Context, rt *route, ref string, d digest.Digest) (bool, error) {
	if err := re.stored(ctx, rt, ref); err != nil {
		return false, err
	}
	return re.store.findManifest(ctx, rt.repo, d.String()) != nil, nil
}

// newHold returns a hold where parts go first.
func (re *resolver) newHold() *hold {
	if re.fill != FillEager {
		return nil
	}
	return &hold{done: make(chan struct{})}
}
