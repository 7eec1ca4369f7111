package dirstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// Manifest implements [pullthrough.Store]. What another process has changed is
// seen after a second at the latest.
func (s *Store) Manifest(ctx context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	key := object{repo, ref}
	if m := s.memory.fresh(key); m != nil {
		return m, nil
	}
	at, err := s.owner().Locate(repo, ref)
	if err != nil {
		return nil, err
	}
	known, err := s.read(at, key)
	if err != nil {
		return nil, during(err, "read manifest", repo, ref)
	}
	return known.m, nil
}

// read returns what the links on the disk say now, and remembers it.
func (s *Store) read(at layout.Repository, key object) (known *memo, err error) {
	before := s.memory.before()
	if ocipath.IsDigest(key.ref) {
		known, err = s.readRevision(at, key.repo, digest.Digest(key.ref))
	} else {
		known, err = s.readTag(at, key)
	}
	if err != nil {
		return nil, err
	}
	s.memory.keep(before, key, known)
	return known, nil
}

// readRevision does not read again what memory has, if the link is still there.
func (s *Store) readRevision(at layout.Repository, repo pullthrough.Repo, d digest.Digest) (*memo, error) {
	now := time.Now()
	known := s.memory.known(repo, d)
	if known == nil {
		r, err := s.revision(at, d)
		if err != nil {
			return nil, err
		}
		known = &memo{m: r.m, use: &use{dir: r.dir, data: r.data}}
		known.use.marked.Store(r.used.UnixNano())
	} else if _, err := s.readLink(known.use.dir, d); err != nil {
		return nil, err
	}
	known.use.last.Store(now.UnixNano())
	if err := s.mark(known.use, now); err != nil {
		s.memory.forget(repo, string(d))
		return nil, err
	}
	return &memo{known.m, now.Add(linkAge), known.use}, nil
}

// mark notes the use on the disk, once an hour. It fails only if the content is
// not there any more.
func (s *Store) mark(u *use, now time.Time) error {
	if age := now.Sub(time.Unix(0, u.marked.Load())); age.Abs() < markEvery {
		return nil
	}
	u.marked.Store(now.UnixNano())
	if err := s.disk.touch(u.data); errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil // a directory that we may not write is still good to read
}

// revision is a manifest of a repository, and where it is.
type revision struct {
	m    *pullthrough.Manifest
	dir  string    // of the link
	data string    // the file with the content
	used time.Time // when it was used, to the hour
}

