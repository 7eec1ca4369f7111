package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

const (
	// A blob this small is verified before its answer starts, unless upstream
	// takes longer than smallBlobWait.
	smallBlob     = 1 << 20
	smallBlobWait = 2 * time.Second

	// stallTimeout is how long upstream may send nothing in the middle of a blob.
	stallTimeout = 30 * time.Second
	// watchEvery is how often a download is looked after.
	watchEvery = 500 * time.Millisecond

	// Downloads that nobody reads any more may finish while they are few and
	// there is not much left of them.
	maxOrphans     = 4
	maxOrphanBytes = 1 << 30

	copyBuffer = 256 << 10
	maxRejoins = 3
)

var (
	errStalled  = fmt.Errorf("upstream sent nothing for %v", stallTimeout)
	errDeserted = errors.New("nobody reads this download any more")
)

var copyBuffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}

// fill is one download of a blob: upstream writes the spool, clients read it,
// and the Store gets it when the digest is right. It belongs to no request.
type fill struct {
	rt     *route
	digest digest.Digest
	call   *blobCall
	spool  *spool.Spool // nil: the blob turned out to be stored
	cancel context.CancelCauseFunc
}

type blobCall = flight.Call[objectKey, *fill]

func (p *Proxy) blob(ctx context.Context, r Request) (*Blob, error) {
	if err := p.admit(ctx, r); err != nil {
		return nil, err
	}
	d := digest.Digest(r.Ref)
	if !validDigest(d) {
		return nil, invalid(r.Repo, r.Ref, &ocipath.Error{Part: ocipath.Digest, Value: r.Ref})
	}
	b, storeErr := p.storedBlob(ctx, r.Repo, d)
	if b != nil {
		return b, nil
	}
	rt, err := p.route(ctx, r.Repo)
	if err != nil {
		return nil, missed(err, storeErr)
	}
	if err := p.authorize(ctx, ActionImport, r); err != nil {
		return nil, maskedImport(err)
	}
	if r.Head {
		return p.blobHead(ctx, rt, d)
	}
	return p.joinFill(ctx, rt, d)
}

// blobHead answers an existence check without a download.
func (p *Proxy) blobHead(ctx context.Context, rt *route, d digest.Digest) (*Blob, error) {
	size, known := p.knownSize(rt, d)
	if !known {
		var err error
		if size, err = p.state().upstream.blobSize(ctx, rt, d); err != nil {
			return nil, err
		}
		p.state().sizes.Put(sizeKey{rt.id, d}, size)
	}
	b := NewBlob(d, nil)
	b.Descriptor.Size = size
	b.Source = SourceFill
	return b, nil
}

// knownSize is the size of a blob that is on its way, or that a manifest told.
func (p *Proxy) knownSize(rt *route, d digest.Digest) (int64, bool) {
	if f, ok := p.state().blobs.Peek(rt.key(d.String())); ok && f.spool != nil && f.spool.Size() >= 0 {
		return f.spool.Size(), true
	}
	return p.state().sizes.Get(sizeKey{rt.id, d})
}

// joinFill opens a reader on the download of d, and starts one if none runs.
func (p *Proxy) joinFill(ctx context.Context, rt *route, d digest.Digest) (*Blob, error) {
	for range maxRejoins {
		f, shared, err := p.state().blobs.Do(ctx, rt.key(d.String()), func(call *blobCall) (*fill, error) {
			return p.runFill(call, rt, d)
		})
		if err != nil {
			return nil, err
		}
		b, err := p.openFill(ctx, f, shared)
		if b != nil || err != nil {
			return b, err
		}
		f.call.Unlink()
	}
	return nil, rt.error(ErrUnavailable, errors.New("the download ended again and again before it could be read"))
}

// openFill opens a reader on f, which the caller holds. It returns no blob and
// no error when f was given up in this very moment.
func (p *Proxy) openFill(ctx context.Context, f *fill, shared bool) (*Blob, error) {
	defer f.release()
	if f.spool == nil { // it had been stored meanwhile
		b, err := p.storedBlob(ctx, f.rt.repo, f.digest)
		return b, err
	}
	body, err := f.spool.NewReader(ctx)
	if errors.Is(err, spool.ErrAbandoned) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b := &Blob{Body: body, Source: SourceFill}
	b.Descriptor = ocispec.Descriptor{MediaType: mediaTypeBlob, Digest: f.digest, Size: f.spool.Size()}
	if shared {
		b.Source = SourceShared
	}
	return b, nil
}

// retain and release hold the fill for a client that is about to read it: the
// download may end, and be stored, before that client runs again.
func (f *fill) retain() {
	if f.spool != nil {
		f.spool.Retain()
	}
}

func (f *fill) release() {
	if f.spool != nil {
		f.spool.Release()
	}
}

// runFill runs in the flight, from the question to upstream to the commit.
func (p *Proxy) runFill(call *blobCall, rt *route, d digest.Digest) (*fill, error) {
	ctx, cancel := context.WithCancelCause(call.Context())
	defer cancel(nil)
	ctx, requests := withCounter(ctx)
	start := p.now()
	f := &fill{rt: rt, digest: d, call: call, cancel: cancel}
	if b, _ := p.storedBlob(ctx, rt.repo, d); b != nil {
		return f, b.Body.Close()
	}
	size, err := p.download(ctx, f)
	p.tell(call.Context(), Event{
		Kind: EventFetch, Request: Request{Repo: rt.repo, Ref: d.String()}, Digest: d.String(), Source: SourceFill,
		Bytes: size, Upstream: int(requests.Load()), Duration: p.now().Sub(start), Err: err,
	})
	return f, err
}

