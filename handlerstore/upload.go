package handlerstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/contentrange"
)

// chunkSize is how much of a blob is in memory while it is pushed. A chunk is read into
// memory before it is sent: a registry may hold a lock while it reads a request, and must
// not wait for our reader then.
const chunkSize = 4 << 20

// cancelTimeout is how long a registry has to cancel an upload that failed.
const cancelTimeout = 10 * time.Second

// PutBlob implements [pullthrough.Store]. It pushes a blob of up to 4 MiB in one request
// and a larger one in chunks of that size. If the registry accepts no chunks, or only
// larger ones, it pushes the blob as one stream. It cancels an upload that fails.
func (s *Store) PutBlob(ctx context.Context, repo pullthrough.Repo, desc ocispec.Descriptor, r io.ReadSeeker) error {
	at, err := s.locate(ctx, repo, desc.Digest.String())
	if err != nil {
		return err
	}
	if !validDigest(desc.Digest) || desc.Size < 0 {
		return &pullthrough.Error{Kind: pullthrough.ErrInvalid, Repo: repo, Ref: desc.Digest.String(), Err: fmt.Errorf("a blob of %d bytes by that name", desc.Size)}
	}
	a, size, err := s.headBlob(ctx, at, desc.Digest)
	if err == nil && (a.redirects() || size == desc.Size) {
		return nil
	}
	if err != nil && !isMiss(err) {
		return err
	}
	err = s.upload(ctx, at, desc, r, false)
	if !errors.Is(err, errNoChunks) {
		return err
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return s.upload(ctx, at, desc, r, true)
}

// errNoChunks makes PutBlob start the upload again as one stream.
var errNoChunks = errors.New("the registry takes no chunks of a size that we have memory for")

// upload is one push of a blob (OCI distribution spec, "Pushing blobs").
type upload struct {
	store    *Store
	desc     ocispec.Descriptor
	location *url.URL // URL of the next request
}

func (s *Store) upload(ctx context.Context, at innerRepo, desc ocispec.Descriptor, r io.Reader, whole bool) error {
	source := &blobSource{ctx: ctx, r: r, left: desc.Size}
	var first []byte
	if !whole {
		var err error
		if first, err = source.next(make([]byte, min(desc.Size, chunkSize))); err != nil {
			return err // no upload has been started
		}
	}
	u := &upload{store: s, desc: desc}
	minChunk, err := u.begin(ctx, at)
	if err != nil {
		return err
	}
	finished := false
	defer func() { // deferred, so that it also runs when a reader panics
		if !finished {
			u.cancel(ctx)
		}
	}()
	switch {
	case whole:
		err = u.finish(ctx, innerRequest{stream: source, size: desc.Size})
		err = errors.Join(source.err, err)
	case source.left == 0:
		err = u.finish(ctx, innerRequest{body: first})
	case minChunk > chunkSize:
		err = errNoChunks
	default:
		err = u.chunks(ctx, source, first)
	}
	finished = err == nil
	return err
}

// begin starts the upload. minChunk is the smallest chunk that the registry accepts; the
// last chunk may be smaller.
func (u *upload) begin(ctx context.Context, at innerRepo) (minChunk int64, err error) {
	base := at.path("blobs", "uploads/")
	a, err := u.store.do(ctx, innerRequest{method: http.MethodPost, target: base})
	if err != nil {
		return 0, err
	}
	if a.status != http.StatusAccepted {
		return 0, a.refusal()
	}
	if u.location, err = url.Parse("http://" + innerHost + base); err != nil {
		return 0, err
	}
	minChunk, _ = contentrange.Digits(a.header.Get("OCI-Chunk-Min-Length"))
	return minChunk, u.follow(a)
}

// follow sets the URL of the next request from the answer's Location. The host of an
// absolute URL is ignored.
func (u *upload) follow(a *innerAnswer) error {
	to := a.header.Get("Location")
	if to == "" && a.status == http.StatusAccepted {
		return fmt.Errorf("%s: the registry says not where the upload goes on", a.call)
	}
	next, err := u.location.Parse(to)
	if err != nil || !strings.HasPrefix(next.Path, "/") {
		return fmt.Errorf("%s: the registry continues the upload at %.100q", a.call, to)
	}
	u.location = next
	return nil
}

// chunks sends first and the rest of the source.
func (u *upload) chunks(ctx context.Context, source *blobSource, chunk []byte) error {
	for off := int64(0); len(chunk) > 0; {
		end := off + int64(len(chunk))
		a, err := u.store.do(ctx, innerRequest{
			method: http.MethodPatch, target: u.location.RequestURI(), body: chunk,
			header: http.Header{"Content-Type": {mediaType}, "Content-Range": {fmt.Sprintf("%d-%d", off, end-1)}},
		})
		switch {
		case err != nil:
			return err
		case off == 0 && rejectsChunks(a.status):
			return errNoChunks
		case !a.isSuccess():
			return a.refusal()
		}
		if err := u.follow(a); err != nil {
			return err
		}
		off = end
		if chunk, err = source.next(chunk[:cap(chunk)]); err != nil {
			return err
		}
	}
	return u.finish(ctx, innerRequest{})
}

// rejectsChunks reports whether the status of the first PATCH means that the registry
// does not support chunks of this size.
func rejectsChunks(status int) bool {
	switch status {
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusRequestEntityTooLarge, http.StatusNotImplemented:
		return true
	}
	return false
}

// finish closes the upload with a PUT. q has the rest of the blob, if any.
func (u *upload) finish(ctx context.Context, q innerRequest) error {
	q.method, q.header = http.MethodPut, http.Header{"Content-Type": {mediaType}}
	to := *u.location
	if to.RawQuery != "" {
		to.RawQuery += "&"
	}
	to.RawQuery += "digest=" + url.QueryEscape(u.desc.Digest.String())
	q.target = to.RequestURI()
	a, err := u.store.do(ctx, q)
	if err != nil {
		return err
	}
	if !a.isSuccess() {
		return a.refusal()
	}
	return nil
}

// cancel asks the registry to cancel the upload. Errors are ignored: an upload that was
// not finished is not visible.
func (u *upload) cancel(ctx context.Context) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
	defer stop()
	_, _ = u.store.do(ctx, innerRequest{method: http.MethodDelete, target: u.location.RequestURI()})
}

// blobSource reads a blob of known length. It fails once the context has ended.
type blobSource struct {
	ctx  context.Context
	r    io.Reader
	left int64
	err  error // error of the first Read that failed
}

// next reads the next bytes into buf: len(buf) of them, or as many as are left.
func (b *blobSource) next(buf []byte) ([]byte, error) {
	buf = buf[:min(int64(len(buf)), b.left)]
	_, err := io.ReadFull(b, buf)
	return buf, err
}

// Read implements io.Reader. It returns an error if the blob ends before its length.
func (b *blobSource) Read(p []byte) (n int, err error) {
	if err = b.ctx.Err(); err == nil && b.left > 0 {
		n, err = b.r.Read(p[:min(int64(len(p)), b.left)])
		b.left -= int64(n)
		if errors.Is(err, io.EOF) {
			err = nil
			if b.left > 0 {
				err = io.ErrUnexpectedEOF
			}
		}
	} else if err == nil {
		return 0, io.EOF
	}
	if err != nil && b.err == nil {
		b.err = fmt.Errorf("read blob: %w", err)
	}
	return n, err
}
