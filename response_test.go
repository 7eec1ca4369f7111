package pullthrough_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestManifestAnswers(t *testing.T) {
	for name, img := range map[string]*pullthroughtest.Image{
		"OCI image":       pullthroughtest.NewImage(pullthroughtest.ImageOptions{}),
		"Docker image":    pullthroughtest.NewImage(pullthroughtest.ImageOptions{Docker: true}),
		"OCI index":       pullthroughtest.NewIndex(pullthroughtest.NewImage(pullthroughtest.ImageOptions{})),
		"Docker list":     pullthroughtest.NewIndex(pullthroughtest.NewImage(pullthroughtest.ImageOptions{Docker: true})),
		"artifact":        pullthroughtest.NewImage(pullthroughtest.ImageOptions{ArtifactType: "application/vnd.example"}),
		"image in sha512": pullthroughtest.NewImage(pullthroughtest.ImageOptions{Algorithm: digest.SHA512}),
	} {
		for _, cold := range []string{http.MethodGet, http.MethodHead} {
			t.Run(name+", cold "+cold, func(t *testing.T) {
				f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
				f.Up.Push("library/alpine", "v1", img)
				f.Up.Reset()
				d := img.Digest
				byTag, byDigest := testkit.ManifestPath("library/alpine", "v1"), testkit.ManifestPath("library/alpine", d.String())
				testkit.AssertManifest(t, f.Ask(t, cold, byTag), cold, img, d)
				assert.Equal(t, []string{testkit.UpstreamGet(byTag, 200)}, f.Up.Log())

				f.Up.Reset()
				testkit.AssertManifest(t, f.Get(t, byDigest), http.MethodGet, img, d)
				assert.Empty(t, f.Up.Log(), "what a tag named is there under its digest at once")
				f.Settled(t)
				for _, path := range []string{byTag, byDigest, byTag + "?ns=docker.io"} {
					for _, warm := range []string{http.MethodGet, http.MethodHead} {
						testkit.AssertManifest(t, f.Ask(t, warm, path), warm, img, d)
					}
				}
				assert.Empty(t, f.Up.Log(), "a warm pull asks nobody")
			})
		}
	}
}

func TestBlobAnswers(t *testing.T) {
	for _, size := range []int64{-1, 1, 1000, 64 << 10, 1 << 20, 1<<20 + 1, 3 << 20} { // -1: empty
		t.Run(fmt.Sprintf("%d bytes", max(size, 0)), func(t *testing.T) {
			f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: size})
			f.Up.Push("a", "v1", img)
			layer := img.Layers[0]
			path, content := testkit.BlobPath("a", layer.Digest), testkit.BlobContent(t, layer)

			r := f.Get(t, path)
			testkit.AssertContent(t, r, layer.Digest, testkit.OctetStream, len(content))
			testkit.AssertSame(t, content, r.Content)
			assert.Equal(t, []string{testkit.UpstreamGet(path, 200)}, f.Up.Log())

			f.Settled(t)
			f.Up.Reset()
			r = f.Get(t, path)
			testkit.AssertContent(t, r, layer.Digest, testkit.OctetStream, len(content))
			testkit.AssertSame(t, content, r.Content)
			r = f.Ask(t, http.MethodHead, path)
			testkit.AssertContent(t, r, layer.Digest, testkit.OctetStream, len(content))
			assert.Empty(t, r.Content)
			assert.Empty(t, f.Up.Log(), "a warm pull asks nobody")
		})
	}
}

