package dirstore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"

	"github.com/ecr-pullthrough/pullthrough/internal/filelock"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// sizeWidth is how many digits the file with the size has, always: one write
// replaces them all.
const sizeWidth = 20

// addSize adds n to the bytes of content that the processes of this directory have
// counted, and returns the sum. Where nobody has counted yet, or where that was
// lost, the error Is fs.ErrNotExist. The sum is near the truth, no more: a crash
// can lose a number, and other programs do not count. Each sweep sets it right.
func (s *Store) addSize(n int64) (int64, error) {
	return s.updateSize(os.O_RDWR, func(have int64, known bool) (int64, error) {
		if !known {
			return 0, fmt.Errorf("nobody has counted: %w", fs.ErrNotExist)
		}
		return have + n, nil
	})
}

// beginCount has everybody count from now on, and returns what was counted before.
func (s *Store) beginCount() (int64, error) {
	return s.updateSize(os.O_RDWR|os.O_CREATE, func(have int64, _ bool) (int64, error) { return have, nil })
}

// updateSize is one step for all processes. f gets what is there, if it is a number.
func (s *Store) updateSize(flag int, f func(have int64, known bool) (int64, error)) (int64, error) {
	var file *os.File
	err := s.disk.in("count", layout.Size, func(dir *keptDir, rest string) (err error) {
		file, err = dir.root.OpenFile(rest, flag, fileMode)
		return err
	})
	if err != nil {
		return 0, err
	}
	defer func() { _ = file.Close() }()
	if err := filelock.Lock(file, filelock.Alone); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return 0, err
	}
	digits := make([]byte, sizeWidth+1)
	n, err := file.ReadAt(digits, 0)
	if err != nil && err != io.EOF {
		return 0, err
	}
	have, err := strconv.ParseInt(string(digits[:n]), 10, 64)
	size, err := f(have, err == nil && n == sizeWidth && have >= 0)
	if err != nil {
		return 0, err
	}
	_, err = fmt.Fprintf(io.NewOffsetWriter(file, 0), "%0*d", sizeWidth, max(size, 0))
	return size, err
}
