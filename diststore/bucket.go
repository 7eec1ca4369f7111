package diststore

import (
	"context"
	"fmt"
	"io"
	"path"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// bucket is the driver with our names and errors. Nothing is asked of it once the
// context has ended: not all drivers look at it.
type bucket struct {
	driver  storagedriver.StorageDriver
	streams bool // small objects can be read while they are replaced
}

// key is the driver's path of a name.
func key(name string) string { return "/" + name }

// read returns a small object, of at most limit bytes.
func (b bucket) read(ctx context.Context, name string, limit int64) ([]byte, error) {
	content, err := b.some(ctx, name, limit+1)
	if err != nil {
		return nil, fault(ctx, "read", name, err)
	}
	if int64(len(content)) > limit {
		return nil, fmt.Errorf("%s is too long: %w", name, layout.ErrDamaged)
	}
	return content, nil
}

// some returns the first bytes of an object, all of them if it is a driver for
// tests. The errors are the driver's.
func (b bucket) some(ctx context.Context, name string, limit int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !b.streams {
		return b.driver.GetContent(ctx, key(name))
	}
	r, err := b.driver.Reader(ctx, key(name), 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	return io.ReadAll(io.LimitReader(r, limit))
}

// open returns what is in the object from an offset on. The reader's errors are
// the driver's.
func (b bucket) open(ctx context.Context, name string, offset int64) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r, err := b.driver.Reader(ctx, key(name), offset)
	if err != nil {
		return nil, fault(ctx, "read", name, err)
	}
	return r, nil
}

// put makes name an object with this content, in one step.
func (b bucket) put(ctx context.Context, name string, content []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return fault(ctx, "write", name, b.driver.PutContent(ctx, key(name), content))
}

// size is the length of the object. What is no object Is [layout.ErrDamaged].
func (b bucket) size(ctx context.Context, name string) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	info, err := b.driver.Stat(ctx, key(name))
	switch {
	case err != nil:
		return 0, fault(ctx, "stat", name, err)
	case info.IsDir():
		return 0, fmt.Errorf("%s is a directory: %w", name, layout.ErrDamaged)
	}
	return info.Size(), nil
}

// exists is nil if there is an object or a directory of that name.
func (b bucket) exists(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := b.driver.Stat(ctx, key(name))
	return fault(ctx, "stat", name, err)
}

// list returns the last elements of what is in the directory, at most maxListed.
func (b bucket) list(ctx context.Context, dir string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	found, err := b.driver.List(ctx, key(dir))
	if err != nil {
		return nil, fault(ctx, "list", dir, err)
	}
	if err := listable(len(found)); err != nil {
		return nil, err
	}
	for i, name := range found {
		found[i] = path.Base(name)
	}
	return found, nil
}

// move gives the object another name, in one step.
func (b bucket) move(ctx context.Context, from, to string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return fault(ctx, "move", to, b.driver.Move(ctx, key(from), key(to)))
}

// remove removes an object.
func (b bucket) remove(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return fault(ctx, "remove", name, b.driver.Delete(ctx, key(name)))
}
