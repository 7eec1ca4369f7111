package pullthroughtest_test

import (
	"crypto/tls"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestManifestsByTagAndDigest(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{})
	for _, ref := range []string{"latest", small.Digest.String()} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			resp := do(t, up, request(t, method, up.URL+"/v2/a/b/manifests/"+ref))
			assert.Equal(t, http.StatusOK, resp.StatusCode)
			assert.Equal(t, small.MediaType, resp.Header.Get("Content-Type"))
			assert.Equal(t, small.Digest.String(), resp.Header.Get("Docker-Content-Digest"))
			assert.Equal(t, int64(len(small.Content)), resp.ContentLength)
			if method == http.MethodGet {
				assert.Equal(t, string(small.Content), string(body(t, resp)))
			}
		}
	}
	assert.Equal(t, []string{
		"GET /v2/a/b/manifests/latest 200",
		"HEAD /v2/a/b/manifests/latest 200",
		"GET /v2/a/b/manifests/" + small.Digest.String() + " 200",
		"HEAD /v2/a/b/manifests/" + small.Digest.String() + " 200",
	}, up.Log())
}

func TestBlobsAndRanges(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{})
	want := content(t, small.Layers[0])
	for _, c := range []struct {
		name, rangeHeader, ifRange string
		status                     int
		want                       []byte
	}{
		{name: "whole", status: 200, want: want},
		{name: "tail", rangeHeader: "bytes=1000-", status: 206, want: want[1000:]},
		{name: "middle", rangeHeader: "bytes=3-9", status: 206, want: want[3:10]},
		{name: "if-range of this content", rangeHeader: "bytes=3-9", ifRange: `"` + small.Layers[0].Digest.String() + `"`,
			status: 206, want: want[3:10]},
		{name: "if-range of other content", rangeHeader: "bytes=3-9", ifRange: `"other"`, status: 200, want: want},
		{name: "behind the end", rangeHeader: "bytes=5000-", status: 416},
	} {
		t.Run(c.name, func(t *testing.T) {
			up.Reset()
			resp := get(t, up, layerPath, "Range", c.rangeHeader, "If-Range", c.ifRange)
			assert.Equal(t, c.status, resp.StatusCode)
			got := body(t, resp)
			if c.want != nil {
				assert.Equal(t, c.want, got)
				assert.Equal(t, int64(len(c.want)), resp.ContentLength)
			}
			requests := up.Requests()
			require.Len(t, requests, 1)
			assert.Equal(t, c.rangeHeader, requests[0].Range)
			assert.Equal(t, int64(len(got)), requests[0].Bytes)
		})
	}
}

func TestPushedContent(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{})
	other := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	status := func(path string) int { return get(t, up, path).StatusCode }

	t.Run("a tag moves and the old digest stays", func(t *testing.T) {
		up.Push("move", "v1", small)
		up.Push("move", "v1", other)
		assert.Equal(t, other.Digest.String(), get(t, up, "/v2/move/manifests/v1").Header.Get("Docker-Content-Digest"))
		assert.Equal(t, 200, status("/v2/move/manifests/"+small.Digest.String()))
	})
	t.Run("an empty tag is none", func(t *testing.T) {
		up.Push("untagged", "", small)
		assert.Equal(t, 200, status("/v2/untagged/manifests/"+small.Digest.String()))
		assert.JSONEq(t, `{"name":"untagged","tags":[]}`, string(body(t, get(t, up, "/v2/untagged/tags/list"))))
	})
	t.Run("tags come in pages where the client asks for them", func(t *testing.T) {
		for _, tag := range []string{"3", "1", "2"} {
			up.Push("paged", tag, small)
		}
		first := get(t, up, "/v2/paged/tags/list?n=2")
		assert.JSONEq(t, `{"name":"paged","tags":["1","2"]}`, string(body(t, first)))
		assert.Equal(t, `</v2/paged/tags/list?n=2&last=2>; rel="next"`, first.Header.Get("Link"))
		last := get(t, up, "/v2/paged/tags/list?n=2&last=2")
		assert.JSONEq(t, `{"name":"paged","tags":["3"]}`, string(body(t, last)))
		assert.Empty(t, last.Header.Get("Link"))
	})
	t.Run("an index brings its children", func(t *testing.T) {
		index := pullthroughtest.NewIndex(small, other)
		up.Push("multi", "v1", index)
		for _, child := range index.Children {
			assert.Equal(t, 200, status("/v2/multi/manifests/"+child.Digest.String()))
			assert.Equal(t, 200, status("/v2/multi/blobs/"+child.Layers[0].Digest.String()))
		}
	})
	t.Run("blobs belong to a repository", func(t *testing.T) {
		d := up.PushBlob("x", []byte("hello"))
		assert.Equal(t, digest.FromString("hello"), d)
		assert.Equal(t, "hello", string(body(t, get(t, up, "/v2/x/blobs/"+d.String()))))
		assert.Equal(t, 404, status("/v2/a/b/blobs/"+d.String()))
	})
	t.Run("a literal may lie about its digest", func(t *testing.T) {
		up.Push("x", "", &pullthroughtest.Image{MediaType: "text/plain", Digest: small.Digest, Content: []byte("lie")})
		assert.Equal(t, "lie", string(body(t, get(t, up, "/v2/x/manifests/"+small.Digest.String()))))
		up.Push("x", "computed", &pullthroughtest.Image{Content: []byte("raw")})
		assert.Equal(t, digest.FromString("raw").String(),
			get(t, up, "/v2/x/manifests/computed").Header.Get("Docker-Content-Digest"))
	})
	t.Run("a repository may be named like a route", func(t *testing.T) {
		up.Push("blobs/manifests", "tags", small)
		assert.Equal(t, 200, status("/v2/blobs/manifests/manifests/tags"))
	})
}

