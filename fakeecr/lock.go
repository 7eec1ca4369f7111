package fakeecr

import (
	"errors"
	"os"

	"github.com/ecr-pullthrough/pullthrough/internal/filelock"
)

// lockData says by a locked file that a Server uses the directory: a second one would write
// over the settings and notes of the first. It locks nothing where nothing can be written, or
// where the file system has no locks.
func lockData(name string) (release func() error, err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return func() error { return nil }, nil
	}
	if err := filelock.Lock(f, filelock.Alone|filelock.Now); errors.Is(err, filelock.ErrLocked) {
		return nil, errors.Join(errors.New("another fakeecr uses this directory: end it, or choose another directory"), f.Close())
	}
	return f.Close, nil
}
