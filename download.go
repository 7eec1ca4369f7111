package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/quota"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

const (
	// A blob this small is verified before its answer starts, unless upstream
	// takes longer than smallBlobWait.
	smallBlob     = 1 << 20
	smallBlobWait = 2 * time.Second

	// roomWait is how long a download waits for room: in SpoolBytes, or among the
	// downloads of its rule.
	roomWait       = 10 * time.Second
	roomRetryAfter = 10 * time.Second
	// growStep is what a download of unknown length reserves at a time.
	growStep = 64 << 20

	// slowReader is how long a client may take for 600 KiB, about 1 KiB/s, while
	// others wait for the space that it holds.
	slowReader = 10 * time.Minute

	copyBuffer = 256 << 10
)

// errWrongDigest is the cause of an ErrDigest for a blob of the right length.
var errWrongDigest = errors.New("blob has the digest")

// errBusy is an ErrUnavailable that is our own doing.
var errBusy = fmt.Errorf("no room for the download: %w", ErrUnavailable)

var copyBuffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}

// runFill runs in the flight, from the question to upstream to the commit.
func (p *Proxy) runFill(call *blobCall, rt *route, d digest.Digest, part bool) (*fill, error) {
	ctx, cancel := context.WithCancelCause(call.Context())
	defer cancel(nil)
	ctx, trace := withTrace(ctx)
	start := p.now()
	f := &fill{rt: rt, digest: d, part: part, call: call, cancel: cancel, ended: make(chan struct{})}
	defer close(f.ended)
	if b := p.lookUpBlob(ctx, rt.repo, d); b != nil {
		return f, b.Body.Close()
	}
	size, err := p.download(ctx, f)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrDenied) {
		p.forgetSize(f) // a HEAD must not go on to say that it is there
	}
	if err != nil {
		f.err = locate(err, rt.repo, d.String())
	}
	e := Event{Object: EventBlob, Part: part, Digest: d.String(), Source: SourceFill, Bytes: size}
	p.tellFetch(call.Context(), rt, d.String(), e, trace, start, err)
	return f, err
}

// download spools the blob, verifies it and commits it. One that is damaged
// before anybody has seen a byte of it is fetched once more.
func (p *Proxy) download(ctx context.Context, f *fill) (int64, error) {
	turn := p.state().turns(f.rt)
	if err := p.wait(ctx, turn, 1); err != nil {
		return 0, err
	}
	done := sync.OnceFunc(func() { turn.Give(1) })
	defer done()
	err := p.spoolBlob(ctx, f)
	if errors.Is(err, errWrongDigest) && f.spool != nil && f.hidden && f.rt.policy.Retries >= 0 {
		f.discard(err)
		err = p.spoolBlob(ctx, f)
	}
	if f.spool == nil {
		return 0, err
	}
	// Out of sight first: nobody must join a download that lets go of its content.
	defer func() { f.call.Unlink(); f.spool.Release() }()
	done() // the Store must not hold up other downloads
	return p.conclude(f, err)
}

// spoolBlob fetches the blob into a spool, unless there is none to be had, and
// verifies it.
func (p *Proxy) spoolBlob(ctx context.Context, f *fill) error {
	body, err := p.state().upstream.transfer(ctx, f.rt, f.digest)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	size, err := p.declaredSize(f, body.total)
	if err != nil {
		return err
	}
	room, err := p.openSpool(ctx, f, size)
	if err != nil {
		return err
	}
	show := func() { f.call.Publish(f) }
	unseen := func() bool { return true }
	switch {
	case size > smallBlob:
		show()
		unseen = func() bool { return false }
	case size >= 0:
		unseen = time.AfterFunc(smallBlobWait, show).Stop
	}
	watch := p.watch(f, body)
	err = f.copy(ctx, body, size, room)
	watch.Stop()
	f.hidden = unseen()
	return err
}

// discard lets go of a spool that nobody has seen.
func (f *fill) discard(err error) {
	f.spool.Fail(err)
	f.abortStage()
	f.spool.Release()
	f.spool, f.stage = nil, nil
}

// forgetSize forgets what a manifest told: perhaps that was the lie.
func (p *Proxy) forgetSize(f *fill) {
	p.state().sizes.RemoveIf(f.rt.key(f.digest.String()), func(int64) bool { return true })
}

// conclude ends the spool one way or the other.
func (p *Proxy) conclude(f *fill, err error) (int64, error) {
	if err != nil {
		err = locate(err, f.rt.repo, f.digest.String())
		f.call.Unlink()
		f.spool.Fail(err)
		f.abortStage()
		if errors.Is(err, ErrDigest) {
			p.forgetSize(f)
		}
		if !errors.Is(err, errDeserted) {
			p.log().Warn("download failed", "repository", f.rt.repo.Name, "digest", f.digest.String(), "err", err)
		}
		return 0, err
	}
	f.spool.Finish()
	f.call.Publish(f)
	f.err = p.commitBlob(f)
	return f.spool.Size(), nil
}

// wait takes n from q, or says that we are busy.
func (p *Proxy) wait(ctx context.Context, q *quota.Quota, n int64) error {
	if q.TryTake(n) {
		return nil
	}
	if q == p.state().space {
		p.cutSlow()
	}
	ctx, cancel := context.WithTimeout(ctx, roomWait)
	defer cancel()
	if err := q.Take(ctx, n); err != nil {
		return &Error{Kind: errBusy, RetryAfter: roomRetryAfter, Err: err}
	}
	return nil
}

