package pullthrough

import (
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
)

// keeper answers with the manifests that have been fetched, and has them stored.
type keeper struct {
	*core
	fill FillMode

	// Of the importer: what brings in what a manifest refers to, before it is stored, and
	// while nobody waits.
	partsFirst  func(f *fetching, m *Manifest) fate
	importLater func(rt *route, m *Manifest)
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
//  3. Only a tag that moves is not published here, and one that somebody may push here
//     meanwhile, where Policy.KeepLocal is set. It waits for the Store, which may
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
func (k *keeper) keep(f *fetching, m *Manifest) *Manifest {
	if !f.Keep() {
		return m
	}
	if local := k.localTag(f, m); local != nil {
		return local
	}
	fetched := m.Source == SourceFill
	publish := func(bool) {
		f.PublishUnder(m, f.rt.key(m.Descriptor.Digest.String()), f.rt.key(canonical(m).String()))
	}
	switch {
	case !fetched, k.fill == FillEager, f.have == nil && !f.keepsLocal(m):
		publish(false)
	case f.have == nil:
		defer f.rt.startLimit(publish).stop()
	}
	if !f.Turn() {
		return m
	}
	if !fetched && f.unstored {
		m = k.asUnstored(f, m)
		fetched = m.Source == SourceFill
	}
	if fetched && k.fill == FillEager {
		if f.parts = k.bringIn(f, m); f.parts > absentForGood {
			return m
		}
	}
	m = k.put(f, m)
	if fetched && k.fill == FillBackground && !f.part {
		k.importLater(f.rt, m)
	}
	return m
}

// bringIn returns when all that m refers to is stored that is to be had. The walk that
// wants m as a part does that, and otherwise an import of our own.
func (k *keeper) bringIn(f *fetching, m *Manifest) fate {
	if f.hold != nil {
		return f.hold.wait(f.Context())
	}
	return k.partsFirst(f, m)
}

// asUnstored returns m, which upstream has confirmed, as it is to be stored now that the
// fetch before has ended: as a fetch of its own, if that has not stored it. A tag that
// was pushed here meanwhile stays.
func (k *keeper) asUnstored(f *fetching, m *Manifest) *Manifest {
	have := k.store.findManifest(f.Context(), f.rt.repo, f.r.Ref)
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
func (k *keeper) put(f *fetching, m *Manifest) *Manifest {
	ctx := f.Context()
	err := k.router.unchanged(ctx, f.rt)
	if err == nil && k.isGone(f, m) {
		err = errDeleted
	}
	if err != nil {
		return k.unstored(f, m, err)
	}
	m, err = k.putAs(f, m)
	if err == nil && m.Source == SourceFill && m.Tag != "" && canonical(m) != m.Descriptor.Digest {
		also := *m
		also.Tag, also.Descriptor.Digest = "", canonical(m)
		err = k.store.putManifest(ctx, f.rt.beginning, &also)
	}
	if errors.Is(err, errDeleted) {
		return k.unstored(f, m, err)
	}
	if err != nil && f.parts == absentForGood {
		err = fmt.Errorf("%w (parts of the image are missing)", err)
		k.registries.memory.noteUnwanted(f.rt, f.r.Ref, m)
	}
	if err != nil {
		k.storeFailed(ctx, "Store.PutManifest", f.rt.repo, f.r.Ref, err)
	}
	return m
}

// unstored returns m, which is served and not stored.
func (k *keeper) unstored(f *fetching, m *Manifest, err error) *Manifest {
	k.log.Warn("manifest is served and not stored", "repository", f.rt.repo.Name, "ref", f.r.Ref, "err", err)
	return m
}

// isGone reports whether the tag that this check is about was deleted since, by way of the
// Store alone: a tag that a check has begun with and that is not there any more.
func (k *keeper) isGone(f *fetching, m *Manifest) bool {
	return m.Tag != "" && f.have != nil && !f.unstored && k.store.findManifest(f.Context(), f.rt.repo, m.Tag) == nil
}

// putAs stores m, or returns what is stored under its tag and must stay.
func (k *keeper) putAs(f *fetching, m *Manifest) (*Manifest, error) {
	if local := k.localTag(f, m); local != nil {
		return local, nil
	}
	ctx, put := f.Context(), *m
	put.KeepLocal = f.keepsLocal(m)
	err := k.store.putManifest(ctx, f.rt.beginning, &put)
	if !errors.Is(err, ErrImmutable) {
		return m, err
	}
	if local := k.localTag(f, m); local != nil {
		return local, nil
	}
	have := k.store.findManifest(ctx, f.rt.repo, f.r.Ref)
	if have == nil {
		return m, err
	}
	m = asConfirmed(have, f.r.Ref, m.CheckedAt)
	return m, k.store.putManifest(ctx, f.rt.beginning, m) // that it was checked
}

// canonical is the sha256 digest of m. A tag to which upstream gives a digest of another
// kind is found by this one, too: most clients use no other.
func canonical(m *Manifest) digest.Digest {
	if m.Descriptor.Digest.Algorithm() == digest.Canonical {
		return m.Descriptor.Digest
	}
	return digest.FromBytes(m.Content)
}

// keepsLocal reports whether m would take the place of a tag that was pushed here, and
// must not.
func (f *fetching) keepsLocal(m *Manifest) bool {
	return f.rt.policy.KeepLocal && m.Tag != "" && m.Source == SourceFill
}

// localTag is what has been pushed here under the tag of m while upstream was asked, and
// is to be kept; nil: nothing.
func (k *keeper) localTag(f *fetching, m *Manifest) *Manifest {
	if !f.keepsLocal(m) {
		return nil
	}
	have := k.store.findManifest(f.Context(), f.rt.repo, m.Tag)
	if have == nil || have.Origin != "" {
		return nil
	}
	return have
}