func TestDelete(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{})
	status := func(path string) int { return get(t, up, path).StatusCode }
	up.Push("a/b", "other", small)

	up.Delete("a/b", "latest")
	assert.Equal(t, 404, status("/v2/a/b/manifests/latest"))
	assert.Equal(t, 200, status("/v2/a/b/manifests/other"))
	up.Delete("a/b", small.Digest.String())
	assert.Equal(t, 404, status("/v2/a/b/manifests/other"))
	assert.Equal(t, 200, status(layerPath))
	up.Delete("a/b", small.Layers[0].Digest.String())
	assert.Equal(t, 404, status(layerPath))
	up.Delete("a/b", "")
	assert.Equal(t, 404, status("/v2/a/b/tags/list"))
	up.Delete("never/was", "x")
}

type errorBody struct {
	Errors []struct{ Code, Message string }
}

func TestErrors(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{})
	for _, c := range []struct {
		method, path string
		status       int
		code         string
	}{
		{"GET", "/v2/a/b/manifests/nope", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/a/b/blobs/sha256:00", 404, "BLOB_UNKNOWN"},
		{"GET", "/v2/none/manifests/latest", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/none/blobs/sha256:00", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/none/tags/list", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/manifests/latest", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/a/tags/other", 404, "NAME_UNKNOWN"},
		{"GET", "/favicon.ico", 404, "NAME_UNKNOWN"},
		{"PUT", "/v2/a/b/manifests/latest", 405, "UNSUPPORTED"},
		{"DELETE", "/token", 405, "UNSUPPORTED"},
	} {
		resp := do(t, up, request(t, c.method, up.URL+c.path))
		assert.Equal(t, c.status, resp.StatusCode, c.path)
		document := decode[errorBody](t, resp)
		require.Len(t, document.Errors, 1, c.path)
		assert.Equal(t, c.code, document.Errors[0].Code, c.path)
		assert.NotEmpty(t, document.Errors[0].Message)
	}
}

func TestPing(t *testing.T) {
	resp := get(t, newUpstream(t, pullthroughtest.Config{}), "/v2/")
	assert.Equal(t, 200, resp.StatusCode)
	assert.Equal(t, "registry/2.0", resp.Header.Get("Docker-Distribution-Api-Version"))
	assert.Equal(t, "{}", string(body(t, resp)))
}

func TestReferrers(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{})
	sbom := pullthroughtest.NewImage(pullthroughtest.ImageOptions{ArtifactType: "application/x-sbom", Subject: small})
	image := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 3, Subject: small})
	up.Push("a/b", "", sbom)
	up.Push("a/b", "", image)
	path := "/v2/a/b/referrers/" + small.Digest.String()

	all := decode[ocispec.Index](t, get(t, up, path))
	assert.Equal(t, ocispec.MediaTypeImageIndex, all.MediaType)
	require.Len(t, all.Manifests, 2)
	resp := get(t, up, path+"?artifactType=application/x-sbom")
	assert.Equal(t, "artifactType", resp.Header.Get("OCI-Filters-Applied"))
	filtered := decode[ocispec.Index](t, resp)
	require.Len(t, filtered.Manifests, 1)
	assert.Equal(t, sbom.Descriptor(), filtered.Manifests[0])
	resp = get(t, up, path+"?artifactType="+url.QueryEscape(ocispec.MediaTypeImageConfig))
	assert.Len(t, decode[ocispec.Index](t, resp).Manifests, 1, "an image is listed by its config's type")
	assert.Empty(t, decode[ocispec.Index](t, get(t, up, "/v2/a/b/referrers/"+sbom.Digest.String())).Manifests)
}