// download spools the blob, verifies it and commits it.
func (p *Proxy) download(ctx context.Context, f *fill) (int64, error) {
	resp, err := p.state().upstream.blob(ctx, f.rt, f.digest)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	size, err := p.declaredSize(f.rt, f.digest, resp)
	if err != nil {
		return 0, err
	}
	f.spool = spool.New(p.SpoolDir, size)
	defer f.spool.Release()
	if size > smallBlob {
		f.call.Publish(f)
	} else if size >= 0 {
		late := time.AfterFunc(smallBlobWait, func() { f.call.Publish(f) })
		defer late.Stop()
	}
	defer p.watch(f).Stop()
	if err := f.copy(ctx, resp.Body, size, f.rt.policy.maxBlob()); err != nil {
		err = at(err, f.rt.repo, f.digest.String())
		f.call.Unlink()
		f.spool.Fail(err)
		p.log().Warn("download failed", "repository", f.rt.repo.Name, "digest", f.digest.String(), "err", err)
		return 0, err
	}
	f.spool.Finish()
	f.call.Publish(f)
	p.commitBlob(f)
	return f.spool.Size(), nil
}

// declaredSize is how long the blob is going to be: -1 where nobody knows.
func (p *Proxy) declaredSize(rt *route, d digest.Digest, resp *http.Response) (int64, error) {
	size := resp.ContentLength
	if size < 0 {
		if known, ok := p.state().sizes.Get(sizeKey{rt.id, d}); ok {
			size = known
		}
	}
	if size > rt.policy.maxBlob() {
		return 0, rt.error(ErrTooLarge, fmt.Errorf("blob of %d bytes", size))
	}
	return size, nil
}

// copy moves the body into the spool and verifies it.
func (f *fill) copy(ctx context.Context, body io.Reader, size, limit int64) error {
	verifier := f.digest.Algorithm().Hash()
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := body.Read(buf[:])
		if n > 0 {
			if err := f.append(buf[:n], verifier, size, limit); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return f.verify(verifier, size)
		}
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return f.rt.error(ErrUnavailable, fmt.Errorf("after %d bytes: %w", f.spool.Written(), redacted(err)))
		}
	}
}

func (f *fill) append(p []byte, verifier hash.Hash, size, limit int64) error {
	after := f.spool.Written() + int64(len(p))
	if size >= 0 && after > size {
		return f.rt.error(ErrDigest, fmt.Errorf("blob is longer than the %d bytes announced", size))
	}
	if after > limit {
		return f.rt.error(ErrTooLarge, fmt.Errorf("blob is longer than %d bytes", limit))
	}
	_, _ = verifier.Write(p) // a hash.Hash never fails
	if _, err := f.spool.Write(p); err != nil {
		return &Error{Kind: errInternal, Err: fmt.Errorf("spool: %w", err)}
	}
	return nil
}

func (f *fill) verify(verifier hash.Hash, size int64) error {
	if got := f.spool.Written(); size >= 0 && got != size {
		return f.rt.error(ErrUnavailable, fmt.Errorf("blob ended after %d of %d bytes", got, size))
	}
	if got := digest.NewDigest(f.digest.Algorithm(), verifier); got != f.digest {
		return f.rt.error(ErrDigest, fmt.Errorf("blob has the digest %s", got))
	}
	return nil
}

// commitBlob hands the verified blob to the Store. The clients have all they
// need by now: what goes wrong here is an event.
func (p *Proxy) commitBlob(f *fill) {
	ctx := f.call.Context()
	if !p.unchanged(ctx, f.rt) {
		return
	}
	body, err := f.spool.NewReader(ctx)
	if err != nil {
		return // it has just been finished: this cannot be
	}
	defer func() { _ = body.Close() }()
	desc := ocispec.Descriptor{MediaType: mediaTypeBlob, Digest: f.digest, Size: f.spool.Size()}
	err = guarded("Store.PutBlob", func() error { return p.Store.PutBlob(ctx, f.rt.repo, desc, body) })
	if err != nil {
		p.storeFailed(ctx, f.rt.repo, f.digest.String(), err)
	}
}

// storedBlob returns the Store's blob with its size, nil for a miss.
func (p *Proxy) storedBlob(ctx context.Context, repo Repo, d digest.Digest) (b *Blob, err error) {
	err = guarded("Store.Blob", func() (err error) {
		b, err = p.Store.Blob(ctx, repo, d)
		if err == nil {
			b, err = sized(b, d)
		}
		return err
	})
	switch {
	case err == nil:
		return b, nil
	case !errors.Is(err, fs.ErrNotExist) && ctx.Err() == nil:
		p.storeFailed(ctx, repo, d.String(), err)
		return nil, err
	}
	return nil, nil
}

// sized is the Store's blob as a hit whose size is known.
func sized(b *Blob, d digest.Digest) (*Blob, error) {
	if b == nil || b.Body == nil {
		return nil, errors.New("no blob and no error")
	}
	hit := &Blob{Descriptor: b.Descriptor, Body: b.Body}
	hit.Descriptor.Digest, hit.Descriptor.MediaType = d, mediaTypeBlob
	if seeker, ok := b.Body.(io.Seeker); ok && b.Descriptor.Size == 0 {
		size, err := seeker.Seek(0, io.SeekEnd)
		if err == nil {
			_, err = seeker.Seek(0, io.SeekStart)
		}
		if err != nil {
			return nil, errors.Join(err, b.Body.Close())
		}
		hit.Descriptor.Size = size
	}
	return hit, nil
}
