package diststore

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// tagged returns the manifest that the tag names now.
func (s *Store) tagged(ctx context.Context, at layout.Repository, tag string) (*memo, error) {
	until := time.Now().Add(tagAge)
	d, side, err := s.current(ctx, at.Tag(tag))
	if err != nil {
		return nil, err
	}
	m, err := s.named(ctx, at, d)
	if err != nil {
		return nil, err
	}
	// What is known of the manifest says nothing of the tag: the registry may
	// have moved it there.
	named := *m
	named.Tag, named.CheckedAt, named.Origin = tag, side.CheckedAt, side.Origin
	return &memo{m: &named, until: until}, nil
}

// named returns the manifest d, from memory if it was there a moment ago.
func (s *Store) named(ctx context.Context, at layout.Repository, d digest.Digest) (*pullthrough.Manifest, error) {
	key := object{at, string(d)}
	before := s.memory.before()
	known, _ := s.memory.kept.Get(key)
	if known != nil && time.Now().Before(known.until) {
		return known.m, nil
	}
	known, err := s.again(ctx, at, known, d)
	if err != nil {
		return nil, err
	}
	s.memory.keep(before, key, known)
	return known.m, nil
}

// current returns what the tag in dir names and the sidecar about it, a zero one
// if it was the registry that moved the tag. A sidecar also goes when the tag
// moves on, so its absence counts once the link has been read again.
func (s *Store) current(ctx context.Context, dir string) (digest.Digest, layout.Sidecar, error) {
	var before digest.Digest
	for {
		d, err := s.readLink(ctx, dir, "")
		if err != nil {
			return "", layout.Sidecar{}, err
		}
		side, ok, err := s.readSidecar(ctx, dir, d)
		if err != nil || ok || d == before {
			return d, side, err
		}
		before = d
	}
}

// putTag makes the tag name side.Digest. The sidecar comes first and the link is
// one object, so there is no moment at which one is without the other.
func (s *Store) putTag(ctx context.Context, at layout.Repository, tag string, side layout.Sidecar) error {
	dir := at.Tag(tag)
	old, have, err := s.current(ctx, dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if have != side {
		if err := s.writeSidecar(ctx, dir, side); err != nil {
			return err
		}
	}
	if old == side.Digest {
		return nil
	}
	if err := s.writeLink(ctx, at.History(tag, side.Digest), side.Digest); err != nil {
		return err
	}
	if err := s.writeLink(ctx, dir, side.Digest); err != nil {
		return err
	}
	// Who moves the tag away from this digest at the same moment removes the sidecar.
	if err := s.keepSidecar(ctx, dir, side); err != nil {
		return err
	}
	s.forget(ctx, dir, old, have)
	return nil
}

// keepSidecar writes the sidecar if it is gone.
func (s *Store) keepSidecar(ctx context.Context, dir string, side layout.Sidecar) error {
	_, ok, err := s.readSidecar(ctx, dir, side.Digest)
	if err == nil && !ok {
		err = s.writeSidecar(ctx, dir, side)
	}
	return err
}

// forget removes the sidecar of what the tag was before: should the registry
// move the tag back, that is not upstream's doing. Another proxy that moves it
// back at this moment either finds its sidecar gone once the link is written, or
// we find its link.
func (s *Store) forget(ctx context.Context, dir string, old digest.Digest, have layout.Sidecar) {
	if old == "" || have.Digest != old {
		return
	}
	if now, err := s.readLink(ctx, dir, ""); err != nil || now == old {
		return
	}
	if s.bucket.remove(ctx, layout.SidecarFile(dir, old)) != nil {
		return
	}
	if now, err := s.readLink(ctx, dir, ""); err == nil && now == old {
		_ = s.keepSidecar(ctx, dir, have) // at worst the tag passes for one that was pushed here
	}
}

// recheck notes that upstream has confirmed the tag. A tag that has moved since
// is left alone; one that is not here is for the caller to store.
func (s *Store) recheck(ctx context.Context, at layout.Repository, m *pullthrough.Manifest) (done bool, err error) {
	if m.Tag == "" {
		return false, nil
	}
	known, err := s.tagged(ctx, at, m.Tag)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || known.m.Descriptor.Digest != m.Descriptor.Digest {
		return true, err
	}
	have := *known.m
	have.CheckedAt = m.CheckedAt
	return true, s.writeSidecar(ctx, at.Tag(m.Tag), layout.SidecarOf(&have, have.Descriptor.MediaType))
}
