package verify

import (
	"io"
	"io/fs"
)

const (
	// Held is how many of the last bytes of a content its readers do not get before the
	// content is known to be right.
	Held = 64 << 10
	// Small is the size up to which content is read in full before any of it is
	// returned, in bytes.
	Small = 1 << 20
)

// Body reads content of which nobody knows yet whether it is right. It is not safe for
// concurrent use.
//
// It hides its content on purpose: net/http would send an *os.File past Read, with the
// end that is held back.
type Body struct {
	content io.ReadSeekCloser
	size    int64
	off     int64
	right   func() error
	known   bool // right has returned nil
	closed  bool
}

// NewBody returns a Body of size bytes over content, which is at offset 0. A read of
// the last [Held] bytes calls right, which waits until the content is known to be
// right, or returns why it is not.
func NewBody(content io.ReadSeekCloser, size int64, right func() error) *Body {
	return &Body{content: content, size: size, right: right}
}

// Read implements [io.Reader].
func (b *Body) Read(p []byte) (int, error) {
	end := b.size
	switch {
	case b.closed:
		return 0, fs.ErrClosed
	case len(p) == 0:
		return 0, nil
	case b.off >= b.size:
		return 0, io.EOF
	case b.known:
	case b.off < b.size-Held:
		end -= Held
	default:
		if err := b.right(); err != nil {
			return 0, err
		}
		b.known = true
	}
	n, err := b.content.Read(p[:min(int64(len(p)), end-b.off)])
	b.off += int64(n)
	if err == io.EOF && b.off < b.size {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Seek implements [io.Seeker]. It does not wait.
func (b *Body) Seek(offset int64, whence int) (int64, error) {
	if whence == io.SeekEnd {
		offset, whence = offset+b.size, io.SeekStart
	}
	at, err := b.content.Seek(offset, whence)
	if err == nil {
		b.off = at
	}
	return at, err
}

// Close implements [io.Closer].
func (b *Body) Close() error {
	b.closed = true
	return b.content.Close()
}
