package dirstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"path"
	"slices"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/filing"
)

// maxSafe is of how many directories is known that they are there.
const maxSafe = 4096

// errTaken says that somebody has made the directory that was to get its name just now.
var errTaken = errors.New("the name is taken")

// writer is one put, as a [filing.Writer]. What it plants are directories in staging. They get
// their names one after the other, each by one rename, and only when what was planted
// before it cannot be lost.
type writer struct {
	reader
	plain   bool // whole directories are not possible: file by file
	planted []planted
	changes changes
	made    []string // directories that are safe when the changes are
	added   int64    // bytes of content that are new
}

// planted is a directory without its name.
type planted struct {
	temp, dir string
	size      int64 // of new content in it
	lent      bool  // by the caller, who removes it
}

// put runs f with a writer, while no process removes anything. Where a whole directory
// was to be named and is there by then, f runs again, and writes file by file.
func (s *Store) put(ctx context.Context, f func(w *writer) error) error {
	w := &writer{reader: reader{s}}
	err := s.commit(ctx, func() error {
		err := f(w)
		if w.forget(); errors.Is(err, errTaken) {
			w.plain = true
			err = f(w)
			w.forget()
		}
		return err
	})
	holdUp(ctx, s.grow(w.added))
	return err
}

// forget removes what has got no name.
func (w *writer) forget() {
	for _, f := range w.changes.files {
		_ = f.Close()
	}
	for _, p := range w.planted {
		if !p.lent {
			_ = w.s.disk.removeTree(p.temp) // it is swept if it stays
		}
	}
	w.planted, w.changes, w.made = nil, changes{}, nil
}

// Write implements [filing.Writer].
func (w *writer) Write(ctx context.Context, name string, content []byte) error {
	temp, err := w.s.spill(context.WithoutCancel(ctx), bytes.NewReader(content), int64(len(content)))
	if err != nil {
		return err
	}
	if err = w.s.disk.publish(temp, name, &w.changes); err != nil {
		_ = w.s.disk.remove(temp)
	}
	return err
}

// Note implements [filing.Writer]. It does not sync what is in the file.
func (w *writer) Note(ctx context.Context, name string, content []byte) error {
	temp, err := w.s.jot(ctx, content)
	if err != nil {
		return err
	}
	if err = w.s.disk.publish(temp, name, &w.changes); err != nil {
		_ = w.s.disk.remove(temp)
	}
	return err
}

// Plant implements [filing.Writer].
func (w *writer) Plant(_ context.Context, tree filing.Tree) (bool, error) {
	if w.plain {
		return false, nil
	}
	temp := path.Join(w.s.staging, rand.Text())
	if err := w.s.mkdirStaged(temp); err != nil {
		return false, err
	}
	w.planted = append(w.planted, planted{temp: temp, dir: tree.Dir})
	made := map[string]bool{temp: true}
	for i, f := range tree.Files {
		name := path.Join(temp, f.Name)
		if err := w.mkdirs(made, path.Dir(name)); err != nil {
			return false, err
		}
		if err := w.plantFile(name, f); err != nil {
			return false, err
		}
		if i == len(tree.Files)-1 { // the link comes last, and its directory has what it needs
			w.changes.add(path.Dir(name))
		}
	}
	return true, nil
}

// mkdirs makes a directory in staging, and those above it.
func (w *writer) mkdirs(made map[string]bool, dir string) error {
	if made[dir] {
		return nil
	}
	err := w.mkdirs(made, path.Dir(dir))
	if err == nil {
		err = w.s.disk.mkdir(dir)
	}
	made[dir] = true
	return err
}

func (w *writer) plantFile(name string, f filing.File) error {
	d := &w.s.disk
	file, err := d.create(name)
	if err != nil {
		return err
	}
	if err = d.before(step{op: "write", name: name}); err == nil {
		_, err = file.Write(f.Content)
	}
	if err == nil && !f.Note {
		w.changes.files, w.changes.bytes = append(w.changes.files, file), w.changes.bytes+int64(len(f.Content))
		return nil
	}
	return errors.Join(err, d.close(file))
}

// adopt is Plant for the finished file temp, the only one in its directory, as content.
func (w *writer) adopt(temp, name string, size int64) error {
	if !w.plain {
		w.planted = append(w.planted, planted{path.Dir(temp), path.Dir(name), size, true})
		w.changes.add(path.Dir(temp))
		return nil
	}
	if err := w.s.disk.publish(temp, name, &w.changes); err != nil {
		return err
	}
	_ = w.s.disk.removeTree(path.Dir(temp))
	w.added += size
	return w.flush()
}

