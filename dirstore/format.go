package dirstore

import (
	"context"
	"errors"
	"io/fs"
	"strings"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// FormatError is the error of [Open] for a directory whose format this version of
// the package does not know. Open has changed nothing there.
type FormatError struct {
	Format string // what the directory's note of the format says, such as "2"
}

// Error implements error.
func (e *FormatError) Error() string { return layout.FormatMessage(e.Format) }

// readFormat reports whether the directory has a note of its format. The error is
// a [*FormatError] if we do not know the format.
func (s *Store) readFormat() (noted bool, err error) {
	content, err := reader{s}.Read(context.Background(), layout.Format, layout.MaxFormat)
	if errors.Is(err, layout.ErrDamaged) {
		return true, &FormatError{"too long"}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if said, ok := layout.CheckFormat(content); !ok {
		return true, &FormatError{said}
	}
	return true, nil
}

// writeFormat writes the note, unless another process is faster. A directory
// without a note is as good, so the next Open tries again when that fails.
func (s *Store) writeFormat() error {
	temp, err := s.spill(context.Background(), strings.NewReader(layout.FormatNote), int64(len(layout.FormatNote)))
	if err != nil {
		return nil
	}
	// A link, unlike a rename, does not replace a newer version's note.
	err = s.disk.link(temp, layout.Format)
	_ = s.disk.remove(temp)
	if errors.Is(err, fs.ErrExist) {
		_, err = s.readFormat()
		return err
	}
	return nil
}
