package containerd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/moby/buildkit/cache"
	cacheregistry "github.com/moby/buildkit/cache/remotecache/registry"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/util/contentutil"
	"github.com/moby/buildkit/worker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/handlerstore"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// builder is a BuildKit daemon as far as its cache is concerned: its solver decides
// which steps run. A step that runs writes a layer to the content store. A step that is
// in the cache is loaded from there: its layers are copied from the registry.
type builder struct {
	worker.Worker // of its methods the cache calls ID and FromRemote
	content       content.Store
	imported      []solver.CacheManager
	ran           atomic.Int32 // steps that were not in the cache
}

func newBuilder(t *testing.T) *builder {
	t.Helper()
	store, err := local.NewStore(t.TempDir())
	require.NoError(t, err)
	return &builder{content: store}
}

func (b *builder) ID() string { return "builder" }

// FromRemote brings the layers of a result in the cache into the content store, which
// verifies them.
func (b *builder) FromRemote(ctx context.Context, remote *solver.Remote) (cache.ImmutableRef, error) {
	for _, desc := range remote.Descriptors {
		if err := contentutil.Copy(ctx, b.content, remote.Provider, desc, "", nil); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// layers are those in the content store.
func (b *builder) layers(t *testing.T) (all []digest.Digest) {
	t.Helper()
	require.NoError(t, b.content.Walk(t.Context(), func(i content.Info) error {
		all = append(all, i.Digest)
		return nil
	}))
	return all
}

// step is a step of a build, as a vertex of BuildKit's solver and as its operation.
type step struct {
	name   string
	size   int // of the layer that it adds to those of its first input
	inputs []*step
	run    *builder
}

// steps are a build of two stages: app stands on deps, and copies from tool. Each has its
// inputs before it.
func (b *builder) steps() []*step {
	base := &step{name: "base", size: 300_000, run: b}
	deps := &step{name: "deps", size: 1_200_000, inputs: []*step{base}, run: b}
	tool := &step{name: "tool", size: 50_000, inputs: []*step{base}, run: b}
	app := &step{name: "app", size: 1000, inputs: []*step{deps, tool}, run: b}
	return []*step{base, deps, tool, app}
}

func (s *step) Digest() digest.Digest { return digest.FromString(s.name) }
func (s *step) Name() string          { return s.name }
func (s *step) Sys() any              { return s }
func (s *step) Options() solver.VertexOptions {
	return solver.VertexOptions{CacheSources: s.run.imported}
}

func (s *step) Inputs() (edges []solver.Edge) {
	for _, input := range s.inputs {
		edges = append(edges, solver.Edge{Vertex: input})
	}
	return edges
}

func (s *step) CacheMap(context.Context, solver.JobContext, int) (*solver.CacheMap, bool, error) {
	m := &solver.CacheMap{Digest: s.Digest()}
	m.Deps = append(m.Deps, make([]struct {
		Selector          digest.Digest
		ComputeDigestFunc solver.ResultBasedCacheFunc
		PreprocessFunc    solver.PreprocessFunc
	}, len(s.inputs))...)
	return m, true, nil
}

func (s *step) Acquire(context.Context) (solver.ReleaseFunc, error) { return func() {}, nil }

// Exec writes the step's layer, the same in each build.
func (s *step) Exec(ctx context.Context, _ solver.JobContext, inputs []solver.Result) ([]solver.Result, error) {
	s.run.ran.Add(1)
	data := s.data()
	layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := content.WriteBlob(ctx, s.run.content, s.name, bytes.NewReader(data), layer); err != nil {
		return nil, err
	}
	made := &built{provider: s.run.content}
	if len(inputs) > 0 {
		below, ok := inputs[0].Sys().(*built)
		if !ok {
			return nil, errors.New("a step that ran stands on one from the cache")
		}
		made.layers = append(made.layers, below.layers...)
	}
	made.layers = append(made.layers, layer)
	return []solver.Result{made}, nil
}

func (s *step) data() []byte {
	data := make([]byte, s.size)
	_, _ = rand.NewChaCha8([32]byte([]byte(s.Digest().Encoded())[:32])).Read(data)
	return data
}

// stack are the layers of the step's result.
func (s *step) stack() (layers []digest.Digest) {
	if len(s.inputs) > 0 {
		layers = s.inputs[0].stack()
	}
	return append(layers, digest.FromBytes(s.data()))
}

// built is the result of a step that ran.
type built struct {
	layers   []ocispec.Descriptor
	provider content.InfoReaderProvider
}

func (r *built) ID() string                    { return r.layers[len(r.layers)-1].Digest.String() }
func (r *built) Release(context.Context) error { return nil }
func (r *built) Sys() any                      { return r }
func (r *built) Clone() solver.Result          { return r }

// resolveRemotes says which layers a result has that can be exported.
func resolveRemotes(_ context.Context, res solver.Result) ([]*solver.Remote, error) {
	r, ok := res.Sys().(*built)
	if !ok {
		return nil, errors.New("not a step that ran")
	}
	return []*solver.Remote{{Descriptors: r.layers, Provider: r.provider}}, nil
}

// build builds the step with a solver that remembers nothing of earlier builds.
func (b *builder) build(t *testing.T, s *step, use func(solver.CachedResult)) {
	t.Helper()
	fresh := solver.NewSolver(solver.SolverOpt{ResolveOpFunc: func(v solver.Vertex, _ solver.Builder) (solver.Op, error) {
		return v.Sys().(*step), nil
	}})
	defer fresh.Close()
	job, err := fresh.NewJob("build")
	require.NoError(t, err)
	defer func() { assert.NoError(t, job.Discard()) }()
	res, err := job.Build(t.Context(), solver.Edge{Vertex: s})
	require.NoError(t, err)
	use(res)
	assert.NoError(t, res.Release(t.Context()))
}

// export builds everything and writes the cache to a registry, as
// --cache-to type=registry,mode=max does.
func (b *builder) export(t *testing.T, to string, attrs map[string]string) {
	t.Helper()
	target, err := cacheregistry.ResolveCacheExporterFunc(sessions(t), nil)(t.Context(), nil, cacheAttrs(to, attrs))
	require.NoError(t, err)
	all := b.steps()
	b.build(t, all[len(all)-1], func(res solver.CachedResult) {
		for _, key := range res.CacheKeys() {
			_, err := key.Exporter.ExportTo(t.Context(), target, solver.CacheExportOpt{
				ResolveRemotes: resolveRemotes, Mode: solver.CacheExportModeMax, ExportRoots: true,
			})
			require.NoError(t, err)
		}
	})
	assert.EqualValues(t, len(all), b.ran.Load())
	_, err = target.Finalize(t.Context())
	require.NoError(t, err)
}

// importCache reads the cache's manifest and its configuration from a registry, as
// --cache-from type=registry does.
func (b *builder) importCache(t *testing.T, from, form string) {
	t.Helper()
	importer, desc, err := cacheregistry.ResolveCacheImporterFunc(sessions(t), b.content, nil)(t.Context(), nil, cacheAttrs(from, nil))
	require.NoError(t, err)
	assert.Equal(t, form, desc.MediaType)
	imported, err := importer.Resolve(t.Context(), desc, "imported", b)
	require.NoError(t, err)
	b.imported = []solver.CacheManager{imported}
}

// sessions has none: no registry here asks for a login.
func sessions(t *testing.T) *session.Manager {
	t.Helper()
	m, err := session.NewManager()
	require.NoError(t, err)
	return m
}

func cacheAttrs(ref string, more map[string]string) map[string]string {
	attrs := map[string]string{"ref": ref, "registry.insecure": "true"}
	maps.Copy(attrs, more)
	return attrs
}

// assertHits builds each step by a new builder. Nothing may run, and every layer must arrive.
func assertHits(t *testing.T, from, form string) {
	t.Helper()
	for i := range (*builder)(nil).steps() {
		b := newBuilder(t)
		b.importCache(t, from, form)
		s := b.steps()[i]
		b.build(t, s, func(solver.CachedResult) {})
		assert.Zero(t, b.ran.Load(), "steps of %s that ran", s.name)
		assert.ElementsMatch(t, s.stack(), b.layers(t), "layers of %s", s.name)
	}
}

// cacheForms are the manifests that BuildKit can write for its cache, by the media type,
// and how to ask for each.
var cacheForms = map[string]map[string]string{
	"application/vnd.oci.image.manifest.v1+json":                {"image-manifest": "true"},
	"application/vnd.oci.image.index.v1+json":                   {"image-manifest": "false"},
	"application/vnd.docker.distribution.manifest.list.v2+json": {"oci-mediatypes": "false"},
}

// A cache that was written to the upstream registry is hit through the proxy, in each of
// its forms, and is hit as well when upstream is gone. With FillBackground and FillEager it
// is enough that somebody has asked for its manifest.
func TestBuildKitHitsItsCache(t *testing.T) {
	t.Parallel()
	for form, attrs := range cacheForms {
		inner := newRegistry()
		writer := newBuilder(t)
		up := pullthroughtest.New(t, serveBy(inner))
		writer.export(t, up.Host()+"/team/cache:main", attrs)
		for mode, fill := range fills {
			t.Run(form+"/"+mode, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, serveBy(inner), fill)
				from := w.ref("team/cache", "main")
				if mode == "lazy" {
					assertHits(t, from, form)
				} else {
					newBuilder(t).importCache(t, from, form)
				}
				assertAskedOnce(t, w, writer.layers(t))
				w.Up.Close()
				assertHits(t, from, form)
			})
		}
	}
}

