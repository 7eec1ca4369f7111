package upstream_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"math"
	"net/http"
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
