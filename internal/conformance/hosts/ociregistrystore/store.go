// Package ociregistrystore is an example of a pullthrough.Store over any ociregistry.Interface (cuelabs.dev/go/oci), such as
// one in memory or the client of another registry. Registries want layers before manifests: set Proxy.Fill to
// pullthrough.FillEager.
package ociregistrystore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
)

// Store keeps the images of one account and Region in a registry. It is safe for concurrent use.
type Store struct {
	Registry        ociregistry.Interface
	Account, Region string

	mu    sync.Mutex // the look at a tag, and its move, go together
	notes sync.Map   // note by [2]string, repository and tag or digest: what a registry does not keep
}

// note is about a tag, or about a digest. It does not outlive the process: then upstream is asked once for each tag.
type note struct {
	digest  digest.Digest // what the tag named
	checked time.Time
	origin  string
}

// has reports whether the repository belongs to the registry.
func (s *Store) has(repo pullthrough.Repo) bool {
	return repo.Account == s.Account && repo.Region == s.Region
}

// missed makes a miss of ociregistry's into one of a Store.
func missed(err error) error {
	if errors.Is(err, ociregistry.ErrNameUnknown) || errors.Is(err, ociregistry.ErrManifestUnknown) || errors.Is(err, ociregistry.ErrBlobUnknown) {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return err
}

// Manifest implements [pullthrough.Store].
func (s *Store) Manifest(ctx context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	if !s.has(repo) {
		return nil, fs.ErrNotExist
	}
	m := &pullthrough.Manifest{Tag: ref}
	var r ociregistry.BlobReader
	var err error
	if strings.Contains(ref, ":") {
		m.Tag = ""
		r, err = s.Registry.GetManifest(ctx, repo.Name, digest.Digest(ref))
	} else {
		r, err = s.Registry.GetTag(ctx, repo.Name, ref)
	}
	if err != nil {
		return nil, missed(err)
	}
	defer r.Close()
	m.Descriptor = r.Descriptor()
	if m.Content, err = io.ReadAll(r); err != nil {
		return nil, err
	}
	known, _ := s.notes.Load([2]string{repo.Name, ref})
	if n, ok := known.(note); ok && n.digest == m.Descriptor.Digest { // else the tag was moved in the registry
		m.CheckedAt, m.Origin = n.checked, n.origin
	}
	return m, nil
}

// PutManifest implements [pullthrough.Store].
func (s *Store) PutManifest(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	d := m.Descriptor.Digest
	if !s.has(repo) || d != digest.FromBytes(m.Content) { // a registry of this kind has sha256 only
		return fmt.Errorf("%s in %s of %s: %w", d, repo.Name, repo.Account, errors.ErrUnsupported)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.Source == pullthrough.SourceRevalidated {
		have, err := s.Registry.ResolveTag(ctx, repo.Name, m.Tag)
		if err = missed(err); errors.Is(err, fs.ErrNotExist) || err == nil && have.Digest != d {
			return nil // the tag has moved since it was checked
		} else if err != nil {
			return err
		}
	} else if _, err := s.Registry.PushManifest(ctx, repo.Name, m.Tag, m.Content, m.Descriptor.MediaType); errors.Is(err, ociregistry.ErrDenied) {
		return fmt.Errorf("%w: %w", pullthrough.ErrImmutable, err)
	} else if err != nil {
		return err
	}
	n := note{d, m.CheckedAt, m.Origin}
	s.notes.LoadOrStore([2]string{repo.Name, d.String()}, n)
	if m.Tag != "" {
		s.notes.Store([2]string{repo.Name, m.Tag}, n)
	}
	return nil
}

// Blob implements [pullthrough.Store].
func (s *Store) Blob(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	if !s.has(repo) {
		return nil, fs.ErrNotExist
	}
	r, err := s.Registry.GetBlob(ctx, repo.Name, d)
	if err != nil {
		return nil, missed(err)
	}
	return &pullthrough.Blob{Descriptor: r.Descriptor(), Body: r}, nil
}

// PutBlob implements [pullthrough.Store].
func (s *Store) PutBlob(ctx context.Context, repo pullthrough.Repo, desc ocispec.Descriptor, r io.ReadSeeker) error {
	if !s.has(repo) {
		return fmt.Errorf("%s of %s: %w", repo.Name, repo.Account, errors.ErrUnsupported)
	}
	_, err := s.Registry.PushBlob(ctx, repo.Name, desc, r)
	if ended := ctx.Err(); err != nil && ended != nil {
		return ended // not every registry keeps the reader's error
	}
	return err
}
