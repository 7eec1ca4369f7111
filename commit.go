package pullthrough

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"sync/atomic"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

// commitBlob hands the verified blob to the Store. The clients have all they
// need by now: what goes wrong here is an event.
func (p *Proxy) commitBlob(f *fill) error {
	ctx := f.call.Context() // no client's: only a Shutdown that runs out of time ends it
	if err := p.unchanged(ctx, f.rt); err != nil {
		f.abortStage()
		p.log().Warn("blob is served and not stored", "repository", f.rt.repo.Name, "digest", f.digest.String(), "err", err)
		return err
	}
	desc := ocispec.Descriptor{MediaType: mediaTypeBlob, Digest: f.digest, Size: f.spool.Size()}
	err := p.putBlob(ctx, f, desc)
	if err != nil {
		p.storeFailed(ctx, f.rt.repo, f.digest.String(), err)
		return err
	}
	if f.stage == nil { // the spool has space of its own
		f.spool.HandOver(func(ctx context.Context) (io.ReadSeekCloser, error) { return p.successor(ctx, f) })
	}
	return nil
}

// putBlob stores the blob: by committing the stage where the download went, or
// by a copy.
func (p *Proxy) putBlob(ctx context.Context, f *fill, desc ocispec.Descriptor) error {
	if f.stage != nil && f.spool.Whole() {
		var called atomic.Bool
		err := watched(ctx, p.state().blobPuts, "Stage.Commit", putTimeout, new(atomic.Int64), func(ctx context.Context) error {
			called.Store(true)
			return f.stage.Commit(ctx, desc)
		})
		if !called.Load() {
			f.abortStage()
		}
		return err
	}
	body, err := f.spool.NewReader(context.Background())
	if err != nil {
		return err
	}
	defer f.abortStage() // what is in there is read until then
	source := &putSource{Reader: body}
	// A Store that we gave up on must not read a spool that is gone.
	defer func() { _ = body.Close() }()
	return watched(ctx, p.state().blobPuts, "Store.PutBlob", putTimeout, &source.reads, func(ctx context.Context) error {
		return p.Store.PutBlob(ctx, f.rt.repo, desc, source)
	})
}

// putSource is what a Store reads a blob from. It notes that the Store reads.
type putSource struct {
	*spool.Reader
	reads atomic.Int64
}

func (s *putSource) Read(p []byte) (int, error) {
	s.reads.Add(1)
	return s.Reader.Read(p)
}

// successor is the Store's blob for a reader of the spool, which can go then.
func (p *Proxy) successor(ctx context.Context, f *fill) (io.ReadSeekCloser, error) {
	b, err := p.storedBlob(ctx, f.rt.repo, f.digest)
	if b == nil {
		return nil, errors.Join(err, fs.ErrNotExist)
	}
	if body, ok := b.Body.(io.ReadSeekCloser); ok && b.Descriptor.Size == f.spool.Size() {
		return body, nil
	}
	return nil, errors.Join(errors.ErrUnsupported, b.Body.Close())
}