// Amazon ECR Public answers every HEAD of a blob 401, so a size must be found
// out in another way, and a client that only looks pays for no download.
func TestHeadOfAColdBlobDownloadsNothing(t *testing.T) {
	for name, c := range map[string]struct {
		size     int64
		manifest bool // was pulled before, and has the size
		upstream func(http.ResponseWriter, *http.Request) bool
	}{
		"empty":                    {size: -1},
		"one byte":                 {size: 1},
		"small":                    {size: 1000},
		"big":                      {size: 32 << 20},
		"big, manifest was pulled": {size: 32 << 20, manifest: true},
		"big, upstream knows no ranges": {size: 32 << 20, upstream: func(_ http.ResponseWriter, r *http.Request) bool {
			r.Header.Del("Range")
			return false
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := testkit.NewFace(t, pullthroughtest.Config{Handler: c.upstream}, nil)
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: c.size})
			f.Up.Push("a", "v1", img)
			if c.manifest {
				require.Equal(t, 200, f.Get(t, testkit.ManifestPath("a", "v1")).StatusCode)
			}
			f.Up.Reset()
			layer := img.Layers[0]
			r := f.Ask(t, http.MethodHead, testkit.BlobPath("a", layer.Digest))
			testkit.AssertContent(t, r, layer.Digest, testkit.OctetStream, int(layer.Size))
			assert.Empty(t, r.Content)

			f.Settled(t)
			assert.Zero(t, f.Up.Count("HEAD *"), "upstream: %s", f.Up.Log())
			requests := f.Up.Requests()
			assert.LessOrEqual(t, len(requests), 1, "upstream: %s", f.Up.Log())
			for _, r := range requests {
				if c.upstream == nil {
					assert.NotEmpty(t, r.Range, "the whole blob was asked for")
				}
				assert.LessOrEqual(t, r.Bytes, int64(16<<20), "the whole blob was downloaded")
			}
			_, err := f.Mem.Blob(t.Context(), testkit.Repo("a"), layer.Digest)
			assert.Error(t, err, "nothing is stored by a look")
		})
	}
}

func TestHeadOfWhatIsMissingHasTheStatusAndNoBody(t *testing.T) {
	f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
	f.Up.Push("a", "v1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))
	f.Up.Reset()
	for _, path := range []string{testkit.ManifestPath("a", "v2"), testkit.BlobPath("a", digest.FromString("absent"))} {
		r := f.Ask(t, http.MethodHead, path)
		assert.Equal(t, 404, r.StatusCode)
		assert.Equal(t, "application/json", r.Header.Get("Content-Type"))
		assert.Empty(t, r.Content)
	}
	assert.Zero(t, f.Up.Count("HEAD */blobs/*"), "upstream: %s", f.Up.Log())
	assert.Len(t, f.Up.Log(), 2)
}

func TestIfNoneMatch(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 5000})
	other := testkit.ETag(digest.FromString("other"))
	objects := map[string]struct {
		path string
		d    digest.Digest
	}{
		"tag":    {testkit.ManifestPath("a", "v1"), img.Digest},
		"digest": {testkit.ManifestPath("a", img.Digest.String()), img.Digest},
		"blob":   {testkit.BlobPath("a", img.Layers[0].Digest), img.Layers[0].Digest},
	}
	for kind, o := range objects {
		t.Run(kind, func(t *testing.T) {
			matches := map[string]string{
				"strong": testkit.ETag(o.d),
				"weak":   "W/" + testkit.ETag(o.d),
				"any":    "*",
				"list":   other + ", " + testkit.ETag(o.d),
				"tight":  other + "," + "W/" + testkit.ETag(o.d) + "," + other,
			}
			for name, value := range matches {
				t.Run(name, func(t *testing.T) {
					f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
					f.Up.Push("a", "v1", img)
					f.Up.Reset()
					assertNotModified(t, f.Get(t, o.path, "If-None-Match", value), o.d) // cold
					assert.LessOrEqual(t, len(f.Up.Log()), 1, "upstream: %s", f.Up.Log())

					require.Equal(t, 200, f.Get(t, o.path).StatusCode)
					f.Settled(t)
					f.Up.Reset()
					for _, method := range []string{http.MethodGet, http.MethodHead} {
						assertNotModified(t, f.Ask(t, method, o.path, "If-None-Match", value), o.d)
					}
					assert.Empty(t, f.Up.Log())
				})
			}
			for name, value := range map[string]string{"another": other, "list of others": other + ", W/" + other} {
				t.Run(name, func(t *testing.T) {
					f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
					f.Up.Push("a", "v1", img)
					f.Up.Reset()
					for range 2 { // cold, warm
						r := f.Get(t, o.path, "If-None-Match", value)
						assert.Equal(t, 200, r.StatusCode)
						assert.Equal(t, o.d, o.d.Algorithm().FromBytes(r.Content))
						f.Settled(t)
					}
					assert.Equal(t, []string{testkit.UpstreamGet(o.path, 200)}, f.Up.Log())
				})
			}
		})
	}
}

