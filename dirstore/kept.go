package dirstore

import (
	ring "container/list"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

const (
	// maxKept is how many directories are kept open at most: the 256 of the content,
	// and those of 64 repositories.
	maxKept = 512
	// keptPart is the part of the process's file descriptors that they may have. Each
	// has two at most.
	keptPart = 8
)

// keptDirs are directories that stay open, those used last: what is below one of them is
// found without a walk from the root. It is safe for concurrent use.
type keptDirs struct {
	max int // 0: none is kept

	mu     sync.Mutex
	closed bool
	order  ring.List // of *keptDir; the one used last in front
	dirs   map[string]*ring.Element
}

// keptDir is one of them, or the root.
type keptDir struct {
	name string // "": the root
	root *os.Root
	look func() // called before each look at the directory itself

	users   int  // guarded by keptDirs.mu, as is the rest
	dropped bool // it is to be closed when nobody uses it any more
	seen    time.Time

	mu   sync.Mutex
	file *os.File    // the same directory; nil: nobody has needed it yet
	info fs.FileInfo // which directory it is; nil: nobody has asked yet
}

func newKeptDirs(max int64) *keptDirs {
	return &keptDirs{max: int(max), dirs: make(map[string]*ring.Element)}
}

// mostKept is how many directories may be kept. On Windows one that is open could not be
// removed.
func mostKept() int64 {
	if runtime.GOOS == "windows" {
		return 0
	}
	return min(maxKept, spool.OpenFileLimit()/keptPart/2)
}

// keptName is the directory on the way to name that is to be kept open: of content, that
// of its first two digits; of a repository, those of its blobs' links, its manifests' links and
// its tags. Each is found by way of another one. "" is the root.
func keptName(name string) string {
	parts := strings.Split(name, "/")
	base := 1
	if parts[0] != string(layout.Own) {
		base = strings.Count(string(layout.Registry), "/") + 1
	}
	ends := []int{base}
	switch at := func(i int) string {
		if i < len(parts) {
			return parts[i]
		}
		return ""
	}; at(base) {
	case "blobs":
		ends = append(ends, base+2, base+3)
	case "staging":
		ends = append(ends, base+2)
	case "repositories":
		i := base + 1
		for i < len(parts) && !strings.HasPrefix(parts[i], "_") {
			i++
		}
		below := i + 2
		if at(i+1) == "revisions" {
			below++
		}
		ends = append(ends, i, below)
	}
	for i := len(ends) - 1; i >= 0; i-- {
		if ends[i] < len(parts) {
			return strings.Join(parts[:ends[i]], "/")
		}
	}
	return ""
}

// find returns the directory if it is open, for the caller to release.
func (k *keptDirs) find(name string) (dir *keptDir, fresh bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	at, ok := k.dirs[name]
	if !ok {
		return nil, false
	}
	dir = at.Value.(*keptDir)
	k.order.MoveToFront(at)
	dir.users++
	return dir, time.Since(dir.seen) < linkAge
}

// isFresh reports whether the directory was what its name says a moment ago.
func (k *keptDirs) isFresh(dir *keptDir) bool {
	if dir.name == "" {
		return true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return time.Since(dir.seen) < linkAge
}

// add keeps the directory, and closes those that are too many. The caller releases it.
func (k *keptDirs) add(dir *keptDir) {
	k.mu.Lock()
	defer k.mu.Unlock()
	dir.users, dir.seen = 1, time.Now()
	if k.closed || k.dirs[dir.name] != nil { // somebody else was faster
		dir.dropped = true
		return
	}
	k.dirs[dir.name] = k.order.PushFront(dir)
	for k.order.Len() > k.max {
		k.dropLocked(k.order.Back())
	}
}

func (k *keptDirs) release(dir *keptDir) {
	if dir.name == "" {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if dir.users--; dir.users == 0 && dir.dropped {
		dir.close()
	}
}

// drop forgets all of them: one of them is not what its name says any more.
func (k *keptDirs) drop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dropAllLocked()
}

func (k *keptDirs) dropAllLocked() {
	for k.order.Len() > 0 {
		k.dropLocked(k.order.Back())
	}
}

func (k *keptDirs) dropLocked(at *ring.Element) {
	dir := k.order.Remove(at).(*keptDir)
	delete(k.dirs, dir.name)
	if dir.dropped = true; dir.users == 0 {
		dir.close()
	}
}

// close forgets all of them, and keeps none from now on.
func (k *keptDirs) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	k.dropAllLocked()
}

func (dir *keptDir) close() {
	_ = dir.root.Close() // nothing was written by way of it that its own sync has not seen
	if dir.file != nil {
		_ = dir.file.Close()
	}
}

// handle is the directory itself, for what a Root cannot do.
func (dir *keptDir) handle() (f *os.File, err error) {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	if dir.file == nil {
		dir.look()
		dir.file, err = dir.root.Open(".")
	}
	return dir.file, err
}

// identity says which directory it is: that never changes.
func (dir *keptDir) identity() (info fs.FileInfo, err error) {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	if dir.info == nil {
		dir.look()
		dir.info, err = dir.root.Stat(".")
	}
	return dir.info, err
}

// keep returns the open directory on the way to name, for the caller to release, and
// the rest of the way. What another process has moved is noticed after a second.
func (d *disk) keep(name string) (dir *keptDir, rest string, err error) {
	at := ""
	if d.kept != nil && d.kept.max > 0 {
		at = keptName(name)
	}
	if at == "" {
		return &keptDir{root: d.root}, name, nil
	}
	rest = name[len(at)+1:]
	dir, fresh := d.kept.find(at)
	switch {
	case fresh:
		return dir, rest, nil
	case dir != nil && d.isStill(dir):
		return dir, rest, nil
	case dir != nil:
		d.kept.release(dir)
		d.kept.drop()
	}
	dir = &keptDir{name: at, look: func() { _ = d.before(step{op: "look", name: at}) }}
	err = d.in("open", at, func(parent *keptDir, rest string) (err error) {
		dir.root, err = parent.root.OpenRoot(rest)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	dir.look() // a Root looks whether it is a directory
	d.kept.add(dir)
	return dir, rest, nil
}

// isStill reports whether the name of the open directory is still its own.
func (d *disk) isStill(dir *keptDir) bool {
	if dir.name == "" {
		return true
	}
	ours, err := dir.identity()
	if err != nil {
		return false
	}
	dir.look()
	named, err := os.Stat(filepath.Join(d.root.Name(), filepath.FromSlash(dir.name)))
	if err != nil || !os.SameFile(ours, named) {
		return false
	}
	d.kept.mu.Lock()
	defer d.kept.mu.Unlock()
	dir.seen = time.Now()
	return true
}

// in calls f with an open directory on the way to name, and the rest of the way. When
// nothing is found there, and somebody has removed that directory meanwhile, it looks for
// the directory once more. Whoever only reads believes for a second that the directory is
// what its name says.
func (d *disk) in(op, name string, f func(dir *keptDir, rest string) error) error {
	for again := true; ; again = false {
		dir, rest, err := d.keep(name)
		if err != nil {
			return err
		}
		if err = d.before(step{op: op, name: strings.TrimSuffix(name, here), walks: dir.walks(rest)}); err == nil {
			err = f(dir, rest)
		}
		reads := op == "open" || op == "stat"
		if gone := again && errors.Is(err, fs.ErrNotExist) && !(reads && d.kept.isFresh(dir)) && !d.isStill(dir); gone {
			d.kept.release(dir)
			d.kept.drop()
			continue
		}
		d.release(dir)
		return named(err, name)
	}
}

// walks is how many directories are opened on the way.
func (dir *keptDir) walks(rest string) int {
	if dir.direct(rest) {
		return 0
	}
	return strings.Count(strings.TrimSuffix(rest, here), "/")
}

func (d *disk) release(dir *keptDir) {
	if dir.name != "" {
		d.kept.release(dir)
	}
}

// named is err with the whole name of what it is about.
func named(err error, name string) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		e.Path = name
	}
	return err
}
