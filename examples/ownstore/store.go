// Package ownstore is the smallest right pullthrough.Store: two maps and four methods. Copy it, and replace the maps by
// your own. pullthroughtest.TestStore tells you whether your Store is right.
package ownstore

import (
	"context"
	"io"
	"io/fs"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
)

// Store keeps images in memory. The zero Store is empty. It is safe for concurrent use.
type Store struct {
	mu        sync.RWMutex
	manifests map[key]*pullthrough.Manifest // each by its digest, and by its tags
	blobs     map[key][]byte
}

type key struct {
	repo pullthrough.Repo // all of it: accounts and Regions share nothing
	ref  string           // a tag or a digest; no tag has a colon
}

// Manifest implements [pullthrough.Store].
func (s *Store) Manifest(_ context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if m, ok := s.manifests[key{repo, ref}]; ok {
		return m, nil
	}
	return nil, fs.ErrNotExist // this error is a miss, any other a failure
}

// PutManifest implements [pullthrough.Store].
func (s *Store) PutManifest(_ context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	byDigest, byTag := key{repo, m.Descriptor.Digest.String()}, key{repo, m.Tag}
	if have := s.manifests[byTag]; m.Source == pullthrough.SourceRevalidated && (have == nil || have.Descriptor.Digest != m.Descriptor.Digest) {
		return nil // upstream has confirmed what the tag no longer names
	}
	if s.manifests == nil {
		s.manifests = map[key]*pullthrough.Manifest{}
	}
	if s.manifests[byDigest] == nil { // a second tag changes nothing of the first
		s.manifests[byDigest] = m
	}
	if m.Tag != "" {
		s.manifests[byTag] = m
	}
	return nil
}

// Blob implements [pullthrough.Store].
func (s *Store) Blob(_ context.Context, repo pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if b, ok := s.blobs[key{repo, d.String()}]; ok {
		return pullthrough.NewBlob(d, b), nil
	}
	return nil, fs.ErrNotExist
}

// PutBlob implements [pullthrough.Store].
func (s *Store) PutBlob(_ context.Context, repo pullthrough.Repo, desc ocispec.Descriptor, r io.ReadSeeker) error {
	b := make([]byte, desc.Size)
	if _, err := io.ReadFull(r, b); err != nil { // before the lock
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.blobs == nil {
		s.blobs = map[key][]byte{}
	}
	s.blobs[key{repo, desc.Digest.String()}] = b
	return nil
}
