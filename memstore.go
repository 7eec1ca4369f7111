package pullthrough

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// MemStore is a [Store] in memory, for tests and emulators. Bytes are shared
// between repositories and with those who read them, never copied; a blob is
// visible only in the repositories it was put into. It has no size limit.
// It is safe for concurrent use.
type MemStore struct {
	mu    sync.RWMutex
	repos map[Repo]*memRepo
	blobs map[digest.Digest][]byte // the content behind every repository's links
}

type memRepo struct {
	tags      map[string]*Manifest
	manifests map[digest.Digest]*Manifest
	blobs     map[digest.Digest]struct{}
}

// NewMemStore returns an empty MemStore.
func NewMemStore() *MemStore {
	return &MemStore{repos: make(map[Repo]*memRepo), blobs: make(map[digest.Digest][]byte)}
}

// Manifest implements [Store].
func (s *MemStore) Manifest(_ context.Context, repo Repo, ref string) (*Manifest, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if r := s.repos[repo]; r != nil {
		if m := r.tags[ref]; m != nil {
			return m, nil
		}
		if m := r.manifests[digest.Digest(ref)]; m != nil {
			return m, nil
		}
	}
	return nil, missing(repo, ref)
}

// PutManifest implements [Store].
func (s *MemStore) PutManifest(_ context.Context, repo Repo, m *Manifest) error {
	stored := *m
	stored.Source = SourceHit
	untagged := stored
	untagged.Tag = ""
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.repoLocked(repo)
	if have := r.manifests[m.Descriptor.Digest]; have == nil {
		r.manifests[m.Descriptor.Digest] = &untagged
	} else {
		stored.Descriptor, stored.Content = have.Descriptor, have.Content
	}
	if m.Tag != "" && (m.Source != SourceRevalidated || r.has(m.Tag, m.Descriptor.Digest)) {
		r.tags[m.Tag] = &stored
	}
	return nil
}

// has reports whether tag is still the digest's: a check that ends late must not
// undo what was put meanwhile.
func (r *memRepo) has(tag string, d digest.Digest) bool {
	have := r.tags[tag]
	return have != nil && have.Descriptor.Digest == d
}

// Blob implements [Store].
func (s *MemStore) Blob(_ context.Context, repo Repo, d digest.Digest) (*Blob, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if r := s.repos[repo]; r != nil {
		if _, linked := r.blobs[d]; linked {
			return NewBlob(d, s.blobs[d]), nil
		}
	}
	return nil, missing(repo, d.String())
}

// PutBlob implements [Store]. It reads r before it takes its lock.
func (s *MemStore) PutBlob(_ context.Context, repo Repo, desc ocispec.Descriptor, r io.ReadSeeker) error {
	content, err := s.content(desc, r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.blobs[desc.Digest]; !known {
		s.blobs[desc.Digest] = content
	}
	s.repoLocked(repo).blobs[desc.Digest] = struct{}{}
	return nil
}

// Tags implements [TagLister].
func (s *MemStore) Tags(_ context.Context, repo Repo) ([]string, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := s.repos[repo]
	if r == nil || len(r.manifests) == 0 {
		return nil, missing(repo, "")
	}
	return slices.Collect(maps.Keys(r.tags)), nil
}

// Repos implements [RepoLister]. A repository is there from its first manifest on.
func (s *MemStore) Repos(_ context.Context, account, region string) (names []string, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for repo, r := range s.repos {
		if repo.Account == account && repo.Region == region && len(r.manifests) > 0 {
			names = append(names, repo.Name)
		}
	}
	return names, nil
}

// content reads r, unless another repository has the same blob.
func (s *MemStore) content(desc ocispec.Descriptor, r io.Reader) ([]byte, error) {
	s.mu.RLock()
	known, ok := s.blobs[desc.Digest]
	s.mu.RUnlock()
	if ok {
		return known, nil
	}
	content := make([]byte, desc.Size)
	if _, err := io.ReadFull(r, content); err != nil {
		return nil, fmt.Errorf("read blob %s: %w", desc.Digest, err)
	}
	return content, nil
}

func (s *MemStore) repoLocked(repo Repo) *memRepo {
	r := s.repos[repo]
	if r == nil {
		r = &memRepo{
			tags:      make(map[string]*Manifest),
			manifests: make(map[digest.Digest]*Manifest),
			blobs:     make(map[digest.Digest]struct{}),
		}
		s.repos[repo] = r
	}
	return r
}

func missing(repo Repo, ref string) error {
	return &fs.PathError{Op: "open", Path: objectName(repo.Name, ref), Err: fs.ErrNotExist}
}
