// Package shelf keeps downloads that ended early, so that the next one of the same
// content goes on from there, also after the process was killed.
//
// A shelf is a directory with a directory for each download, whose name is its key:
//
//	KEY/data  the content, as far as it has come; it may have holes
//	KEY/note  what is known of it, a line for each MiB: see note.go
//
// Who downloads has a lock on data, which goes with its process. What nobody has
// locked may be taken by any process that knows the key. The key must say who may share
// the content: the digest alone is not enough. Nothing here is verified: who takes
// a download hashes what it has. The end is never kept, so upstream has to give
// that to whoever goes on.
//
// Where there are no locks nothing is kept. What is older than 24 hours goes, and the
// oldest go where there is too much. That is looked after when something is added
// or opened; a shelf has no goroutine.
package shelf

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/filelock"
)

const (
	// Least is how many bytes of a download are worth keeping.
	Least = 4 << 20
	// Tail is how much of the end of the content is never kept.
	Tail = 64 << 10
	// MaxBytes is how much a shelf keeps at most.
	MaxBytes = 4 << 30

	maxAge = 24 * time.Hour
	// handOver is how long [Shelf.Take] waits for another download of this process that
	// is about to put aside what it has.
	handOver = time.Second

	dataName = "data"
	noteName = "note"
)

// ErrTaken says that somebody downloads under the key.
var ErrTaken = errors.New("shelf: the download is under way elsewhere")

// Shelf is a directory with downloads. The zero value of an optional field is usable. It
// is safe for concurrent use, by several processes too.
type Shelf struct {
	// Root is open as long as the Shelf is used. nil: it is opened at Path when there is
	// something to do, and Dir is removed when it is empty. Then Dir must be nobody else's to
	// look into.
	Root *os.Root
	Path string
	Dir  string // below Root; it is made when something is put there
	// Limit is how many bytes are kept, MaxBytes at most. nil: MaxBytes.
	Limit func() int64
	// Now is the clock. nil: [time.Now].
	Now func() time.Time

	mu    sync.Mutex
	users int                      // of the Root that was opened at Path
	busy  map[string]chan struct{} // keys that this process has, and what is closed when it lets go
}

// acquire makes sure that Root is open.
func (s *Shelf) acquire() (err error) {
	if s.Path == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users == 0 {
		if s.Root, err = os.OpenRoot(s.Path); err != nil {
			return err
		}
		if info, err := s.Root.Lstat(s.Dir); err == nil && (!info.IsDir() || info.Mode().Perm() != 0o700) {
			return errors.Join(fs.ErrPermission, s.Root.Close()) // somebody else may look into it
		}
	}
	s.users++
	return nil
}

// release is called once for each acquire.
func (s *Shelf) release() {
	if s.Path == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users == 0 {
		_ = s.Root.Remove(s.Dir) // it is empty, or stays
		_ = s.Root.Close()
	}
}

// claim takes the key for this process. patience is how long it waits for it.
func (s *Shelf) claim(ctx context.Context, key string, patience time.Duration) error {
	if err := s.acquire(); err != nil {
		return err
	}
	err := s.await(ctx, key, patience)
	if err != nil {
		s.release()
	}
	return err
}

