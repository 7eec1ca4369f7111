package diststore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// FormatError is the error of [Store.CheckFormat] for a bucket whose format this
// version of the package does not know.
type FormatError struct {
	Format string // what the bucket's note of the format says, such as "2"
}

// Error implements error.
func (e *FormatError) Error() string { return layout.FormatMessage(e.Format) }

// CheckFormat reads the note of the bucket's format, and writes the note if the
// bucket has none. A host calls it once, before it uses the Store: a Store that
// was not asked takes the bucket for one that it knows, and makes no request of
// its own. The error is a [*FormatError] if a newer version of this package has
// written the bucket; then the Store must not be used. A bucket that cannot be
// written is no error.
func (s *Store) CheckFormat(ctx context.Context) error {
	content, err := s.bucket.read(ctx, layout.Format, layout.MaxFormat)
	if errors.Is(err, layout.ErrDamaged) {
		return fmt.Errorf("diststore: %w", &FormatError{"too long"})
	}
	if errors.Is(err, fs.ErrNotExist) {
		_ = s.bucket.put(ctx, layout.Format, []byte(layout.FormatNote)) // a bucket without the note is as good
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("diststore: check the format: %w", err)
	}
	if said, ok := layout.CheckFormat(content); !ok {
		return fmt.Errorf("diststore: %w", &FormatError{said})
	}
	return nil
}
