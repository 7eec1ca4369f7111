package pullthrough

import (
	"context"
	"errors"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

// maxRejoins bounds how often a client that comes too late for a download that
// is being given up finds another.
const maxRejoins = 3

// fill is one download of a blob: upstream writes the spool, clients read it,
// and the Store gets it when the digest is right. It belongs to no request.
type fill struct {
	rt     *route
	digest digest.Digest
	part   bool // an import wants it, no client
	call   *blobCall
	spool  *spool.Spool // nil: the blob turned out to be stored
	stage  Stage        // where the spool is, if the Store lends it; nil: elsewhere
	hidden bool         // nobody has been given the spool before its digest was looked at
	cancel context.CancelCauseFunc

	ended chan struct{} // closed when the Store has the blob, or will not have it
	err   error         // why it has not; set before ended is closed
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
		return nil, p.placed(ctx, r.Repo, missed(err, storeErr))
	}
	if err := p.authorize(ctx, ActionImport, r); err != nil {
		return nil, p.placed(ctx, r.Repo, maskedImport(err))
	}
	if absent, err := p.mayCreate(ctx, r); err != nil || absent && !rt.policy.BlobsFirst {
		return nil, nameUnknownIf(absent, err) // blobs come after their manifest
	}
	if r.Head {
		b, err := p.blobHead(ctx, rt, d)
		return b, rt.masked(err)
	}
	b, err = p.joinFill(ctx, rt, d)
	return b, rt.masked(err)
}

// blobHead answers an existence check without a download.
func (p *Proxy) blobHead(ctx context.Context, rt *route, d digest.Digest) (*Blob, error) {
	if err := rt.offline(d.String()); err != nil {
		return nil, err // its size may be known, but it could not be pulled
	}
	size, known := p.knownSize(rt, d)
	if !known {
		var err error
		size, _, err = p.state().heads.Do(ctx, rt.key(d.String()), func(call *headCall) (int64, error) {
			return p.askSize(call.Context(), rt, d)
		})
		if err != nil {
			return nil, err
		}
	}
	b := NewBlob(d, nil)
	b.Descriptor.Size = size
	b.Source = SourceFill
	return b, nil
}

// askSize runs in the flight. The one before may have ended since we looked.
func (p *Proxy) askSize(ctx context.Context, rt *route, d digest.Digest) (int64, error) {
	if size, known := p.knownSize(rt, d); known {
		return size, nil
	}
	size, err := p.state().upstream.blobSize(ctx, rt, d)
	if err == nil {
		p.state().sizes.Put(rt.key(d.String()), size)
	}
	return size, err
}

type headCall = flight.Call[objectKey, int64]

// knownSize is the size of a blob that is on its way, or that a manifest of the
// repository told.
func (p *Proxy) knownSize(rt *route, d digest.Digest) (int64, bool) {
	if f, ok := p.state().blobs.Peek(rt.key(d.String())); ok && f.spool != nil && f.spool.Size() >= 0 {
		return f.spool.Size(), true
	}
	return p.state().sizes.Get(rt.key(d.String()))
}

// join returns the download of d, which the caller then holds. shared reports
// whether it ran already. part says that an import wants it, no client.
func (p *Proxy) join(ctx context.Context, rt *route, d digest.Digest, part bool) (f *fill, shared bool, err error) {
	return p.state().blobs.Do(ctx, rt.key(d.String()), func(call *blobCall) (*fill, error) {
		return p.runFill(call, rt, d, part)
	})
}

// joinFill opens a reader on the download of d, and starts one if none runs.
func (p *Proxy) joinFill(ctx context.Context, rt *route, d digest.Digest) (*Blob, error) {
	for range maxRejoins {
		f, shared, err := p.join(ctx, rt, d, false)
		if err != nil {
			return nil, err
		}
		b, err := p.openFill(ctx, f, shared)
		if b != nil || err != nil {
			return b, err
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
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
		return p.storedBlob(ctx, f.rt.repo, f.digest)
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
