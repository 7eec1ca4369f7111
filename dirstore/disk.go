package dirstore

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
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
	probe func(op, name string) error // for tests: counts, and fails; nil: none
}

func (d *disk) before(op, name string) error {
	if d.probe == nil {
		return nil
	}
	if err := d.probe(op, name); err != nil {
		return &fs.PathError{Op: op, Path: name, Err: err}
	}
	return nil
}

func (d *disk) open(name string) (*os.File, error) {
	if err := d.before("open", name); err != nil {
		return nil, err
	}
	return d.root.Open(name)
}

func (d *disk) stat(name string) (fs.FileInfo, error) {
	if err := d.before("stat", name); err != nil {
		return nil, err
	}
	return d.root.Stat(name)
}

func (d *disk) create(name string) (*os.File, error) {
	if err := d.before("create", name); err != nil {
		return nil, err
	}
	return d.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode)
}

func (d *disk) sync(f *os.File) error {
	if err := d.before("sync", f.Name()); err != nil {
		return err
	}
	return f.Sync()
}

// close closes what was written: some file systems say only then that it failed.
func (d *disk) close(f *os.File) error { return errors.Join(d.before("close", f.Name()), f.Close()) }

func (d *disk) rename(from, to string) error {
	if err := d.before("rename", to); err != nil {
		return err
	}
	return d.root.Rename(from, to)
}

// link gives the file a second name, which must not be there.
func (d *disk) link(name, second string) error {
	if err := d.before("link", second); err != nil {
		return err
	}
	return d.root.Link(name, second)
}

// aside gives what others see another name, where nobody looks.
func (d *disk) aside(name, aside string) error {
	if err := d.before("aside", name); err != nil {
		return err
	}
	return d.root.Rename(name, aside)
}

func (d *disk) mkdir(name string) error {
	if err := d.before("mkdir", name); err != nil {
		return err
	}
	return d.root.Mkdir(name, dirMode)
}

func (d *disk) remove(name string) error {
	if err := d.before("remove", name); err != nil {
		return err
	}
	return d.root.Remove(name)
}

// changes are the directories whose entries are not on the disk for certain.
type changes struct{ dirs []string }

func (c *changes) add(dir string) {
	if !slices.Contains(c.dirs, dir) {
		c.dirs = append(c.dirs, dir)
	}
}

// flush syncs the directories that have changed, each once.
func (d *disk) flush(c *changes) error {
	for _, dir := range c.dirs {
		if err := d.syncDir(dir); err != nil {
			return err
		}
	}
	c.dirs = nil
	return nil
}

func (d *disk) syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // it has no such thing
	}
	if err := d.before("syncdir", dir); err != nil {
		return err
	}
	f, err := d.root.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed by somebody else, and our entry with it
	}
	if err != nil {
		return err
	}
	err = f.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		err = nil // this file system does not sync directories
	}
	return errors.Join(err, f.Close())
}

// publish gives the finished file temp its final name.
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
	err := d.before("touch", name)
	if err == nil {
		err = d.root.Chtimes(name, now, now)
	}
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
		err = d.before("remove", aside)
	}
	if err == nil {
		err = d.root.RemoveAll(aside)
	}
	return err
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
	if err := d.before("open", dir); err != nil {
		return disk{}, err
	}
	root, err := d.root.OpenRoot(dir)
	return disk{root, d.probe}, err
}
