package pullthrough_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// blobBehaviours are about config and layer blobs.
var blobBehaviours = []row{
	{"A33", "compresses an answer, or says that it has",
		"it was asked not to, and nothing is inflated: what must have the digest are the bytes as they came", testNothingIsInflated},
	{"A34", "sends a blob with other bytes, more bytes than it announced, or without an end",
		"the pull fails as soon as that shows, and nothing is stored; where it announces nothing the manifest's size is the limit", testBlobsThatDoNotEndAsAnnounced},
	{"A63", "has a blob of another size than its manifest says",
		"the manifest's word is no more than a hint: what upstream announces counts, and the digest decides. HEAD and GET agree from the first request on", testSizeThatTheManifestHasWrong},
	{"A35", "breaks off or stalls in the middle of a blob",
		"the rest is asked for at the registry, with new credentials and redirects where needed; what does not continue exactly there is refused", testBrokenBlobGoesOn},
	{"A36", "breaks off again and again, or is away for a while in the middle of a blob",
		"a download goes on for as long as it gets anywhere, 64 KiB at least in four answers, and 1000 times at most; while anybody reads, no answer, or one that it is not well, is waited out for 30 s", testManyBreaksEndWhereNothingComes},
	{"A37", "ends a body by closing the connection, as HTTP/1.0 does",
		"size and digest tell whether that was all of it", testBodyThatEndsWithItsConnection},
	{"A38", "announces a blob of 2^63-1 bytes",
		"no memory is taken on its word; a download over several connections (`Policy.Connections`) asks for parts that it can use, one after the other", testAbsurdSizeTakesNoMemory},
	{"A39", "answers HEAD of a blob otherwise than GET",
		"GET decides: a client's HEAD costs the first byte", testHeadOfABlobDecidesNothing},
	{"A74", "does not tell the size of a blob when it is asked for its first byte",
		"HEAD may tell it, which ECR Public is never sent, or a manifest has; where nobody does, a client's HEAD gets 502. It never downloads the blob", testHeadOfABlobOfUnknownSize},
	{"A75", "knows no Range, and sends a large blob again from its start",
		"what is there already is skipped, however long that takes: skipping is progress", testSkippingIsProgress},
	{"A40", "serves manifests whose layers have URLs elsewhere",
		"those URLs are never asked", testLayerURLsAreNeverAsked},
	{"A41", "has empty blobs, sha512 digests, or digests of any other kind",
		"the first two work, all others are refused without a question to upstream", testKindsOfDigests},
}

func TestUpstreamBlobs(t *testing.T) { testkit.RunRows(t, blobBehaviours) }

func compressed(t *testing.T, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(content)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.Bytes()
}

func encoded(encoding string) http.Header { return http.Header{"Content-Encoding": {encoding}} }

func testNothingIsInflated(t *testing.T) {
	t.Run("every request asks for identity", testCompressionIsNotAskedFor)
	t.Run("a manifest that would have been compressed", func(t *testing.T) {
		var img *pullthroughtest.Image
		w := testkit.NewWorld(t, pullthroughtest.Config{Handler: func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Accept-Encoding") == "identity" || !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", img.MediaType)
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(compressed(t, img.Content))
			return true
		}}, nil)
		img = pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
		w.Up.Push("a", "1", img)
		w.Pull(t, "a", "1", img)
		assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/1 200"))
	})
	bomb := compressed(t, make([]byte, 16<<20))
	for _, encoding := range []string{"gzip", "zstd", "gzip, gzip, zstd", "x-odd"} {
		t.Run("a blob said to be "+encoding, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			d := w.Up.PushBlob("a", bomb)
			w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Header: encoded(encoding)})
			w.PullBlob(t, "a", d)
			assert.Equal(t, 1, w.Up.Count(testkit.Blobs))
		})
	}
	t.Run("a manifest compressed all the same", testCompressedManifest)
	t.Run("a token compressed all the same", testCompressedToken)
	t.Run("a refusal with a bomb", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
		w.Up.Fault(pullthroughtest.Fault{Status: 404, Body: bomb, Header: encoded("gzip")})
		assert.Less(t, testkit.Allocated(func() {
			_, err := w.Resolve(t.Context(), "1")
			assert.ErrorIs(t, err, pullthrough.ErrNotFound)
		}), uint64(8<<20))
		assert.Equal(t, 1, w.Up.Count("GET *"))
	})
}

