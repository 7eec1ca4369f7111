package dirstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// Manifest implements [pullthrough.Store].
func (s *Store) Manifest(ctx context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	at, err := s.locate(ctx, repo, ref)
	if err != nil {
		return nil, err
	}
	var m *pullthrough.Manifest
	if ocipath.IsDigest(ref) {
		m, err = s.revision(at, digest.Digest(ref), "")
	} else {
		m, err = s.tagged(at, ref)
	}
	return m, during(err, "read manifest", repo, ref)
}

// revision returns the manifest d. Its media type need not be looked up if it
// is known already.
func (s *Store) revision(at repository, d digest.Digest, mediaType string) (m *pullthrough.Manifest, err error) {
	for _, home := range at.homes() {
		m, err = s.revisionIn(home, d, mediaType)
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return m, err
}

func (s *Store) revisionIn(home repository, d digest.Digest, mediaType string) (*pullthrough.Manifest, error) {
	dir := home.revision(d)
	target, err := s.readLink(dir, d)
	if err != nil {
		return nil, err
	}
	content, err := s.readManifest(home.tree.data(target), d)
	if errors.Is(err, errDamaged) {
		_ = s.disk.remove(link(dir)) // nor shall the registry serve it
	}
	if err != nil {
		return nil, err
	}
	m := &pullthrough.Manifest{Content: content}
	m.Descriptor = ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}
	if mediaType == "" {
		err = s.describe(m, dir)
	}
	return m, err
}

// describe adds what the sidecar says. Without one the registry stored the
// manifest, and its content says what it is.
func (s *Store) describe(m *pullthrough.Manifest, dir string) error {
	side, ok, err := s.readSidecar(dir, m.Descriptor.Digest)
	if err != nil {
		return err
	}
	if ok {
		m.Descriptor.MediaType, m.CheckedAt, m.Origin = side.MediaType, side.CheckedAt, side.Origin
		return nil
	}
	info, err := manifest.Inspect("", m.Content)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errDamaged)
	}
	m.Descriptor.MediaType = info.MediaType
	return nil
}

// readManifest returns content that has the digest d.
func (s *Store) readManifest(name string, d digest.Digest) ([]byte, error) {
	f, err := s.disk.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > manifest.MaxSize {
		return nil, fmt.Errorf("content of %s: %w", d, errDamaged)
	}
	content := make([]byte, info.Size())
	if _, err := io.ReadFull(f, content); err != nil {
		return nil, err
	}
	if d.Algorithm().FromBytes(content) != d {
		return nil, fmt.Errorf("content of %s: %w", d, errDamaged)
	}
	return content, nil
}

// PutManifest implements [pullthrough.Store]. The tag moves when all else is on
// the disk.
func (s *Store) PutManifest(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	at, err := s.locateManifest(ctx, repo, m)
	if err != nil {
		return err
	}
	return during(s.putManifest(at, m), "store manifest", repo, m.Descriptor.Digest.String())
}

func (s *Store) locateManifest(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) (repository, error) {
	d := m.Descriptor.Digest
	if err := checkDigest(repo, d); err != nil {
		return repository{}, err
	}
	if m.Tag == "" {
		return s.locate(ctx, repo)
	}
	if ocipath.IsDigest(m.Tag) {
		err := fmt.Errorf("dirstore: %w", &ocipath.Error{Part: ocipath.Tag, Value: m.Tag})
		return repository{}, &pullthrough.Error{Kind: pullthrough.ErrInvalid, Repo: repo, Err: err}
	}
	return s.locate(ctx, repo, m.Tag)
}

func (s *Store) putManifest(at repository, m *pullthrough.Manifest) error {
	switch {
	case len(m.Content) > manifest.MaxSize:
		return pullthrough.ErrTooLarge
	case m.Descriptor.Digest.Algorithm().FromBytes(m.Content) != m.Descriptor.Digest:
		return pullthrough.ErrDigest
	}
	if m.Source == pullthrough.SourceRevalidated {
		if done, err := s.recheck(at, m); done {
			return err
		}
	}
	mediaType, err := s.putRevision(at, m)
	if err != nil || m.Tag == "" {
		return err
	}
	return s.putTag(at, m.Tag, sidecarOf(m, mediaType))
}

// putRevision stores the manifest, unless it is here, and returns the media type
// that it has here.
func (s *Store) putRevision(at repository, m *pullthrough.Manifest) (string, error) {
	d := m.Descriptor.Digest
	have, err := s.revision(at, d, "")
	if err == nil {
		return have.Descriptor.MediaType, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	var c changes
	if err := s.disk.makeDir(at.layers(), &c); err != nil {
		return "", err
	}
	if !registryReads(m.Content) {
		at.tree = ownTree
	}
	mediaType := m.Descriptor.MediaType
	return mediaType, s.writeRevision(at, m.Content, sidecarOf(m, mediaType), &c)
}

func (s *Store) writeRevision(home repository, content []byte, side sidecar, c *changes) error {
	d, dir := side.Digest, home.revision(side.Digest)
	if _, err := s.readManifest(home.tree.data(d), d); errors.Is(err, fs.ErrNotExist) {
		if err := s.write(home.tree.data(d), content, c); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if err := s.writeSidecar(dir, side, c); err != nil {
		return err
	}
	if err := s.writeLink(dir, d, c); err != nil {
		return err
	}
	return s.disk.flush(c)
}