// WriteContent implements [filing.Writer].
func (w *writer) WriteContent(ctx context.Context, at layout.Repository, name string, m *pullthrough.Manifest) error {
	if err := w.makeRepo(at); err != nil {
		return err
	}
	if err := w.s.touchReferences(at, m.Content); err != nil {
		return err
	}
	_, _, err := w.s.readManifest(name, m.Descriptor.Digest)
	if err == nil {
		return w.reuseContent(name)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	whole, err := w.Plant(ctx, filing.Tree{Dir: path.Dir(name), Files: []filing.File{{Name: path.Base(name), Content: m.Content}}})
	if err != nil {
		return err
	}
	if whole {
		w.planted[len(w.planted)-1].size = int64(len(m.Content))
		return nil
	}
	if err := w.Write(ctx, name, m.Content); err != nil {
		return err
	}
	w.added += int64(len(m.Content))
	return w.Sync()
}

// reuseContent says that content is in use. Somebody else may have stored it just now.
func (w *writer) reuseContent(name string) error {
	if err := w.s.disk.touch(name); err != nil {
		return err
	}
	return w.ensureNamed(path.Dir(name))
}

// Reuse implements [filing.Writer].
func (w *writer) Reuse(_ context.Context, v filing.Revision) error {
	if err := w.reuseContent(v.Data); err != nil {
		return err
	}
	return w.ensureNamed(v.Dir)
}

// ensureNamed sees to it that the directory, which is there, cannot be lost.
func (w *writer) ensureNamed(dir string) error {
	if w.isSafe(dir) {
		return nil
	}
	w.changes.add(path.Dir(dir))
	w.made = append(w.made, dir)
	return w.ensure(path.Dir(dir))
}

// Remove implements [filing.Writer].
func (w *writer) Remove(_ context.Context, name string) error { return w.s.disk.remove(name) }

// isSafe reports whether the directory is known to be there, and not to be lost.
func (w *writer) isSafe(dir string) bool {
	safe, _ := w.s.safe.Get(dir)
	return safe
}

// Sync implements [filing.Writer].
func (w *writer) Sync() error {
	if err := w.nameAll(w.ensure); err != nil {
		return err
	}
	return w.flush()
}

// Name implements [filing.Writer]. What is named last may be lost, with its parent.
func (w *writer) Name() error { return w.nameAll(w.ensureThere) }

// nameAll names what was planted. The parent of the last one is made by last.
func (w *writer) nameAll(last func(dir string) error) error {
	for len(w.planted) > 0 {
		p, ensure := w.planted[0], w.ensure
		if len(w.planted) == 1 {
			ensure = last
		}
		if err := w.flush(); err != nil {
			return err
		}
		if err := ensure(path.Dir(p.dir)); err != nil {
			return w.unnamed(err)
		}
		if err := w.name(p); err != nil {
			return w.unnamed(err)
		}
		w.planted, w.added = w.planted[1:], w.added+p.size
	}
	return nil
}

// name gives what was planted its name.
func (w *writer) name(p planted) error {
	err := w.s.disk.rename(p.temp, p.dir)
	if err == nil {
		w.changes.add(path.Dir(p.dir))
		w.made = append(w.made, p.dir)
	}
	return err
}

// unnamed is the error of what could not be named.
func (w *writer) unnamed(err error) error {
	gone := errors.Is(err, fs.ErrNotExist) // somebody has removed directories, such as the registry's garbage collection
	if gone {
		w.s.safe.Clear()
	}
	if gone || isTaken(err) {
		err = errors.Join(errTaken, err)
	}
	return err
}

// makeRepo makes the directory that says that the repository is there. It may have gone,
// and nothing that comes would notice.
func (w *writer) makeRepo(at layout.Repository) error {
	err := w.make(at.Layers())
	if err == nil {
		w.s.created.RemoveIf(at, func(struct{}) bool { return true }) // the disk knows by now
	}
	return err
}

// ensure makes the directory and those above it, unless they are known to be there and
// safe. They are safe when the changes are on the disk.
func (w *writer) ensure(dir string) error {
	if dir == "." || w.isSafe(dir) {
		return nil
	}
	return w.make(dir)
}

// ensureThere is ensure for a directory that may be lost.
func (w *writer) ensureThere(dir string) error {
	if _, known := w.s.safe.Get(dir); known {
		return nil
	}
	err := w.ensure(dir)
	if err == nil && !w.isSafe(dir) {
		w.s.safe.Put(dir, false)
	}
	return err
}

// roots are made when the Store is opened, each after the one that it is in. They become
// safe together.
var roots = []string{
	"docker", "docker/registry", string(layout.Registry), layout.Registry.Blobs(), layout.Registry.Repositories(), string(layout.Own),
}

// make is ensure for a directory that may have gone since.
func (w *writer) make(dir string) error {
	if slices.Contains(roots, dir) {
		return w.makeRoots()
	}
	err := w.ensure(path.Dir(dir))
	if err == nil {
		err = w.s.disk.mkdir(dir)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && w.s.safe.Len() > 0:
		w.s.safe.Clear() // those above have gone
		return w.make(dir)
	case errors.Is(err, fs.ErrExist) && w.isSafe(dir):
		return nil
	case err == nil, errors.Is(err, fs.ErrExist):
		w.changes.add(path.Dir(dir))
		w.made = append(w.made, dir)
		return nil
	}
	return err
}

func (w *writer) makeRoots() error {
	for _, dir := range roots {
		if err := w.s.disk.mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		w.changes.add(path.Dir(dir))
		w.made = append(w.made, dir)
	}
	return nil
}

// flush returns when all that has a name, and the files of all that has none, is on the
// disk.
func (w *writer) flush() error {
	err := w.s.group.sync(&w.s.disk, &w.changes)
	if err == nil {
		for _, dir := range w.made {
			w.s.safe.Put(dir, true)
		}
	}
	w.made = nil
	return err
}