func (s *Shelf) await(ctx context.Context, key string, patience time.Duration) error {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		s.mu.Lock()
		free, busy := s.busy[key]
		if !busy {
			if s.busy == nil {
				s.busy = make(map[string]chan struct{})
			}
			s.busy[key] = make(chan struct{})
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		select {
		case <-free:
		case <-timer.C:
			return ErrTaken
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *Shelf) unclaim(key string) {
	s.mu.Lock()
	close(s.busy[key])
	delete(s.busy, key)
	s.mu.Unlock()
	s.release()
}

func (s *Shelf) isBusy(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.busy[key] != nil
}

// Take returns the download of the key, for the caller to go on with it. The error Is
// [fs.ErrNotExist] where there is none that is of any use.
func (s *Shelf) Take(ctx context.Context, key string) (*Item, error) {
	if err := s.claim(ctx, key, handOver); err != nil {
		return nil, err
	}
	it, err := s.take(key)
	if err != nil {
		s.unclaim(key)
	}
	return it, err
}

func (s *Shelf) take(key string) (*Item, error) {
	data, err := s.lock(key)
	if err != nil {
		return nil, err
	}
	it := &Item{shelf: s, key: key, File: data}
	if err = it.resume(); err == nil {
		return it, nil
	}
	if errors.Is(err, fs.ErrNotExist) { // else it may be read another time
		s.remove(key)
	}
	return nil, errors.Join(err, data.Close())
}

// lock opens the content of the key, and locks it.
func (s *Shelf) lock(key string) (*os.File, error) {
	name := path.Join(s.Dir, key, dataName)
	f, err := s.Root.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err = filelock.Lock(f, filelock.Alone|filelock.Now); err == nil {
		err = s.isStill(f, name)
	} else if errors.Is(err, filelock.ErrLocked) {
		err = ErrTaken
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// isStill makes sure that the name still means the file that has been locked.
func (s *Shelf) isStill(f *os.File, name string) error {
	locked, err := f.Stat()
	if err != nil {
		return err
	}
	named, err := s.Root.Stat(name)
	if err == nil && !os.SameFile(locked, named) {
		err = ErrTaken
	}
	return err
}

// Put has the shelf keep a download of size bytes under the key from now on. data is its
// file, the only one in the directory dir of Root, by the name of "data". The caller says by
// [Item.Wrote] what is in it. When Put fails nothing has changed.
func (s *Shelf) Put(key, dir string, data *os.File, size int64) (*Item, error) {
	if err := s.claim(context.Background(), key, 0); err != nil {
		return nil, err
	}
	it := &Item{shelf: s, key: key, File: data, size: size}
	err := filelock.Lock(data, filelock.Alone|filelock.Now)
	if err == nil {
		err = it.begin(path.Join(dir, noteName))
	}
	if err == nil {
		if err = s.name(dir, key); err == nil {
			return it, nil
		}
		_ = it.note.Close()
	}
	_ = s.Root.Remove(path.Join(dir, noteName))
	s.unclaim(key)
	return nil, err
}

// Create is Put for a new file.
func (s *Shelf) Create(key string, size int64) (it *Item, err error) {
	if err := s.acquire(); err != nil {
		return nil, err
	}
	defer s.release()
	dir := path.Join(s.Dir, "new-"+rand.Text())
	if err := s.Root.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := s.Root.OpenFile(path.Join(dir, dataName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		if it, err = s.Put(key, dir, f, size); err == nil {
			return it, nil
		}
		_ = f.Close()
	}
	_ = s.Root.RemoveAll(dir)
	return nil, err
}

// name gives a directory its place on the shelf, which nobody else must have.
func (s *Shelf) name(dir, key string) error {
	if err := s.Root.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	return s.Root.Rename(dir, path.Join(s.Dir, key))
}

// remove removes a download. What cannot be removed is tried again when it is too old.
func (s *Shelf) remove(key string) bool { return s.Root.RemoveAll(path.Join(s.Dir, key)) == nil }

// entry is a download that this process has not taken.
type entry struct {
	key   string
	used  time.Time
	bytes int64
}

// entries are the downloads that are there, the oldest first.
func (s *Shelf) entries() (all []entry) {
	dir, err := s.Root.Open(s.Dir)
	if err != nil {
		return nil
	}
	defer func() { _ = dir.Close() }()
	names, _ := dir.Readdirnames(-1)
	for _, key := range names {
		if s.isBusy(key) {
			continue
		}
		n, used, _ := s.readNote(key) // damaged: nothing
		all = append(all, entry{key, used, total(n.spans)})
	}
	slices.SortFunc(all, func(a, b entry) int { return a.used.Compare(b.used) })
	return all
}

// drop removes a download, unless somebody has taken it. It reports whether it did.
func (s *Shelf) drop(e entry) bool {
	f, err := s.lock(e.key)
	switch {
	case err == nil:
		defer func() { _ = f.Close() }()
		return s.remove(e.key)
	case errors.Is(err, fs.ErrNotExist): // half of one, which nobody can lock: a new one may come just now
		_ = s.Root.Remove(path.Join(s.Dir, e.key, noteName))
		return s.Root.Remove(path.Join(s.Dir, e.key)) == nil
	}
	return false
}

// Tidy removes what is too old or too much, and returns how many bytes are left that
// nobody in this process has taken.
func (s *Shelf) Tidy() (left int64) {
	if s.acquire() != nil {
		return 0
	}
	defer s.release()
	all := s.entries()
	for _, e := range all {
		left += e.bytes
	}
	limit := int64(MaxBytes)
	if s.Limit != nil {
		limit = min(limit, s.Limit())
	}
	for _, e := range all {
		if left <= limit && e.bytes >= Least && s.now().Sub(e.used) < maxAge {
			continue
		}
		if s.drop(e) {
			left -= e.bytes
		}
	}
	return left
}

// DropOldest removes the oldest download that nobody has taken. It reports whether there
// was one.
func (s *Shelf) DropOldest() bool {
	if s.acquire() != nil {
		return false
	}
	defer s.release()
	return slices.ContainsFunc(s.entries(), s.drop)
}

func (s *Shelf) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}
