// Package memstore is a [pullthrough.Store] that keeps images in memory, for tests and
// emulators. They are gone when the program ends.
//
//	proxy := &pullthrough.Proxy{Store: memstore.New(), Rules: rules}
//
// With [Store.MaxBytes] the least recently pulled images make room for new ones:
//
//	store := &memstore.Store{MaxBytes: 1 << 30}
package memstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// Store is a [pullthrough.Store] in memory. Repositories and readers share the bytes
// of a blob; they are never copied. A blob is visible only in the repositories into
// which it was put. The zero value is an empty Store without a limit. It is safe for
// concurrent use.
type Store struct {
	// MaxBytes is how many bytes of manifests and blobs are kept. Each blob counts
	// once, and each tag, manifest and blob of a repository as 512 bytes more. When there
	// are more, the least recently pulled images are removed until
	// an eighth is free: first a manifest with its tags, then the layers that no more
	// recently pulled image needs, and at last the empty repository. A client that is
	// reading removed content can read on; these bytes no longer count. A blob or
	// manifest larger than MaxBytes is refused with an error that Is
	// [pullthrough.ErrTooLarge]. MaxBytes must not change after the first use. 0: no
	// limit.
	MaxBytes int64

	clock atomic.Int64 // counts pulls and puts if there is a limit

	mu    sync.RWMutex
	repos map[pullthrough.Repo]*memRepo
	blobs map[digest.Digest]*memBlob // the content that the links of repositories refer to
	bytes int64                      // size of all manifests, blobs and entries
}

type memRepo struct {
	tags      map[string]*pullthrough.Manifest
	manifests map[digest.Digest]*memManifest
	blobs     map[digest.Digest]*memLink
}

// memManifest is a manifest without a tag, and the digests that it refers to.
type memManifest struct {
	*pullthrough.Manifest
	refs []digest.Digest // only if there is a limit
	tags int             // how many name it
	used atomic.Int64
}

// size is what MaxBytes counts of the manifest.
func (m *memManifest) size() int64 { return int64(len(m.Content)) + entryBytes*int64(1+m.tags) }

// entryBytes is what a tag, a manifest or a blob of a repository counts beside its
// content: an upstream registry may have one content under any number of names.
const entryBytes = 512

type memBlob struct {
	content []byte
	links   int
}

// memLink makes a blob visible in a repository.
type memLink struct {
	content []byte
	used    atomic.Int64
}

// New returns an empty Store without a limit.
func New() *Store { return new(Store) }

// Manifest implements [pullthrough.Store].
func (s *Store) Manifest(_ context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if r := s.repos[repo]; r != nil {
		if m := r.tags[ref]; m != nil {
			if s.MaxBytes > 0 {
				s.touch(&r.manifests[m.Descriptor.Digest].used)
			}
			return m, nil
		}
		if m := r.manifests[digest.Digest(ref)]; m != nil {
			s.touch(&m.used)
			return m.Manifest, nil
		}
	}
	return nil, missError(repo, ref)
}

// Resolve returns the digest that a tag names. Unlike a call of Manifest, it does not
// count as a pull.
func (s *Store) Resolve(_ context.Context, repo pullthrough.Repo, tag string) (digest.Digest, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if r := s.repos[repo]; r != nil && r.tags[tag] != nil {
		return r.tags[tag].Descriptor.Digest, nil
	}
	return "", missError(repo, tag)
}

// PutManifest implements [pullthrough.Store].
func (s *Store) PutManifest(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	if err := s.fits(int64(len(m.Content))); err != nil {
		return err
	}
	refs := s.references(m)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	r := s.repoLocked(repo)
	if m.Source == pullthrough.SourceRevalidated && r.isOther(m.Tag, m.Descriptor.Digest) {
		return nil // the tag has moved while upstream was asked, and must not move back
	}
	if m.KeepLocal && r.isLocal(m.Tag) {
		return pullthrough.ErrImmutable
	}
	stored := *m
	stored.Source, stored.KeepLocal = pullthrough.SourceHit, false
	have := r.manifests[m.Descriptor.Digest]
	if have == nil {
		untagged := stored
		untagged.Tag = ""
		have = &memManifest{Manifest: &untagged, refs: refs}
		r.manifests[m.Descriptor.Digest] = have
		s.bytes += have.size()
	}
	stored.Descriptor, stored.Content = have.Descriptor, have.Content
	if m.Tag != "" {
		s.untagLocked(r, m.Tag)
		r.tags[m.Tag] = &stored
		have.tags++
		s.bytes += entryBytes
	}
	s.touch(&have.used)
	if s.evictLocked(repo, m.Descriptor.Digest); s.MaxBytes > 0 && s.bytes > s.MaxBytes {
		s.keepOneTagLocked(r, m)
	}
	return nil
}

// isLocal reports whether tag was pushed here.
func (r *memRepo) isLocal(tag string) bool {
	have := r.tags[tag]
	return have != nil && have.Origin == ""
}

// isOther reports whether tag names a digest other than d.
func (r *memRepo) isOther(tag string, d digest.Digest) bool {
	have := r.tags[tag]
	return have != nil && have.Descriptor.Digest != d
}