// serveBy has the upstream answer as this registry does.
func serveBy(inner http.Handler) pullthroughtest.Config {
	return pullthroughtest.Config{Handler: func(rw http.ResponseWriter, r *http.Request) bool {
		inner.ServeHTTP(rw, r)
		return true
	}}
}

// assertAskedOnce compares what upstream was asked: one GET for the manifest, for the
// cache's configuration and for each layer.
func assertAskedOnce(t *testing.T, w *world, layers []digest.Digest) {
	t.Helper()
	asked := w.takeLog(t)
	require.NotEmpty(t, asked)
	assert.Equal(t, "GET /v2/team/cache/manifests/main 200", asked[0])
	blobs := slices.Compact(slices.Sorted(slices.Values(asked[1:])))
	assert.Len(t, asked[1:], len(layers)+1, "%q", asked)
	assert.Len(t, blobs, len(layers)+1, "%q", asked)
	for _, d := range layers {
		assert.Contains(t, blobs, "GET /v2/team/cache/blobs/"+d.String()+" 200")
	}
}

// A cache that is exported to a registry behind the proxy is whole in that registry, and
// stays the tag's, also where upstream has a cache of that name with the same layers.
func TestBuildKitExportsItsCacheThroughTheProxy(t *testing.T) {
	t.Parallel()
	for form, attrs := range cacheForms {
		for mode, fill := range fills {
			t.Run(form+"/"+mode, func(t *testing.T) {
				t.Parallel()
				up, inner := pullthroughtest.New(t, serveBy(newRegistry())), newRegistry()
				newBuilder(t).export(t, up.Host()+"/team/cache:main", attrs)
				up.Reset()
				proxy := &pullthrough.Proxy{
					Store: &handlerstore.Store{Handler: inner}, Fill: fill, SpoolDir: t.TempDir(),
					Rules:  pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: up.URL}},
					Policy: keepLocal,
				}
				host, alone := testkit.Serve(t, proxy.Handler(inner)), testkit.Serve(t, inner)
				t.Cleanup(func() { assert.NoError(t, proxy.Shutdown(context.Background())) })
				newBuilder(t).export(t, cacheAt(host), attrs)
				require.NoError(t, proxy.Idle(t.Context()))
				assert.Equal(t, 1, up.Count("GET /v2/team/cache/manifests/main"), "a client looks before it pushes a tag")
				assert.Zero(t, up.Count("HEAD *")+up.Count("P*"), "what is pushed, and what is there, is not upstream's")
				up.Close()
				assertHits(t, cacheAt(host), form)
				assertHits(t, cacheAt(alone), form)
			})
		}
	}
}

func cacheAt(s *httptest.Server) string {
	return strings.TrimPrefix(s.URL, "http://") + "/" + testkit.Prefix + "/team/cache:main"
}

func newRegistry() http.Handler { return registry.New(registry.Logger(log.New(io.Discard, "", 0))) }

// keepLocal is for hosts whose clients push tags that upstream has, too.
func keepLocal(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
	return pullthrough.Policy{KeepLocal: true}
}
