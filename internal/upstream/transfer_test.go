package upstream_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const (
	blobs = "GET /v2/a/blobs/*"
	size  = 1 << 20
)

// layer pushes one layer of the given size.
func (w *world) layer(size int64) *pullthroughtest.Blob {
	return w.push(pullthroughtest.ImageOptions{LayerSize: size}).Layers[0]
}

// ranges are the Range headers of the requests for blobs.
func rangesOf(up *pullthroughtest.Upstream) []string {
	var all []string
	for _, r := range up.Requests() {
		all = append(all, r.Range)
	}
	return all
}

func TestATransferGoesOnWhereItBroke(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{})
	layer := w.layer(size)
	w.up.Fault(pullthroughtest.Fault{Match: blobs, Times: 2, CutAfter: new(int64(size / 4))})
	x, err := w.Transfer(t.Context(), w.target, layer.Digest)
	require.NoError(t, err)
	defer x.Close()
	assert.EqualValues(t, size, x.Total())
	body, err := io.ReadAll(x)
	require.NoError(t, err)
	assert.Equal(t, layer.Digest, layer.Digest.Algorithm().FromBytes(body))
	assert.Equal(t, []string{"", "bytes=262144-", "bytes=524288-"}, rangesOf(w.up))
}

func TestATransferAsksTheRegistryAgainAndNotWhereItWasRedirectedTo(t *testing.T) {
	storage := pullthroughtest.New(t, pullthroughtest.Config{})
	w := newWorld(t, pullthroughtest.Config{})
	img := w.push(pullthroughtest.ImageOptions{LayerSize: size})
	storage.Push("a", "1", img)
	w.up.Fault(pullthroughtest.Fault{Match: blobs + " 20*", Redirect: storage.URL() + "{path}"})
	storage.Fault(pullthroughtest.Fault{Times: 1, CutAfter: new(int64(100))})
	x, err := w.Transfer(t.Context(), w.target, img.Layers[0].Digest)
	require.NoError(t, err)
	defer x.Close()
	n, err := io.Copy(io.Discard, x)
	require.NoError(t, err)
	assert.EqualValues(t, size, n)
	assert.Equal(t, 2, w.up.Count(blobs+" 307"))
	assert.Equal(t, []string{"", "bytes=100-"}, rangesOf(storage))
}

func TestAnInterruptedTransferGoesOn(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{})
	layer := w.layer(size)
	w.up.Fault(pullthroughtest.Fault{Match: blobs, Times: 1, Stall: make(chan struct{}), StallAfter: new(int64(1000))})
	x, err := w.Transfer(t.Context(), w.target, layer.Digest)
	require.NoError(t, err)
	defer x.Close()
	_, err = io.CopyN(io.Discard, x, 1000)
	require.NoError(t, err)
	x.Interrupt(errors.New("it stalls"))
	n, err := io.Copy(io.Discard, x)
	require.NoError(t, err)
	assert.EqualValues(t, size-1000, n)
	assert.Equal(t, []string{"", "bytes=1000-"}, rangesOf(w.up))
}

// The cause is no error of the network's: it is shown, found, and worth a resume,
// whatever it is.
func TestTheCauseOfAnInterruptionShows(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{})
	layer := w.layer(size)
	w.up.Fault(pullthroughtest.Fault{Match: blobs + " 200", CutAfter: new(int64(1000))})
	w.up.Fault(pullthroughtest.Fault{Match: blobs + " 206", Stall: make(chan struct{})})
	stalled := errors.New("it stalls")
	x, err := w.Transfer(t.Context(), w.target, layer.Digest)
	require.NoError(t, err)
	defer x.Close()
	done := make(chan error, 1)
	go func() { _, err := io.Copy(io.Discard, x); done <- err }()
	for try := 1; try <= 4; try++ {
		require.NoError(t, w.up.Wait(t.Context(), blobs, 1+try))
		x.Interrupt(stalled)
	}
	err = <-done
	assert.ErrorIs(t, err, stalled)
	assert.ErrorIs(t, err, upstream.ErrUnavailable)
	assert.ErrorContains(t, err, "after 1000 bytes: ")
	assert.ErrorContains(t, err, "it stalls")
	assert.Equal(t, 5, w.up.Count(blobs))
}

func TestTheCauseOfTheContextIsHandedOnUnchanged(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{})
	layer := w.layer(size)
	w.up.Fault(pullthroughtest.Fault{Match: blobs, Stall: make(chan struct{}), StallAfter: new(int64(1000))})
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	x, err := w.Transfer(ctx, w.target, layer.Digest)
	require.NoError(t, err)
	defer x.Close()
	_, err = io.CopyN(io.Discard, x, 1000)
	require.NoError(t, err)
	gone := errors.New("nobody reads any more")
	cancel(gone)
	_, err = io.Copy(io.Discard, x)
	assert.True(t, err == gone, "%v", err)
	assert.Equal(t, 1, w.up.Count(blobs))
}

func TestWhatIsNeverSpliced(t *testing.T) {
	for name, answer := range map[string]pullthroughtest.Fault{
		"a part that begins elsewhere":    {Header: http.Header{"Content-Range": {"bytes 990-1048575/1048576"}}},
		"a part of another length":        {Header: http.Header{"Content-Range": {"bytes 1000-1048576/1048577"}}},
		"a part without a Content-Range":  {Header: http.Header{"Content-Range": nil}},
		"another object, from the start":  {Status: 200, Body: make([]byte, size+1), Header: http.Header{"Content-Range": nil}},
		"nothing, since it was forbidden": {Status: 403},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{})
			layer := w.layer(size)
			w.up.Fault(pullthroughtest.Fault{Match: blobs, Times: 1, CutAfter: new(int64(1000))})
			answer.Match = blobs
			w.up.Fault(answer)
			x, err := w.Transfer(t.Context(), w.target, layer.Digest)
			require.NoError(t, err)
			defer x.Close()
			n, err := io.Copy(io.Discard, x)
			assert.ErrorIs(t, err, upstream.ErrUnavailable)
			assert.NotErrorIs(t, err, upstream.ErrDenied, "of the rest, not of the blob")
			assert.EqualValues(t, 1000, n)
			assert.Equal(t, 2, w.up.Count(blobs))
		})
	}
}

func TestARefusedRangeIsAskedForWhole(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{})
	layer := w.layer(size)
	w.up.Fault(pullthroughtest.Fault{Match: blobs, Times: 1, CutAfter: new(int64(1000))})
	w.up.Fault(pullthroughtest.Fault{Match: blobs + " 206", Status: 416})
	x, err := w.Transfer(t.Context(), w.target, layer.Digest)
	require.NoError(t, err)
	defer x.Close()
	body, err := io.ReadAll(x)
	require.NoError(t, err)
	assert.Equal(t, layer.Digest, layer.Digest.Algorithm().FromBytes(body))
	assert.Equal(t, []string{"", "bytes=1000-", ""}, rangesOf(w.up))
}

func TestTheSizeOfABlob(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{})
	layer := w.layer(size)
	n, err := w.BlobSize(t.Context(), w.target, layer.Digest)
	require.NoError(t, err)
	assert.EqualValues(t, size, n)
	assert.Equal(t, []string{"bytes=0-0"}, rangesOf(w.up))
	_, err = w.BlobSize(t.Context(), w.target, layer.Digest.Algorithm().FromString("x"))
	assert.ErrorIs(t, err, upstream.ErrNotFound)
}