// cutSlow ends the readers that hold on to space and hardly read.
func (p *Proxy) cutSlow() {
	p.state().spools.Range(func(key, _ any) bool {
		key.(*spool.Spool).CutSlow(slowReader)
		return true
	})
}

// room is the part of SpoolBytes that one spool has.
type room struct {
	p     *Proxy
	taken int64
}

// openSpool makes the fill's spool: in a Stage of the Store, in memory, or in a
// file for which there is room.
func (p *Proxy) openSpool(ctx context.Context, f *fill, size int64) (*room, error) {
	r := &room{p: p}
	place := p.openStage(ctx, f)
	if place == nil && size > spool.MemoryLimit {
		if err := r.grow(ctx, size); err != nil {
			return nil, err
		}
	}
	o := spool.Options{Size: size, Dir: p.SpoolDir, Files: p.state().files}
	if place != nil {
		o.Place = place
	}
	o.PlaceFailed = func(err error) { p.storeFailed(ctx, f.rt.repo, f.digest.String(), err) }
	o.Gone = func() {
		p.state().spools.Delete(f.spool)
		p.state().space.Give(r.taken)
		place.close()
	}
	f.spool = spool.New(o)
	p.state().spools.Store(f.spool, Download{Repo: f.rt.repo, Digest: f.digest, Upstream: f.rt.base.Host, Part: f.part, Began: p.now()})
	return r, nil
}

// grow makes sure that the spool may be of the given size.
func (r *room) grow(ctx context.Context, size int64) error {
	more := size - r.taken
	if more <= 0 {
		return nil
	}
	if limit := r.p.SpoolBytes; limit > 0 && size > limit {
		return &Error{Kind: errBusy, Err: fmt.Errorf("%d bytes are more than SpoolBytes, %d", size, limit)}
	}
	if err := r.p.wait(ctx, r.p.state().space, more); err != nil {
		return err
	}
	r.taken += more
	return nil
}

// step is to what size a spool of unknown length grows next, after bytes being
// in it.
func (r *room) step(after int64) int64 {
	next := r.taken + growStep
	if limit := r.p.SpoolBytes; limit > 0 {
		next = min(next, r.taken+limit/8, limit)
	}
	return max(next, after)
}

// declaredSize is how long the blob is going to be: -1 where nobody knows. The
// manifest and upstream must agree; if not, the manifest is not asked again.
func (p *Proxy) declaredSize(f *fill, size int64) (int64, error) {
	told, ok := p.state().sizes.Get(f.rt.key(f.digest.String()))
	switch {
	case ok && size >= 0 && told != size:
		p.forgetSize(f)
		return 0, f.rt.error(ErrDigest, fmt.Errorf("blob of %d bytes is announced with %d", told, size))
	case ok:
		size = told
	}
	if size > f.rt.policy.maxBlob() {
		return 0, f.rt.error(ErrTooLarge, fmt.Errorf("blob of %d bytes", size))
	}
	return size, nil
}

// copy moves the body into the spool and verifies it.
func (f *fill) copy(ctx context.Context, body io.Reader, size int64, room *room) error {
	verifier := f.digest.Algorithm().Hash()
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := body.Read(buf[:])
		if n > 0 {
			if err := f.append(ctx, buf[:n], verifier, size, room); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return f.verify(verifier, size)
		}
		if err != nil {
			return f.broken(ctx, err)
		}
	}
}

// broken is the error for a body that broke off.
func (f *fill) broken(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if _, typed := errors.AsType[*Error](err); typed {
		return err
	}
	return f.rt.error(ErrUnavailable, fmt.Errorf("after %d bytes: %w", f.spool.Written(), redacted(err)))
}

func (f *fill) append(ctx context.Context, p []byte, verifier hash.Hash, size int64, room *room) error {
	after := f.spool.Written() + int64(len(p))
	if size >= 0 && after > size {
		return f.rt.error(ErrDigest, fmt.Errorf("blob is longer than the %d bytes announced", size))
	}
	if limit := f.rt.policy.maxBlob(); after > limit {
		return f.rt.error(ErrTooLarge, fmt.Errorf("blob is longer than %d bytes", limit))
	}
	if size < 0 && f.stage == nil && after > max(room.taken, spool.MemoryLimit) {
		if err := room.grow(ctx, room.step(after)); err != nil {
			return err
		}
	}
	_, _ = verifier.Write(p) // a hash.Hash never fails
	if _, err := f.spool.Write(p); err != nil {
		return &Error{Kind: ErrUnavailable, Err: fmt.Errorf("spool: %w", err)}
	}
	return nil
}

func (f *fill) verify(verifier hash.Hash, size int64) error {
	if got := f.spool.Written(); size >= 0 && got != size {
		return f.rt.error(ErrUnavailable, fmt.Errorf("blob ended after %d of %d bytes", got, size))
	}
	if got := digest.NewDigest(f.digest.Algorithm(), verifier); got != f.digest {
		return f.rt.error(ErrDigest, fmt.Errorf("%w %s", errWrongDigest, got))
	}
	return nil
}
