package fill

import (
	"context"
	"errors"
	"hash"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

const copyBuffer = 256 << 10

var copyBuffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}

// errWrongDigest is the cause of an ErrDigest for a blob of the right length.
var errWrongDigest = errors.New("blob has the digest")

// copy moves the body into the spool and verifies it. Only the body's context
// ends it early, and what the watch has to say.
func (f *Fill) copy(ctx context.Context, body io.Reader, size int64) error {
	verifier := f.job.Digest.Algorithm().Hash()
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := body.Read(buf[:])
		if n > 0 {
			if err := f.append(ctx, buf[:n], verifier, size); err != nil {
				return err
			}
			f.showLarge(size)
		}
		if err == io.EOF {
			return f.verify(verifier, size)
		}
		if err != nil {
			return f.explainBreak(ctx, err)
		}
	}
}

// explainBreak is the error for a body that broke off. Where the fill's own context
// has ended, that is why, whatever the source makes of it.
func (f *Fill) explainBreak(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return newError(ErrBroken, "after %d bytes: %w", f.spool.Written(), cause)
	}
	return err
}

// append adds p to the spool and to the hash, if it is not too much. The hash runs
// over exactly what is written, in the order in which it is written.
func (f *Fill) append(ctx context.Context, p []byte, verifier hash.Hash, size int64) error {
	after := f.spool.Written() + int64(len(p))
	if size >= 0 && after > size+f.margin(size) {
		return tooLong(size)
	}
	if limit := f.job.maxBytes(); after > limit {
		return newError(ErrTooLarge, "blob is longer than %d bytes", limit)
	}
	if size < 0 && after > spool.MemoryLimit {
		if err := f.room.hold(ctx, f.room.step(after)); err != nil {
			return err
		}
	}
	_, _ = verifier.Write(p) // a hash.Hash never fails
	_, err := f.spool.Write(p)
	if _, busy := errors.AsType[*Error](err); err == nil || busy {
		return err
	}
	return newError(ErrSpool, "spool: %w", err)
}

// margin is how much more may come than size. A manifest's word may be a little off,
// which does no harm as long as nobody has been told.
func (f *Fill) margin(size int64) int64 {
	if f.told && size <= smallBlob {
		return spool.Withheld
	}
	return 0
}

func tooLong(size int64) *Error {
	return newError(ErrDigest, "blob is longer than the %d bytes announced", size)
}

// verify lets the digest decide. If that is wrong, a body that is too short is an
// upstream that broke off, not one that lies.
func (f *Fill) verify(verifier hash.Hash, size int64) error {
	got := digest.NewDigest(f.job.Digest.Algorithm(), verifier)
	written := f.spool.Written()
	switch {
	case got == f.job.Digest:
		return nil
	case size >= 0 && written < size:
		return newError(ErrBroken, "blob ended after %d of %d bytes", written, size)
	}
	return newError(ErrDigest, "%w %s", errWrongDigest, got)
}
