package upstream_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// cutAt45 runs test for layers that are verified before their answer starts and
// for larger ones. The first answer for the layer ends after 45 % of it.
func cutAt45(t *testing.T, test func(t *testing.T, w *testkit.World, layer *pullthroughtest.Blob, cut int64)) {
	for name, size := range testkit.LayerSizes {
		t.Run(name, func(t *testing.T) {
			testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
				layer := w.Layer(size)
				cut := size * 45 / 100
				w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 200", Times: 1, CutAfter: &cut})
				test(t, w, layer, cut)
			})
		})
	}
}

// partFrom is the 206 with the bytes from first on of an object that is said to
// have total bytes.
func partFrom(body []byte, first, total int64) pullthroughtest.Fault {
	return pullthroughtest.Fault{
		Match:  testkit.Blobs + " 206",
		Status: http.StatusPartialContent,
		Body:   body,
		Header: http.Header{"Content-Range": {fmt.Sprintf("bytes %d-%d/%d", first, total-1, total)}},
	}
}

func rangeFrom(n int64) string { return fmt.Sprintf("bytes=%d-", n) }

func testCutBlobResumes(t *testing.T) {
	cutAt45(t, func(t *testing.T, w *testkit.World, layer *pullthroughtest.Blob, cut int64) {
		w.PullBlob(t, "a", layer.Digest)
		assert.Equal(t, []string{"", rangeFrom(cut)}, ranges(w))
		assert.Equal(t, layer.Size, sent(w))
	})
}

// testOtherPartIsNotJoined: what does not continue the blob is seen before a digest
// is wrong.
func testOtherPartIsNotJoined(t *testing.T) {
	for name, answer := range map[string]func(content []byte, cut int64) pullthroughtest.Fault{
		"ten bytes too early": func(content []byte, cut int64) pullthroughtest.Fault {
			return partFrom(content[cut-10:], cut-10, int64(len(content)))
		},
		"of a blob that has grown": func(content []byte, cut int64) pullthroughtest.Fault {
			return partFrom(append(content[cut:], 0), cut, int64(len(content))+1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			cutAt45(t, func(t *testing.T, w *testkit.World, layer *pullthroughtest.Blob, cut int64) {
				w.Up.Fault(answer(testkit.BlobContent(t, layer), cut))
				err := failsBlob(t, w, layer, pullthrough.ErrUnavailable)
				assert.NotErrorIs(t, err, pullthrough.ErrDigest)
				assert.Equal(t, []string{"", rangeFrom(cut)}, ranges(w))
				w.Up.Heal()
				w.PullBlob(t, "a", layer.Digest)
			})
		})
	}
}

func testResumeAnsweredWithAllSkips(t *testing.T) {
	cutAt45(t, func(t *testing.T, w *testkit.World, layer *pullthroughtest.Blob, cut int64) {
		w.Up.Fault(pullthroughtest.Fault{
			Match: testkit.Blobs + " 206", Status: http.StatusOK, Body: testkit.BlobContent(t, layer), Header: http.Header{"Content-Range": nil},
		})
		w.PullBlob(t, "a", layer.Digest)
		assert.Equal(t, []string{"", rangeFrom(cut)}, ranges(w))
	})
}

func testRefusedResumeBeginsAnew(t *testing.T) {
	t.Run("the second start succeeds", func(t *testing.T) {
		cutAt45(t, func(t *testing.T, w *testkit.World, layer *pullthroughtest.Blob, cut int64) {
			w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 206", Status: http.StatusRequestedRangeNotSatisfiable})
			w.PullBlob(t, "a", layer.Digest)
			assert.Equal(t, []string{"", rangeFrom(cut), ""}, ranges(w))
		})
	})
	t.Run("the second start is refused", func(t *testing.T) {
		cutAt45(t, func(t *testing.T, w *testkit.World, layer *pullthroughtest.Blob, cut int64) {
			w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Status: http.StatusRequestedRangeNotSatisfiable})
			_ = failsBlob(t, w, layer, pullthrough.ErrUnavailable)
			assert.Equal(t, []string{"", rangeFrom(cut), ""}, ranges(w))
		})
	})
	t.Run("the second start is cut", func(t *testing.T) {
		cutAt45(t, func(t *testing.T, w *testkit.World, layer *pullthroughtest.Blob, cut int64) {
			w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 200", CutAfter: &cut})
			w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 206", Status: http.StatusRequestedRangeNotSatisfiable})
			_ = failsBlob(t, w, layer, pullthrough.ErrUnavailable)
			assert.Equal(t, 2, w.Up.Count(testkit.Blobs+" 200"), "started once more, no oftener: %q", ranges(w))
		})
	})
}

func testSilentBlobIsAskedForAgain(t *testing.T) {
	const said = 10 << 10
	t.Run("once", func(t *testing.T) {
		testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
			layer := w.Layer(4 << 20)
			w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Times: 1, Stall: make(chan struct{}), StallAfter: new(int64(said))})
			start := time.Now()
			w.PullBlob(t, "a", layer.Digest)
			assert.InDelta(t, 30*time.Second, time.Since(start), float64(2*time.Second))
			assert.Equal(t, []string{"", rangeFrom(said)}, ranges(w))
			assert.Equal(t, layer.Size, sent(w))
		})
	})
	t.Run("for ever", func(t *testing.T) {
		testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
			layer := w.Layer(4 << 20)
			w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 200", Times: 1, Stall: make(chan struct{}), StallAfter: new(int64(said))})
			w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Stall: make(chan struct{}), StallAfter: new(int64(0))})
			start := time.Now()
			_ = failsBlob(t, w, layer, pullthrough.ErrUnavailable)
			assert.Less(t, time.Since(start), 4*time.Minute)
			ranges := ranges(w)
			assert.Equal(t, "", ranges[0])
			assert.Greater(t, len(ranges), 1, "it was tried")
			assert.LessOrEqual(t, len(ranges), 5)
			for _, r := range ranges[1:] {
				assert.Equal(t, rangeFrom(said), r)
			}
			w.Up.Heal()
			w.PullBlob(t, "a", layer.Digest)
		})
	})
}