func testCompressedManifest(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, testkit.WithPolicy(pullthrough.Policy{Retries: -1}))
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("a", "1", img)
	w.Up.Fault(pullthroughtest.Fault{Match: "GET *", Body: compressed(t, img.Content), Header: encoded("gzip")})
	_, err := w.Resolve(t.Context(), "1")
	assert.ErrorIs(t, err, pullthrough.ErrUnavailable, "a tag has no digest to go by")
	_, err = w.Resolve(t.Context(), img.Digest.String())
	assert.ErrorIs(t, err, pullthrough.ErrDigest)
	assert.Equal(t, 3, w.Up.Count("GET *"), "the tag, the digest that its header names, and that digest once more")
}

func testCompressedToken(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
	w.Layer(100)
	token := `{"token":"` + w.Up.IssueToken(0, "repository:a:pull") + `"}`
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /token", Body: compressed(t, []byte(token)), Header: encoded("gzip")})
	_, err := w.Resolve(t.Context(), "1")
	assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
	assert.Equal(t, 1, w.Up.Count("GET /token"))
}

func testCompressionIsNotAskedFor(t *testing.T) {
	elsewhere := pullthroughtest.New(t, pullthroughtest.Config{})
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, func(p *pullthrough.Proxy) {
		testkit.WithSecret(nil)(p)
		testkit.EveryPull(p)
	})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 3 << 20})
	w.Up.Push("a", "1", img)
	elsewhere.Push("a", "1", img)
	w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 2*", Redirect: elsewhere.URL() + "{path}"})
	elsewhere.Fault(pullthroughtest.Fault{Match: testkit.Blobs + img.Layers[0].Digest.Encoded() + " 200", Times: 1, CutAfter: new(int64(1 << 20))})
	_, err := w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: img.Layers[0].Digest.String(), Head: true})
	require.NoError(t, err)
	w.Pull(t, "a", "1", img)
	w.Pull(t, "a", "1", img)
	for _, line := range []string{"GET /token 200", "HEAD /v2/a/manifests/1 200", testkit.Blobs + " 307"} {
		assert.Positive(t, w.Up.Count(line), line)
	}
	assert.Positive(t, elsewhere.Count(testkit.Blobs+" 206"), "the rest of a blob was asked for")
	for _, r := range append(w.Up.Requests(), elsewhere.Requests()...) {
		assert.Equal(t, []string{"identity"}, r.Header.Values("Accept-Encoding"), r.String())
	}
}

// readAhead is what may be on its way, in the buffers of both sides, when the
// proxy has had enough.
const readAhead = 256 << 10

func testBlobsThatDoNotEndAsAnnounced(t *testing.T) {
	for name, size := range testkit.LayerSizes {
		t.Run("other bytes, "+name, func(t *testing.T) {
			inTime(t, pullthroughtest.Config{}, nil, func(t *testing.T, p *pipeworks) {
				layer := p.Layer(size)
				heal := p.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Flip: new(int64(-1))})
				assertNoBlob(t, p.World, layer.Digest, pullthrough.ErrDigest)
				assert.LessOrEqual(t, p.Up.Count(testkit.Blobs), 2)
				heal()
				assert.NoError(t, p.Whole(t.Context(), layer.Digest))
			})
		})
	}
	t.Run("other lengths", testLengthsThatAreNone)
	t.Run("a negative size in the manifest", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
		pushManifest(w, "1", `{"digest":"`+digest.FromString("x").String()+`","size":-1}`)
		_, err := w.Resolve(t.Context(), "1")
		assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
		_, err = w.Stored(t, "1")
		assert.Error(t, err)
		assert.Equal(t, 1, w.Up.Count("*"))
	})
}