func assertNotModified(t *testing.T, r testkit.Reply, d digest.Digest) {
	t.Helper()
	assert.NoError(t, r.Err)
	assert.Equal(t, http.StatusNotModified, r.StatusCode)
	assert.Equal(t, testkit.ETag(d), r.Header.Get("ETag"))
	assert.Empty(t, r.Content)
}

// C9: what a client says of itself is none of the upstream's business.
func TestClientHeadersStayHere(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 5000})
	headers := []string{
		"Authorization", "Basic Y2FuYXJ5LWF1dGhvcml6YXRpb24=",
		"Proxy-Authorization", "Bearer canary-proxy-authorization",
		"Cookie", "session=canary-cookie",
		"Range", "bytes=1234-2345",
		"If-Range", testkit.ETag(img.Layers[0].Digest),
		"If-None-Match", `"canary-etag"`,
		"If-Modified-Since", "Mon, 02 Jan 2006 15:04:05 GMT",
		"Accept-Encoding", "canary-encoding, gzip",
		"Accept", "application/vnd.canary-accept",
		"Connection", "X-Hop",
		"X-Hop", "canary-hop",
		"X-Amz-Security-Token", "canary-session",
		"X-Forwarded-For", "203.0.113.77",
		"Referer", "https://canary-referer.example/",
		"User-Agent", "canary-agent",
		"Te", "trailers",
	}
	for _, auth := range []pullthroughtest.Auth{pullthroughtest.Open, pullthroughtest.Bearer} {
		for name, path := range map[string]string{
			"manifest": testkit.ManifestPath("a", "v1"),
			"blob":     testkit.BlobPath("a", img.Layers[0].Digest),
			"config":   testkit.BlobPath("a", img.Config.Digest),
		} {
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				t.Run(fmt.Sprintf("%s %s, auth %d", method, name, auth), func(t *testing.T) {
					f := testkit.NewFace(t, pullthroughtest.Config{Auth: auth}, nil)
					f.Up.Push("a", "v1", img)
					f.Up.Reset()
					r := f.Ask(t, method, path+"?ns=canary-ns", headers...)
					assert.Less(t, r.StatusCode, 500)
					f.Settled(t)
					require.NotEmpty(t, f.Up.Log())
					for i := 1; i < len(headers); i += 2 {
						if v := headers[i]; strings.Contains(v, "anary") || strings.HasPrefix(v, "203.") {
							assert.False(t, f.Up.Saw(v), "upstream saw %s", headers[i-1])
						}
					}
					assert.False(t, f.Up.Saw("canary"), "upstream saw something of the client's")
					assert.False(t, f.Up.Saw("Y2FuYXJ5LWF1dGhvcml6YXRpb24="))
					for _, r := range f.Up.Requests() {
						assert.NotContains(t, r.Range, "1234")
						assert.Empty(t, r.Header.Values("If-None-Match"))
						assert.Empty(t, r.Header.Values("If-Modified-Since"))
						assert.Empty(t, r.Header.Values("X-Forwarded-For"))
						assert.Equal(t, []string{"identity"}, r.Header.Values("Accept-Encoding"), "%s", r)
					}
				})
			}
		}
	}
}

func TestVersionCheck(t *testing.T) {
	f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
	for _, path := range []string{"/v2", "/v2/"} {
		r := f.Get(t, path)
		assert.Equal(t, 200, r.StatusCode, path)
		assert.Equal(t, "{}", strings.TrimSpace(string(r.Content)))
		assert.Equal(t, "registry/2.0", r.Header.Get("Docker-Distribution-Api-Version"))
		assert.Equal(t, "application/json", r.Header.Get("Content-Type"))
		h := f.Ask(t, http.MethodHead, path)
		assert.Equal(t, 200, h.StatusCode, path)
		assert.Equal(t, "registry/2.0", h.Header.Get("Docker-Distribution-Api-Version"))
		assert.Equal(t, r.Header.Get("Content-Length"), h.Header.Get("Content-Length"))
		assert.Empty(t, h.Content)
	}
	assert.Empty(t, f.Up.Log())
}

