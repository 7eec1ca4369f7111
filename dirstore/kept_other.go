//go:build !linux

package dirstore

import "os"

// direct reports whether the system may follow the way by itself.
func (dir *keptDir) direct(string) bool { return false }

func (dir *keptDir) open(rest string) (*os.File, error) { return dir.root.Open(rest) }

func (dir *keptDir) create(rest string) (*os.File, error) {
	return dir.root.OpenFile(rest, os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode)
}

func (dir *keptDir) mkdir(rest string) error { return dir.root.Mkdir(rest, dirMode) }

func (dir *keptDir) openDir(rest string) (*os.File, error) { return dir.root.Open(rest) }

func (d *disk) renameIn(_ *keptDir, _ string, _ *keptDir, _, from, to string) error {
	return d.root.Rename(from, to)
}

func startWriting(*os.File) {}
