package pullthrough

import (
	"context"
	"encoding/json"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
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
	lists   *lru.Cache[objectKey, referrerList] // where the Store keeps none
}

func newReferrers(c *core, flights *flight.Set) *referrers {
	re := &referrers{core: c, lists: lru.New[objectKey, referrerList](maxLists)}
	re.flights.Join(flights, "referrers of")
	return re
}

// pull returns the list of what refers to the manifest r.Ref, a digest.
func (re *referrers) pull(ctx context.Context, r Request) (*ocispec.Index, Source, outcome, error) {
	subject, err := re.gate.admitDigest(ctx, r)
	if err != nil {
		return nil, 0, outcome{}, err
	}
	rt, err := re.router.route(ctx, r.Repo)
	if err != nil {
		return nil, 0, outcome{}, err
	}
	known := re.known(ctx, rt, subject)
	if known.index != nil && !rt.policy.referrersDue(known.checked, re.now()) {
		return known.index, SourceHit, outcome{}, nil
	}
	index, shared, err := re.flights.Do(ctx, rt.key(r.Ref), func(call *flight.Call[objectKey, *ocispec.Index]) (*ocispec.Index, error) {
		return re.fetch(call.Context(), rt, subject)
	})
	if err != nil && known.index != nil && ctx.Err() == nil {
		re.log.Warn("serving a list of referrers that could not be checked", "repository", rt.repo.Name, "subject", r.Ref, "err", err)
		return known.index, SourceStale, outcome{}, nil
	}
	if shared {
		return index, SourceShared, rt.outcome(unknown), err
	}
	return index, SourceFill, rt.outcome(unknown), err
}

// known is the list that the Store has, or our memory.
func (re *referrers) known(ctx context.Context, rt *route, subject digest.Digest) referrerList {
	if re.store.keepsReferrers() {
		return re.store.referrers(ctx, rt.repo, subject)
	}
	known, _ := re.lists.Get(rt.key(subject.String()))
	return known
}

// fetch runs in the flight. The flight before may have kept the list after our
// caller looked.
func (re *referrers) fetch(ctx context.Context, rt *route, subject digest.Digest) (*ocispec.Index, error) {
	trace := new(upstream.Trace)
	ctx = trace.Attach(ctx)
	start := re.now()
	if known := re.known(ctx, rt, subject); known.index != nil && !rt.policy.referrersDue(known.checked, start) {
		return known.index, nil
	}
	index, err := re.registries.referrers(ctx, rt, subject)
	if err == nil && re.router.unchanged(ctx, rt) == nil {
		re.keep(ctx, rt, subject, referrerList{index, start})
	}
	re.tellFetch(ctx, rt, subject.String(), Event{Object: EventReferrers, Source: SourceFill}, trace, start, err)
	return index, err
}

func (re *referrers) keep(ctx context.Context, rt *route, subject digest.Digest, list referrerList) {
	if re.store.keepsReferrers() {
		re.store.putReferrers(ctx, rt.repo, subject, list)
		return
	}
	if b, err := json.Marshal(list.index); err == nil && len(b) <= maxListBytes {
		re.lists.Put(rt.key(subject.String()), list)
	}
}

// referrersDue reports whether a list that upstream confirmed at checked must be
// asked for again.
func (pol Policy) referrersDue(checked, now time.Time) bool {
	return !pol.Offline && expired(pol.ReferrersTTL, defaultReferrersTTL, checked, now)
}

// onlyType returns the part of a list that has the artifact type; "" is any.
func onlyType(index *ocispec.Index, artifactType string) *ocispec.Index {
	if artifactType == "" {
		return index
	}
	part := *index
	part.Manifests = []ocispec.Descriptor{}
	for _, d := range index.Manifests {
		if d.ArtifactType == artifactType {
			part.Manifests = append(part.Manifests, d)
		}
	}
	return &part
}
