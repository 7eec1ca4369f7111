package dirstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/filing"
	"github.com/ecr-pullthrough/pullthrough/internal/verify"
)

// maxSeen is of how many files is known what a full read has shown, at most.
const maxSeen = 16 << 10

// seen is a file that was read in full.
type seen struct {
	info  fs.FileInfo
	right bool // it had its digest
}

// check returns what the content is read by: the file, or where nobody knows whether
// that is right, a body that keeps back the end until it has been read in full. Content
// of another length than it must have is a miss, unless it turns out to be right.
func (s *Store) check(ctx context.Context, c opened) (io.ReadCloser, error) {
	if !c.info.Mode().IsRegular() {
		return nil, fmt.Errorf("content of %s is no file: %w", c.target, layout.ErrDamaged)
	}
	if err := layout.CheckBlobSize(c.info.Size(), c.target); err != nil {
		s.discard(c.name, c.info, err)
		return nil, err
	}
	verdict, err := s.sizes.Judge(ctx, reader{s}, c.link, c.digest, c.info.Size())
	if err != nil || verdict == filing.Sound && !s.VerifyBlobs {
		return c.file, err
	}
	if known, err := s.known(c); known || err != nil {
		if err == nil && verdict != filing.Sound { // it was read under another digest
			s.noteRead(ctx, c, c.info.Size())
		}
		return c.file, err
	}
	if c.info.Size() <= verify.Small {
		return c.file, s.verify(ctx, c)
	}
	s.reads.Start(c.target, c.read(s))
	if verdict == filing.Wrong {
		return nil, fmt.Errorf("content of %s has %d bytes, which are not its size: %w", c.target, c.info.Size(), layout.ErrDamaged)
	}
	return verify.NewBody(c.file, c.info.Size(), func() error { return s.verifyOpen(ctx, c) }), nil
}

// verifyOpen is verify for a file that is being read. It may have been evicted by now, or
// another one may have its name: then it is read by itself.
func (s *Store) verifyOpen(ctx context.Context, c opened) error {
	err := s.verify(ctx, c)
	if !errors.Is(err, fs.ErrNotExist) || errors.Is(err, layout.ErrDamaged) {
		return err
	}
	return hash(ctx, io.NewSectionReader(c.file, 0, c.info.Size()), c.target)
}

// known reports whether the file was read in full. The error Is [layout.ErrDamaged] if it
// did not have its digest, and is there still: perhaps we may not remove it.
func (s *Store) known(c opened) (bool, error) {
	file, ok := s.seen.Get(c.target)
	if !ok || !sameContent(file.info, c.info) {
		return false, nil
	}
	if !file.right {
		return true, fmt.Errorf("content of %s: %w", c.target, layout.ErrDamaged)
	}
	return true, nil
}

// sameContent reports whether it is one file that has not been cut or grown. Its
// time says nothing: we set it.
func sameContent(a, b fs.FileInfo) bool { return os.SameFile(a, b) && a.Size() == b.Size() }

// verify waits until the file has been read in full, and is nil if it has its digest.
func (s *Store) verify(ctx context.Context, c opened) error {
	known, err := s.known(c)
	if !known {
		reads := s.reads
		if c.info.Size() <= verify.Small {
			reads = s.small
		}
		if err = reads.Do(ctx, c.target, c.read(s)); err == nil {
			known, err = s.known(c)
		}
	}
	if err == nil && !known {
		err = fmt.Errorf("content of %s was replaced: %w", c.target, fs.ErrNotExist)
	}
	return err
}

// read is a full read. It opens the file by its name: whoever has opened it before may
// close it.
func (c opened) read(s *Store) func(context.Context) error {
	c.file = nil
	return func(ctx context.Context) error {
		if known, err := s.known(c); known { // another read has ended since we looked
			return err
		}
		file, err := s.disk.open(c.name)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		info, err := file.Stat()
		if err != nil {
			return err
		}
		err = hash(ctx, file, c.target)
		damaged := errors.Is(err, layout.ErrDamaged)
		if damaged {
			s.discard(c.name, info, err)
			damaged = s.isStill(c.name, info)
		}
		if err == nil || damaged {
			s.seen.Put(digest.Digest(strings.Clone(string(c.target))), seen{info, err == nil})
		}
		if err == nil {
			s.noteRead(ctx, c, info.Size())
		}
		return err
	}
}

// isStill reports whether the file is there and has not changed. A file that was removed
// leaves its number in the file system to the next, so nothing is remembered of it.
func (s *Store) isStill(name string, was fs.FileInfo) bool {
	now, err := s.disk.stat(name)
	return err == nil && sameContent(now, was) && now.ModTime().Equal(was.ModTime())
}

// hash reads content to its end. The error Is [layout.ErrDamaged] if it does not have the
// digest.
func hash(ctx context.Context, content io.Reader, d digest.Digest) error {
	verifier := d.Verifier()
	_, err := io.CopyBuffer(verifier, filing.WithContext(ctx, content), make([]byte, copyBuffer))
	if err == nil && !verifier.Verified() {
		err = fmt.Errorf("content of %s: %w", d, layout.ErrDamaged)
	}
	return err
}

// noteRead notes beside the link what a full read has shown, unless the directory of the
// link has gone. Where it cannot be written the next process reads the file in full, too.
func (s *Store) noteRead(ctx context.Context, c opened, size int64) {
	s.sizes.NoteRead(c.digest, size)
	if noted, err := filing.ReadSize(ctx, reader{s}, c.link); err == nil && noted == size {
		return
	}
	temp, err := s.jot(ctx, layout.EncodeBlobSize(size))
	if err != nil {
		return
	}
	if s.disk.rename(temp, layout.BlobSize(c.link)) != nil {
		_ = s.disk.remove(temp)
	}
}

// discard removes content that is not what its name says, so that the next put
// stores it again. A put may have replaced it by now, so it looks first: good content is
// there at each moment. damaged is of a file that the caller has open: a file that was
// closed could leave its number to the new one.
func (s *Store) discard(name string, damaged fs.FileInfo, reason error) {
	s.log().Warn("stored content is damaged and removed", "file", name, "err", reason)
	s.removeIf(name, func(name string) bool {
		found, err := s.disk.stat(name)
		return err != nil || os.SameFile(found, damaged)
	})
}

// removeIf removes a file that damaged says to be damaged. It asks once more where nobody else
// can replace the file any more: one that came just now is put back.
func (s *Store) removeIf(name string, damaged func(name string) bool) {
	if !damaged(name) {
		return
	}
	aside := path.Join(s.staging, rand.Text())
	if err := s.disk.aside(name, aside); err != nil {
		return // a directory that we may not write is still good to read
	}
	if !damaged(aside) {
		_ = s.disk.root.Link(aside, name)
	}
	_ = s.disk.remove(aside)
}