func TestHandlerComesFirst(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{Handler: func(w http.ResponseWriter, r *http.Request) bool {
		switch r.URL.Path {
		case "/teapot":
			w.WriteHeader(http.StatusTeapot)
			w.WriteHeader(http.StatusOK) // the first one counts
		case "/silent":
		case "/stream":
			assert.NoError(t, http.NewResponseController(w).Flush())
			_, err := w.Write([]byte("x"))
			assert.NoError(t, err)
		case "/hijack":
			conn, _, err := http.NewResponseController(w).Hijack()
			if assert.NoError(t, err) {
				_, err = conn.Write([]byte("HTTP/1.1 299 Mine\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
				assert.NoError(t, err)
				assert.NoError(t, conn.Close())
			}
		default:
			return false
		}
		return true
	}})
	assert.Equal(t, 418, get(t, up, "/teapot").StatusCode)
	assert.Equal(t, 200, get(t, up, "/silent").StatusCode)
	assert.Equal(t, "x", string(body(t, get(t, up, "/stream"))))
	assert.Equal(t, 299, get(t, up, "/hijack").StatusCode)
	assert.Equal(t, 200, get(t, up, layerPath).StatusCode)
	up.Fault(pullthroughtest.Fault{Match: "GET /teapot 418", Status: 500})
	assert.Equal(t, 500, get(t, up, "/teapot").StatusCode)
}

func TestTLS(t *testing.T) {
	for _, c := range []struct {
		name  string
		http2 bool
		major int
	}{{"http/1.1", false, 1}, {"http/2", true, 2}} {
		t.Run(c.name, func(t *testing.T) {
			up := newUpstream(t, pullthroughtest.Config{TLS: true, HTTP2: c.http2})
			assert.True(t, strings.HasPrefix(up.URL, "https://127.0.0.1:"))
			resp := get(t, up, layerPath)
			assert.Equal(t, c.major, resp.ProtoMajor)
			assert.Equal(t, content(t, small.Layers[0]), body(t, resp))

			transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: up.Roots(), ServerName: "cdn.registry.test"}}
			defer transport.CloseIdleConnections()
			resp, err := transport.RoundTrip(request(t, http.MethodGet, up.URL+"/v2/"))
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())

			var unknown *tls.CertificateVerificationError
			_, err = http.DefaultTransport.RoundTrip(request(t, http.MethodGet, up.URL+"/v2/"))
			assert.ErrorAs(t, err, &unknown)
		})
	}
}

func TestOriginAndClose(t *testing.T) {
	up, err := pullthroughtest.Start(pullthroughtest.Config{})
	require.NoError(t, err)
	assert.Equal(t, "http://"+up.Host(), up.URL)
	assert.Nil(t, up.Roots())
	assert.Equal(t, 200, get(t, up, "/v2/").StatusCode)
	up.Close()
	up.Close()
	_, err = up.Client().Transport.RoundTrip(request(t, http.MethodGet, up.URL+"/v2/"))
	assert.Error(t, err)
}

func TestConcurrentUse(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	done := make(chan struct{})
	for i := range 8 {
		go func() {
			defer func() { done <- struct{}{} }()
			repo := "r" + strconv.Itoa(i)
			for range 20 {
				up.Push(repo, "t", small)
				heal := up.Fault(pullthroughtest.Fault{Match: "GET /v2/" + repo + "/*", Times: 1, Status: 500})
				token := up.IssueToken(0, "repository:"+repo+":pull")
				r, err := http.NewRequest(http.MethodGet, up.URL+"/v2/"+repo+"/manifests/t", nil)
				if !assert.NoError(t, err) {
					return
				}
				r.Header.Set("Authorization", "Bearer "+token)
				resp, err := up.Client().Do(r)
				if assert.NoError(t, err) {
					assert.Equal(t, 500, resp.StatusCode)
					assert.NoError(t, resp.Body.Close())
				}
				heal()
				up.Log()
				up.Saw(token)
				up.Delete(repo, "")
			}
		}()
	}
	for range 8 {
		<-done
	}
	assert.Equal(t, 160, up.Count("GET /v2/r*/manifests/t 500"))
}
