package conformance_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/middleware/redirect"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/handlerstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func newGGCR(options ...ggcr.Option) http.Handler {
	return ggcr.New(append(options, ggcr.Logger(log.New(io.Discard, "", 0)))...)
}

// repoBlobs keeps the blobs of ggcr's registry apart by repository, which its own
// does not.
type repoBlobs struct {
	mu    sync.RWMutex
	blobs map[string][]byte
}

func (b *repoBlobs) get(repo string, h v1.Hash) ([]byte, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	content, ok := b.blobs[path.Join(repo, h.String())]
	if !ok {
		return nil, ggcr.ErrNotFound
	}
	return content, nil
}

func (b *repoBlobs) Get(_ context.Context, repo string, h v1.Hash) (io.ReadCloser, error) {
	content, err := b.get(repo, h)
	return io.NopCloser(bytes.NewReader(content)), err
}

func (b *repoBlobs) Stat(_ context.Context, repo string, h v1.Hash) (int64, error) {
	content, err := b.get(repo, h)
	return int64(len(content)), err
}

func (b *repoBlobs) Put(_ context.Context, repo string, h v1.Hash, rc io.ReadCloser) error {
	content, err := io.ReadAll(rc)
	if err = errors.Join(err, rc.Close()); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	// Of an upload the registry takes what stands before the session for the name.
	b.blobs[path.Join(strings.TrimSuffix(repo, "/blobs"), h.String())] = content
	return nil
}

// silence takes distribution its log, which it writes to stderr for every request
// when it is no process of its own.
var silence = sync.OnceFunc(func() { logrus.SetOutput(io.Discard) })

// newDistribution is distribution's registry as a handler.
func newDistribution(t testing.TB, storage configuration.Storage, change func(*configuration.Configuration)) http.Handler {
	t.Helper()
	silence()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	c := &configuration.Configuration{Storage: storage}
	c.HTTP.Secret = "only-for-tests"
	c.Catalog.MaxEntries = 2 // a page
	c.Storage["maintenance"] = configuration.Parameters{"uploadpurging": map[any]any{"enabled": false}}
	c.Storage["delete"] = configuration.Parameters{"enabled": true}
	if change != nil {
		change(c)
	}
	app := handlers.NewApp(ctx, c)
	t.Cleanup(func() { assert.NoError(t, app.Shutdown()) })
	return app
}

func inMemory() configuration.Storage { return configuration.Storage{"inmemory": {}} }

// tenantName keeps tenants apart in one registry.
func tenantName(r pullthrough.Repo) (string, error) {
	return path.Join(r.Account, r.Region, r.Name), nil
}

// innerRegistries are registries that are handlers.
var innerRegistries = map[string]func(t *testing.T) http.Handler{
	"ggcr": func(*testing.T) http.Handler {
		return newGGCR(ggcr.WithBlobHandler(&repoBlobs{blobs: map[string][]byte{}}))
	},
	"distribution":                func(t *testing.T) http.Handler { return newDistribution(t, inMemory(), nil) },
	"distribution that redirects": newRedirecting,
}

func TestHandlerStoreKeepsTheContract(t *testing.T) {
	for name, open := range innerRegistries {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pullthroughtest.TestStore(t, func(t *testing.T) pullthrough.Store {
				return &handlerstore.Store{Handler: open(t), Name: tenantName}
			})
		})
	}
	t.Run("one tenant", func(t *testing.T) {
		t.Parallel()
		pullthroughtest.TestStore(t, func(t *testing.T) pullthrough.Store {
			return &handlerstore.Store{Handler: newDistribution(t, inMemory(), nil)}
		})
	})
}

// newRedirecting is distribution with its storage on another server, to which it
// sends clients for blobs.
func newRedirecting(t *testing.T) http.Handler {
	dir := t.TempDir()
	files := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(files.Close)
	return newDistribution(t, configuration.Storage{"filesystem": {"rootdirectory": dir}}, func(c *configuration.Configuration) {
		delete(c.Storage, "delete") // the files of distribution do not stand a deletion beside a push
		c.Middleware = map[string][]configuration.Middleware{
			"storage": {{Name: "redirect", Options: configuration.Parameters{"baseurl": files.URL}}},
		}
	})
}

// inner is a proxy before a registry that is a handler, as a host has it: the
// registry's own clients pass.
type inner struct {
	*pullthrough.Proxy
	registry http.Handler
	up       *pullthroughtest.Upstream
	server   *httptest.Server
}

func startInner(t *testing.T, registry http.Handler) *inner {
	t.Helper()
	in := &inner{registry: registry, up: pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})}
	in.Proxy = &pullthrough.Proxy{
		Store:    &handlerstore.Store{Handler: registry},
		Rules:    pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: in.up.URL}},
		Fill:     pullthrough.FillEager,
		SpoolDir: t.TempDir(),
	}
	in.server = httptest.NewServer(in.Handler(registry))
	t.Cleanup(in.server.Close)
	t.Cleanup(func() { assert.NoError(t, in.Shutdown(context.Background())) })
	return in
}

// get asks the proxy, and follows redirects.
func (in *inner) get(t *testing.T, path string, header ...string) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, in.server.URL+path, nil)
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	content, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return resp, content
}

