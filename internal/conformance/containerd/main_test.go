package containerd_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/log"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// TestMain does without testkit.Main: BuildKit leaves goroutines behind that end
// after ten seconds.
func TestMain(m *testing.M) {
	http.DefaultTransport.(*http.Transport).DialContext = pullthroughtest.DialLoopback
	_ = log.SetLevel("fatal") // clients log what is no failure
	os.Exit(m.Run())
}

var fills = map[string]pullthrough.FillMode{
	"lazy": pullthrough.FillLazy, "background": pullthrough.FillBackground, "eager": pullthrough.FillEager,
}

// world is an upstream registry and a proxy that keeps its images on disk.
type world struct {
	*testkit.World
	server *httptest.Server

	mu     sync.Mutex
	ranges []string // that clients have asked for since takeRanges
}

func newWorld(t *testing.T, c pullthroughtest.Config, fill pullthrough.FillMode) *world {
	t.Helper()
	store, err := dirstore.Open(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, store.Close()) })
	w := &world{World: testkit.NewWorld(t, c, func(p *pullthrough.Proxy) { p.Store, p.Fill = store, fill })}
	w.server = testkit.Serve(t, w)
	return w
}

func (w *world) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if asked := r.Header.Get("Range"); asked != "" {
		w.mu.Lock()
		w.ranges = append(w.ranges, asked)
		w.mu.Unlock()
	}
	w.Proxy.ServeHTTP(rw, r)
}

// host is the proxy's, as references have it.
func (w *world) host() string { return strings.TrimPrefix(w.server.URL, "http://") }

// ref is the name of an upstream repository's tag at the proxy.
func (w *world) ref(repo, tag string) string {
	return w.host() + "/" + testkit.Prefix + "/" + repo + ":" + tag
}

// takeLog returns what upstream was asked since the last call, when the proxy is at rest.
func (w *world) takeLog(t *testing.T) []string {
	t.Helper()
	w.Settled(t)
	defer w.Up.Reset()
	return w.Up.Log()
}

// withoutParts leaves out the answers with a part of a blob: what a client wants that is far
// ahead is fetched so, and how much that is depends on who is faster.
func withoutParts(log []string) []string {
	return slices.DeleteFunc(slices.Clone(log), func(line string) bool { return strings.HasSuffix(line, " 206") })
}

// takeRanges returns the ranges that clients have asked for since the last call.
func (w *world) takeRanges() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer func() { w.ranges = nil }()
	return w.ranges
}
