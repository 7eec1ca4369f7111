package conformance_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/diststore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// counted is the way to the server, which counts the requests by their methods.
func (s *server) counted(t *testing.T, parameters map[string]any) (asked func() map[string]int) {
	t.Helper()
	var mu sync.Mutex
	n := make(map[string]int)
	to := httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: s.addr})
		r.Out.Host = r.In.Host // it is signed
	}}
	way := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		n[r.Method]++
		mu.Unlock()
		to.ServeHTTP(w, r)
	}))
	t.Cleanup(way.Close)
	parameters["regionendpoint"] = way.URL
	return func() map[string]int {
		mu.Lock()
		defer mu.Unlock()
		all := n
		n = make(map[string]int)
		return all
	}
}

// TestWhatAPutAsksOfS3, in requests, where the README counts calls of the driver.
func TestWhatAPutAsksOfS3(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	parameters := server.bucket(t, "requests")
	asked := server.counted(t, parameters)
	s := diststore.New(open(t, parameters))
	put := func(repo pullthrough.Repo, tag string, seed int64) func() {
		return func() {
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: seed})
			desc := ocispec.Descriptor{MediaType: img.MediaType, Digest: img.Digest, Size: int64(len(img.Content))}
			require.NoError(t, s.PutManifest(t.Context(), repo, &pullthrough.Manifest{Descriptor: desc, Content: img.Content, Tag: tag, Origin: "registry.example"}))
		}
	}
	putBlob := func(size int) func() {
		content := bytes.Repeat([]byte("layer"), size/5)
		desc := ocispec.Descriptor{Digest: digest.FromBytes(content), Size: int64(len(content))}
		return func() { require.NoError(t, s.PutBlob(t.Context(), repo, desc, bytes.NewReader(content))) }
	}
	small := putBlob(1 << 20)
	for _, step := range []struct {
		name string
		call func()
		want map[string]int
	}{
		{"manifest by tag in a new repository", put(repo, "v1", 1), map[string]int{"PUT": 6, "GET": 4}},
		{"manifest by tag", put(repo, "v2", 2), map[string]int{"PUT": 5, "GET": 4}},
		{"manifest by digest", put(repo, "", 3), map[string]int{"PUT": 3, "GET": 2}},
		{"blob", small, map[string]int{"PUT": 2, "GET": 1}},
		{"blob, again", small, map[string]int{"HEAD": 1, "GET": 1}},
	} {
		asked()
		step.call()
		assert.Equal(t, step.want, asked(), step.name)
	}
	asked()
	putBlob(6 << 20)()
	large := asked()
	t.Log("a blob of two parts:", large)
	assert.LessOrEqual(t, large["PUT"], 3, "two parts, and the link")
}
