package testkit

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

// FaultyStore fails as its functions say; where one is nil it does what memstore.Store does.
type FaultyStore struct {
	*memstore.Store
	OnManifest    func() error
	OnPutManifest func() error
	OnBlob        func() error
	OnPutBlob     func(io.ReadSeeker) error
}

// Manifest fails if OnManifest does.
func (s *FaultyStore) Manifest(ctx context.Context, r pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	if s.OnManifest != nil {
		if err := s.OnManifest(); err != nil {
			return nil, err
		}
	}
	return s.Store.Manifest(ctx, r, ref)
}

// PutManifest fails if OnPutManifest does.
func (s *FaultyStore) PutManifest(ctx context.Context, r pullthrough.Repo, m *pullthrough.Manifest) error {
	if s.OnPutManifest != nil {
		if err := s.OnPutManifest(); err != nil {
			return err
		}
	}
	return s.Store.PutManifest(ctx, r, m)
}

// Blob fails if OnBlob does.
func (s *FaultyStore) Blob(ctx context.Context, r pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	if s.OnBlob != nil {
		if err := s.OnBlob(); err != nil {
			return nil, err
		}
	}
	return s.Store.Blob(ctx, r, d)
}

// PutBlob fails if OnPutBlob does.
func (s *FaultyStore) PutBlob(ctx context.Context, r pullthrough.Repo, desc ocispec.Descriptor, body io.ReadSeeker) error {
	if s.OnPutBlob != nil {
		if err := s.OnPutBlob(body); err != nil {
			return err
		}
	}
	return s.Store.PutBlob(ctx, r, desc, body)
}
