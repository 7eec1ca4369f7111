package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/fill"
)

// sure makes a hit whose Body is no file one that is fetched where that Body turns out
// not to be there. What answers by itself, and what lies in memory, stays as it is.
func (bl *blobs) sure(ctx context.Context, r Request, b *Blob) *Blob {
	switch b.Body.(type) {
	case syscall.Conn, http.Handler, *memoryBody:
		return b
	}
	if r.Head {
		return b
	}
	size := b.Descriptor.Size
	late := &lateBody{ReadCloser: b.Body, again: func(cause error) (io.ReadSeekCloser, error) {
		return bl.refetch(ctx, r, size, cause)
	}}
	hit := *b
	hit.Body = late
	if _, ok := b.Body.(io.Seeker); ok {
		hit.Body = &seekingLateBody{late}
	}
	return &hit
}

// refetch brings in a blob whose Body could not be read, because of cause. The Store,
// which says that it has the blob, is not asked again.
func (bl *blobs) refetch(ctx context.Context, r Request, size int64, cause error) (io.ReadSeekCloser, error) {
	if errors.Is(cause, fs.ErrNotExist) {
		cause = nil
	}
	bl.store.failed(ctx, r.Repo, r.Ref, cause)
	rt, out, err := bl.enter(ctx, r, cause)
	out.blob = true
	if err != nil {
		return nil, out.words(ctx, r.Repo, r.Ref, err)
	}
	unasked := func() fill.Job {
		j := bl.job(rt, digest.Digest(r.Ref), false)
		j.Stored = nil
		return j
	}
	for range maxLosses { // another fetch, which has asked the Store, may run
		var a fill.Answer
		a, err = bl.fills.Open(ctx, rt.key(r.Ref), unasked)
		if err == nil && a.Size == size {
			return a.Body, nil
		}
		if err == nil {
			err = errors.Join(rt.error(ErrDigest, fmt.Errorf("blob of %d bytes is stored with %d", a.Size, size)), a.Body.Close())
		}
		if !errors.Is(err, fill.ErrStored) {
			return nil, out.words(ctx, r.Repo, r.Ref, err)
		}
	}
	return nil, out.words(ctx, r.Repo, r.Ref, errLost(rt))
}

// lateBody is the Body of a stored blob that may turn out not to be there when it is
// read: what was evicted since, an object of a bucket that is gone. Nothing has been
// read then, so that another body can take its place.
type lateBody struct {
	io.ReadCloser
	off   int64                                        // of the first read
	again func(cause error) (io.ReadSeekCloser, error) // nil: there has been a first read
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
