package conformance_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// upstream is a registry as fakeecr sees it: behind a reverse proxy that
// counts, with its token server where it has one.
type upstream struct {
	*recorder
	registry *registry
	tokens   *tokenServer // nil unless authBearer
}

// startUpstream serves what is in the store, read-only.
func startUpstream(t testing.TB, s *store, a auth) *upstream {
	t.Helper()
	if a == authBearer {
		return startBearerUpstream(t, s, "127.0.0.1")
	}
	return newUpstream(t, s, a, nil)
}

// startBearerUpstream has its token server under that host name.
func startBearerUpstream(t testing.TB, s *store, realmHost string) *upstream {
	t.Helper()
	return newUpstream(t, s, authBearer, startTokenServer(t, realmHost))
}

func newUpstream(t testing.TB, s *store, a auth, tokens *tokenServer) *upstream {
	t.Helper()
	u := &upstream{tokens: tokens, registry: startRegistry(t, s.dir, false, a, tokens)}
	u.recorder = startRecorder(t, proxyTo(t, u.registry.addr))
	return u
}

// stop takes everything of the upstream down.
func (u *upstream) stop(t testing.TB) {
	t.Helper()
	u.recorder.stop()
	u.registry.stop(t)
	if u.tokens != nil {
		u.tokens.stop()
	}
}

// proxyTo passes the Host header on, so that the URLs which the registry makes
// lead back to the proxy.
func proxyTo(t testing.TB, addr string) http.Handler {
	t.Helper()
	target, err := url.Parse("http://" + addr)
	require.NoError(t, err)
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
		},
	}
}

// recorder writes down each request to the handler behind it.
type recorder struct {
	server *httptest.Server
	next   http.Handler

	mu   sync.Mutex
	seen []*exchange
}

func startRecorder(t testing.TB, next http.Handler) *recorder {
	t.Helper()
	r := &recorder{next: next}
	r.server = httptest.NewServer(r)
	t.Cleanup(r.stop)
	return r
}

func (r *recorder) stop() {
	r.server.CloseClientConnections()
	r.server.Close()
}

// url is where the recorder listens: http://127.0.0.1:port.
func (r *recorder) url() string { return r.server.URL }

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	e := &exchange{method: req.Method, path: req.URL.RequestURI()}
	r.mu.Lock()
	r.seen = append(r.seen, e)
	r.mu.Unlock()
	r.next.ServeHTTP(&statusWriter{ResponseWriter: w, set: func(code int) {
		r.mu.Lock()
		e.status = code
		r.mu.Unlock()
	}}, req)
}

// exchange is one request and its status; 0: no answer yet.
type exchange struct {
	method, path string
	status       int
}

// line is how the tests write a request.
func line(method, path string, status int) string {
	return method + " " + path + " " + strconv.Itoa(status)
}

// take returns the requests since the last take, in the order they came in.
func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	lines := []string{}
	for _, e := range r.seen {
		lines = append(lines, line(e.method, e.path, e.status))
	}
	r.seen = nil
	return lines
}

// statusWriter reports the status before the first byte goes out: who has the
// body can rely on the log.
type statusWriter struct {
	http.ResponseWriter
	set  func(code int)
	done bool
}

func (w *statusWriter) WriteHeader(code int) {
	if !w.done {
		w.done = code >= 200
		w.set(code)
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	if !w.done {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(b)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
