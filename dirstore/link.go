package dirstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// readLink returns the digest in the link in dir. Only the content counts, not
// the path: the registry keeps what was pushed under sha512 as sha256, and the
// link for the one names the other. With another digest d of the same algorithm
// it is no link to d; d is "" for tags. What is no link is removed.
func (s *Store) readLink(dir string, d digest.Digest) (digest.Digest, error) {
	target, err := s.parseLink(layout.Link(dir), d)
	if errors.Is(err, layout.ErrDamaged) {
		s.removeLink(dir, d)
	}
	return target, err
}

func (s *Store) parseLink(name string, d digest.Digest) (digest.Digest, error) {
	content, err := s.readSmall(name, layout.MaxLink)
	if err != nil {
		return "", err
	}
	return layout.ParseLink(content, d)
}

// removeLink removes a link that is invalid. Somebody may have replaced it just
// now: one that turns out to be good is put back.
func (s *Store) removeLink(dir string, d digest.Digest) {
	aside := path.Join(s.staging, rand.Text())
	if err := s.disk.aside(layout.Link(dir), aside); err != nil {
		return // a directory that we may not write is still good to read
	}
	if _, err := s.parseLink(aside, d); err == nil {
		_ = s.disk.root.Link(aside, layout.Link(dir))
	}
	_ = s.disk.remove(aside)
}

// writeLink makes the link in dir name d, in one step.
func (s *Store) writeLink(dir string, d digest.Digest, c *changes) error {
	return s.write(layout.Link(dir), []byte(d), c)
}

// write makes name a file with this content, in one step.
func (s *Store) write(name string, content []byte, c *changes) error {
	temp, err := s.spill(context.Background(), bytes.NewReader(content), int64(len(content)))
	if err != nil {
		return err
	}
	return s.place(temp, name, c)
}

// place publishes a staging file, or removes it.
func (s *Store) place(temp, name string, c *changes) error {
	err := s.disk.publish(temp, name, c)
	if err != nil {
		_ = s.disk.remove(temp)
	}
	return err
}

// readSmall reads a file of ours, of at most limit bytes.
func (s *Store) readSmall(name string, limit int64) ([]byte, error) {
	f, err := s.disk.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(content)) > limit {
		err = fmt.Errorf("%s is too long: %w", name, layout.ErrDamaged)
	}
	return content, err
}

// readSidecar returns the sidecar of d in dir. None that can be used is no
// error: then it was not us who stored d there.
func (s *Store) readSidecar(dir string, d digest.Digest) (side layout.Sidecar, ok bool, err error) {
	content, err := s.readSmall(layout.SidecarFile(dir, d), layout.MaxSidecar)
	if errors.Is(err, fs.ErrNotExist) {
		return layout.Sidecar{}, false, nil
	}
	if err != nil {
		return layout.Sidecar{}, false, err
	}
	side, ok = layout.ParseSidecar(content, d)
	return side, ok, nil
}

func (s *Store) writeSidecar(dir string, side layout.Sidecar, c *changes) error {
	content, err := side.Encode()
	if err != nil {
		return err
	}
	return s.write(layout.SidecarFile(dir, side.Digest), content, c)
}
