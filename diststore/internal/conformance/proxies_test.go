package conformance_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/diststore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const (
	proxies = 4
	clients = 64
	prefix  = "hub/"
)

// proxy is one of several on a bucket, with an upstream whose log is its own.
type proxy struct {
	*pullthrough.Proxy
	up  *pullthroughtest.Upstream // nil: unplugged
	url string
}

// startProxy starts a proxy over a bucket; without an upstream it must do with
// what is stored.
func startProxy(t testing.TB, parameters map[string]any, up *pullthroughtest.Upstream) *proxy {
	t.Helper()
	upstream := "http://127.0.0.1:1"
	if up != nil {
		upstream = up.URL
	}
	p := &proxy{up: up, Proxy: &pullthrough.Proxy{
		Store:    diststore.New(open(t, parameters)),
		Rules:    pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: upstream}},
		SpoolDir: t.TempDir(),
	}}
	if up == nil {
		p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{Offline: true}
		}
	}
	srv := httptest.NewServer(p)
	p.url = srv.URL
	t.Cleanup(func() {
		srv.Close()
		assert.NoError(t, p.Shutdown(context.Background()))
	})
	return p
}

// newClient is a client with connections of its own.
func newClient(t testing.TB) *http.Client {
	transport := &http.Transport{DialContext: pullthroughtest.DialLoopback, MaxIdleConnsPerHost: 8}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// TestProxiesShareABucket: four proxies, 64 clients, no lock service.
func TestProxiesShareABucket(t *testing.T) {
	t.Parallel()
	server, images := startServer(t), someImages(large(t))
	parameters := server.bucket(t, "shared")
	var all [proxies]*proxy
	for i := range all {
		all[i] = startProxy(t, parameters, newUpstream(t, images))
	}
	client, began := newClient(t), time.Now()
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			assert.NoError(t, puller{all[i%proxies].url, prefix, client}.pullAll(t.Context(), images))
		})
	}
	wg.Wait()
	t.Logf("%d clients at %d proxies: %d images each in %v", clients, proxies, len(images), time.Since(began).Round(time.Millisecond))
	for _, p := range all {
		require.NoError(t, p.Shutdown(t.Context())) // commits have ended then
		assertOneGetPerBlob(t, p.up)
	}
	t.Logf("%d objects in the bucket", requireSound(t, open(t, parameters)))
	requireServed(t, parameters, images)
}

// assertOneGetPerBlob is about one proxy: no two of its clients caused a fetch.
func assertOneGetPerBlob(t testing.TB, up *pullthroughtest.Upstream) {
	t.Helper()
	gets := make(map[string]int)
	for _, r := range up.Requests() {
		if r.Method == http.MethodGet && strings.Contains(r.Path, "/blobs/") {
			gets[r.Path]++
		}
	}
	for path, n := range gets {
		assert.Equal(t, 1, n, path)
	}
}

// requireServed: a new proxy without upstream has every image, and so has the
// registry, also after its garbage collection.
func requireServed(t testing.TB, parameters map[string]any, images []tagged) {
	t.Helper()
	client := newClient(t)
	for _, step := range []string{"as written", "after garbage collection"} {
		p := startProxy(t, parameters, nil)
		require.NoError(t, puller{p.url, prefix, client}.pullAll(t.Context(), images), "a proxy without upstream, %s", step)
		registry := startRegistry(t, parameters)
		require.NoError(t, puller{registry, prefix, client}.pullAll(t.Context(), images), "the registry, %s", step)
		collectGarbage(t, open(t, parameters))
	}
}
