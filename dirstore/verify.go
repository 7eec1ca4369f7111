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

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/filing"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
)

// maxVerified is how many blobs are known to be good at most.
const maxVerified = 4096

// verifier knows which files have the content that their names say.
type verifier struct {
	good    *lru.Cache[digest.Digest, fs.FileInfo]
	flights flight.Set
	running flight.Group[digest.Digest, fs.FileInfo]
}

func newVerifier() *verifier {
	v := &verifier{good: lru.New[digest.Digest, fs.FileInfo](maxVerified)}
	v.running.Join(&v.flights, "blob")
	return v
}

// stop ends what is being read.
func (v *verifier) stop() {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_ = v.flights.Shutdown(ended)
}

// check refuses a file that does not have the content of d, and removes it.
func (s *Store) check(ctx context.Context, name string, info fs.FileInfo, d digest.Digest) error {
	var err error
	if !info.Mode().IsRegular() {
		return fmt.Errorf("content of %s is no file: %w", d, layout.ErrDamaged)
	}
	if err = layout.CheckBlobSize(info.Size(), d); err == nil && s.VerifyBlobs {
		err = s.verify(ctx, name, info, d)
	}
	if errors.Is(err, layout.ErrDamaged) {
		s.discard(name, info, err)
	}
	return err
}

// verify reads the file, unless it was read before. All who ask for it meanwhile
// wait for the same read.
func (s *Store) verify(ctx context.Context, name string, info fs.FileInfo, d digest.Digest) error {
	if good, ok := s.verifier.good.Get(d); ok && sameContent(good, info) {
		return nil
	}
	read, _, err := s.verifier.running.Do(ctx, d, func(call *flight.Call[digest.Digest, fs.FileInfo]) (fs.FileInfo, error) {
		return s.hash(call.Context(), name, d)
	})
	switch {
	case errors.Is(err, flight.ErrClosed), errors.Is(err, context.Canceled) && ctx.Err() == nil:
		return os.ErrClosed
	case err != nil:
		return err
	case !sameContent(read, info):
		return fmt.Errorf("content of %s was replaced: %w", d, fs.ErrNotExist)
	}
	s.verifier.good.Put(d, read)
	return nil
}

// sameContent reports whether it is one file that has not been cut or grown. Its
// time says nothing: we set it.
func sameContent(a, b fs.FileInfo) bool { return os.SameFile(a, b) && a.Size() == b.Size() }

func (s *Store) hash(ctx context.Context, name string, d digest.Digest) (fs.FileInfo, error) {
	f, err := s.disk.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	verifier := d.Verifier()
	buffer := make([]byte, copyBuffer)
	if _, err := io.CopyBuffer(verifier, filing.WithContext(ctx, f), buffer); err != nil {
		return nil, err
	}
	if !verifier.Verified() {
		return nil, fmt.Errorf("content of %s: %w", d, layout.ErrDamaged)
	}
	return info, nil
}

// discard removes content that is not what its name says, so that the next put
// stores it again. Somebody may have done so just now: another file than the
// damaged one is put back.
func (s *Store) discard(name string, damaged fs.FileInfo, reason error) {
	s.log().Warn("stored content is damaged and removed", "file", name, "err", reason)
	aside := path.Join(s.staging, rand.Text())
	if err := s.disk.aside(name, aside); err != nil {
		return // a directory that we may not write is still good to read
	}
	if found, err := s.disk.stat(aside); err == nil && !os.SameFile(found, damaged) {
		_ = s.disk.root.Link(aside, name)
	}
	_ = s.disk.remove(aside)
}
