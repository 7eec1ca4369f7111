package upstream_test

import (
	"context"
	"errors"
	"io"
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
