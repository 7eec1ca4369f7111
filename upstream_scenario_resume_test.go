package pullthrough_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// cutAt45 runs test for layers that are verified before their answer starts and
// for larger ones. The first answer for the layer ends after 45 % of it.
func cutAt45(t *testing.T, test func(t *testing.T, w *world, layer *pullthroughtest.Blob, cut int64)) {
	for name, size := range layerSizes {
		t.Run(name, func(t *testing.T) {
			inBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *world) {
				layer := w.layer(size)
				cut := size * 45 / 100
				w.up.Fault(pullthroughtest.Fault{Match: blobs + " 200", Times: 1, CutAfter: &cut})
				test(t, w, layer, cut)
			})
		})
	}
}

// partFrom is the 206 with the bytes from first on of an object that is said to
// have total bytes.
func partFrom(body []byte, first, total int64) pullthroughtest.Fault {
	return pullthroughtest.Fault{
		Match:  blobs + " 206",
		Status: http.StatusPartialContent,
		Body:   body,
		Header: http.Header{"Content-Range": {fmt.Sprintf("bytes %d-%d/%d", first, total-1, total)}},
	}
}

func rangeFrom(n int64) string { return fmt.Sprintf("bytes=%d-", n) }

func testS10a(t *testing.T) {
	cutAt45(t, func(t *testing.T, w *world, layer *pullthroughtest.Blob, cut int64) {
		w.pullBlob(t, "a", layer.Digest)
		assert.Equal(t, []string{"", rangeFrom(cut)}, w.ranges())
		assert.Equal(t, layer.Size, w.sent())
	})
}

func testS10b(t *testing.T) {
	cutAt45(t, func(t *testing.T, w *world, layer *pullthroughtest.Blob, cut int64) {
		w.up.Fault(partFrom(contentOf(t, layer)[cut-10:], cut-10, layer.Size))
		err := w.failsBlob(t, layer, pullthrough.ErrUnavailable)
		assert.NotErrorIs(t, err, pullthrough.ErrDigest, "it is seen before a digest is wrong")
		assert.Equal(t, []string{"", rangeFrom(cut)}, w.ranges())
		w.up.Heal()
		w.pullBlob(t, "a", layer.Digest)
	})
}

func testS10c(t *testing.T) {
	cutAt45(t, func(t *testing.T, w *world, layer *pullthroughtest.Blob, cut int64) {
		w.up.Fault(pullthroughtest.Fault{
			Match: blobs + " 206", Status: http.StatusOK, Body: contentOf(t, layer), Header: http.Header{"Content-Range": nil},
		})
		w.pullBlob(t, "a", layer.Digest)
		assert.Equal(t, []string{"", rangeFrom(cut)}, w.ranges())
	})
}

func testS10d(t *testing.T) {
	t.Run("the second start succeeds", func(t *testing.T) {
		cutAt45(t, func(t *testing.T, w *world, layer *pullthroughtest.Blob, cut int64) {
			w.up.Fault(pullthroughtest.Fault{Match: blobs + " 206", Status: http.StatusRequestedRangeNotSatisfiable})
			w.pullBlob(t, "a", layer.Digest)
			assert.Equal(t, []string{"", rangeFrom(cut), ""}, w.ranges())
		})
	})
	t.Run("the second start is refused", func(t *testing.T) {
		cutAt45(t, func(t *testing.T, w *world, layer *pullthroughtest.Blob, cut int64) {
			w.up.Fault(pullthroughtest.Fault{Match: blobs, Status: http.StatusRequestedRangeNotSatisfiable})
			_ = w.failsBlob(t, layer, pullthrough.ErrUnavailable)
			assert.Equal(t, []string{"", rangeFrom(cut), ""}, w.ranges())
		})
	})
	t.Run("the second start is cut", func(t *testing.T) {
		cutAt45(t, func(t *testing.T, w *world, layer *pullthroughtest.Blob, cut int64) {
			w.up.Fault(pullthroughtest.Fault{Match: blobs + " 200", CutAfter: &cut})
			w.up.Fault(pullthroughtest.Fault{Match: blobs + " 206", Status: http.StatusRequestedRangeNotSatisfiable})
			_ = w.failsBlob(t, layer, pullthrough.ErrUnavailable)
			assert.Equal(t, 2, w.up.Count(blobs+" 200"), "started once more, no oftener: %q", w.ranges())
		})
	})
}

func testS10e(t *testing.T) {
	cutAt45(t, func(t *testing.T, w *world, layer *pullthroughtest.Blob, cut int64) {
		w.up.Fault(partFrom(append(contentOf(t, layer)[cut:], 0), cut, layer.Size+1))
		err := w.failsBlob(t, layer, pullthrough.ErrUnavailable)
		assert.NotErrorIs(t, err, pullthrough.ErrDigest, "it is seen before a digest is wrong")
		assert.Equal(t, []string{"", rangeFrom(cut)}, w.ranges())
		w.up.Heal()
		w.pullBlob(t, "a", layer.Digest)
	})
}

func testS23(t *testing.T) {
	const said = 10 << 10
	t.Run("once", func(t *testing.T) {
		inBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *world) {
			layer := w.layer(4 << 20)
			w.up.Fault(pullthroughtest.Fault{Match: blobs, Times: 1, Stall: make(chan struct{}), StallAfter: new(int64(said))})
			start := time.Now()
			w.pullBlob(t, "a", layer.Digest)
			assert.InDelta(t, 30*time.Second, time.Since(start), float64(2*time.Second))
			assert.Equal(t, []string{"", rangeFrom(said)}, w.ranges())
			assert.Equal(t, layer.Size, w.sent())
		})
	})
	t.Run("for ever", func(t *testing.T) {
		inBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *world) {
			layer := w.layer(4 << 20)
			w.up.Fault(pullthroughtest.Fault{Match: blobs + " 200", Times: 1, Stall: make(chan struct{}), StallAfter: new(int64(said))})
			w.up.Fault(pullthroughtest.Fault{Match: blobs, Stall: make(chan struct{}), StallAfter: new(int64(0))})
			start := time.Now()
			_ = w.failsBlob(t, layer, pullthrough.ErrUnavailable)
			assert.Less(t, time.Since(start), 4*time.Minute)
			ranges := w.ranges()
			assert.Equal(t, "", ranges[0])
			assert.Greater(t, len(ranges), 1, "it was tried")
			assert.LessOrEqual(t, len(ranges), 5)
			for _, r := range ranges[1:] {
				assert.Equal(t, rangeFrom(said), r)
			}
			w.up.Heal()
			w.pullBlob(t, "a", layer.Digest)
		})
	})
}