// pull reads all of the image, and checks it byte for byte.
func (in *inner) pull(t *testing.T, name, tag string, img *pullthroughtest.Image) {
	t.Helper()
	ref := tag
	if ref == "" {
		ref = img.Digest.String()
	}
	resp, content := in.get(t, "/v2/hub/"+name+"/manifests/"+ref)
	require.Equal(t, http.StatusOK, resp.StatusCode, string(content))
	assert.Equal(t, string(img.Content), string(content))
	assert.Equal(t, img.MediaType, resp.Header.Get("Content-Type"))
	assert.Equal(t, img.Digest.String(), resp.Header.Get("Docker-Content-Digest"))
	for _, child := range img.Children {
		in.pull(t, name, "", child)
	}
	for _, b := range img.Blobs() {
		want, err := io.ReadAll(b.Open())
		require.NoError(t, err)
		resp, content := in.get(t, "/v2/hub/"+name+"/blobs/"+b.Digest.String())
		assert.Equal(t, http.StatusOK, resp.StatusCode)
		assert.True(t, bytes.Equal(want, content), "blob %s", b.Digest)
		if len(want) > 2000 {
			resp, content = in.get(t, "/v2/hub/"+name+"/blobs/"+b.Digest.String(), "Range", "bytes=1000-1999")
			assert.Equal(t, http.StatusPartialContent, resp.StatusCode)
			assert.True(t, bytes.Equal(want[1000:2000], content), "part of blob %s", b.Digest)
		}
	}
}

// stored reports whether the registry itself has the image, under its digest.
func (in *inner) stored(name, ref string, img *pullthroughtest.Image) bool {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, "/v2/hub/"+name+"/manifests/"+ref, nil)
	r.Header.Set("Accept", img.MediaType)
	in.registry.ServeHTTP(w, r)
	return w.Code == http.StatusOK && bytes.Equal(w.Body.Bytes(), img.Content) && w.Header().Get("Docker-Content-Digest") == img.Digest.String()
}

// Images, indexes and artifacts arrive in the registry with upstream's digests,
// and are pulled from there the next time.
func TestHandlerStorePulls(t *testing.T) {
	t.Parallel()
	large := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1, Layers: 3, LayerSize: 9<<20 + 1})
	subject := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	images := map[string]*pullthroughtest.Image{
		"large":  large,
		"docker": pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 3, Docker: true, LayerSize: 100_000}),
		"index": pullthroughtest.NewIndex(subject, pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 4, LayerSize: 2 << 20}),
			pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 5, ArtifactType: "application/vnd.example.sbom", Subject: subject})),
		"artifact": pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 6, ArtifactType: "application/vnd.example.chart", LayerSize: 5000}),
	}
	open := map[string]func(t *testing.T) http.Handler{"ggcr as it comes": func(*testing.T) http.Handler { return newGGCR() }}
	maps.Copy(open, innerRegistries)
	for name, open := range open {
		t.Run(name, func(t *testing.T) {
			in := startInner(t, open(t))
			for name, img := range images {
				in.up.Push(name, "v1", img)
				in.pull(t, name, "v1", img)
				require.Eventually(t, func() bool { return in.stored(name, "v1", img) }, 20*time.Second, time.Millisecond, "%s arrives in the registry", name)
				for _, child := range img.Children {
					assert.True(t, in.stored(name, child.Digest.String(), child))
				}
				for _, b := range img.Blobs() {
					// None where the registry shows blobs of one repository in all of them.
					assert.LessOrEqual(t, in.up.Count("GET /v2/"+name+"/blobs/"+b.Digest.String()+" 200"), 1)
				}
			}
			in.up.Reset()
			for name, img := range images {
				in.pull(t, name, "v1", img)
			}
			assert.Empty(t, in.up.Log(), "what the registry has is not asked for again")
		})
	}
}

// The registry's own answer to a client is a redirect where it keeps its blobs
// elsewhere, and so is the proxy's.
func TestHandlerStorePassesRedirectsOn(t *testing.T) {
	t.Parallel()
	in := startInner(t, newRedirecting(t))
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 50_000})
	in.up.Push("a", "v1", img)
	in.pull(t, "a", "v1", img)
	require.Eventually(t, func() bool { return in.stored("a", "v1", img) }, 20*time.Second, time.Millisecond)
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		w := httptest.NewRecorder()
		in.ServeHTTP(w, httptest.NewRequest(method, "/v2/hub/a/blobs/"+img.Layers[0].Digest.String(), nil))
		assert.Equal(t, http.StatusTemporaryRedirect, w.Code)
		assert.NotContains(t, w.Header().Get("Location"), in.server.URL)
	}
	b, err := in.Blob(t.Context(), pullthrough.Request{Repo: pullthrough.Repo{Name: "hub/a"}, Ref: img.Layers[0].Digest.String()})
	require.NoError(t, err)
	_, err = b.Body.Read(make([]byte, 1))
	assert.Error(t, err, "who reads the Body himself is told")
	assert.NoError(t, b.Body.Close())
}

// BenchmarkHandlerStore runs over go-containerregistry's registry.
func BenchmarkHandlerStore(b *testing.B) {
	for name, size := range map[string]int64{"1MiB": 1 << 20, "256MiB": 256 << 20} {
		layer := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: size}).Layers[0]
		desc, repo := layer.Descriptor(), pullthrough.Repo{Name: "hub/a"}
		put := func(b *testing.B) *handlerstore.Store {
			b.Helper()
			s := &handlerstore.Store{Handler: newGGCR()}
			require.NoError(b, s.PutBlob(b.Context(), repo, desc, layer.Open()))
			return s
		}
		b.Run("put "+name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				put(b)
			}
		})
		b.Run("get "+name, func(b *testing.B) {
			s := put(b)
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				blob, err := s.Blob(b.Context(), repo, desc.Digest)
				require.NoError(b, err)
				n, err := io.Copy(io.Discard, blob.Body)
				require.NoError(b, err)
				require.Equal(b, size, n)
				require.NoError(b, blob.Body.Close())
			}
		})
	}
}
