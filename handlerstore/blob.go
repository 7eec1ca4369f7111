package handlerstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/contentrange"
)

// Blob implements [pullthrough.Store]. The Body can seek, and it requests the blob from
// the registry when it is read. If the registry redirects to its storage, the Body is
// an [http.Handler] that passes the redirect on and cannot be read.
func (s *Store) Blob(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	at, err := s.locate(ctx, repo, d.String())
	if err != nil {
		return nil, err
	}
	a, size, err := s.headBlob(ctx, at, d)
	if err != nil {
		return nil, err
	}
	// The context of a look-up ends when the look-up returns, and the Body is read later.
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: size}
	body := &handlerBody{store: s, ctx: context.WithoutCancel(ctx), target: at.path("blobs", d.String()), desc: desc}
	b := &pullthrough.Blob{Descriptor: desc, Body: body}
	if a.redirects() {
		b.Body = &redirectBody{s, body.target}
	}
	return b, nil
}

// headBlob asks the registry for the blob's size. If the registry redirects, the size is
// unknown and headBlob returns 0.
func (s *Store) headBlob(ctx context.Context, at innerRepo, d digest.Digest) (*innerAnswer, int64, error) {
	a, err := s.do(ctx, innerRequest{method: http.MethodHead, target: at.path("blobs", d.String())})
	switch {
	case err != nil:
		return nil, 0, err
	case a.status == http.StatusNotFound:
		return nil, 0, missError(at.Repo, d.String())
	case a.redirects():
		return a, 0, nil
	case a.status != http.StatusOK:
		return nil, 0, a.refusal()
	}
	size := a.size // a handler may answer HEAD with a body and no length, as it may in net/http
	if v := a.header.Get("Content-Length"); v != "" {
		var ok bool
		if size, ok = contentrange.Digits(v); !ok {
			return nil, 0, fmt.Errorf("%s: a Content-Length of %.40q", a.call, v)
		}
	}
	if size == 0 && !matchesDigest(d, nil) {
		return nil, 0, fmt.Errorf("%s: the blob is empty", a.call)
	}
	return a, size, nil
}

// handlerBody reads a blob from the registry, from any offset.
type handlerBody struct {
	store  *Store
	ctx    context.Context
	target string
	desc   ocispec.Descriptor

	off    int64          // offset of the next Read
	stream *handlerStream // answer that is at off; nil: no request has been made
}

func (b *handlerBody) Read(p []byte) (int, error) {
	if b.off >= b.desc.Size {
		return 0, io.EOF
	}
	if b.stream == nil {
		stream, err := b.store.stream(b.ctx, b.target, b.off, b.desc.Size)
		if err != nil {
			return 0, err
		}
		b.stream = stream
	}
	n, err := b.stream.Read(p[:min(int64(len(p)), b.desc.Size-b.off)])
	b.off += int64(n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
		if b.off == b.desc.Size {
			err = nil // the next Read returns io.EOF
		}
	}
	return n, err
}

// Seek implements io.Seeker. It makes no request; the next Read does.
func (b *handlerBody) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += b.off
	case io.SeekEnd:
		offset += b.desc.Size
	default:
		return 0, fmt.Errorf("seek: whence %d", whence)
	}
	if offset < 0 {
		return 0, errors.New("seek before the start of the blob")
	}
	if offset != b.off {
		b.stop()
		b.off = offset
	}
	return offset, nil
}

// Close implements io.Closer. It ends the answer that is being read, if there is one.
func (b *handlerBody) Close() error {
	b.stop()
	b.desc.Size = 0
	return nil
}

func (b *handlerBody) stop() {
	if b.stream != nil {
		b.stream.stop()
		b.stream = nil
	}
}

// ServeHTTP calls [pullthrough.WriteBlob] with the client's context, so that a registry
// that hangs is released when the client leaves. The context of the look-up does not
// end then.
func (b *handlerBody) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	own := &handlerBody{store: b.store, ctx: r.Context(), target: b.target, desc: b.desc}
	pullthrough.WriteBlob(w, r, &pullthrough.Blob{Descriptor: b.desc, Body: readSeekCloser{own}})
}

// readSeekCloser hides the ServeHTTP of a body.
type readSeekCloser struct{ io.ReadSeekCloser }

