package handlerstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"sync"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
	"github.com/ecr-pullthrough/pullthrough/internal/ocierror"
)

// innerHost is the host of the requests to the handler. It belongs to nobody (RFC 2606).
const innerHost = "registry.invalid"

// innerRequest is a request to the handler of a [Store].
type innerRequest struct {
	method string
	target string // path and query
	header http.Header
	body   []byte
	stream io.Reader // used instead of body; it has size bytes
	size   int64
}

// request returns the http.Request that a server would pass to the handler.
func (q innerRequest) request(ctx context.Context) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, q.method, q.target, http.NoBody)
	if err != nil {
		return nil, err
	}
	switch {
	case q.stream != nil:
		r.Body, r.ContentLength = &lentBody{r: q.stream}, q.size
	case len(q.body) > 0:
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(q.body)), int64(len(q.body))
	}
	r.GetBody = nil
	r.Host, r.RequestURI, r.RemoteAddr = innerHost, r.URL.RequestURI(), "127.0.0.1:0"
	for key, values := range q.header {
		r.Header[key] = values
	}
	return r, nil
}

// do calls the handler with the request and returns its answer. If the context has ended,
// an answer without success is replaced by the context's error.
func (s *Store) do(ctx context.Context, q innerRequest) (*innerAnswer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r, err := q.request(ctx)
	if err != nil {
		return nil, err
	}
	a := &innerAnswer{call: q.method + " " + r.URL.Path, head: q.method == http.MethodHead, header: make(http.Header)}
	body := r.Body // the handler may replace r.Body
	err = s.serve(a, r)
	_ = body.Close() // as a server does; nothing can read the lent reader after this
	if a.status == 0 {
		a.status = http.StatusOK
	}
	if err == nil && a.isSuccess() {
		return a, nil
	}
	if ended := ctx.Err(); ended != nil {
		return nil, ended
	}
	return a, err
}

// lentBody is a request's body that can be read only until it is closed.
type lentBody struct {
	mu sync.Mutex
	r  io.Reader // nil: closed
}

func (b *lentBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.r == nil {
		return 0, http.ErrBodyReadAfterClose
	}
	return b.r.Read(p)
}

func (b *lentBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.r = nil
	return nil
}

var errNoHandler = errors.New("handlerstore.Store.Handler is nil")

// serve calls the handler. A panic of the handler, including http.ErrAbortHandler,
// becomes an error, since the answer is not complete.
func (s *Store) serve(w http.ResponseWriter, r *http.Request) (err error) {
	if s.Handler == nil {
		return errNoHandler
	}
	defer hostcall.Recover("handlerstore.Store.Handler", &err)
	s.Handler.ServeHTTP(w, r)
	return nil
}

// innerAnswer is the ResponseWriter of a small answer. It keeps a body up to the size
// limit of manifests.
type innerAnswer struct {
	call   string // method and path
	head   bool
	header http.Header
	status int
	body   bytes.Buffer
	size   int64 // bytes written, including those not kept
	cut    bool  // body is incomplete
}

func (a *innerAnswer) Header() http.Header { return a.header }

func (a *innerAnswer) WriteHeader(status int) {
	if a.status == 0 && status >= http.StatusOK {
		a.status = status
	}
}

func (a *innerAnswer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	a.size += int64(len(p))
	if a.head {
		return len(p), nil
	}
	if a.body.Len()+len(p) > manifest.MaxSize {
		a.cut = true
		return 0, fmt.Errorf("%s: an answer of more than %d bytes: %w", a.call, manifest.MaxSize, pullthrough.ErrTooLarge)
	}
	return a.body.Write(p)
}

func (a *innerAnswer) isSuccess() bool { return a.status/100 == 2 }

// redirects reports whether the answer is a redirect.
func (a *innerAnswer) redirects() bool {
	return a.status/100 == 3 && a.header.Get("Location") != ""
}

// refusal returns the error for an answer without success. The error never means a miss.
func (a *innerAnswer) refusal() error {
	text := ocierror.Code(a.body.Bytes())
	if text == "" {
		text = ocierror.Excerpt(a.body.Bytes(), ocierror.MaxExcerpt)
	}
	return fmt.Errorf("%s: the registry answered %d %s", a.call, a.status, text)
}

func isMiss(err error) bool { return errors.Is(err, fs.ErrNotExist) }
