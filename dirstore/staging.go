package dirstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/filelock"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/filing"
)

const (
	// staleAfter is the age at which staging files are given up where the file
	// system cannot tell whether their process still lives.
	staleAfter = 24 * time.Hour

	copyBuffer  = 256 << 10
	claimsTried = 10
)

// errLocked says that a living Store has the lock.
var errLocked = filelock.ErrLocked

// claim makes the directory for this Store's staging files and locks it: the
// lock goes with the process, however that ends.
func (s *Store) claim() (err error) {
	for range claimsTried {
		name := path.Join(layout.Staging, rand.Text())
		if err := s.disk.mkdir(name); err != nil {
			return err
		}
		var f *os.File
		if f, err = s.lockDir(name); err == nil {
			s.staging, s.lock = name, f
			return nil
		}
	}
	return err
}

// lockDir locks a new directory, and fails if somebody's sweep was faster.
func (s *Store) lockDir(name string) (*os.File, error) {
	f, err := s.disk.root.Open(name)
	if err != nil {
		return nil, err
	}
	if err = s.disk.before(step{op: "lock", name: name}); err == nil {
		err = filelock.Lock(f, filelock.Alone|filelock.Now)
	}
	if errors.Is(err, errors.ErrUnsupported) {
		return f, nil
	}
	if err == nil {
		err = s.sameDir(f, name)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (s *Store) sameDir(f *os.File, name string) error {
	locked, err := f.Stat()
	if err != nil {
		return err
	}
	named, err := s.disk.root.Stat(name)
	if err == nil && !os.SameFile(locked, named) {
		err = fs.ErrNotExist
	}
	return err
}

// sweepStaging removes the staging files of processes that are gone. What cannot be
// removed is in nobody's way.
func (s *Store) sweepStaging() {
	dir, err := s.disk.root.Open(layout.Staging)
	if err != nil {
		return
	}
	entries, _ := dir.ReadDir(-1)
	_ = dir.Close()
	for _, e := range entries {
		s.sweepOne(path.Join(layout.Staging, e.Name()))
	}
}

func (s *Store) sweepOne(name string) {
	f, err := s.disk.root.Open(name)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	switch err := filelock.Lock(f, filelock.Alone|filelock.Now); {
	case err == nil:
	case errors.Is(err, errors.ErrUnsupported):
		if info, err := f.Stat(); err != nil || time.Since(info.ModTime()) < staleAfter {
			return
		}
	default:
		return // its process lives
	}
	if s.disk.before(step{op: "remove", name: name}) == nil {
		_ = s.disk.root.RemoveAll(name)
	}
}

// newFile makes an empty staging file and returns it with its name.
func (s *Store) newFile() (f *os.File, name string, err error) {
	name = path.Join(s.staging, rand.Text())
	err = s.inStaging(func() (err error) {
		f, err = s.disk.create(name)
		return err
	})
	return f, name, err
}

// mkdirStaged makes a directory in staging.
func (s *Store) mkdirStaged(name string) error {
	return s.inStaging(func() error { return s.disk.mkdir(name) })
}

// inStaging calls f once more when somebody has tidied up.
func (s *Store) inStaging(f func() error) error {
	err := f()
	if errors.Is(err, fs.ErrNotExist) {
		if err = s.disk.before(step{op: "mkdir", name: s.staging}); err == nil {
			err = s.disk.root.MkdirAll(s.staging, dirMode)
		}
		if err == nil {
			err = f()
		}
	}
	return err
}

// newContent makes an empty file for content and returns it with its name. It is alone in a
// directory, which gets its name with it.
func (s *Store) newContent() (f *os.File, name string, err error) {
	dir := path.Join(s.staging, rand.Text())
	if err := s.mkdirStaged(dir); err != nil {
		return nil, "", err
	}
	name = path.Join(dir, "data")
	if f, err = s.disk.create(name); err != nil {
		s.dropContent(name)
	}
	return f, name, err
}

// dropContent removes a file of newContent. It is swept if it stays.
func (s *Store) dropContent(name string) { _ = s.disk.removeTree(path.Dir(name)) }

// spill writes the size bytes of r to a staging file, syncs it and returns its
// name. Nothing is left of it when that fails.
func (s *Store) spill(ctx context.Context, r io.Reader, size int64) (name string, err error) {
	f, name, err := s.newFile()
	if err != nil {
		return "", err
	}
	if err = s.fill(ctx, f, r, size); err != nil {
		_ = s.disk.remove(name)
	}
	return name, err
}

// spillContent is spill to a file of newContent.
func (s *Store) spillContent(ctx context.Context, r io.Reader, size int64) (name string, err error) {
	f, name, err := s.newContent()
	if err != nil {
		return "", err
	}
	if err = s.fill(ctx, f, r, size); err != nil {
		s.dropContent(name)
	}
	return name, err
}

func (s *Store) fill(ctx context.Context, f *os.File, r io.Reader, size int64) error {
	defer func() { _ = f.Close() }() // r may panic; else it is closed by then
	n, err := s.copy(ctx, f, r, size)
	if err == nil {
		err = layout.CheckWritten(n, size)
	}
	return s.finish(f, err)
}

// jot writes content to a staging file that is not synced, and returns its name.
func (s *Store) jot(ctx context.Context, content []byte) (name string, err error) {
	f, name, err := s.newFile()
	if err != nil {
		return "", err
	}
	_, err = s.copy(ctx, f, bytes.NewReader(content), int64(len(content)))
	if err = errors.Join(err, s.disk.close(f)); err != nil {
		_ = s.disk.remove(name)
		return "", err
	}
	return name, nil
}

func (s *Store) copy(ctx context.Context, f *os.File, r io.Reader, size int64) (int64, error) {
	if err := s.disk.before(step{op: "write", name: f.Name()}); err != nil {
		return 0, err
	}
	// Hiding the file's ReadFrom and the reader's WriteTo keeps us in the loop,
	// where a cancelled context is noticed.
	return io.CopyBuffer(struct{ io.Writer }{f}, filing.WithContext(ctx, io.LimitReader(r, size+1)), make([]byte, min(max(size, 1), copyBuffer)))
}

// finish syncs and closes f, unless err says that it is lost already.
func (s *Store) finish(f *os.File, err error) error {
	if err == nil {
		err = s.disk.sync(f)
	}
	return errors.Join(err, s.disk.close(f))
}

// stagedSet counts the downloads of this Store.
type stagedSet struct {
	mu      sync.Mutex
	running map[layout.Repository]map[digest.Digest]int
}

func (t *stagedSet) add(at layout.Repository, d digest.Digest, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running == nil {
		t.running = make(map[layout.Repository]map[digest.Digest]int)
	}
	in := t.running[at]
	if in == nil {
		in = make(map[digest.Digest]int)
		t.running[at] = in
	}
	if in[d] += n; in[d] == 0 {
		delete(in, d)
	}
	if len(in) == 0 {
		delete(t.running, at)
	}
}

// any reports whether anything is downloaded for the repository.
func (t *stagedSet) any(at layout.Repository) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.running[at]) > 0
}

func (t *stagedSet) has(at layout.Repository, d digest.Digest) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.running[at][d] > 0
}