func TestPathsThatAreNoRegistryPathsAreNotFound(t *testing.T) {
	f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
	for _, path := range []string{
		"/v2/x", "/v2/hub", "/v2/hub/a", "/v2/hub/a/", "/v2/apis", "/v2/email/identities", "/v2/hub/a/manifests", "/v2/hub/a/blobs",
		"/v2/tags/arn:aws:apigateway:us-east-1::/apis/abc", "/v2/manifests/latest", "/v2/hub/a/tags", "/v2/hub/a/tags/all",
	} {
		r := f.Get(t, path)
		assert.Equal(t, 404, r.StatusCode, "%s: %s", path, r.Content)
		code, _ := testkit.OCIError(t, r)
		assert.NotEmpty(t, code, path)
	}
	assert.Empty(t, f.Up.Log())
}

// The answers can be written by hosts that keep their own handlers.
func TestWritersAnswerLikeTheProxy(t *testing.T) {
	content := []byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `"}`)
	d := digest.FromBytes(content)
	srv := testkit.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/manifest":
			pullthrough.WriteManifest(w, r, &pullthrough.Manifest{
				Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: int64(len(content))},
				Content:    content,
			})
		case "/blob":
			pullthrough.WriteBlob(w, r, pullthrough.NewBlob(d, content))
		default:
			pullthrough.WriteError(w, &pullthrough.Error{Kind: pullthrough.ErrNotFound, Code: "BLOB_UNKNOWN", Message: "no such blob"})
		}
	}))
	for path, mediaType := range map[string]string{"/manifest": ocispec.MediaTypeImageManifest, "/blob": testkit.OctetStream} {
		r := testkit.Send(t, srv, http.MethodGet, path, "")
		testkit.AssertContent(t, r, d, mediaType, len(content))
		testkit.AssertSame(t, content, r.Content)
		r = testkit.Send(t, srv, http.MethodHead, path, "")
		testkit.AssertContent(t, r, d, mediaType, len(content))
		assert.Empty(t, r.Content)
		assertNotModified(t, testkit.Send(t, srv, http.MethodGet, path, "", "If-None-Match", testkit.ETag(d)), d)
	}
	assert.Equal(t, "no such blob", testkit.AssertOCI(t, testkit.Send(t, srv, http.MethodGet, "/error", ""), 404, "BLOB_UNKNOWN"))
}

// The proxy is a registry of all that is stored, whatever the rules say now.
func TestWhatIsStoredNeedsNoRule(t *testing.T) {
	var rules atomic.Pointer[pullthrough.StaticRules]
	f := testkit.NewFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		first, ok := p.Rules.(pullthrough.StaticRules)
		require.True(t, ok)
		rules.Store(&first)
		p.Rules = pullthrough.RuleSourceFunc(func(context.Context, string, string) ([]pullthrough.Rule, error) { return *rules.Load(), nil })
	})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	f.Up.Push("a", "v1", img)
	require.Equal(t, 200, f.Get(t, testkit.ManifestPath("a", "v1")).StatusCode)
	require.Equal(t, 200, f.Get(t, testkit.BlobPath("a", img.Config.Digest)).StatusCode)
	f.Settled(t)
	mine := pullthrough.Repo{Name: "mine"}
	require.NoError(t, f.Mem.PutManifest(t.Context(), mine, &pullthrough.Manifest{Descriptor: img.Descriptor(), Content: img.Content, Tag: "v1"}))
	f.Up.Reset()

	rules.Store(new(pullthrough.StaticRules))
	for _, path := range []string{testkit.ManifestPath("a", "v1"), testkit.ManifestPath("a", img.Digest.String()), "/v2/mine/manifests/v1"} {
		testkit.AssertManifest(t, f.Get(t, path), http.MethodGet, img, img.Digest)
		testkit.AssertManifest(t, f.Ask(t, http.MethodHead, path), http.MethodHead, img, img.Digest)
	}
	testkit.AssertContent(t, f.Get(t, testkit.BlobPath("a", img.Config.Digest)), img.Config.Digest, testkit.OctetStream, int(img.Config.Size))
	testkit.AssertOCI(t, f.Get(t, testkit.BlobPath("a", img.Layers[0].Digest)), 404, "BLOB_UNKNOWN")
	assert.Empty(t, f.Up.Log())
}