func testLengthsThatAreNone(t *testing.T) {
	const size = 10_000
	endless := pullthroughtest.Fault{Match: testkit.Blobs, NoLength: true, Extend: math.MaxInt64}
	manifest := func(t *testing.T, p *pipeworks) {
		_, err := p.Resolve(t.Context(), "1")
		require.NoError(t, err)
	}
	for name, c := range map[string]struct {
		fault  pullthroughtest.Fault
		before func(*testing.T, *pipeworks)
		kind   error
		most   int64
	}{
		"no end, and a size in the manifest":     {endless, manifest, pullthrough.ErrDigest, size},
		"no end, and no size but the rule's":     {endless, nil, pullthrough.ErrTooLarge, 2 << 20},
		"more than the rule's, as announced":     {pullthroughtest.Fault{Match: testkit.Blobs, Extend: 4 << 20, Header: announced(4<<20 + size)}, nil, pullthrough.ErrTooLarge, 0},
		"more than the manifest's, as announced": {pullthroughtest.Fault{Match: testkit.Blobs, Extend: 1 << 20, Header: announced(1<<20 + size)}, manifest, pullthrough.ErrDigest, 1<<20 + size},
		"a negative length":                      {pullthroughtest.Fault{Match: testkit.Blobs, Header: announced(-5)}, nil, pullthrough.ErrUnavailable, 4 * size},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, pullthroughtest.Config{}, testkit.WithPolicy(pullthrough.Policy{MaxBlobBytes: 2 << 20}), func(t *testing.T, p *pipeworks) {
				layer := p.Layer(size)
				if c.before != nil {
					c.before(t, p)
				}
				p.Up.Fault(c.fault)
				assertNoBlob(t, p.World, layer.Digest, c.kind)
				assert.LessOrEqual(t, spent(p.World, "/blobs/"), c.most+readAhead)
				assert.LessOrEqual(t, p.Up.Count(testkit.Blobs), 4)
			})
		})
	}
}

func announced(size int64) http.Header {
	return http.Header{"Content-Length": {fmt.Sprint(size)}}
}

// assertNoBlob: the blob cannot be had, and nothing of it is kept.
func assertNoBlob(t *testing.T, w *testkit.World, d digest.Digest, kind error) {
	t.Helper()
	assert.ErrorIs(t, w.Whole(t.Context(), d), kind)
	w.Settled(t)
	_, err := w.Mem.Blob(t.Context(), testkit.Repo("a"), d)
	assert.Error(t, err)
}

