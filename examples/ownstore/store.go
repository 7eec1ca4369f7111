// Package ownstore is an example of a pullthrough.Store over two maps: the four methods
// and nothing else. Copy it and replace the maps by your database, bucket or directory.
// pullthroughtest.TestStore tells you whether your Store is right.
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

// Store keeps images in memory. The zero Store is empty and ready for use. It is safe for
// concurrent use.
type Store struct {
	mu        sync.RWMutex
	manifests map[key]*pullthrough.Manifest // by tag, and by digest
	blobs     map[key][]byte
}

// key includes the whole Repo, since accounts and Regions share nothing.
type key struct {
	repo pullthrough.Repo
	ref  string // tag or digest; a tag has no colon in it
}

// Manifest implements [pullthrough.Store].
func (s *Store) Manifest(_ context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if m, ok := s.manifests[key{repo, ref}]; ok {
		return m, nil
	}
	return nil, fs.ErrNotExist // this error means a miss, any other a failure
}

// PutManifest implements [pullthrough.Store].
func (s *Store) PutManifest(_ context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.manifests == nil {
		s.manifests = make(map[key]*pullthrough.Manifest)
	}
	byDigest, byTag := key{repo, m.Descriptor.Digest.String()}, key{repo, m.Tag}
	if m.Source == pullthrough.SourceRevalidated {
		// Upstream has confirmed the tag. This changes nothing if the tag has moved meanwhile.
		if have := s.manifests[byTag]; have != nil && have.Descriptor.Digest == m.Descriptor.Digest {
			s.manifests[byTag] = m
		}
		return nil
	}
	if s.manifests[byDigest] == nil { // a second tag must not change what is known of the first
		untagged := *m
		untagged.Tag = ""
		s.manifests[byDigest] = &untagged
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
		s.blobs = make(map[key][]byte)
	}
	s.blobs[key{repo, desc.Digest.String()}] = b
	return nil
}
