package pullthrough

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
)

// maxRejoins bounds how often a pull by digest joins the fetch of a tag that turns
// out to be immutable.
const maxRejoins = 3

// resolver finds manifests: in the Store, or upstream.
//
// The way of a request is lookUp, then, for a miss or a tag that is due, join. What
// joins runs once for all who ask, in a flight: resolve looks into the Store once
// more and then calls recheck for a tag that is stored, or fetch for what is not.
// Both end in keep.
type resolver struct {
	*core
	checks  *checks
	flights flight.Group[objectKey, *Manifest]

	fill FillMode
	// importParts brings in what a manifest refers to, and returns when it is stored;
	// importLater does so when nobody waits. Both are the importer's.
	importParts func(ctx context.Context, rt *route, m *Manifest, depth int) error
	importLater func(rt *route, m *Manifest)
}

func newResolver(c *core, fill FillMode, flights *flight.Set) *resolver {
	re := &resolver{core: c, checks: newChecks(), fill: fill}
	re.flights.Join(flights, "manifest")
	return re
}

// fetching is one fetch of a manifest, on behalf of all who wait for it.
type fetching struct {
	*flight.Call[objectKey, *Manifest]
	rt    *route
	r     Request   // of the caller who began it
	depth int       // how many indexes it came through
	have  *Manifest // what is stored under the tag; nil: nothing
	start time.Time
}

// pull answers HEAD and GET of a manifest.
func (re *resolver) pull(ctx context.Context, r Request) (*Manifest, outcome, error) {
	if err := re.gate.admit(ctx, r); err != nil {
		return nil, outcome{}, err
	}
	have, storeErr := re.store.manifest(ctx, r.Repo, r.Ref)
	if have != nil {
		return re.pullStored(ctx, r, have)
	}
	rt, out, err := re.enter(ctx, r, storeErr)
	if err == nil {
		err = re.memory.refuse(ctx, rt, r.Ref)
	}
	if err != nil {
		return nil, out, err
	}
	m, err := re.join(ctx, rt, r)
	return m, out, err
}

// pullStored answers with what is stored. A tag that is due is checked first, if the
// caller may cause that.
func (re *resolver) pullStored(ctx context.Context, r Request, have *Manifest) (*Manifest, outcome, error) {
	if ocipath.IsDigest(r.Ref) || re.router.policy == nil && !(Policy{}).due(have.Origin, have.CheckedAt, re.now()) {
		return have, outcome{}, nil
	}
	rt, err := re.router.route(ctx, r.Repo)
	if err != nil || !rt.policy.due(have.Origin, have.CheckedAt, re.now()) {
		return have, outcome{}, nil // what is stored is served, also without a rule
	}
	if re.gate.mayFetch(ctx, ActionImport, r) != nil {
		return have, outcome{}, nil
	}
	m, err := re.join(ctx, rt, r)
	return m, rt.outcome(present), err
}

// join returns what the fetch of r.Ref gives to this caller.
func (re *resolver) join(ctx context.Context, rt *route, r Request) (*Manifest, error) {
	for range maxRejoins {
		m, shared, err := re.do(ctx, rt, r, 0)
		if err != nil {
			return nil, err
		}
		// A fetch by tag is found under the digest that it brought, too. It gives another
		// manifest after all if its tag turns out to be immutable.
		if !ocipath.IsDigest(r.Ref) || m.Descriptor.Digest.String() == r.Ref {
			return asAnswer(m, r.Ref, shared), nil
		}
	}
	return nil, rt.error(ErrUnavailable, errors.New("the digest could not be fetched beside a tag that does not move"))
}

