package dirstore

import (
	"errors"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// readTag reads the manifest that the tag names.
func (s *Store) readTag(at layout.Repository, key object) (*memo, error) {
	d, side, err := s.current(at.Tag(key.ref))
	if err != nil {
		return nil, err
	}
	known, err := s.read(at, object{key.repo, string(d)})
	if err != nil {
		return nil, err
	}
	// What is known of the manifest says nothing of the tag: the registry may
	// have moved it there.
	m := *known.m
	m.Tag, m.CheckedAt, m.Origin = key.clone().ref, side.CheckedAt, side.Origin
	if side.MediaType != "" {
		m.Descriptor.MediaType = side.MediaType
	}
	return &memo{&m, known.until, known.use}, nil
}

// current returns what the tag in dir names and the sidecar about it, a zero one
// if it was the registry that moved the tag. A sidecar also goes when the tag
// moves on, so its absence counts once the link has been read again.
func (s *Store) current(dir string) (digest.Digest, layout.Sidecar, error) {
	var before digest.Digest
	for {
		d, err := s.readLink(dir, "")
		if err != nil {
			return "", layout.Sidecar{}, err
		}
		side, ok, err := s.readSidecar(dir, d)
		if err != nil || ok || d == before {
			return d, side, err
		}
		before = d
	}
}

// putTag makes the tag name side.Digest. The sidecar comes first and the link is
// one rename, so there is no moment at which one is without the other.
func (s *Store) putTag(at layout.Repository, tag string, side layout.Sidecar) error {
	dir := at.Tag(tag)
	old, have, err := s.current(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var c changes
	if have != side {
		if err := s.writeSidecar(dir, side, &c); err != nil {
			return err
		}
	}
	if old == side.Digest {
		return s.disk.flush(&c)
	}
	if err := s.writeLink(at.History(tag, side.Digest), side.Digest, &c); err != nil {
		return err
	}
	if err := s.disk.flush(&c); err != nil {
		return err
	}
	if err := s.writeLink(dir, side.Digest, &c); err != nil {
		return err
	}
	s.forget(dir, old)
	return s.disk.flush(&c)
}

// forget removes the sidecar of what the tag was before: should the registry
// move the tag back, that is not upstream's doing.
func (s *Store) forget(dir string, old digest.Digest) {
	if old == "" {
		return
	}
	if now, err := s.readLink(dir, ""); err == nil && now != old {
		_ = s.disk.remove(layout.SidecarFile(dir, old))
	}
}

// recheck notes that upstream has confirmed the tag. A tag that has moved since
// is left alone; one that is not here is for the caller to store. Should the
// power fail, the tag is checked once more: only the content is synced.
func (s *Store) recheck(at layout.Repository, repo pullthrough.Repo, m *pullthrough.Manifest) (done bool, err error) {
	if m.Tag == "" {
		return false, nil
	}
	dir, d := at.Tag(m.Tag), m.Descriptor.Digest
	have, side, err := s.current(dir)
	if err == nil && have != d {
		return true, nil
	}
	var known *memo
	if err == nil {
		known, err = s.readRevision(at, repo, d)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	side.Digest, side.MediaType = d, known.m.Descriptor.MediaType
	side.CheckedAt = layout.SidecarOf(m, "").CheckedAt
	return true, s.writeSidecar(dir, side, new(changes))
}
