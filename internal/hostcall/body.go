package hostcall

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Body is what a Store's PutBlob reads: exactly size bytes, from any offset. It
// makes the Store that people write first, one that reads all and keeps it, a
// right one: a body that is too short is an error and not a shorter blob, one that
// is too long ends where the blob ends, and a put whose context has ended cannot
// read on and store half of a blob.
//
// It is an [io.ReadSeeker] and, like any reader, for one goroutine at a time.
type Body struct {
	ctx      context.Context
	r        io.ReadSeeker
	size     int64
	off      int64
	progress func()
}

// NewBody returns a Body of size bytes over r, which begins at offset 0. It calls
// progress, if that is not nil, whenever it is read.
func NewBody(ctx context.Context, r io.ReadSeeker, size int64, progress func()) *Body {
	return &Body{ctx: ctx, r: r, size: size, progress: progress}
}

// Read implements [io.Reader]. It fails with the context's cause once the context
// has ended, and with an error that Is [io.ErrUnexpectedEOF] where the content ends
// before its size.
func (b *Body) Read(p []byte) (int, error) {
	if b.progress != nil {
		b.progress()
	}
	if err := context.Cause(b.ctx); err != nil {
		return 0, err
	}
	left := b.size - b.off
	if left <= 0 {
		return 0, io.EOF
	}
	n, err := b.r.Read(p[:min(int64(len(p)), left)])
	b.off += int64(n)
	if err == io.EOF && b.off < b.size {
		err = fmt.Errorf("blob ends after %d of %d bytes: %w", b.off, b.size, io.ErrUnexpectedEOF)
	} else if err == io.EOF && n > 0 {
		err = nil // the next call says so
	}
	return n, err
}

var errBeforeStart = errors.New("seek to before the start of a blob")

// Seek implements [io.Seeker]. The end is the blob's size, whatever lies behind it.
func (b *Body) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += b.off
	case io.SeekEnd:
		offset += b.size
	}
	if offset < 0 {
		return 0, errBeforeStart
	}
	if _, err := b.r.Seek(offset, io.SeekStart); err != nil {
		return 0, err
	}
	b.off = offset
	return offset, nil
}