// handlerStream reads an answer of the registry while the registry writes it. The
// registry writes as fast as the stream is read.
type handlerStream struct {
	*io.PipeReader
	cancel context.CancelFunc
}

// stop makes the registry's next Write fail and ends its context.
func (h *handlerStream) stop() {
	h.cancel()
	_ = h.PipeReader.Close() // never fails
}

// stream requests the blob from the registry, starting at an offset.
func (s *Store) stream(ctx context.Context, target string, from, size int64) (*handlerStream, error) {
	q := innerRequest{method: http.MethodGet, target: target}
	if from > 0 {
		// The range has an end, since go-containerregistry's registry rejects open ranges.
		q.header = http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", from, size-1)}}
	}
	ctx, cancel := context.WithCancel(ctx)
	r, err := q.request(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	pr, pw := io.Pipe()
	context.AfterFunc(ctx, func() { _ = pr.CloseWithError(context.Cause(ctx)) })
	w := &pipeAnswer{header: make(http.Header), pw: pw, begun: make(chan struct{})}
	go func() { w.end(s.serve(w, r)) }()
	h := &handlerStream{pr, cancel}
	select {
	case <-w.begun:
		err = w.position(h, from)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		h.stop()
		return nil, fmt.Errorf("GET %s: %w", target, err)
	}
	return h, nil
}

// pipeAnswer is the ResponseWriter of an answer that is written to a pipe.
type pipeAnswer struct {
	header http.Header
	pw     *io.PipeWriter

	once   sync.Once
	begun  chan struct{} // closed when the fields below are set
	status int
	sent   http.Header // copy of header when the answer began
	err    error       // why there is no answer
}

func (w *pipeAnswer) Header() http.Header { return w.header }

func (w *pipeAnswer) WriteHeader(status int) {
	if status < http.StatusOK {
		return // informational; the final status follows
	}
	w.once.Do(func() {
		w.status, w.sent = status, w.header.Clone()
		close(w.begun)
	})
}

func (w *pipeAnswer) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if len(p) == 0 {
		return 0, nil // a pipe blocks until it is read, even for no bytes
	}
	return w.pw.Write(p)
}

// end is called when the handler has returned. If err is nil the reader gets io.EOF, and
// checks itself whether that comes too early.
func (w *pipeAnswer) end(err error) {
	_ = w.pw.CloseWithError(err) // never fails
	w.once.Do(func() {
		w.status, w.err = http.StatusOK, err
		close(w.begun)
	})
}

// position moves the reader to the offset. It returns an error if the answer does not
// have the content from there on.
func (w *pipeAnswer) position(r io.Reader, from int64) error {
	switch {
	case w.err != nil:
		return w.err
	case w.status == http.StatusOK: // the whole blob, even if a range was requested
		_, err := io.CopyN(io.Discard, r, from)
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	case w.status == http.StatusPartialContent && from > 0:
		if first, _, _, ok := contentrange.Parse(w.sent.Get("Content-Range")); ok && first == from {
			return nil
		}
		return fmt.Errorf("the registry sent the range %.60q in place of that from %d", w.sent.Get("Content-Range"), from)
	}
	return errors.New("the registry answered " + strconv.Itoa(w.status))
}

// redirectBody passes the registry's redirect on to the client.
type redirectBody struct {
	store  *Store
	target string
}

var errRedirected = errors.New("the registry keeps the blob elsewhere: only the client of a redirect can read it")

func (*redirectBody) Read([]byte) (int, error) { return 0, errRedirected }

func (*redirectBody) Close() error { return nil }

// ServeHTTP lets the registry answer the client.
func (b *redirectBody) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	inner, err := innerRequest{method: r.Method, target: b.target, header: http.Header{}}.request(r.Context())
	if err != nil {
		pullthrough.WriteError(w, err)
		return
	}
	inner.Host, inner.TLS = r.Host, r.TLS
	for _, key := range []string{"Range", "If-None-Match"} {
		if v := r.Header.Values(key); len(v) > 0 {
			inner.Header[key] = v
		}
	}
	if err := b.store.serve(w, inner); err != nil {
		panic(http.ErrAbortHandler) // part of the answer may have been sent
	}
}
