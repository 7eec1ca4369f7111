package dirstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// Manifest implements [pullthrough.Store].
func (s *Store) Manifest(ctx context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	at, err := s.owner().Locate(repo, ref)
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
func (s *Store) revision(at layout.Repository, d digest.Digest, mediaType string) (m *pullthrough.Manifest, err error) {
	for _, home := range at.Homes() {
		m, err = s.revisionIn(home, d, mediaType)
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return m, err
}

func (s *Store) revisionIn(home layout.Repository, d digest.Digest, mediaType string) (*pullthrough.Manifest, error) {
	dir := home.Revision(d)
	target, err := s.readLink(dir, d)
	if err != nil {
		return nil, err
	}
	content, err := s.readManifest(home.Tree.Data(target), d)
	if errors.Is(err, layout.ErrDamaged) {
		_ = s.disk.remove(layout.Link(dir)) // nor shall the registry serve it
	}
	if err != nil {
		return nil, err
	}
	side := layout.Sidecar{MediaType: mediaType}
	if mediaType == "" {
		if side, _, err = s.readSidecar(dir, d); err != nil {
			return nil, err
		}
	}
	return layout.Manifest(content, d, side)
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
	if !info.Mode().IsRegular() || info.Size() > layout.MaxManifest {
		return nil, fmt.Errorf("content of %s: %w", d, layout.ErrDamaged)
	}
	content := make([]byte, info.Size())
	if _, err := io.ReadFull(f, content); err != nil {
		return nil, err
	}
	return content, layout.CheckContent(content, d)
}

// PutManifest implements [pullthrough.Store]. The tag moves when all else is on
// the disk.
func (s *Store) PutManifest(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	at, err := s.owner().LocateManifest(repo, m)
	if err != nil {
		return err
	}
	return during(s.putManifest(at, m), "store manifest", repo, m.Descriptor.Digest.String())
}

func (s *Store) putManifest(at layout.Repository, m *pullthrough.Manifest) error {
	if err := layout.CheckManifest(m); err != nil {
		return err
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
	return s.putTag(at, m.Tag, layout.SidecarOf(m, mediaType))
}

// putRevision stores the manifest, unless it is here, and returns the media type
// that it has here.
func (s *Store) putRevision(at layout.Repository, m *pullthrough.Manifest) (string, error) {
	d := m.Descriptor.Digest
	have, err := s.revision(at, d, "")
	if err == nil {
		return have.Descriptor.MediaType, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	var c changes
	if err := s.disk.makeDir(at.Layers(), &c); err != nil {
		return "", err
	}
	mediaType := m.Descriptor.MediaType
	return mediaType, s.writeRevision(at.Home(m.Content), m.Content, layout.SidecarOf(m, mediaType), &c)
}

func (s *Store) writeRevision(home layout.Repository, content []byte, side layout.Sidecar, c *changes) error {
	d, dir := side.Digest, home.Revision(side.Digest)
	if _, err := s.readManifest(home.Tree.Data(d), d); errors.Is(err, fs.ErrNotExist) {
		if err := s.write(home.Tree.Data(d), content, c); err != nil {
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