// asAnswer is the manifest of a flight as the answer to one of those who wait.
func asAnswer(m *Manifest, ref string, shared bool) *Manifest {
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

// do runs resolve for r.Ref, or waits for the one that runs already.
func (re *resolver) do(ctx context.Context, rt *route, r Request, depth int) (m *Manifest, shared bool, err error) {
	return re.flights.Do(ctx, rt.key(r.Ref), func(call *flight.Call[objectKey, *Manifest]) (*Manifest, error) {
		return re.resolve(&fetching{Call: call, rt: rt, r: r, depth: depth, start: re.now()})
	})
}

// resolve runs in the flight. It looks into the Store once more, since the flight
// before may have stored the manifest after our caller looked and before this
// flight began.
func (re *resolver) resolve(f *fetching) (*Manifest, error) {
	have := re.store.findManifest(f.Context(), f.rt.repo, f.r.Ref)
	switch {
	case have == nil:
		return re.traced(f, re.fetch)
	case ocipath.IsDigest(f.r.Ref), !f.rt.policy.due(have.Origin, have.CheckedAt, f.start):
		return have, nil
	case re.checks.isRefused(f.rt, f.r.Ref):
		// Nobody has taken the refusal back: it is asked again, and nothing else will do.
	case re.checks.arePaused(f.rt, f.start):
		return asStale(have), nil
	}
	f.have = have
	return re.recheck(f)
}

// traced runs one exchange with upstream and tells it as an event.
func (re *resolver) traced(f *fetching, run func(context.Context, *fetching) (*Manifest, error)) (*Manifest, error) {
	trace := new(upstream.Trace)
	ctx := trace.Attach(f.Context())
	m, err := run(ctx, f)
	e := Event{Object: EventManifest, Part: f.depth > 0, Source: SourceFill}
	if err == nil {
		e.Source, e.Digest, e.Bytes = m.Source, m.Descriptor.Digest.String(), m.Descriptor.Size
	}
	re.tellFetch(ctx, f.rt, f.r.Ref, e, trace, f.start, err)
	return m, err
}

// fetch brings in a manifest that is not stored.
func (re *resolver) fetch(ctx context.Context, f *fetching) (*Manifest, error) {
	m, info, err := re.registries.manifest(ctx, f.rt, f.r.Ref, upstream.Pull)
	if err == nil {
		re.checks.confirm(f.rt, f.r.Ref)
		re.memory.learn(f.rt, info)
		err = re.store.createRepo(ctx, f.rt, f.r)
	}
	if err != nil {
		re.memory.noteMissing(f.rt, f.r.Ref, err)
		return nil, err
	}
	return re.keep(f, stamp(m, f.start)), nil
}

// recheck asks upstream whether a stored tag is still what it was. It never fails
// for those who wait unless the Policy says so: they are given what is stored when
// upstream fails, or when it takes too long.
func (re *resolver) recheck(f *fetching) (*Manifest, error) {
	refused := re.checks.isRefused(f.rt, f.r.Ref)
	limit := new(checkLimit)
	if !refused {
		limit = startLimit(f.rt.policy, func(late bool) {
			if late {
				re.checks.pause(f.rt, ErrUnavailable, true, re.now())
			}
			f.Publish(asStale(f.have))
		})
		defer limit.stop()
	}
	slow := false
	m, err := re.traced(f, func(ctx context.Context, f *fetching) (*Manifest, error) {
		m, info, err := re.confirm(ctx, f)
		slow = limit.answer()
		if err != nil {
			return nil, err
		}
		re.checks.confirm(f.rt, f.r.Ref)
		re.memory.learn(f.rt, info)
		return re.keep(f, m), nil
	})
	if err == nil {
		return m, nil
	}
	return re.serveUnconfirmed(f, err, slow, refused)
}

// serveUnconfirmed decides what becomes of a stored tag whose check has failed.
func (re *resolver) serveUnconfirmed(f *fetching, err error, slow, refused bool) (*Manifest, error) {
	switch {
	case errors.Is(err, ErrNotFound) && f.have.Origin == "":
		// Upstream has nothing to put in place of what was pushed here.
		return re.keep(f, asConfirmed(f.have, f.r.Ref, f.start)), nil
	case !f.rt.mayServeStale(err):
		re.checks.refuse(f.rt, f.r.Ref)
		return nil, err
	}
	re.checks.pause(f.rt, err, slow, re.now())
	if refused {
		return nil, err
	}
	re.log.Warn("serving a stored tag that could not be checked", "repository", f.rt.repo.Name, "tag", f.r.Ref, "err", err)
	return asStale(f.have), nil
}

// confirm asks upstream for the tag: by HEAD whether it has moved, and only then for
// the manifest, by the digest that HEAD told.
func (re *resolver) confirm(ctx context.Context, f *fetching) (*Manifest, manifest.Info, error) {
	d, err := re.registries.head(ctx, f.rt, f.r.Ref)
	switch {
	case err != nil:
		return nil, manifest.Info{}, err
	case d == f.have.Descriptor.Digest:
		return asConfirmed(f.have, f.r.Ref, f.start), manifest.Info{}, nil
	case d != "":
		m, info, err := re.registries.manifest(ctx, f.rt, d.String(), upstream.Check)
		if err == nil {
			m.Tag = f.r.Ref
			return stamp(m, f.start), info, nil
		}
		if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrDigest) {
			return nil, manifest.Info{}, err
		}
		// The tag moved on between the two requests, or HEAD told a wrong digest: the
		// body decides now.
	}
	m, info, err := re.registries.manifest(ctx, f.rt, f.r.Ref, upstream.Check)
	return stamp(m, f.start), info, err
}