// pushManifest pushes an image manifest with the config and layers, JSON
// descriptors, to the repository a.
func pushManifest(w *testkit.World, tag, config string, layers ...string) *pullthroughtest.Image {
	img := &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageManifest}
	img.Content = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`,
		img.MediaType, config, strings.Join(layers, ","))
	img.Digest = digest.FromBytes(img.Content)
	w.Up.Push("a", tag, img)
	return img
}

func testAbsurdSizeTakesNoMemory(t *testing.T) {
	t.Run("one request", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
		layer := w.Layer(8 << 20)
		w.PullBlob(t, "a", layer.Digest)
		require.Equal(t, 1, w.Up.Count(testkit.Blobs))
		assert.Empty(t, w.Up.Requests()[0].Range)
	})
	huge := pullthroughtest.Fault{Match: testkit.Blobs, Header: announced(math.MaxInt64)}
	for name, c := range map[string]struct {
		limit int64
		kind  error
	}{
		"over the limit":        {0, pullthrough.ErrTooLarge},
		"where all is welcome":  {math.MaxInt64, pullthrough.ErrUnavailable},
		"in the manifest alone": {math.MaxInt64, nil},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, pullthroughtest.Config{}, testkit.WithPolicy(pullthrough.Policy{MaxBlobBytes: c.limit}), func(t *testing.T, p *pipeworks) {
				layer := p.Layer(1000)
				fault := huge
				if c.kind == nil {
					pushManifest(p.World, "1", fmt.Sprintf(`{"digest":%q,"size":%d}`, layer.Digest, int64(math.MaxInt64)))
					_, err := p.Resolve(t.Context(), "1")
					require.NoError(t, err)
					fault.Header, fault.NoLength = nil, true
				}
				p.Up.Fault(fault)
				assert.Less(t, testkit.Allocated(func() {
					err := p.Whole(t.Context(), layer.Digest)
					if c.kind != nil { // what a manifest says is a hint: the blob may come, and Whole has checked it
						assert.ErrorIs(t, err, c.kind)
					}
					p.Settled(t)
				}), uint64(16<<20))
				assert.LessOrEqual(t, p.Up.Count(testkit.Blobs), 8)
			})
		})
	}
}

func testHeadOfABlobDecidesNothing(t *testing.T) {
	for _, status := range []int{401, 403, 404, 405, 500} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			layer := w.Layer(1000)
			w.Up.Fault(pullthroughtest.Fault{Match: "HEAD /v2/a/blobs/*", Status: status})
			resp, err := http.Head(testkit.Serve(t, w.Proxy).URL + testkit.BlobPath("a", layer.Digest))
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			assert.Equal(t, 200, resp.StatusCode)
			assert.EqualValues(t, 1000, resp.ContentLength)
			w.PullBlob(t, "a", layer.Digest)
			assert.Equal(t, 2, w.Up.Count(testkit.Blobs+" 20*"))
		})
	}
	t.Run("200 where GET says 404", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
		layer := w.Layer(1000)
		w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Status: 404})
		for _, head := range []bool{true, false} {
			_, err := w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: layer.Digest.String(), Head: head})
			assert.ErrorIs(t, err, pullthrough.ErrNotFound)
		}
		assert.Equal(t, 2, w.Up.Count(testkit.Blobs+" 404"))
	})
}

func testHeadOfABlobOfUnknownSize(t *testing.T) {
	const noSize, byHead = "GET /v2/a/blobs/*", "HEAD /v2/a/blobs/*"
	for name, c := range map[string]struct {
		head    pullthroughtest.Fault
		known   bool // by a manifest
		status  int
		success int // of HEAD
	}{
		"HEAD tells it":                       {status: 200, success: 1},
		"HEAD tells it, and a manifest":       {known: true, status: 200, success: 1},
		"HEAD is refused":                     {head: pullthroughtest.Fault{Status: 405}, status: 502},
		"HEAD is refused, a manifest has it":  {head: pullthroughtest.Fault{Status: 405}, known: true, status: 200},
		"HEAD fails":                          {head: pullthroughtest.Fault{Status: 500}, status: 502},
		"HEAD tells nothing":                  {head: pullthroughtest.Fault{NoLength: true}, status: 502, success: 1},
		"HEAD says that it is empty":          {head: pullthroughtest.Fault{Header: http.Header{"Content-Length": {"0"}}}, status: 502, success: 1},
		"HEAD is answered with a page":        {head: pullthroughtest.Fault{Header: http.Header{"Content-Type": {"text/html"}}}, status: 502, success: 1},
		"HEAD says that there is no such one": {head: pullthroughtest.Fault{Status: 404}, status: 502},
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{Handler: func(_ http.ResponseWriter, r *http.Request) bool {
				r.Header.Del("Range")
				return false
			}}, nil)
			layer := w.Layer(1_000_000)
			if c.known {
				_, err := w.Tagged(t, "1")
				require.NoError(t, err)
			}
			w.Up.Fault(pullthroughtest.Fault{Match: noSize, NoLength: true})
			c.head.Match = byHead
			w.Up.Fault(c.head)
			resp, err := http.Head(testkit.Serve(t, w.Proxy).URL + testkit.BlobPath("a", layer.Digest))
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			assert.Equal(t, c.status, resp.StatusCode)
			if c.status == 200 {
				assert.EqualValues(t, 1_000_000, resp.ContentLength)
			}
			w.Settled(t)
			assert.False(t, hasBlob(t, w, layer.Digest), "it is not downloaded")
			assert.Equal(t, 1, w.Up.Count(noSize))
			assert.Equal(t, 1, w.Up.Count(byHead))
			assert.Equal(t, c.success, w.Up.Count(byHead+" 200"))
		})
	}
}

// witness notes which hosts are asked.
type witness struct {
	http.RoundTripper
	mu    sync.Mutex
	hosts map[string]int
}

func (w *witness) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hosts[r.URL.Host]++
	if strings.HasPrefix(r.URL.Host, "169.254.") {
		return nil, errors.New("the metadata service was asked")
	}
	return w.RoundTripper.RoundTrip(r)
}

func testLayerURLsAreNeverAsked(t *testing.T) {
	for name, mode := range map[string]pullthrough.FillMode{
		"lazy": pullthrough.FillLazy, "eager": pullthrough.FillEager, "background": pullthrough.FillBackground,
	} {
		t.Run(name, func(t *testing.T) {
			elsewhere := pullthroughtest.New(t, pullthroughtest.Config{})
			seen := &witness{hosts: map[string]int{}}
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Fill, p.Transport = mode, seen })
			seen.RoundTripper = w.Up.Client().Transport
			base, config := digest.FromString("base"), w.Up.PushBlob("a", []byte("{}"))
			urls := fmt.Sprintf(`"urls":["%s/base","http://169.254.169.254/latest/meta-data"]`, elsewhere.URL())
			own := w.Up.PushBlob("a", []byte("own"))
			pushManifest(w, "1", fmt.Sprintf(`{"digest":%q,"size":2}`, config),
				fmt.Sprintf(`{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":%q,"size":4,%s}`, base, urls),
				fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":3,%s}`, ocispec.MediaTypeImageLayerGzip, own, urls))
			_, err := w.Resolve(context.Background(), "1")
			require.NoError(t, err)
			w.Settled(t)
			w.PullBlob(t, "a", own)
			_, err = w.Open(t.Context(), base)
			assert.ErrorIs(t, err, pullthrough.ErrNotFound, "upstream itself does not have it")
			_, err = w.Stored(t, "1")
			assert.NoError(t, err, "the image is complete without it")
			assert.Empty(t, elsewhere.Log())
			assert.Len(t, seen.hosts, 1)
			assert.Positive(t, seen.hosts[w.Up.Host()])
		})
	}
}

