package pullthrough_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// fileStore keeps blobs in files and the rest in memory: the simplest Store
// that a large layer can pass into.
type fileStore struct {
	*pullthrough.MemStore
	dir string
}

func (s fileStore) path(d digest.Digest) string { return filepath.Join(s.dir, d.Encoded()) }

func (s fileStore) Blob(context.Context, pullthrough.Repo, digest.Digest) (*pullthrough.Blob, error) {
	return nil, os.ErrNotExist // every pull is a cold one
}

func (s fileStore) PutBlob(_ context.Context, _ pullthrough.Repo, desc ocispec.Descriptor, r io.ReadSeeker) error {
	f, err := os.Create(s.path(desc.Digest))
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	return f.Close()
}

// BenchmarkColdLayer pulls a layer of 1 GiB from an upstream, through a server,
// into a Store that writes a file. MiB-RSS is by how much the peak resident
// size of the whole process, upstream and client included, is above what it was
// before.
func BenchmarkColdLayer(b *testing.B) {
	up := pullthroughtest.New(b, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 1 << 30})
	up.Push("a", "1", img)
	p := &pullthrough.Proxy{
		Store:    fileStore{pullthrough.NewMemStore(), b.TempDir()},
		Rules:    pullthrough.StaticRules{{Prefix: prefix, UpstreamURL: up.URL()}},
		SpoolDir: b.TempDir(),
	}
	s := httptest.NewServer(p)
	defer s.Close()
	url := s.URL + "/v2/" + prefix + "/a/blobs/" + img.Layers[0].Digest.String()
	fetch := func() {
		resp, err := http.Get(url)
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		if err != nil || n != 1<<30 {
			b.Fatal(n, err)
		}
		_ = resp.Body.Close()
		p.WaitIdle()
	}
	fetch() // buffers and connections are there now
	before := resetPeak(b)
	b.SetBytes(1 << 30)
	for b.Loop() {
		fetch()
	}
	b.ReportMetric(float64(peakRSS(b)-before)/(1<<20), "MiB-RSS")
}

// BenchmarkManifestHit is the handler alone, without a network.
func BenchmarkManifestHit(b *testing.B) {
	store := pullthrough.NewMemStore()
	m := localManifest("1")
	if err := store.PutManifest(b.Context(), pullthrough.Repo{Name: prefix + "/a"}, m); err != nil {
		b.Fatal(err)
	}
	p := &pullthrough.Proxy{Store: store, Rules: pullthrough.StaticRules{}}
	r := httptest.NewRequest(http.MethodGet, "/v2/"+prefix+"/a/manifests/"+m.Descriptor.Digest.String(), nil)
	b.ReportAllocs()
	for b.Loop() {
		w := &discard{h: make(http.Header, 8)}
		p.ServeHTTP(w, r)
		if w.status != http.StatusOK {
			b.Fatal(w.status)
		}
	}
}

// discard is a ResponseWriter without a connection.
type discard struct {
	h      http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) WriteHeader(status int)      { d.status = status }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }

// resetPeak forgets the peak resident size so far and returns the present one,
// in bytes. Only Linux tells.
func resetPeak(b *testing.B) int64 {
	b.Helper()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		b.Skip("the peak resident size cannot be measured here:", err)
	}
	return peakRSS(b)
}

func peakRSS(b *testing.B) int64 {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib << 10
		}
	}
	b.Fatal("no VmHWM")
	return 0
}
