package pullthrough

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/lru"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

const (
	maxMissing  = 4096
	maxUnwanted = 32 // each may have 4 MiB
	maxHeard    = 16384
	maxSearched = 1024
	// maxSearchedTags is how many tags of a repository are looked at for children.
	maxSearchedTags = 1000
)

// rejected is a manifest that the Store did not take, since parts of its image are
// missing for good.
type rejected struct {
	manifest *Manifest
	since    time.Time
}

// memory is what the proxy has heard of objects that need not be stored here: which
// manifests upstream does not have, which ones an index refers to, and how long
// blobs are. All of it is bounded, and all of it may be forgotten.
type memory struct {
	store *guardedStore
	now   func() time.Time

	missing  *lru.Cache[objectKey, time.Time] // manifests that upstream does not have, and since when
	children *lru.Cache[objectKey, struct{}]  // manifests that an index was seen to refer to
	sizes    *lru.Cache[objectKey, heardSize] // of blobs
	rejected *lru.Cache[objectKey, rejected]  // manifests that the Store does not want
	searched *lru.Cache[objectKey, time.Time] // repositories whose stored tags were looked at for children, and when
}

// heardSize is how long a blob is. A manifest tells that of blobs that need not exist;
// upstream, when it is asked for the blob, only of those that do.
type heardSize struct {
	bytes  int64
	exists bool
}

func newMemory(s *guardedStore, now func() time.Time) *memory {
	return &memory{
		store: s, now: now,
		missing:  lru.New[objectKey, time.Time](maxMissing),
		children: lru.New[objectKey, struct{}](maxHeard),
		sizes:    lru.New[objectKey, heardSize](maxHeard),
		rejected: lru.New[objectKey, rejected](maxUnwanted),
		searched: lru.New[objectKey, time.Time](maxSearched),
	}
}

// refuse returns an error for a manifest that upstream need not be asked for: it was
// missing a moment ago, or the Policy wants a tag first.
func (m *memory) refuse(ctx context.Context, rt *route, ref string) error {
	key := rt.key(ref)
	if since, ok := m.missing.Get(key); ok && !expired(rt.policy.NotFoundTTL, defaultNotFoundTTL, since, m.now()) {
		e := rt.error(ErrNotFound, errors.New("it was not there a moment ago"))
		e.Status = http.StatusNotFound
		return e
	}
	if rt.policy.DigestAfterTag && ocipath.IsDigest(ref) {
		if _, ok := m.children.Get(key); !ok && !m.searchChild(ctx, rt, ref) {
			return rt.error(ErrNotFound, errors.New("Policy.DigestAfterTag: no tag of the repository was pulled that leads to this digest"))
		}
	}
	return nil
}

// searchChild reports whether an index that a stored tag of the repository names
// refers to the digest, where the Store lists tags. It is for the time after a
// restart, and looks at the tags of a repository every 10 s at most.
func (m *memory) searchChild(ctx context.Context, rt *route, ref string) bool {
	repo := rt.key("")
	if at, _ := m.searched.Get(repo); m.now().Sub(at).Abs() < defaultNotFoundTTL {
		return false
	}
	tags, err := m.store.tags(ctx, rt.repo)
	if err != nil {
		return false
	}
	for _, tag := range tags[:min(len(tags), maxSearchedTags)] {
		if have := m.store.findManifest(ctx, rt.repo, tag); have != nil {
			if info, err := manifest.Inspect(have.Descriptor.MediaType, have.Content, manifest.Stored); err == nil {
				m.learn(rt, info)
			}
		}
	}
	m.searched.Put(repo, m.now())
	_, ok := m.children.Get(rt.key(ref))
	return ok
}

// learn keeps what a manifest tells of what it refers to. The sizes are for
// upstreams that do not say how long a blob is.
func (m *memory) learn(rt *route, info manifest.Info) {
	for _, d := range info.Manifests {
		m.children.Put(rt.key(d.Digest.String()), struct{}{})
	}
	for _, d := range info.Blobs {
		key := rt.key(d.Digest.String())
		if known, _ := m.sizes.Get(key); !known.exists && !manifest.IsForeign(d.MediaType) {
			m.sizes.Put(key, heardSize{bytes: d.Size})
		}
	}
}

// noteMissing remembers that upstream does not have ref, if that is what err says.
func (m *memory) noteMissing(rt *route, ref string, err error) {
	e, ok := errors.AsType[*Error](err)
	if ok && e.Kind == ErrNotFound && e.Status == http.StatusNotFound && rt.policy.NotFoundTTL >= 0 {
		m.missing.Put(rt.key(ref), m.now())
	}
}

// forget has upstream asked for the manifests with these keys, whatever it said a moment
// ago.
func (m *memory) forget(match func(objectKey) bool) {
	m.missing.RemoveAll(match)
	m.rejected.RemoveAll(match)
}

// noteUnwanted remembers that the Store does not want the manifest ref: what is missing of
// the image is not to be had, so another import would end in the same way.
func (m *memory) noteUnwanted(rt *route, ref string, got *Manifest) {
	if rt.policy.NotFoundTTL >= 0 {
		m.rejected.Put(rt.key(ref), rejected{got, m.now()})
		m.rejected.Put(rt.key(got.Descriptor.Digest.String()), rejected{got, m.now()})
	}
}

// unwanted returns the manifest ref if the Store did not want it a moment ago: it is
// served, and not fetched again.
func (m *memory) unwanted(rt *route, ref string) *Manifest {
	r, ok := m.rejected.Get(rt.key(ref))
	if !ok || expired(rt.policy.NotFoundTTL, defaultNotFoundTTL, r.since, m.now()) {
		return nil
	}
	served := *r.manifest
	served.Source = SourceShared
	return &served
}

// size is what is known of the length of a blob. exists says that upstream has told so.
func (m *memory) size(rt *route, d digest.Digest) (size int64, known, exists bool) {
	s, known := m.sizes.Get(rt.key(d.String()))
	return s.bytes, known, s.exists
}

// noteExists remembers the size of a blob that upstream has.
func (m *memory) noteExists(rt *route, d digest.Digest, size int64) {
	m.sizes.Put(rt.key(d.String()), heardSize{size, true})
}

// forgetSize forgets what was told. Perhaps that was a lie.
func (m *memory) forgetSize(rt *route, d digest.Digest) {
	m.sizes.RemoveIf(rt.key(d.String()), func(heardSize) bool { return true })
}
