package dirstore

import (
	"errors"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// direct reports whether the system may follow the way by itself: it has one step, or
// it is among the files that this Store has made for itself just now.
func (dir *keptDir) direct(rest string) bool {
	return dir.name != "" && (!strings.Contains(rest, "/") || path.Dir(dir.name) == layout.Staging)
}

// again calls f until no signal interrupts it.
func again(f func() error) error {
	err := f()
	for err == syscall.EINTR {
		err = f()
	}
	return err
}

// in calls f with the directory's descriptor.
func (dir *keptDir) in(op, rest string, f func(fd int) error) error {
	file, err := dir.handle()
	if err != nil {
		return err
	}
	if err = again(func() error { return f(int(file.Fd())) }); err != nil {
		err = &os.PathError{Op: op, Path: rest, Err: err}
	}
	return err
}

// open opens what is there for reading. A [os.Root] would ask the system whether it could wait for
// the file, which is no use for one on a disk; it follows links where there are any.
func (dir *keptDir) open(rest string) (f *os.File, err error) {
	if dir.name == "" {
		return dir.root.Open(rest)
	}
	err = dir.in("open", rest, func(fd int) error {
		fd, err := openBelow(fd, rest)
		if err == nil {
			f = os.NewFile(uintptr(fd), path.Join(dir.root.Name(), rest))
		}
		return err
	})
	if errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENOTDIR) {
		return dir.root.Open(rest)
	}
	return f, err
}

// openBelow opens a file below a directory. A link on the way is an error.
func openBelow(fd int, rest string) (int, error) {
	const flags = syscall.O_RDONLY | syscall.O_NOFOLLOW | syscall.O_CLOEXEC
	first, more, found := strings.Cut(rest, "/")
	if !found {
		return syscall.Openat(fd, rest, flags, 0)
	}
	below, err := syscall.Openat(fd, first, flags|syscall.O_DIRECTORY, 0)
	if err != nil {
		return 0, err
	}
	file, err := openBelow(below, more)
	_ = syscall.Close(below)
	return file, err
}

// create makes a new file.
func (dir *keptDir) create(rest string) (f *os.File, err error) {
	if !dir.direct(rest) {
		return dir.root.OpenFile(rest, os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode)
	}
	err = dir.in("create", rest, func(fd int) error {
		fd, err := syscall.Openat(fd, rest, syscall.O_RDWR|syscall.O_CREAT|syscall.O_EXCL|syscall.O_CLOEXEC, fileMode)
		if err == nil {
			f = os.NewFile(uintptr(fd), path.Join(dir.root.Name(), rest))
		}
		return err
	})
	return f, err
}

func (dir *keptDir) mkdir(rest string) error {
	if !dir.direct(rest) {
		return dir.root.Mkdir(rest, dirMode)
	}
	return dir.in("mkdir", rest, func(fd int) error { return syscall.Mkdirat(fd, rest, dirMode) })
}

// openDir opens a directory below.
func (dir *keptDir) openDir(rest string) (f *os.File, err error) {
	if !dir.direct(rest) {
		return dir.root.Open(rest)
	}
	err = dir.in("open", rest, func(fd int) error {
		fd, err := syscall.Openat(fd, rest, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
		if err == nil {
			f = os.NewFile(uintptr(fd), path.Join(dir.root.Name(), rest))
		}
		return err
	})
	return f, err
}

// renameIn renames from, which is old in source, to to, which is name in target.
func (d *disk) renameIn(source *keptDir, old string, target *keptDir, name, from, to string) error {
	if !source.direct(old) || !target.direct(name) {
		return d.root.Rename(from, to)
	}
	err := source.in("rename", from, func(fd int) error {
		return target.in("rename", to, func(targetFd int) error { return syscall.Renameat(fd, old, targetFd, name) })
	})
	return err
}

// startWriting has the system begin to write what is in the file: several files that are
// synced then wait for the disk together.
func startWriting(f *os.File) {
	const write = 2                                     // SYNC_FILE_RANGE_WRITE
	_ = syscall.SyncFileRange(int(f.Fd()), 0, 0, write) // the sync that follows says what has failed
}
