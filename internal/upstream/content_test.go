package upstream_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"math"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func gzipped(t *testing.T, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := z.Write(content)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	return b.Bytes()
}

// htmlFault answers with a page that is a login's or a proxy's.
func htmlFault(match, page string) pullthroughtest.Fault {
	return pullthroughtest.Fault{
		Match: match, Status: http.StatusOK, Body: []byte(page), Header: http.Header{"Content-Type": {"text/html; charset=utf-8"}},
	}
}

func testManifestsAreAskedForUncompressed(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	small := gzipped(t, img.Content)
	w := testkit.NewWorld(t, pullthroughtest.Config{Handler: func(rw http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/v2/a/manifests/1" || r.Header.Get("Accept-Encoding") == "identity" {
			return false
		}
		rw.Header().Set("Content-Type", img.MediaType)
		rw.Header().Set("Content-Encoding", "gzip")
		_, err := rw.Write(small)
		assert.NoError(t, err)
		return true
	}}, nil)
	w.Up.Push("a", "1", img)
	w.Pull(t, "a", "1", img)
	assert.Equal(t, 1+len(img.Blobs()), w.Up.Count(""))
	for _, r := range w.Up.Requests() {
		assert.Equal(t, []string{"identity"}, r.Header.Values("Accept-Encoding"))
	}
}

func testGzippedLayersStayAsTheyAre(t *testing.T) {
	for name, size := range testkit.LayerSizes {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			raw := gzipped(t, testkit.BlobContent(t, w.Layer(size)))
			d := w.Up.PushBlob("a", raw)
			w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Header: http.Header{"Content-Encoding": {"gzip"}}})
			got, err := readBlob(t, w, d)
			require.NoError(t, err)
			assert.True(t, bytes.Equal(raw, got))
			w.Settled(t)
			b, err := w.Mem.Blob(t.Context(), testkit.Repo("a"), d)
			require.NoError(t, err)
			testkit.AssertBody(t, d, b)
			assert.Equal(t, []string{"GET /v2/a/blobs/" + d.String() + " 200"}, w.Up.Log())
		})
	}
}

// assertAskedTwiceAtMost: what does not match its digest may be fetched once more.
func assertAskedTwiceAtMost(t *testing.T, w *testkit.World) {
	t.Helper()
	assert.Positive(t, w.Up.Count(""))
	assert.LessOrEqual(t, w.Up.Count(""), 2)
	w.Up.Reset()
}

func testBlobWithoutEndIsLimited(t *testing.T) {
	const (
		size = 3 << 20
		most = 8 << 20
		// slack is what buffers and one portion of upstream's hold.
		slack = 128 << 10
	)
	endless := func(t *testing.T, known bool, kind error, stop int64) {
		testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
			w.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
				return pullthrough.Policy{MaxBlobBytes: most}
			}
			layer := w.Layer(size)
			if known {
				_, err := w.Tagged(t, "1")
				require.NoError(t, err)
			}
			w.Up.Reset()
			w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, NoLength: true, Extend: math.MaxInt64})
			_ = failsBlob(t, w, layer, kind)
			synctest.Wait() // for upstream to notice
			assert.Equal(t, 1, w.Up.Count(""))
			assert.Greater(t, sent(w), stop-1)
			assert.Less(t, sent(w), stop+slack)
		})
	}
	t.Run("of known size", func(t *testing.T) { endless(t, true, pullthrough.ErrDigest, size) })
	t.Run("of unknown size", func(t *testing.T) { endless(t, false, pullthrough.ErrTooLarge, most) })
}

func testWebPageInPlaceOfARegistry(t *testing.T) {
	page := "<!DOCTYPE html><title>Gallery</title>" + strings.Repeat(" ", 1440) // 1,477 bytes
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("a", "1", img)
	w.Up.Fault(htmlFault("", page))
	e := refusesManifest(t, w, "1", pullthrough.ErrUnavailable)
	assert.Contains(t, e.Error(), "text/html")
	assert.Equal(t, w.Up.Host(), e.Host)
	status, _, message := pullthrough.OCI(e)
	assert.Equal(t, 502, status)
	assert.NotContains(t, message, "Gallery")

	w.Up.Reset()
	_ = leavesNothing(t, w, img.Digest.String(), pullthrough.ErrDigest)
	assertAskedTwiceAtMost(t, w)
	for _, b := range img.Blobs() {
		_ = failsBlob(t, w, b, pullthrough.ErrDigest)
		assertAskedTwiceAtMost(t, w)
	}
	heals(t, w, "1", img)
}
