package pullthrough

import (
	"io"
)

// lateBody is the Body of a stored blob that may turn out not to be there when it is
// read: what was evicted since, an object of a bucket that is gone. Nothing has been
// read then, so that another body can take its place.
type lateBody struct {
	io.ReadCloser
	off   int64                                        // of the first read
	again func(cause error) (io.ReadSeekCloser, error) // nil: there has been a first read
}

func newLateBody(body io.ReadCloser, again func(cause error) (io.ReadSeekCloser, error)) io.ReadCloser {
	late := &lateBody{ReadCloser: body, again: again}
	if _, ok := body.(io.Seeker); ok {
		return &seekingLateBody{late}
	}
	return late
}

// Unsure marks a body whose header waits for its first bytes.
func (b *lateBody) Unsure() {}

func (b *lateBody) Read(p []byte) (int, error) {
	if b.again == nil || len(p) == 0 {
		return b.ReadCloser.Read(p)
	}
	again := b.again
	b.again = nil
	n, err := b.ReadCloser.Read(p)
	if n > 0 || err == nil || err == io.EOF {
		return n, err
	}
	next, err := again(err)
	if err != nil {
		return 0, err
	}
	_ = b.ReadCloser.Close() // there was nothing in it
	b.ReadCloser = next
	if _, err := next.Seek(b.off, io.SeekStart); err != nil {
		return 0, err
	}
	return next.Read(p)
}

// seekingLateBody is one that can seek.
type seekingLateBody struct{ *lateBody }

func (b *seekingLateBody) Seek(offset int64, whence int) (int64, error) {
	off, err := b.ReadCloser.(io.Seeker).Seek(offset, whence)
	if err == nil {
		b.off = off
	}
	return off, err
}
