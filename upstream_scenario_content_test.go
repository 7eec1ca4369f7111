package pullthrough_test

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

func testS02(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	small := gzipped(t, img.Content)
	w := newWorld(t, pullthroughtest.Config{Handler: func(rw http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/v2/a/manifests/1" || r.Header.Get("Accept-Encoding") == "identity" {
			return false
		}
		rw.Header().Set("Content-Type", img.MediaType)
		rw.Header().Set("Content-Encoding", "gzip")
		_, err := rw.Write(small)
		assert.NoError(t, err)
		return true
	}}, nil)
	w.up.Push("a", "1", img)
	w.pull(t, "a", "1", img)
	assert.Equal(t, 1+len(img.Blobs()), w.up.Count(""))
	for _, r := range w.up.Requests() {
		assert.Equal(t, []string{"identity"}, r.Header.Values("Accept-Encoding"))
	}
}

func testS03(t *testing.T) {
	for name, size := range layerSizes {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{}, nil)
			raw := gzipped(t, contentOf(t, w.layer(size)))
			d := w.up.PushBlob("a", raw)
			w.up.Fault(pullthroughtest.Fault{Match: blobs, Header: http.Header{"Content-Encoding": {"gzip"}}})
			got, err := w.readBlob(t, d)
			require.NoError(t, err)
			assert.True(t, bytes.Equal(raw, got))
			w.settled(t)
			b, err := w.store.Blob(t.Context(), repo("a"), d)
			require.NoError(t, err)
			assertBody(t, d, b)
			assert.Equal(t, []string{"GET /v2/a/blobs/" + d.String() + " 200"}, w.up.Log())
		})
	}
}

// assertAskedTwiceAtMost: what does not match its digest may be fetched once more.
func (w *world) assertAskedTwiceAtMost(t *testing.T) {
	t.Helper()
	assert.Positive(t, w.up.Count(""))
	assert.LessOrEqual(t, w.up.Count(""), 2)
	w.up.Reset()
}

func testS16(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{}, nil)
	images := pushTags(w.up, 2)
	w.up.Fault(pullthroughtest.Fault{Match: manifestGets, Body: images[1].Content})
	right := images[0].Digest.String()
	_ = w.leavesNothing(t, right, pullthrough.ErrDigest)
	_, stored := w.stored(t, images[1].Digest.String())
	assert.Error(t, stored)
	w.assertAskedTwiceAtMost(t)
	w.heals(t, right, images[0])
}

func testS17(t *testing.T) {
	for name, size := range layerSizes {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{}, nil)
			layer := w.layer(size)
			wrong := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: -1, LayerSize: size}).Layers[0]
			w.up.Fault(pullthroughtest.Fault{Match: blobs, Body: contentOf(t, wrong)})
			got, err := w.readBlob(t, layer.Digest)
			assert.ErrorIs(t, err, pullthrough.ErrDigest)
			assert.Less(t, int64(len(got)), size, "a client must see that it is not complete")
			if name == "small" {
				assert.Empty(t, got)
			}
			w.settled(t)
			for _, d := range []*pullthroughtest.Blob{layer, wrong} {
				_, stored := w.store.Blob(t.Context(), repo("a"), d.Digest)
				assert.Error(t, stored)
			}
			w.assertAskedTwiceAtMost(t)
			w.up.Heal()
			w.pullBlob(t, "a", layer.Digest)
		})
	}
}

func testS18(t *testing.T) {
	const (
		size = 3 << 20
		most = 8 << 20
		// slack is what buffers and one portion of upstream's hold.
		slack = 128 << 10
	)
	endless := func(t *testing.T, known bool, kind error, stop int64) {
		inBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *world) {
			w.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
				return pullthrough.Policy{MaxBlobBytes: most}
			}
			layer := w.layer(size)
			if known {
				_, err := w.tagged(t, "1")
				require.NoError(t, err)
			}
			w.up.Reset()
			w.up.Fault(pullthroughtest.Fault{Match: blobs, NoLength: true, Extend: math.MaxInt64})
			_ = w.failsBlob(t, layer, kind)
			synctest.Wait() // for upstream to notice
			assert.Equal(t, 1, w.up.Count(""))
			assert.Greater(t, w.sent(), stop-1)
			assert.Less(t, w.sent(), stop+slack)
		})
	}
	t.Run("of known size", func(t *testing.T) { endless(t, true, pullthrough.ErrDigest, size) })
	t.Run("of unknown size", func(t *testing.T) { endless(t, false, pullthrough.ErrTooLarge, most) })
}

func testS37(t *testing.T) {
	page := "<!DOCTYPE html><title>Gallery</title>" + strings.Repeat(" ", 1440) // 1,477 bytes
	w := newWorld(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.up.Push("a", "1", img)
	w.up.Fault(htmlFault("", page))
	e := w.refusesManifest(t, "1", pullthrough.ErrUnavailable)
	assert.Contains(t, e.Error(), "text/html")
	assert.Equal(t, w.up.Host(), e.Host)
	status, _, message := pullthrough.OCI(e)
	assert.Equal(t, 502, status)
	assert.NotContains(t, message, "Gallery")

	w.up.Reset()
	_ = w.leavesNothing(t, img.Digest.String(), pullthrough.ErrDigest)
	w.assertAskedTwiceAtMost(t)
	for _, b := range img.Blobs() {
		_ = w.failsBlob(t, b, pullthrough.ErrDigest)
		w.assertAskedTwiceAtMost(t)
	}
	w.heals(t, "1", img)
}
