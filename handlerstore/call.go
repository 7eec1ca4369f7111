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

// innerHost is what the handler of a Store sees as the host: nobody's.
const innerHost = "registry.invalid"

// innerRequest is a request to the handler of a [Store].
type innerRequest struct {
	method string
	target string // path and query
	header http.Header
	body   []byte
	stream io.Reader // in place of body, of size bytes
	size   int64
}

// request is what a server would make of it.
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

// do has the handler answer. The handler may say what it likes when the context
// has ended: only success counts then.
func (s *Store) do(ctx context.Context, q innerRequest) (*innerAnswer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r, err := q.request(ctx)
	if err != nil {
		return nil, err
	}
	a := &innerAnswer{what: q.method + " " + r.URL.Path, head: q.method == http.MethodHead, header: make(http.Header)}
	body := r.Body // the handler may put another one there
	err = s.serve(a, r)
	_ = body.Close() // as a server does it: what was lent is not read any more
	if a.status == 0 {
		a.status = http.StatusOK
	}
	if err == nil && a.succeeded() {
		return a, nil
	}
	if ended := ctx.Err(); ended != nil {
		return nil, ended
	}
	return a, err
}

// lentBody is what a caller lends for the time of a request.
type lentBody struct {
	mu sync.Mutex
	r  io.Reader // nil: it is closed
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

// serve calls the handler. A panic in there, http.ErrAbortHandler included, is an
// error: the answer is not complete.
func (s *Store) serve(w http.ResponseWriter, r *http.Request) (err error) {
	if s.Handler == nil {
		return errNoHandler
	}
	defer hostcall.Recover("handlerstore.Store.Handler", &err)
	s.Handler.ServeHTTP(w, r)
	return nil
}

// innerAnswer is an answer of the handler, with its body if that is as small as
// manifests are.
type innerAnswer struct {
	what   string // method and path
	head   bool
	header http.Header
	status int
	body   bytes.Buffer
	size   int64 // of all that was written
	cut    bool  // body is only the beginning of it
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
		return 0, fmt.Errorf("%s: an answer of more than %d bytes: %w", a.what, manifest.MaxSize, pullthrough.ErrTooLarge)
	}
	return a.body.Write(p)
}

func (a *innerAnswer) succeeded() bool { return a.status/100 == 2 }

// redirects reports whether the content is elsewhere.
func (a *innerAnswer) redirects() bool {
	return a.status/100 == 3 && a.header.Get("Location") != ""
}

// refusal is what an answer without success says. It is never a miss.
func (a *innerAnswer) refusal() error {
	said := ocierror.Code(a.body.Bytes())
	if said == "" {
		said = ocierror.Excerpt(a.body.Bytes(), ocierror.MaxExcerpt, nil)
	}
	return fmt.Errorf("%s: the registry answered %d %s", a.what, a.status, said)
}

func isMiss(err error) bool { return errors.Is(err, fs.ErrNotExist) }