// revision reads the manifest d and checks its content.
func (s *Store) revision(at layout.Repository, d digest.Digest) (r revision, err error) {
	for _, home := range at.Homes() {
		r, err = s.revisionIn(home, d)
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return r, err
}

func (s *Store) revisionIn(home layout.Repository, d digest.Digest) (revision, error) {
	r := revision{dir: home.Revision(d)}
	target, err := s.readLink(r.dir, d)
	if err != nil {
		return revision{}, err
	}
	r.data = home.Tree.Data(target)
	content, used, err := s.readManifest(r.data, d)
	if errors.Is(err, layout.ErrDamaged) {
		_ = s.disk.remove(layout.Link(r.dir)) // nor shall the registry serve it
	}
	if err != nil {
		return revision{}, err
	}
	side, _, err := s.readSidecar(r.dir, d)
	if err != nil {
		return revision{}, err
	}
	r.used = used
	r.m, err = layout.Manifest(content, d, side)
	return r, err
}

// readManifest returns content that has the digest d. Other content is removed.
func (s *Store) readManifest(name string, d digest.Digest) (content []byte, used time.Time, err error) {
	f, err := s.disk.open(name)
	if err != nil {
		return nil, used, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, used, err
	}
	content, err = readChecked(f, info, d)
	if errors.Is(err, layout.ErrDamaged) {
		s.discard(name, info, err)
	}
	return content, info.ModTime(), err
}

func readChecked(f io.Reader, info fs.FileInfo, d digest.Digest) ([]byte, error) {
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
	if err == nil {
		err = layout.CheckManifest(m)
	}
	if err != nil {
		return err
	}
	return during(s.putManifest(ctx, at, repo, m), "store manifest", repo, m.Descriptor.Digest.String())
}

func (s *Store) putManifest(ctx context.Context, at layout.Repository, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	if m.Source != pullthrough.SourceRevalidated {
		if same, err := s.holds(at, m); same || err != nil {
			return err
		}
	}
	var added int64
	err := s.commit(ctx, func() (err error) {
		if m.Source == pullthrough.SourceRevalidated {
			if done, err := s.recheck(at, repo, m); done {
				return err
			}
		}
		added, err = s.commitManifest(at, m)
		return err
	})
	s.memory.forget(repo, m.Tag, string(m.Descriptor.Digest))
	s.grow(added)
	return err
}

// holds reports whether all that m says is stored.
func (s *Store) holds(at layout.Repository, m *pullthrough.Manifest) (bool, error) {
	r, err := s.revision(at, m.Descriptor.Digest)
	if err == nil && m.Tag != "" {
		var side layout.Sidecar
		_, side, err = s.current(at.Tag(m.Tag))
		if err == nil && side != layout.SidecarOf(m, r.m.Descriptor.MediaType) {
			return false, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// commitManifest returns how many bytes of content are new.
func (s *Store) commitManifest(at layout.Repository, m *pullthrough.Manifest) (added int64, err error) {
	mediaType, added, err := s.putRevision(at, m)
	if err != nil || m.Tag == "" {
		return added, err
	}
	return added, s.putTag(at, m.Tag, layout.SidecarOf(m, mediaType))
}

// putRevision stores the manifest, unless it is here, and returns the media type
// that it has here.
func (s *Store) putRevision(at layout.Repository, m *pullthrough.Manifest) (mediaType string, added int64, err error) {
	have, err := s.revision(at, m.Descriptor.Digest)
	if err == nil {
		err = s.disk.touch(have.data) // a sweep that has seen it unused lets it be
	}
	if err == nil {
		return have.m.Descriptor.MediaType, 0, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", 0, err
	}
	var c changes
	if err := s.disk.makeDir(at.Layers(), &c); err != nil {
		return "", 0, err
	}
	if err := s.touchReferences(at, m.Content); err != nil {
		return "", 0, err
	}
	mediaType = m.Descriptor.MediaType
	added, err = s.writeRevision(at.Home(m.Content), m.Content, layout.SidecarOf(m, mediaType), &c)
	return mediaType, added, err
}

func (s *Store) writeRevision(home layout.Repository, content []byte, side layout.Sidecar, c *changes) (added int64, err error) {
	d, dir, data := side.Digest, home.Revision(side.Digest), home.Tree.Data(side.Digest)
	if _, _, err = s.readManifest(data, d); errors.Is(err, fs.ErrNotExist) {
		if err = s.write(data, content, c); err == nil {
			added = int64(len(content))
		}
	}
	if err == nil {
		err = s.disk.touch(data) // the system's own time of a write is old by milliseconds
	}
	if err != nil {
		return added, err
	}
	if err := s.writeSidecar(dir, side, c); err != nil {
		return added, err
	}
	if err := s.writeLink(dir, d, c); err != nil {
		return added, err
	}
	return added, s.disk.flush(c)
}

// touchReferences notes that all that a new manifest refers to, and that is here,
// is in use: a sweep that has not seen the manifest lets it be.
func (s *Store) touchReferences(at layout.Repository, content []byte) error {
	for _, d := range layout.References(content) {
		target := d
		if d.Algorithm() != digest.SHA256 { // it may be an alias
			if linked, err := s.readLink(at.Layer(d), d); err == nil {
				target = linked
			}
		}
		for _, tree := range []layout.Tree{layout.Registry, layout.Own} {
			if err := s.disk.touch(tree.Data(target)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}
