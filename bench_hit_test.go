package pullthrough_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// fromMap answers as a registry does that has nothing but a map: the same
// headers, the same bytes.
type fromMap map[string]*pullthrough.Manifest

func (h fromMap) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m := h[r.URL.Path]
	if m == nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	d := m.Descriptor.Digest.String()
	header := w.Header()
	header["Content-Type"] = []string{m.Descriptor.MediaType}
	header["Content-Length"] = []string{strconv.Itoa(len(m.Content))}
	header["Docker-Content-Digest"] = []string{d}
	header["Docker-Distribution-Api-Version"] = []string{"registry/2.0"}
	header["Etag"] = []string{`"` + d + `"`}
	header["X-Content-Type-Options"] = []string{"nosniff"}
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(m.Content)
}

// registryRepo is a repository of the registry that registryHost names.
var registryRepo = pullthrough.Repo{Account: testkit.RegistryAccount, Region: "eu-west-1", Name: testkit.Prefix + "/a"}

// storedManifest is a proxy that has a manifest at path, and a map that has it
// too.
func storedManifest(b *testing.B) (p *pullthrough.Proxy, plain fromMap, path string, m *pullthrough.Manifest) {
	b.Helper()
	store := memstore.New()
	m = testkit.LocalManifest("1")
	if err := store.PutManifest(b.Context(), registryRepo, m); err != nil {
		b.Fatal(err)
	}
	p = &pullthrough.Proxy{Store: store, Rules: pullthrough.StaticRules{}, Identify: pullthrough.HostIdentity}
	path = "/v2/" + testkit.Prefix + "/a/manifests/" + m.Descriptor.Digest.String()
	return p, fromMap{path: m}, path, m
}

// BenchmarkManifestHit is the handler alone, without a network, by digest and
// with an Identify.
func BenchmarkManifestHit(b *testing.B) {
	p, plain, path, _ := storedManifest(b)
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Host = testkit.RegistryHost
	w := &discard{h: make(http.Header, 8)}
	call := func(h http.Handler) {
		clear(w.h)
		w.status, w.n = 0, 0
		h.ServeHTTP(w, r)
		if w.status != http.StatusOK || w.n == 0 {
			b.Fatal(w.status, w.n)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		call(p)
	}
	// One call is too short for a clock: by turns a thousand of each.
	many := func(h http.Handler) float64 {
		start := time.Now()
		for range 1000 {
			call(h)
		}
		return time.Since(start).Seconds()
	}
	var ratios []float64
	for range 31 {
		ratios = append(ratios, many(p)/many(plain))
	}
	b.ReportMetric(testkit.Median(ratios), "x-map")
}

// A hit costs no memory of its own, once the object has been answered before.
func TestAManifestHitDoesNotAllocate(t *testing.T) {
	store, m := memstore.New(), testkit.LocalManifest("1")
	require.NoError(t, store.PutManifest(t.Context(), registryRepo, m))
	p := &pullthrough.Proxy{Store: store, Rules: pullthrough.StaticRules{}, Identify: pullthrough.HostIdentity}
	r := httptest.NewRequest(http.MethodGet, "/v2/"+testkit.Prefix+"/a/manifests/"+m.Descriptor.Digest.String(), nil)
	r.Host = testkit.RegistryHost
	w := &discard{h: make(http.Header, 8)}
	got := testkit.Allocs(func() { clear(w.h); p.ServeHTTP(w, r) })
	assert.Equal(t, http.StatusOK, w.status)
	assert.LessOrEqual(t, got, 0.0)
}

// discard is a ResponseWriter without a connection, used again and again: what
// is allocated is the handler's.
type discard struct {
	h      http.Header
	status int
	n      int
}

func (d *discard) Header() http.Header { return d.h }

func (d *discard) WriteHeader(status int) { d.status = status }

func (d *discard) Write(p []byte) (int, error) {
	d.n += len(p)
	return len(p), nil
}

// BenchmarkManifestHitHTTP is the same over one connection and over 32.
func BenchmarkManifestHitHTTP(b *testing.B) {
	p, plain, path, m := storedManifest(b)
	p.Identify = func(*http.Request) (pullthrough.Identity, error) {
		return pullthrough.Identity{Account: registryRepo.Account, Region: registryRepo.Region}, nil
	}
	ours, bound := httptest.NewServer(p), httptest.NewServer(plain)
	defer ours.Close()
	defer bound.Close()
	c := newClient(b, "")
	c.verify(b, ours.URL+path, m.Descriptor.Size, m.Descriptor.Digest)
	c.verify(b, bound.URL+path, m.Descriptor.Size, m.Descriptor.Digest)
	for _, connections := range []int{1, 32} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			b.ReportAllocs()
			get := func(base string) func() error {
				return func() error {
					return inParallel(connections, func(int) error {
						_, err := c.get(base+path, m.Descriptor.Size, nil)
						return err
					})
				}
			}
			testkit.Beside(b, "map", get(ours.URL), get(bound.URL))
		})
	}
}

// BenchmarkBlobHitHTTP sends a blob of 64 MiB that is a file of the Store, over
// one connection and over four.
func BenchmarkBlobHitHTTP(b *testing.B) {
	const size = 64 << 20
	layer := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: size}).Layers[0]
	store := newLayerStore(b)
	if err := store.PutBlob(b.Context(), pullthrough.Repo{}, layer.Descriptor(), layer.Open()); err != nil {
		b.Fatal(err)
	}
	ours := httptest.NewServer(&pullthrough.Proxy{Store: store, Rules: pullthrough.StaticRules{}})
	defer ours.Close()
	bound := httptest.NewServer(serveFile(store.path(layer.Digest), layer.Digest))
	defer bound.Close()
	path := "/v2/" + testkit.Prefix + "/a/blobs/" + layer.Digest.String()
	c := newClient(b, "")
	c.verify(b, ours.URL+path, size, layer.Digest)
	c.verify(b, bound.URL+path, size, layer.Digest)
	for _, connections := range []int{1, 4} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(connections) * size)
			get := func(base string) func() error {
				return func() error {
					return inParallel(connections, func(int) error {
						_, err := c.get(base+path, size, nil)
						return err
					})
				}
			}
			testkit.Beside(b, "servecontent", get(ours.URL), get(bound.URL))
		})
	}
}

// serveFile is the standard library's way to send a file.
func serveFile(name string, d digest.Digest) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, err := os.Open(name)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer f.Close()
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Etag", `"`+d.String()+`"`)
		http.ServeContent(w, r, "", time.Time{}, f)
	})
}