// Blob implements [pullthrough.Store].
func (s *Store) Blob(_ context.Context, repo pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if r := s.repos[repo]; r != nil {
		if link := r.blobs[d]; link != nil {
			s.touch(&link.used)
			return pullthrough.NewBlob(d, link.content), nil
		}
	}
	return nil, missError(repo, d.String())
}

// PutBlob implements [pullthrough.Store]. It reads r before it takes the Store's lock.
func (s *Store) PutBlob(ctx context.Context, repo pullthrough.Repo, desc ocispec.Descriptor, r io.ReadSeeker) error {
	if err := errors.Join(ctx.Err(), s.fits(desc.Size)); err != nil {
		return err
	}
	content, err := s.content(desc, r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil { // the context may have ended during the reads
		return err
	}
	s.linkLocked(s.repoLocked(repo), desc.Digest, content)
	s.evictLocked(repo, desc.Digest)
	return nil
}

// linkLocked makes the blob visible in r. If the Store has the content already, it keeps
// that and drops the new copy.
func (s *Store) linkLocked(r *memRepo, d digest.Digest, content []byte) {
	b := s.blobs[d]
	if b == nil {
		b = &memBlob{content: content}
		if s.blobs == nil {
			s.blobs = make(map[digest.Digest]*memBlob)
		}
		s.blobs[d] = b
		s.bytes += int64(len(content))
	}
	link := r.blobs[d]
	if link == nil {
		link = &memLink{content: b.content}
		r.blobs[d] = link
		b.links++
		s.bytes += entryBytes
	}
	s.touch(&link.used)
}

// DeleteImage implements [pullthrough.ImageDeleter]. Blobs stay until the repository is
// deleted, or evicted.
func (s *Store) DeleteImage(_ context.Context, repo pullthrough.Repo, ref string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.repos[repo]
	switch {
	case r == nil:
		return missError(repo, ref)
	case r.tags[ref] != nil:
		s.untagLocked(r, ref)
		return nil
	case r.manifests[digest.Digest(ref)] == nil:
		return missError(repo, ref)
	}
	s.removeLocked(memObject{repo: repo, digest: digest.Digest(ref)})
	s.tidyLocked(repo)
	return nil
}

// DeleteRepo implements [pullthrough.ImageDeleter].
func (s *Store) DeleteRepo(_ context.Context, repo pullthrough.Repo) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.repos[repo]
	if r == nil {
		return missError(repo, "")
	}
	for d := range r.manifests {
		s.removeLocked(memObject{repo: repo, digest: d})
	}
	for d := range r.blobs {
		s.removeLocked(memObject{repo: repo, digest: d, blob: true})
	}
	delete(s.repos, repo)
	return nil
}

// Tags implements [pullthrough.TagLister].
func (s *Store) Tags(_ context.Context, repo pullthrough.Repo) ([]string, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := s.repos[repo]
	if r == nil || len(r.manifests) == 0 {
		return nil, missError(repo, "")
	}
	return slices.Collect(maps.Keys(r.tags)), nil
}

// Manifests implements [pullthrough.ManifestLister]. It yields what is stored when it
// begins.
func (s *Store) Manifests(_ context.Context, repo pullthrough.Repo) iter.Seq2[digest.Digest, error] {
	return func(yield func(digest.Digest, error) bool) {
		all, err := s.digests(repo)
		if err != nil {
			yield("", err)
			return
		}
		for _, d := range all {
			if !yield(d, nil) {
				return
			}
		}
	}
}

func (s *Store) digests(repo pullthrough.Repo) ([]digest.Digest, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := s.repos[repo]
	if r == nil || len(r.manifests) == 0 {
		return nil, missError(repo, "")
	}
	return slices.Collect(maps.Keys(r.manifests)), nil
}

// Repos implements [pullthrough.RepoLister]. A repository exists once it has a manifest.
func (s *Store) Repos(_ context.Context, account, region string) (names []string, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for repo, r := range s.repos {
		if repo.Account == account && repo.Region == region && len(r.manifests) > 0 {
			names = append(names, repo.Name)
		}
	}
	return names, nil
}

// content reads r, unless the Store has the same blob already.
func (s *Store) content(desc ocispec.Descriptor, r io.Reader) ([]byte, error) {
	s.mu.RLock()
	known := s.blobs[desc.Digest]
	s.mu.RUnlock()
	if known != nil {
		return known.content, nil
	}
	content := make([]byte, desc.Size)
	if _, err := io.ReadFull(r, content); err != nil {
		return nil, fmt.Errorf("read blob %s: %w", desc.Digest, err)
	}
	return content, nil
}

func (s *Store) repoLocked(repo pullthrough.Repo) *memRepo {
	r := s.repos[repo]
	if r == nil {
		r = &memRepo{
			tags:      make(map[string]*pullthrough.Manifest),
			manifests: make(map[digest.Digest]*memManifest),
			blobs:     make(map[digest.Digest]*memLink),
		}
		if s.repos == nil {
			s.repos = make(map[pullthrough.Repo]*memRepo)
		}
		s.repos[repo] = r
	}
	return r
}

func missError(repo pullthrough.Repo, ref string) error {
	return &fs.PathError{Op: "open", Path: ocipath.Object(repo.Name, ref), Err: fs.ErrNotExist}
}
