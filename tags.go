package pullthrough

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
)

const (
	// In memory there are so many of upstream's lists of tags at most, each of
	// upstream.MaxTags tags at most.
	maxTagLists = 16
	// tagListTTL is how long such a list counts as fresh: for as long as a client may
	// take to read it page by page. A list is asked for to see what is new.
	tagListTTL = time.Minute
)

// tagLists has upstream asked for lists of tags, where the Policy says so. It keeps the
// last ones, since clients read a list page by page.
type tagLists struct {
	*core
	flights flight.Group[objectKey, []string]
	lists   *lru.Cache[objectKey, tagList]
}

// tagList is what upstream listed then.
type tagList struct {
	tags []string
	at   time.Time
}

func newTagLists(c *core, flights *flight.Set) *tagLists {
	tl := &tagLists{core: c, lists: lru.New[objectKey, tagList](maxTagLists)}
	tl.flights.Join(flights, "tags of")
	return tl
}

// withUpstream adds to a list of tags, which ended with err, what upstream has. Where
// nothing is there upstream the list is returned as it is, and so it is without a way.
func (tl *tagLists) withUpstream(ctx context.Context, rt *route, ours []string, err error) ([]string, error) {
	if rt == nil {
		return ours, err
	}
	theirs, failed := tl.upstream(ctx, rt)
	switch {
	case errors.Is(failed, ErrNotFound), rt.policy.HideDenied && errors.Is(failed, ErrDenied):
		return ours, err
	case failed != nil:
		return nil, failed
	}
	return slices.Compact(slices.Sorted(slices.Values(slices.Concat(ours, theirs)))), nil
}

// wanted is the way to upstream's list of tags; nil: the Policy does not say that it is to
// be asked for it.
func (tl *tagLists) wanted(ctx context.Context, repo Repo) *route {
	rt, err := tl.router.routeBeside(ctx, repo)
	if err != nil || !rt.policy.UpstreamTags || rt.policy.Offline {
		return nil
	}
	return rt
}

// upstream lists the tags that upstream has. When it fails, the list that it gave last is
// returned, if that is still here.
func (tl *tagLists) upstream(ctx context.Context, rt *route) ([]string, error) {
	known, have := tl.lists.Get(rt.key(""))
	if have && tl.isFresh(known) {
		return known.tags, nil
	}
	tags, _, err := tl.flights.Do(ctx, rt.key(""), func(call *flight.Call[objectKey, []string]) ([]string, error) {
		rt.begin(call)
		return tl.fetch(call.Context(), rt)
	})
	if err != nil && have && ctx.Err() == nil && !errors.Is(err, ErrNotFound) {
		return known.tags, nil
	}
	return tags, err
}

func (tl *tagLists) isFresh(list tagList) bool {
	age := tl.now().Sub(list.at)
	return age >= 0 && age < tagListTTL
}

// fetch runs in the flight. The flight before may have ended after our caller looked.
func (tl *tagLists) fetch(ctx context.Context, rt *route) ([]string, error) {
	if known, ok := tl.lists.Get(rt.key("")); ok && tl.isFresh(known) {
		return known.tags, nil
	}
	tags, err := tl.registries.tags(ctx, rt)
	if err != nil {
		tl.logFetch(ctx, rt, "", err)
		return nil, err
	}
	tl.lists.Put(rt.key(""), tagList{tags, tl.now()})
	return tags, nil
}
