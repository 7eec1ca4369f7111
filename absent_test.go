package pullthrough_test

import (
	"context"
	"fmt"
	"net/http"
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

// A manifest of one repository says nothing of another's blobs.
func TestSizesThatAManifestTellsStayInItsRepository(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	good := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 3000})
	w.Up.Push("nginx", "1", good)
	d := good.Layers[0].Digest
	evil := &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageManifest}
	evil.Content = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"digest":%q,"size":5},"layers":[]}`, evil.MediaType, d)
	evil.Digest = digest.FromBytes(evil.Content)
	w.Up.Push("evil", "1", evil)
	_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("evil"), Ref: "1"})
	require.NoError(t, err)
	w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, NoLength: true})
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/nginx/blobs/*", NoLength: true})
	w.PullBlob(t, "nginx", d)
	_, err = w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: d.String(), Head: true})
	assert.ErrorIs(t, err, pullthrough.ErrNotFound)
	assert.Equal(t, 1, w.Up.Count("GET /v2/nginx/blobs/*"))
}

func TestASizeThatWasALieIsForgotten(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	layer := w.Layer(100_000)
	liar := &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageManifest}
	liar.Content = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"digest":%q,"size":5},"layers":[]}`, liar.MediaType, layer.Digest)
	liar.Digest = digest.FromBytes(liar.Content)
	w.Up.Push("a", "lie", liar)
	_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "lie"})
	require.NoError(t, err)
	w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, NoLength: true})
	_, err = w.Open(t.Context(), layer.Digest)
	require.ErrorIs(t, err, pullthrough.ErrDigest)
	w.Settled(t)
	w.PullBlob(t, "a", layer.Digest)
	assert.Equal(t, 2, w.Up.Count(testkit.Blobs))
}

func TestManyHeadsOfAColdBlobAreOneRequest(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	layer := w.Layer(1000)
	gate := make(chan struct{})
	w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Stall: gate})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			b, err := w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: layer.Digest.String(), Head: true})
			if assert.NoError(t, err) {
				assert.EqualValues(t, 1000, b.Descriptor.Size)
			}
		})
	}
	require.NoError(t, w.Up.Wait(t.Context(), testkit.Blobs, 1))
	close(gate)
	wg.Wait()
	assert.Equal(t, 1, w.Up.Count(testkit.Blobs))
}

// A size that a manifest tells is no reason to believe that the blob is there.
func TestSizesOfColdBlobsAreToldByUpstream(t *testing.T) {
	for name, known := range map[string]bool{"with the manifest": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			layer := w.Layer(500_000)
			if known {
				_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
				require.NoError(t, err)
				w.Up.Reset()
			}
			for range 2 {
				b, err := w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: layer.Digest.String(), Head: true})
				require.NoError(t, err)
				assert.EqualValues(t, 500_000, b.Descriptor.Size)
				_, err = w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
				require.NoError(t, err)
			}
			assert.Equal(t, 1, w.Up.Count("GET /v2/a/blobs/"+layer.Digest.String()+" 206"), "one request, remembered")
			assert.Equal(t, 1, w.Up.Count("GET /v2/a/blobs/*"), "an existence check downloads nothing")
		})
	}
}

// RFC 9110, section 9.3.2: a HEAD is answered as the GET is.
func TestHeadAndGetOfABlobAgree(t *testing.T) {
	for name, c := range map[string]struct {
		policy pullthrough.Policy
		change func(w *testkit.World, layer digest.Digest)
		status int
	}{
		"it is there":                  {status: 200},
		"upstream has lost it":         {change: func(w *testkit.World, d digest.Digest) { w.Up.Delete("a", d.String()) }, status: 404},
		"upstream refuses it":          {change: fault(pullthroughtest.Fault{Match: testkit.Blobs, Status: 403}), status: 403},
		"upstream is out of order":     {policy: pullthrough.Policy{Retries: -1}, change: fault(pullthroughtest.Fault{Match: testkit.Blobs, Status: 500}), status: 502},
		"it is larger than is allowed": {policy: pullthrough.Policy{MaxBlobBytes: 1000}, status: 502},
		"offline":                      {policy: pullthrough.Policy{Offline: true}, status: 502},
	} {
		for order, methods := range map[string][]string{
			"HEAD first": {http.MethodHead, http.MethodGet, http.MethodHead}, "GET first": {http.MethodGet, http.MethodHead},
		} {
			for manifest, known := range map[string]bool{"manifest known": true, "manifest unknown": false} {
				t.Run(name+", "+order+", "+manifest, func(t *testing.T) {
					policy := pullthrough.Policy{}
					f := testkit.NewFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
						p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy { return policy }
					})
					layer := f.Layer(5000)
					if known {
						require.Equal(t, 200, f.Get(t, testkit.ManifestPath("a", "1")).StatusCode)
						f.Settled(t)
					}
					f.Up.Reset()
					policy = c.policy
					if c.change != nil {
						c.change(f.World, layer.Digest)
					}
					for _, method := range methods {
						r := f.Ask(t, method, testkit.BlobPath("a", layer.Digest))
						assert.Equal(t, c.status, r.StatusCode, method)
						if c.status == 200 {
							testkit.AssertContent(t, r, layer.Digest, testkit.OctetStream, 5000)
						}
						f.Settled(t)
					}
					assert.LessOrEqual(t, len(f.Up.Log()), len(methods))
					assert.Equal(t, c.policy.Offline, len(f.Up.Log()) == 0)
					assert.Zero(t, f.Up.Count("HEAD *"))
				})
			}
		}
	}
}

func fault(f pullthroughtest.Fault) func(*testkit.World, digest.Digest) {
	return func(w *testkit.World, _ digest.Digest) { w.Up.Fault(f) }
}

// A manifest that contradicts upstream is wrong, and HEAD and GET say the same from the
// first request on.
func TestHeadOfABlobWhoseSizeIsContradicted(t *testing.T) {
	for _, first := range []bool{true, false} {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
		layer := w.Layer(3000)
		liar := &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageManifest}
		liar.Content = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"a/b","digest":%q,"size":5},"layers":[]}`, liar.MediaType, layer.Digest)
		liar.Digest = digest.FromBytes(liar.Content)
		w.Up.Push("a", "lie", liar)
		_, err := w.Resolve(t.Context(), "lie")
		require.NoError(t, err)
		for _, head := range []bool{first, !first} {
			b, err := w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: layer.Digest.String(), Head: head})
			require.NoError(t, err)
			assert.EqualValues(t, 3000, b.Descriptor.Size)
			if head {
				require.NoError(t, b.Body.Close())
			} else {
				testkit.AssertBody(t, layer.Digest, b)
			}
			w.Settled(t)
		}
		assert.Equal(t, map[bool]int{true: 2, false: 1}[first], w.Up.Count(testkit.Blobs))
	}
}
