package diststore

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// Manifest implements [pullthrough.Store]. Where another proxy has moved a tag,
// that is seen after a second; that somebody has removed a manifest, after a
// minute.
func (s *Store) Manifest(ctx context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	at, err := s.owner().Locate(repo, ref)
	if err != nil {
		return nil, err
	}
	key := object{at, ref}
	before := s.memory.before()
	known, _ := s.memory.kept.Get(key)
	if known != nil && time.Now().Before(known.until) {
		return known.m, nil
	}
	if ocipath.IsDigest(ref) {
		known, err = s.again(ctx, at, known, digest.Digest(ref))
	} else {
		known, err = s.tagged(ctx, at, ref)
	}
	if err != nil {
		return nil, during(err, "read manifest", repo, ref)
	}
	s.memory.keep(before, key, known)
	return known.m, nil
}

// again returns the manifest d. One that is known, not nil, is not read again if
// its link is still there.
func (s *Store) again(ctx context.Context, at layout.Repository, known *memo, d digest.Digest) (*memo, error) {
	until := time.Now().Add(linkAge)
	if known != nil {
		_, err := s.readLink(ctx, known.home.Revision(d), d)
		switch {
		case err == nil:
			return &memo{known.m, known.home, until}, nil
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	m, home, err := s.revision(ctx, at, d)
	if err != nil {
		return nil, err
	}
	return &memo{m, home, until}, nil
}

// revision reads the manifest d, and says where it is.
func (s *Store) revision(ctx context.Context, at layout.Repository, d digest.Digest) (m *pullthrough.Manifest, home layout.Repository, err error) {
	for _, home = range at.Homes() {
		m, err = s.revisionIn(ctx, home, d)
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return m, home, err
}

func (s *Store) revisionIn(ctx context.Context, home layout.Repository, d digest.Digest) (*pullthrough.Manifest, error) {
	dir := home.Revision(d)
	target, err := s.readLink(ctx, dir, d)
	if err != nil {
		return nil, err
	}
	content, err := s.bucket.read(ctx, home.Tree.Data(target), layout.MaxManifest)
	if err == nil {
		err = layout.CheckContent(content, d)
	}
	if err != nil {
		return nil, err
	}
	side, _, err := s.readSidecar(ctx, dir, d)
	if err != nil {
		return nil, err
	}
	return layout.Manifest(content, d, side)
}

// PutManifest implements [pullthrough.Store]. The tag moves when all else is in
// the bucket.
func (s *Store) PutManifest(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	at, err := s.owner().LocateManifest(repo, m)
	if err == nil {
		err = layout.CheckManifest(m)
	}
	if err != nil {
		return err
	}
	err = s.putManifest(ctx, at, m)
	s.memory.forget(at, m.Tag, string(m.Descriptor.Digest))
	return during(err, "store manifest", repo, m.Descriptor.Digest.String())
}

func (s *Store) putManifest(ctx context.Context, at layout.Repository, m *pullthrough.Manifest) error {
	if m.Source == pullthrough.SourceRevalidated {
		if done, err := s.recheck(ctx, at, m); done {
			return err
		}
	}
	mediaType, err := s.putRevision(ctx, at, m)
	if err != nil || m.Tag == "" {
		return err
	}
	return s.putTag(ctx, at, m.Tag, layout.SidecarOf(m, mediaType))
}

// putRevision stores the manifest, unless it is here, and returns the media type
// that it has here.
func (s *Store) putRevision(ctx context.Context, at layout.Repository, m *pullthrough.Manifest) (string, error) {
	have, _, err := s.revision(ctx, at, m.Descriptor.Digest)
	if err == nil {
		return have.Descriptor.MediaType, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := s.makeRepo(ctx, at); err != nil {
		return "", err
	}
	mediaType := m.Descriptor.MediaType
	return mediaType, s.writeRevision(ctx, at.Home(m.Content), m.Content, layout.SidecarOf(m, mediaType))
}

// writeRevision writes the content even if it is there for another repository:
// these are the same bytes, and asking would be as much work.
func (s *Store) writeRevision(ctx context.Context, home layout.Repository, content []byte, side layout.Sidecar) error {
	d, dir := side.Digest, home.Revision(side.Digest)
	if err := s.bucket.put(ctx, home.Tree.Data(d), content); err != nil {
		return err
	}
	if err := s.writeSidecar(ctx, dir, side); err != nil {
		return err
	}
	return s.writeLink(ctx, dir, d)
}