// sendRaw writes a request line as it is, past what net/http's client would
// clean or refuse, and reads the one answer.
func sendRaw(t *testing.T, srv *httptest.Server, method, target, proto string) testkit.Reply {
	t.Helper()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	require.NoError(t, err)
	defer func() { assert.NoError(t, conn.Close()) }()
	_, err = io.WriteString(conn, method+" "+target+" "+proto+"\r\nHost: "+testkit.RegistryHost+"\r\nConnection: close\r\n\r\n")
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	require.NoError(t, err)
	return testkit.ReadReply(t, resp)
}

// emptyCatalog is a RepoLister that knows no registry.
type emptyCatalog struct{ pullthrough.Store }

func (emptyCatalog) Repos(context.Context, string, string) ([]string, error) {
	return nil, fs.ErrNotExist
}

func TestTheCatalogOfARegistryThatTheStoreDoesNotKnowIsNotFound(t *testing.T) {
	f := testkit.NewFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store = emptyCatalog{memstore.New()} })
	testkit.AssertOCI(t, f.Get(t, "/v2/_catalog"), http.StatusNotFound, "NAME_UNKNOWN")
}

func TestSentCountsWhatConnectionsHaveTaken(t *testing.T) {
	for name, change := range map[string]func(*pullthrough.Proxy, *http.Server){
		"as it is":        func(*pullthrough.Proxy, *http.Server) {},
		"a WriteTimeout":  func(_ *pullthrough.Proxy, s *http.Server) { s.WriteTimeout = time.Minute },
		"no MaxSilence":   func(p *pullthrough.Proxy, _ *http.Server) { p.MaxSilence = -1 },
		"the other entry": func(p *pullthrough.Proxy, s *http.Server) { s.Handler = p.Handler(http.NotFoundHandler()) },
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewUnstartedServer(nil)
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				server.Config.Handler = p
				change(p, server.Config)
			})
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 3 << 20})
			w.Up.Push("a", "1", img)
			w.Pull(t, "a", "1", img)
			assert.Zero(t, w.Sent(), "no connection has taken it")
			server.Start()
			layer, etag := img.Layers[0], `"`+img.Digest.String()+`"`
			for _, r := range []struct{ method, path, header, value string }{
				{"GET", "manifests/1", "", ""}, {"HEAD", "manifests/1", "", ""}, {"GET", "manifests/1", "If-None-Match", etag},
				{"GET", "blobs/" + layer.Digest.String(), "", ""}, {"HEAD", "blobs/" + layer.Digest.String(), "", ""},
				{"GET", "blobs/" + layer.Digest.String(), "Range", "bytes=100-199"},
			} {
				req, err := http.NewRequestWithContext(t.Context(), r.method, server.URL+"/v2/hub/a/"+r.path, nil)
				require.NoError(t, err)
				if r.header != "" {
					req.Header.Set(r.header, r.value)
				}
				resp, err := server.Client().Do(req)
				require.NoError(t, err)
				_, err = io.Copy(io.Discard, resp.Body)
				require.NoError(t, err)
				require.NoError(t, resp.Body.Close())
			}
			server.Close() // and waits for the handlers
			assert.EqualValues(t, len(img.Content)+3<<20+100, w.Sent())
			assert.Equal(t, 1+len(img.Blobs()), w.Up.Count("GET *"), "each object was fetched once")
		})
	}
}
