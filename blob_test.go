package pullthrough_test

import (
	"io"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestABlobIsVisibleOnlyWhereUpstreamHasIt(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("mine", "1", img)
	w.Pull(t, "mine", "1", img)
	w.Up.Reset()
	d := img.Blobs()[0].Digest
	_, err := w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("theirs"), Ref: d.String()})
	assert.ErrorIs(t, err, pullthrough.ErrNotFound)
	assert.Equal(t, []string{"GET /v2/theirs/blobs/" + d.String() + " 404"}, w.Up.Log())
}

func TestDownloadsShowWhatIsOnItsWayAndWhoReads(t *testing.T) {
	up, enter := testkit.Piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		assert.Empty(t, w.Downloads())
		layer := w.Layer(4 << 20)
		stall := make(chan struct{})
		up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Stall: stall, StallAfter: new(int64(3 << 20))})
		open := func() *pullthrough.Blob {
			b, err := w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: layer.Digest.String()})
			require.NoError(t, err)
			return b
		}
		first, second := open(), open()
		_, err := io.CopyN(io.Discard, first.Body, 1<<20)
		require.NoError(t, err)
		synctest.Wait()

		all := w.Downloads()
		require.Len(t, all, 1)
		assert.False(t, all[0].Began.IsZero())
		assert.Equal(t, testkit.Repo("a"), all[0].Repo)
		assert.Equal(t, layer.Digest, all[0].Digest)
		assert.Equal(t, "http://"+all[0].Upstream, up.URL())
		assert.EqualValues(t, 4<<20, all[0].Size)
		assert.EqualValues(t, 3<<20, all[0].Written)
		assert.Equal(t, []int64{0, 1 << 20}, all[0].Readers)

		require.NoError(t, first.Body.Close())
		assert.Equal(t, []int64{0}, w.Downloads()[0].Readers)
		close(stall)
		testkit.AssertBody(t, layer.Digest, second)
		w.Settled(t)
		assert.Empty(t, w.Downloads())
		assert.Equal(t, 1, up.Count(testkit.Blobs))
	})
}
