package dirstore

import (
	"errors"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// tagged returns the manifest that the tag names.
func (s *Store) tagged(at layout.Repository, tag string) (*pullthrough.Manifest, error) {
	d, side, err := s.current(at.Tag(tag))
	if err != nil {
		return nil, err
	}
	m, err := s.revision(at, d, side.MediaType)
	if err != nil {
		return nil, err
	}
	// What is known of the manifest says nothing of the tag: the registry may
	// have moved it there.
	m.Tag, m.CheckedAt, m.Origin = tag, side.CheckedAt, side.Origin
	return m, nil
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
// is left alone; one that is not here is for the caller to store.
func (s *Store) recheck(at layout.Repository, m *pullthrough.Manifest) (done bool, err error) {
	if m.Tag == "" {
		return false, nil
	}
	have, err := s.tagged(at, m.Tag)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || have.Descriptor.Digest != m.Descriptor.Digest {
		return true, err
	}
	have.CheckedAt = m.CheckedAt
	var c changes
	if err := s.writeSidecar(at.Tag(m.Tag), layout.SidecarOf(have, have.Descriptor.MediaType), &c); err != nil {
		return true, err
	}
	return true, s.disk.flush(&c)
}
