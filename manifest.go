package pullthrough

import (
	"context"
	"errors"
	"fmt"
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
	*core
	checks  *checks
	flights flight.Group[objectKey, *Manifest]

	fill   FillMode
	images *importer // brings in what manifests refer to
}

func newResolver(c *core, fill FillMode, flights *flight.Set) *resolver {
	re := &resolver{core: c, checks: newChecks(), fill: fill}
	re.flights.Join(flights, "manifest")
	return re
}

// fetching is one fetch of a manifest, on behalf of every caller that waits for it.
type fetching struct {
	*flight.Call[objectKey, *Manifest]
	rt    *route
	r     Request   // of the caller who began it
	part  bool      // an import wants it, no client
	hold  *hold     // of the walk that wants it; nil: none does, or its parts may come later
	parts fate      // what became of them, where they go first
	have  *Manifest // what is there under the tag; nil: nothing
	start time.Time

	// unstored says that have is the answer of the fetch before, which the Store may not
	// have yet.
	unstored bool
}

// pull answers HEAD and GET of a manifest.
func (re *resolver) pull(ctx context.Context, r Request) (*Manifest, outcome, error) {
	if err := re.admit(ctx, r); err != nil {
		return nil, outcome{}, err
	}
	have, storeErr := re.store.manifest(ctx, r.Repo, r.Ref)
	if have != nil {
		m, out, err := re.pullStored(ctx, r, have)
		if err == nil {
			re.images.takeUp(ctx, r, m)
		}
		return m, out, err
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
		return re.unchecked(r, have, err), outcome{}, nil
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

// unchecked is what is stored, for a check that ended with err.
func (re *resolver) unchecked(r Request, have *Manifest, err error) *Manifest {
	re.log.Warn("serving a stored tag that could not be checked", "repository", r.Repo.Name, "tag", r.Ref, "err", err)
	return asStale(have)
}

// join returns what the fetch of r.Ref gives to this caller, who has found have in the
// Store (nil: nothing). With something to serve no failure of the fetch wins, but for
// an upstream that refuses the tag where RefuseStale is set.
//
// A fetch whose answer is out already is joined while that answer is fresh. When it is
// due again (the Policy may want a check on every pull), another fetch takes its
// place: see do. Where that answer is a stale one, the check still runs, or waits for
// the Store. This caller waits for it, too, no longer than for a check of its own.
func (re *resolver) join(ctx context.Context, rt *route, r Request, have *Manifest) (*Manifest, error) {
	if m, out := re.flights.Peek(rt.key(r.Ref)); out && m != nil && m.Source == SourceStale {
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
	return re.unchecked(r, f.have, err), nil
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
		return re.traced(f, re.fetch)
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

// fetch brings in a manifest that is not stored.
func (re *resolver) fetch(ctx context.Context, f *fetching) (*Manifest, error) {
	m, err := re.registries.manifest(ctx, f.rt, f.r.Ref, upstream.Pull)
	if err != nil {
		return nil, err
	}
	re.checks.confirm(f.rt, f.r.Ref)
	if !f.Keep() {
		return nil, context.Cause(ctx)
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

// keep answers the callers that wait with m, which is verified, and has it stored, as
// Fill says. It returns the answer for callers that have not got one yet.
//
// The flight, the answer and the commit, step by step:
//
//  1. Keep makes the flight go on although everybody may leave, or has left a moment
//     ago. If nobody has come back in time, another flight for the same key may run by
//     now, so nothing is stored here.
//  2. PublishUnder answers every caller that waits or joins from now on. Neither the
//     Store nor any blob can delay that. In the same step the flight is entered under
//     the digest, too: a client that was told the digest by HEAD of the tag finds this
//     flight, not a second fetch.
//  3. Only a tag that moves is not published here. It waits for the Store, which may
//     say that it must not move (ErrImmutable); see checkLimit for how long. Nor is it
//     found under the digest that it moves to: its answer may be another manifest. A
//     pull of that digest fetches for itself, and does not wait for the Store.
//  4. A tag may be due again while the Store is not done: then a pull has taken the
//     place of this flight, or this one has taken that of another. Each checks
//     upstream, with the answer before as what it has, and publishes. Turn puts what
//     they store in order: the older answer first, or not at all.
//  5. The Store gets the manifest. Until then the flight stays linked: a request that
//     misses in the Store joins it, and is answered at once.
//  6. The flight ends and is unlinked. A request that missed in the Store before step
//     5 and comes here after step 6 starts a flight of its own, whose resolve looks
//     into the Store first and finds it. So nothing is fetched twice.
func (re *resolver) keep(f *fetching, m *Manifest) *Manifest {
	if !f.Keep() {
		return m
	}
	fetched := m.Source == SourceFill
	if moves := f.have != nil && fetched; !moves || re.fill == FillEager {
		f.PublishUnder(m, f.rt.key(m.Descriptor.Digest.String()), f.rt.key(canonical(m).String()))
	}
	if !f.Turn() {
		return m
	}
	if !fetched && f.unstored {
		m = re.asUnstored(f, m)
		fetched = m.Source == SourceFill
	}
	if fetched && re.fill == FillEager {
		if f.parts = re.partsFirst(f, m); f.parts > absentForGood {
			return m
		}
	}
	m = re.put(f, m)
	if fetched && re.fill == FillBackground && !f.part {
		re.images.importLater(f.rt, m)
	}
	return m
}

// partsFirst returns when all that m refers to is stored that is to be had. The walk
// that wants m as a part brings that in, and otherwise a walk of our own.
func (re *resolver) partsFirst(f *fetching, m *Manifest) fate {
	if f.hold != nil {
		return f.hold.wait(f.Context())
	}
	return re.images.partsFirst(f, m)
}

// asUnstored returns m, which upstream has confirmed, as it is to be stored now that the
// fetch before has ended: as a fetch of its own, if that has not stored it. A tag that
// was pushed here meanwhile stays.
func (re *resolver) asUnstored(f *fetching, m *Manifest) *Manifest {
	have := re.store.findManifest(f.Context(), f.rt.repo, f.r.Ref)
	if have != nil && (have.Descriptor.Digest == m.Descriptor.Digest || have.Origin == "" || have.CheckedAt.After(m.CheckedAt)) {
		return m
	}
	own := *m
	own.Source = SourceFill
	return &own
}

// put stores m and returns what is stored. A Store that fails changes nothing for
// the callers. The context is the flight's: it was kept, so only a Shutdown that
// runs out of time ends it.
func (re *resolver) put(f *fetching, m *Manifest) *Manifest {
	ctx := f.Context()
	if err := re.router.unchanged(ctx, f.rt); err != nil {
		re.log.Warn("manifest is served and not stored", "repository", f.rt.repo.Name, "ref", f.r.Ref, "err", err)
		return m
	}
	err := re.store.putManifest(ctx, f.rt.repo, m)
	if errors.Is(err, ErrImmutable) {
		if have := re.store.findManifest(ctx, f.rt.repo, f.r.Ref); have != nil {
			m = asConfirmed(have, f.r.Ref, m.CheckedAt)
			err = re.store.putManifest(ctx, f.rt.repo, m) // that it was checked
		}
	}
	if err == nil && m.Source == SourceFill && m.Tag != "" && canonical(m) != m.Descriptor.Digest {
		also := *m
		also.Tag, also.Descriptor.Digest = "", canonical(m)
		err = re.store.putManifest(ctx, f.rt.repo, &also)
	}
	if err != nil && f.parts == absentForGood {
		err = fmt.Errorf("%w (parts of the image are missing)", err)
		re.registries.memory.noteUnwanted(f.rt, f.r.Ref, m)
	}
	if err != nil {
		re.storeFailed(ctx, f.rt.repo, f.r.Ref, err)
	}
	return m
}

// canonical is the sha256 digest of m. A tag to which upstream gives a digest of another
// kind is found by this one, too: most clients use no other.
func canonical(m *Manifest) digest.Digest {
	if m.Descriptor.Digest.Algorithm() == digest.Canonical {
		return m.Descriptor.Digest
	}
	return digest.FromBytes(m.Content)
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