func testKindsOfDigests(t *testing.T) {
	for name, o := range map[string]pullthroughtest.ImageOptions{
		"empty blobs":            {LayerSize: -1},
		"sha512":                 {Algorithm: digest.SHA512, LayerSize: 3 << 20},
		"empty blobs by sha512":  {Algorithm: digest.SHA512, LayerSize: -1},
		"empty, without lengths": {LayerSize: -1, Seed: 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			img := pullthroughtest.NewImage(o)
			w.Up.Push("a", "1", img)
			if o.Seed == 1 {
				w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, NoLength: true})
			}
			for range 2 { // from upstream, and from the Store
				w.Pull(t, "a", img.Digest.String(), img)
			}
			assert.Equal(t, len(img.Blobs()), w.Up.Count(testkit.Blobs))
			assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/*"))
		})
	}
	f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
	for _, d := range []string{
		"md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:ABC", "sha256:" + strings.Repeat("A", 64), "sha384:" + strings.Repeat("a", 96),
		"sha512:" + strings.Repeat("a", 64), "sha256:" + strings.Repeat("a", 128), "sha256:", ":", "blake3:" + strings.Repeat("a", 64),
		"sha256+b64:" + strings.Repeat("a", 64), "sha256:../../x",
	} {
		t.Run(d, func(t *testing.T) {
			for _, kind := range []string{"blobs", "manifests"} {
				status := f.Get(t, "/v2/"+testkit.Prefix+"/a/"+kind+"/"+d).StatusCode
				assert.Contains(t, []int{400, 404}, status, kind)
			}
			_, err := f.Open(t.Context(), digest.Digest(d))
			assert.ErrorIs(t, err, pullthrough.ErrInvalid)
			assert.Empty(t, f.Up.Log())
		})
	}
	t.Run("other digests in a manifest", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Fill = pullthrough.FillEager })
		img := pushManifest(w, "1", `{"digest":"blake3:00","size":1}`, `{"digest":"sha384:00","size":1}`, `{"digest":"sha256:ABC","size":1}`)
		m, err := w.Resolve(t.Context(), "1")
		require.NoError(t, err)
		assert.Equal(t, string(img.Content), string(m.Content))
		w.Settled(t)
		assert.Equal(t, []string{"GET /v2/a/manifests/1 200"}, w.Up.Log())
	})
}

// A client sees the same size and content, whatever it asks for first.
func testSizeThatTheManifestHasWrong(t *testing.T) {
	for _, off := range []int64{-1, 1, 60_000, -60_000} {
		for _, unannounced := range []bool{false, true} {
			for _, methods := range [][]string{{"GET", "HEAD", "GET"}, {"HEAD", "GET", "HEAD"}} {
				t.Run(fmt.Sprintf("by %d, unannounced %v, %v", off, unannounced, methods), func(t *testing.T) {
					f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
					layer := f.Layer(100_000)
					pushManifest(f.World, "1", fmt.Sprintf(`{"mediaType":"application/x","digest":%q,"size":%d}`, layer.Digest, layer.Size+off))
					_, err := f.Resolve(t.Context(), "1")
					require.NoError(t, err)
					f.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/* 200", NoLength: unannounced})
					for _, method := range methods {
						got := f.Ask(t, method, testkit.BlobPath("a", layer.Digest))
						assert.Equal(t, 200, got.StatusCode, method)
						assert.EqualValues(t, layer.Size, got.ContentLength, method)
						if method == http.MethodGet {
							assert.Equal(t, layer.Digest, digest.FromBytes(got.Content))
						}
						f.Settled(t)
					}
					assert.LessOrEqual(t, f.Up.Count(testkit.Blobs), 2)
				})
			}
		}
	}
}