// stamp notes when upstream confirmed the tag: the time before it was asked, to be
// safe.
func stamp(m *Manifest, now time.Time) *Manifest {
	if m != nil && m.Tag != "" {
		m.CheckedAt = now
	}
	return m
}

// keep answers those who wait with m, which is verified, and has it stored, as Fill
// says. It returns what the answer is for those who have not got one yet.
//
// The flight, the answer and the commit, step by step:
//
//  1. Keep makes the flight go on although everybody may leave. If everybody has
//     left already, another flight for the same key may run by now, so nothing is
//     stored here.
//  2. Link enters the flight under the digest, too. A client that was told the digest
//     by HEAD of the tag finds this flight, not a second fetch.
//  3. Publish answers all who wait and all who join from now on. Neither the Store
//     nor any blob can delay that. Only a tag that moves waits for the Store, which
//     may say that it must not move (ErrImmutable); see checkLimit for how long.
//  4. The Store gets the manifest. Until then the flight stays linked: a request that
//     misses in the Store joins it, and is answered at once.
//  5. The flight ends and is unlinked. A request that missed in the Store before step
//     4 and comes here after step 5 starts a flight of its own, whose resolve looks
//     into the Store first and finds it. So nothing is fetched twice.
func (re *resolver) keep(f *fetching, m *Manifest) *Manifest {
	if !f.Keep() {
		return m
	}
	f.Link(f.rt.key(m.Descriptor.Digest.String()))
	moves := f.have != nil && m.Source == SourceFill
	eager := re.fill == FillEager && m.Source == SourceFill
	if !moves || eager {
		f.Publish(m)
	}
	if eager {
		// The flight's own context: what the parts cost is theirs, not this fetch's.
		if err := re.importParts(f.Context(), f.rt, m, f.depth); err != nil {
			re.log.Warn("image is not complete and so not stored", "repository", f.rt.repo.Name, "ref", f.r.Ref, "err", err)
			return m
		}
	}
	m = re.put(f, m)
	if re.fill == FillBackground && m.Source == SourceFill && f.depth == 0 {
		re.importLater(f.rt, m)
	}
	return m
}

// put stores m and returns what is stored. A Store that fails changes nothing for
// those who wait. The context is the flight's: it was kept, so only a Shutdown that
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
	if err != nil {
		re.observer.storeFailed(ctx, f.rt.repo, f.r.Ref, err)
	}
	return m
}

// child fetches the manifest d of an index. depth is how many indexes it came
// through.
func (re *resolver) child(ctx context.Context, rt *route, d digest.Digest, depth int) (*Manifest, error) {
	m, _, err := re.do(ctx, rt, Request{Repo: rt.repo, Ref: d.String()}, depth)
	return m, err
}

// stored waits until the fetch of d, if one runs, has ended: its answer is out
// before the Store has it.
func (re *resolver) stored(ctx context.Context, rt *route, d digest.Digest) error {
	return re.flights.Wait(ctx, rt.key(d.String()))
}
