package dirstore

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	dirMode  = 0o755
	fileMode = 0o644

	// mkdirTries bounds the race with somebody who removes directories, such as
	// the registry's garbage collection.
	mkdirTries = 3
)

// disk is the file system below the store's directory, and nothing else of it:
// an os.Root follows no link out of there.
type disk struct {
	root  *os.Root
	probe func(step) error // for tests: counts, and fails; nil: none
	kept  *keptDirs        // nil: all is found from the root
}

// step is something that is done to the disk.
type step struct {
	op, name string
	from     string // of what gets another name: the one that it had
	walks    int    // directories that are opened on the way
}

func (d *disk) before(s step) error {
	if d.probe == nil {
		return nil
	}
	if err := d.probe(s); err != nil {
		return &fs.PathError{Op: s.op, Path: s.name, Err: err}
	}
	return nil
}

func (d *disk) open(name string) (f *os.File, err error) {
	err = d.in("open", name, func(dir *keptDir, rest string) (err error) {
		f, err = dir.open(rest)
		return err
	})
	return f, err
}

func (d *disk) stat(name string) (info fs.FileInfo, err error) {
	err = d.in("stat", name, func(dir *keptDir, rest string) (err error) {
		info, err = dir.root.Stat(rest)
		return err
	})
	return info, err
}

// create makes a new file.
func (d *disk) create(name string) (f *os.File, err error) {
	err = d.in("create", name, func(dir *keptDir, rest string) (err error) {
		f, err = dir.create(rest)
		return err
	})
	return f, err
}

func (d *disk) sync(f *os.File) error {
	if err := d.before(step{op: "sync", name: f.Name()}); err != nil {
		return err
	}
	return f.Sync()
}

// close closes what was written: some file systems say only then that it failed.
func (d *disk) close(f *os.File) error {
	return errors.Join(d.before(step{op: "close", name: f.Name()}), f.Close())
}

func (d *disk) rename(from, to string) error { return d.move("rename", from, to) }

// aside gives what others see another name, where nobody looks.
func (d *disk) aside(name, aside string) error { return d.move("aside", name, aside) }

// move gives a file or a directory another name.
func (d *disk) move(op, from, to string) error {
	for again := true; ; again = false {
		source, old, err := d.keep(from)
		if err != nil {
			return err
		}
		target, name, err := d.keep(to)
		if err != nil {
			d.release(source)
			return err
		}
		if err = d.before(moved(op, from, to)); err == nil {
			err = d.renameIn(source, old, target, name, from, to)
		}
		gone := again && errors.Is(err, fs.ErrNotExist) && !(d.isStill(source) && d.isStill(target))
		d.release(source)
		d.release(target)
		if !gone {
			return err
		}
		d.kept.drop()
	}
}

// moved is the step: what others see of it comes first.
func moved(op, from, to string) step {
	if op == "aside" {
		return step{op: op, name: from, from: from}
	}
	return step{op: op, name: to, from: from}
}

// link gives the file a second name, which must not be there.
func (d *disk) link(name, second string) error {
	if err := d.before(step{op: "link", name: second, from: name}); err != nil {
		return err
	}
	return d.root.Link(name, second)
}

func (d *disk) mkdir(name string) error {
	return d.in("mkdir", name, func(dir *keptDir, rest string) error { return dir.mkdir(rest) })
}

func (d *disk) remove(name string) error {
	return d.in("remove", name, func(dir *keptDir, rest string) error { return dir.root.Remove(rest) })
}

// changes are what is not on the disk for certain: files that were written, which are
// closed when they are, and directories whose entries are new.
type changes struct {
	files []*os.File
	bytes int64 // in the files
	dirs  []string
}

func (c *changes) add(dir string) {
	if !slices.Contains(c.dirs, dir) {
		c.dirs = append(c.dirs, dir)
	}
}

// here leads to the directory itself.
const here = "/."

// syncDir syncs the entries of a directory.
func (d *disk) syncDir(name string) error {
	if runtime.GOOS == "windows" {
		return nil // it has no such thing
	}
	err := d.in("syncdir", name+here, func(dir *keptDir, rest string) error {
		if rest == here[1:] && dir.name != "" {
			f, err := dir.handle()
			if err == nil {
				err = f.Sync()
			}
			return err
		}
		f, err := dir.openDir(strings.TrimSuffix(rest, here))
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // removed by somebody else, and our entry with it
	case errors.Is(err, syscall.EINVAL), errors.Is(err, errors.ErrUnsupported):
		return nil // this file system does not sync directories
	}
	return err
}

// publish gives the finished file or directory temp its final name.
func (d *disk) publish(temp, name string, c *changes) error {
	dir := path.Dir(name)
	err := d.rename(temp, name)
	for try := 0; try < mkdirTries && errors.Is(err, fs.ErrNotExist); try++ {
		if err = d.makeDir(dir, c); err == nil {
			err = d.rename(temp, name)
		}
	}
	if err == nil {
		c.add(dir)
	}
	return err
}

// makeDir makes dir and its parents, and notes whose entries are new.
func (d *disk) makeDir(dir string, c *changes) error {
	err := d.mkdir(dir)
	if parent := path.Dir(dir); errors.Is(err, fs.ErrNotExist) && parent != "." {
		if err = d.makeDir(parent, c); err == nil {
			err = d.mkdir(dir)
		}
	}
	switch {
	case err == nil:
		c.add(path.Dir(dir))
	case errors.Is(err, fs.ErrExist):
		err = nil
	}
	return err
}

// touch notes that the file is in use, if we may.
func (d *disk) touch(name string) error {
	now := time.Now()
	err := d.in("touch", name, func(dir *keptDir, rest string) error { return dir.root.Chtimes(rest, now, now) })
	if errors.Is(err, fs.ErrPermission) {
		err = nil // somebody else's file: its time stays as it is
	}
	return err
}

// removeAll removes a directory in one step, as far as others see it.
func (d *disk) removeAll(name, aside string) error {
	err := d.aside(name, aside)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = d.removeTree(aside)
	}
	return err
}

// removeTree removes a directory that nobody else looks at.
func (d *disk) removeTree(name string) error {
	return d.in("remove", name, func(dir *keptDir, rest string) error { return dir.root.RemoveAll(rest) })
}

// listed is how many entries of a directory are in memory at a time.
const listed = 1024

// list calls f for the entries of dir, in no order. One that is not there has none.
func (d *disk) list(dir string, f func(fs.DirEntry) error) error {
	file, err := d.open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	for {
		entries, err := file.ReadDir(listed)
		for _, e := range entries {
			if err := f(e); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// below is the disk from dir on: shorter names are looked up faster. It must be
// closed.
func (d *disk) below(dir string) (disk, error) {
	if err := d.before(step{op: "open", name: dir}); err != nil {
		return disk{}, err
	}
	root, err := d.root.OpenRoot(dir)
	return disk{root: root, probe: d.probe}, err
}
