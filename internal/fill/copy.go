package fill

import (
	"context"
	"errors"
	"hash"
	"io"
	"math"
	"runtime"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

// A read is firstRead at first, so that who waits for the first bytes has them soon, and
// twice as much each time, up to copyBuffer.
const (
	firstRead  = 32 << 10
	copyBuffer = 256 << 10
)

var copyBuffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}

// errWrongDigest is the cause of an ErrDigest for a blob of the right length.
var errWrongDigest = errors.New("blob has the digest")

// A stretch of maxDrop that is there already is read in vain rather than asking anew behind
// it: a connection that is hung up on is lost, with what is on its way. All of them together
// are a fiftieth of the blob and dropSlack.
const (
	maxDrop   = 1 << 20
	dropSlack = 512 << 10
)

// copier moves the main stream of a fill into its spool, and verifies all of it.
type copier struct {
	fill    *Fill
	windows *windows
	source  Source
	size    int64 // -1: not known
	hash    hash.Hash
	buf     []byte
	most    int   // of the next read
	at      int64 // how far the source has come
	until   int64 // where it ends
	dropped int64 // what was read in vain
}

// copy moves the body into the spool and verifies it. Only the body's context
// ends it early, and what the watch has to say.
func (f *Fill) copy(ctx context.Context, w *windows, source Source, size int64) error {
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	c := copier{
		fill: f, windows: w, source: source, size: size,
		hash: f.job.Digest.Algorithm().Hash(), buf: buf[:], most: firstRead,
		at: source.Offset(), until: math.MaxInt64,
	}
	if until := source.Until(); until >= 0 && until < size {
		c.until = until
	}
	if w.striped {
		done, err := c.stripes(ctx)
		if err != nil {
			return err
		}
		if done {
			return f.verify(c.hash, size)
		}
	}
	for {
		done, err := c.step(ctx)
		if err != nil {
			return err
		}
		if done {
			return f.verify(c.hash, size)
		}
	}
}

// step reads once. done reports whether there is no more.
func (c *copier) step(ctx context.Context) (done bool, err error) {
	buf := c.buf[:c.most]
	c.most = min(2*c.most, len(c.buf))
	if c.windows.used.Load() || c.at == c.until {
		if done, err := c.meet(ctx); done || err != nil {
			return done, err
		}
		buf = buf[:min(int64(len(buf)), c.fill.spool.Gap())]
	}
	n, err := c.source.Read(buf)
	c.at += int64(n)
	if n > 0 {
		if err := c.fill.append(ctx, buf[:n], c.hash, c.size); err != nil {
			return false, err
		}
		c.fill.showLarge(c.size)
		if c.at == int64(n) {
			runtime.Gosched() // who waits for the first bytes runs before the next are copied
		}
	}
	switch {
	case err == io.EOF && c.at == c.until && c.at < c.size:
		return false, nil // it was asked for no more
	case err == io.EOF:
		return true, nil
	case err != nil:
		return false, c.fill.explainBreak(ctx, err)
	}
	return false, nil
}

// meet brings the prefix over what windows have brought, or are bringing, and the source to
// where there is something left to do for it.
func (c *copier) meet(ctx context.Context) (done bool, err error) {
	c.windows.rest(ctx)
	if err := c.catchUp(ctx); err != nil {
		return false, err
	}
	written := c.fill.spool.Written()
	if written == c.size {
		return true, nil
	}
	behind := written - c.at
	switch {
	case behind == 0 && c.at < c.until:
		return false, nil
	case written >= c.until, behind > maxDrop, c.dropped+behind > c.size/50+dropSlack:
		c.until = min(c.size, written+min(c.fill.spool.Gap(), c.size))
		err = c.source.Jump(written, c.until)
	default:
		c.dropped += behind
		_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{io.LimitReader(c.source, behind)}, c.buf)
	}
	c.at = written
	if err != nil {
		return false, c.fill.explainBreak(ctx, err)
	}
	return false, nil
}

// catchUp moves what is there right behind the prefix into it. What is hashed is what was
// stored, and not what came: it is read back. For what a window is bringing it waits.
func (c *copier) catchUp(ctx context.Context) error {
	s := c.fill.spool
	c.windows.resting.Store(true) // nothing is read meanwhile
	defer c.windows.resting.Store(false)
	for {
		n, wait := s.Ahead()
		switch {
		case n > 0:
			if err := c.takeAhead(ctx, n); err != nil {
				return err
			}
		case wait == nil:
			return nil
		default:
			select {
			case <-wait:
			case <-ctx.Done():
			}
		}
		if cause := context.Cause(ctx); cause != nil {
			return c.fill.explainBreak(ctx, cause)
		}
	}
}

// takeAhead moves the next n bytes into the prefix, or as many as fit into the buffer.
func (c *copier) takeAhead(ctx context.Context, n int64) error {
	p := c.buf[:min(n, int64(len(c.buf)))]
	if err := c.fill.spool.ReadAhead(p); err != nil {
		return newError(ErrSpool, "spool: %w", err)
	}
	if err := c.fill.keep(ctx, p, c.hash, c.size, c.fill.spool.TakeAhead); err != nil {
		return err
	}
	c.fill.showLarge(c.size)
	return nil
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
	return f.keep(ctx, p, verifier, size, f.spool.Write)
}

func (f *Fill) keep(ctx context.Context, p []byte, verifier hash.Hash, size int64, write func([]byte) (int, error)) error {
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
	_, err := write(p)
	if _, busy := errors.AsType[*Error](err); err == nil || busy {
		return err
	}
	return newError(ErrSpool, "spool: %w", err)
}

// margin is how much more may come than size. A manifest's word may be a little off,
// which does no harm as long as nobody has been told.
func (f *Fill) margin(size int64) int64 {
	if f.told && size <= f.small() {
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
