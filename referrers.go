package pullthrough

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
)

const (
	// In memory there are so many lists at most, each no longer than that.
	maxLists     = 1024
	maxListBytes = 64 << 10
)

// referrers keeps lists of referrers, in the Store or in memory, and has upstream
// asked for them.
type referrers struct {
	*core
	flights flight.Group[objectKey, *ocispec.Index]
	lists   *lru.Cache[objectKey, referrerList] // that the Store does not keep

	// importLater brings in what a list has, where Proxy.Fill says so.
	importLater func(rt *route, subject digest.Digest, list func(context.Context) *ocispec.Index)
}

func newReferrers(c *core, flights *flight.Set) *referrers {
	re := &referrers{core: c, lists: lru.New[objectKey, referrerList](maxLists)}
	re.flights.Join(flights, "referrers of")
	return re
}

// pull returns the list of what refers to the manifest r.Ref, a digest. Where a rule covers
// the repository and the caller may pull, the outcome is told, also with an error.
func (re *referrers) pull(ctx context.Context, r Request) (*ocispec.Index, Source, outcome, error) {
	subject, err := re.admitDigest(ctx, r)
	if err != nil {
		return nil, 0, outcome{}, err
	}
	rt, err := re.router.routeBeside(ctx, r.Repo)
	if err != nil {
		return nil, 0, outcome{uncovered: errors.Is(err, ErrNoRule)}, err
	}
	out := rt.outcome(unknown)
	out.admitted = true
	known := re.known(ctx, rt, subject)
	if known.index != nil && !rt.isListDue(known.checked, re.now()) {
		return known.index, SourceHit, out, nil
	}
	if err := re.mayImport(ctx, r); err != nil {
		if known.index != nil {
			return known.index, SourceHit, out, nil
		}
		return nil, 0, outcome{admitted: true}, err
	}
	index, shared, err := re.flights.Do(ctx, rt.key(r.Ref), func(call *flight.Call[objectKey, *ocispec.Index]) (*ocispec.Index, error) {
		rt.begin(call)
		return re.fetch(call.Context(), rt, subject)
	})
	if err != nil && ctx.Err() == nil {
		if known = re.known(ctx, rt, subject); known.index != nil {
			return known.index, SourceStale, out, nil
		}
	}
	if shared {
		return index, SourceShared, out, err
	}
	return index, SourceFill, out, err
}

// known is the list that the Store has, or our memory: the newer one. A guess counts where
// there is no other list, and for NotFoundTTL only.
func (re *referrers) known(ctx context.Context, rt *route, subject digest.Digest) referrerList {
	known, _ := re.lists.Get(rt.key(subject.String()))
	if known.guessed && expired(rt.policy.NotFoundTTL, defaultNotFoundTTL, known.checked, re.now()) {
		known = referrerList{}
	}
	if !re.store.keepsReferrers() {
		return known
	}
	stored := re.store.referrers(ctx, rt.repo, subject)
	if known.index == nil || stored.checked.After(known.checked) || known.guessed && stored.index != nil {
		return stored
	}
	return known
}

// errListUnsure is why a known list is not replaced.
var errListUnsure = errors.New("upstream seems to have no referrers API any more")

// fetch runs in the flight. The flight before may have kept the list after our
// caller looked.
func (re *referrers) fetch(ctx context.Context, rt *route, subject digest.Digest) (*ocispec.Index, error) {
	event := re.fetchEvent(EventReferrers, false)
	ctx = event.Attach(ctx)
	known := re.known(ctx, rt, subject)
	if known.index != nil && !rt.isListDue(known.checked, event.start) {
		return known.index, nil
	}
	index, sure, err := re.registries.referrers(ctx, rt, subject)
	if err == nil && !sure && known.index != nil && !known.guessed {
		err = rt.error(ErrUnavailable, errListUnsure)
	}
	if err == nil && re.router.unchanged(ctx, rt) == nil {
		re.keep(ctx, rt, subject, referrerList{index, event.start, !sure})
		re.importLater(rt, subject, func(ctx context.Context) *ocispec.Index { return re.known(ctx, rt, subject).index })
	}
	re.tellFetch(ctx, event, rt, subject.String(), ocispec.Descriptor{}, SourceFill, err)
	return index, err
}

// keep has the Store keep the list of a subject that it has. A client may ask for the
// referrers of anything, and what it makes up must not fill the Store. Guesses are kept in
// memory.
func (re *referrers) keep(ctx context.Context, rt *route, subject digest.Digest, list referrerList) {
	if list.guessed && rt.policy.NotFoundTTL < 0 {
		return
	}
	if !list.guessed && re.store.keepsReferrers() && re.store.findManifest(ctx, rt.repo, subject.String()) != nil {
		re.store.putReferrers(ctx, rt.repo, subject, list)
		return
	}
	if b, err := json.Marshal(list.index); err == nil && len(b) <= maxListBytes {
		re.lists.Put(rt.key(subject.String()), list)
	}
}

// referrerList is what is known of the referrers of a subject; the zero list is
// none.
type referrerList struct {
	index   *ocispec.Index
	checked time.Time
	guessed bool // upstream seems to have no referrers API, and has not said 404
}

// keepsReferrers reports whether the Store is a ReferrerStore.
func (s *guardedStore) keepsReferrers() bool {
	_, ok := s.host.(ReferrerStore)
	return ok
}

// referrers returns the list that a ReferrerStore has; an empty one for a miss.
func (s *guardedStore) referrers(ctx context.Context, repo Repo, subject digest.Digest) referrerList {
	known, err := hostcall.Do(ctx, s.lookups, "Store.Referrers", nil, func(ctx context.Context) (referrerList, error) {
		index, checked, err := s.host.(ReferrerStore).Referrers(ctx, repo, subject)
		if err == nil && index == nil {
			err = errors.New("no list and no error")
		}
		return referrerList{index: index, checked: checked}, err
	})
	switch {
	case err == nil:
		return known
	case !errors.Is(err, fs.ErrNotExist):
		s.failed(ctx, "Store.Referrers", repo, subject.String(), err)
	}
	return referrerList{}
}

// putReferrers has a ReferrerStore keep the list.
func (s *guardedStore) putReferrers(ctx context.Context, repo Repo, subject digest.Digest, list referrerList) {
	_, err := hostcall.Do(ctx, s.lookups, "Store.PutReferrers", nil, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, s.host.(ReferrerStore).PutReferrers(ctx, repo, subject, list.index, list.checked)
	})
	s.failed(ctx, "Store.PutReferrers", repo, subject.String(), err)
}
