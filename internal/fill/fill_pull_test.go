package fill_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestTheAnswerStartsBeforeTheDownloadEnds(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	layer := w.Layer(8 << 20)
	gate := make(chan struct{})
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/*", Stall: gate, StallAfter: new(int64(4 << 20))})
	b, err := w.Open(t.Context(), layer.Digest)
	require.NoError(t, err)
	assert.EqualValues(t, 8<<20, b.Descriptor.Size)
	first := make([]byte, 3<<20)
	_, err = io.ReadFull(b.Body, first)
	require.NoError(t, err)
	want := make([]byte, 3<<20)
	_, err = io.ReadFull(layer.Open(), want)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(want, first))
	_, err = w.Mem.Blob(t.Context(), testkit.Repo("a"), layer.Digest)
	assert.Error(t, err, "the Store gets nothing that is not verified")
	close(gate)
	_, err = b.Body.(io.Seeker).Seek(0, io.SeekStart)
	require.NoError(t, err)
	testkit.AssertBody(t, layer.Digest, b)
	w.Settled(t)
	_, err = w.Mem.Blob(t.Context(), testkit.Repo("a"), layer.Digest)
	assert.NoError(t, err)
	assert.Equal(t, 1, w.Up.Count("GET /v2/a/blobs/*"))
}

func TestManyReadersShareOneDownload(t *testing.T) {
	for name, size := range testkit.LayerSizes {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
			layer := w.Layer(size)
			var wg sync.WaitGroup
			for range 64 {
				wg.Go(func() {
					b, err := w.Open(t.Context(), layer.Digest)
					if assert.NoError(t, err) {
						testkit.AssertBody(t, layer.Digest, b)
					}
				})
			}
			wg.Wait()
			w.Settled(t)
			assert.Equal(t, 1, w.Up.Count("GET /v2/a/blobs/* 200"))
		})
	}
}

func TestTheFirstClientLeavesAndNobodyElseNotices(t *testing.T) {
	for name, at := range map[string]int64{"at once": 0, "in the middle": 4 << 20, "near the end": 8<<20 - 70<<10} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			layer := w.Layer(8 << 20)
			gate := make(chan struct{})
			w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/*", Stall: gate, StallAfter: new(at + 1)})
			ctx, cancel := context.WithCancel(t.Context())
			leader, err := w.Open(ctx, layer.Digest)
			require.NoError(t, err)
			follower, err := w.Open(t.Context(), layer.Digest)
			require.NoError(t, err)
			assert.Equal(t, pullthrough.SourceShared, follower.Source)
			_, err = io.CopyN(io.Discard, leader.Body, at)
			require.NoError(t, err)
			cancel()
			_, err = leader.Body.Read(make([]byte, 1))
			assert.ErrorIs(t, err, context.Canceled)
			require.NoError(t, leader.Body.Close())
			close(gate)
			testkit.AssertBody(t, layer.Digest, follower)
			w.Settled(t)
			w.PullBlob(t, "a", layer.Digest)
			assert.Equal(t, 1, w.Up.Count("GET /v2/a/blobs/*"))
		})
	}
}

func TestAWrongBodyIsNeverCompleteAndNeverStored(t *testing.T) {
	for name, tc := range map[string]struct {
		fault pullthroughtest.Fault
		kind  error
	}{
		"a bit flipped at the start":        {pullthroughtest.Fault{Flip: new(int64(0))}, pullthrough.ErrDigest},
		"a bit flipped in the middle":       {pullthroughtest.Fault{Flip: new(int64(100_000))}, pullthrough.ErrDigest},
		"a bit flipped at the end":          {pullthroughtest.Fault{Flip: new(int64(-1))}, pullthrough.ErrDigest},
		"cut":                               {pullthroughtest.Fault{CutAfter: new(int64(150_000))}, pullthrough.ErrUnavailable},
		"reset":                             {pullthroughtest.Fault{CutAfter: new(int64(150_000)), Reset: true}, pullthrough.ErrUnavailable},
		"cut in the last byte":              {pullthroughtest.Fault{CutAfter: new(int64(199_999))}, pullthrough.ErrUnavailable},
		"short, looks complete":             {pullthroughtest.Fault{Truncate: 1, NoLength: true}, pullthrough.ErrDigest},
		"short, ends with the connection":   {pullthroughtest.Fault{Truncate: 1, CloseDelimited: true}, pullthrough.ErrDigest},
		"long":                              {pullthroughtest.Fault{Extend: 1, NoLength: true}, pullthrough.ErrDigest},
		"a page in place of the layer":      {pullthroughtest.Fault{Body: []byte("<html>")}, pullthrough.ErrDigest},
		"nothing in place of the layer":     {pullthroughtest.Fault{Body: []byte{}}, pullthrough.ErrDigest},
		"partial content nobody asked for":  {pullthroughtest.Fault{Status: 206}, pullthrough.ErrUnavailable},
		"no content":                        {pullthroughtest.Fault{Status: 204, Body: []byte{}}, pullthrough.ErrUnavailable},
		"a server error":                    {pullthroughtest.Fault{Status: 500}, pullthrough.ErrUnavailable},
		"not found":                         {pullthroughtest.Fault{Status: 404}, pullthrough.ErrNotFound},
		"denied":                            {pullthroughtest.Fault{Status: 403}, pullthrough.ErrDenied},
		"the connection closed for answers": {pullthroughtest.Fault{CutAfter: new(int64(-1))}, pullthrough.ErrUnavailable},
	} {
		for size, n := range testkit.LayerSizes {
			t.Run(name+"/"+size, func(t *testing.T) {
				w := testkit.NewWorld(t, pullthroughtest.Config{}, testkit.OneTry)
				layer := w.Layer(n)
				tc.fault.Match = "GET /v2/a/blobs/* 200"
				healFault := w.Up.Fault(tc.fault)
				healResume := w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/* 206", Status: 404})
				heal := func() { healFault(); healResume() }
				b, err := w.Open(t.Context(), layer.Digest)
				if err == nil {
					var got int64
					got, err = io.Copy(io.Discard, b.Body)
					assert.Less(t, got, n, "a client must not get as much as Content-Length says")
					require.NoError(t, b.Body.Close())
				}
				require.ErrorIs(t, err, tc.kind)
				w.Settled(t)
				_, stored := w.Mem.Blob(t.Context(), testkit.Repo("a"), layer.Digest)
				assert.Error(t, stored)

				heal()
				w.Up.Reset()
				w.PullBlob(t, "a", layer.Digest) // and the next pull works
				assert.Equal(t, 1, w.Up.Count("GET /v2/a/blobs/* 200"))
			})
		}
	}
}

func TestUpstreamsThatDoNotSayHowLong(t *testing.T) {
	for name, fault := range map[string]pullthroughtest.Fault{"chunked": {NoLength: true}, "close-delimited": {CloseDelimited: true}} {
		for size, n := range testkit.LayerSizes {
			for _, known := range []bool{true, false} {
				t.Run(name+"/"+size, func(t *testing.T) {
					w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
					layer := w.Layer(n)
					if known { // by the manifest
						_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
						require.NoError(t, err)
					}
					fault.Match = "GET /v2/a/blobs/*"
					w.Up.Fault(fault)
					b, err := w.Open(t.Context(), layer.Digest)
					require.NoError(t, err)
					assert.Equal(t, n, b.Descriptor.Size, "the size is always known")
					testkit.AssertBody(t, layer.Digest, b)
					assert.Equal(t, 1, w.Up.Count("GET /v2/a/blobs/*"))
				})
			}
		}
	}
}

func TestSizesOfColdBlobsAreTold(t *testing.T) {
	for name, known := range map[string]bool{"from the manifest": true, "from upstream": false} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			layer := w.Layer(500_000)
			want := []string{"GET /v2/a/blobs/" + layer.Digest.String() + " 206"}
			if known {
				_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
				require.NoError(t, err)
				w.Up.Reset()
				want = nil
			}
			for range 2 {
				b, err := w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: layer.Digest.String(), Head: true})
				require.NoError(t, err)
				assert.EqualValues(t, 500_000, b.Descriptor.Size)
			}
			assert.Equal(t, want, w.Up.Log(), "an existence check downloads nothing")
		})
	}
}

func TestTooLargeABlobIsRefused(t *testing.T) {
	for name, fault := range map[string]pullthroughtest.Fault{"declared": {}, "undeclared": {NoLength: true}, "endless": {NoLength: true, Extend: 1 << 40}} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
					return pullthrough.Policy{MaxBlobBytes: 2 << 20}
				}
			})
			layer := w.Layer(3 << 20)
			fault.Match = "GET /v2/a/blobs/*"
			w.Up.Fault(fault)
			_, err := w.Open(t.Context(), layer.Digest)
			assert.ErrorIs(t, err, pullthrough.ErrTooLarge)
			assert.Equal(t, 1, w.Up.Count("*"))
		})
	}
}

func TestAnAbandonedDownloadMayFinishWhenLittleIsLeft(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	layer := w.Layer(4 << 20)
	gate := make(chan struct{})
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/*", Stall: gate, StallAfter: new(int64(2 << 20))})
	b, err := w.Open(t.Context(), layer.Digest)
	require.NoError(t, err)
	require.NoError(t, b.Body.Close())
	close(gate)
	w.Settled(t)
	w.PullBlob(t, "a", layer.Digest)
	assert.Equal(t, 1, w.Up.Count("GET /v2/a/blobs/*"))
}

func TestOfManyAbandonedDownloadsFewGoOn(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	gate := make(chan struct{})
	var once sync.Once
	open := func() { once.Do(func() { close(gate) }) }
	defer open()
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/*", Stall: gate, StallAfter: new(int64(1 << 20))})
	for i := range 20 {
		layer := w.Layer(2<<20 + int64(i))
		b, err := w.Open(t.Context(), layer.Digest)
		require.NoError(t, err)
		require.NoError(t, b.Body.Close())
	}
	require.Eventually(t, func() bool { return len(w.Downloads()) == 4 }, 10*time.Second, 10*time.Millisecond)
	open()
	w.Settled(t)
	assert.Equal(t, 20, w.Up.Count("GET /v2/a/blobs/*"))
}

func TestNothingIsLeftInTheSpoolDirectory(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	layer := w.Layer(4 << 20)
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/*", Times: 1, Flip: new(int64(-1))})
	b, err := w.Open(t.Context(), layer.Digest)
	if err == nil { // it has not failed before
		_, err = io.Copy(io.Discard, b.Body)
		require.NoError(t, b.Body.Close())
	}
	require.Error(t, err)
	w.PullBlob(t, "a", layer.Digest)
	w.Settled(t)
	left, err := filepath.Glob(filepath.Join(w.SpoolDir, "*"))
	require.NoError(t, err)
	assert.Empty(t, left)
	assert.Equal(t, 2, w.Up.Count("GET /v2/a/blobs/*"))
}

func TestASpoolDirectoryThatIsNotThere(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.SpoolDir = filepath.Join(p.SpoolDir, "missing") })
	layer := w.Layer(4 << 20)
	b, err := w.Open(t.Context(), layer.Digest)
	if err == nil {
		_, err = io.Copy(io.Discard, b.Body)
		require.NoError(t, b.Body.Close())
	}
	assert.ErrorIs(t, err, os.ErrNotExist)
	w.Settled(t)
	require.NoError(t, os.Mkdir(w.SpoolDir, 0o700))
	w.PullBlob(t, "a", layer.Digest)
	assert.Equal(t, 2, w.Up.Count("GET /v2/a/blobs/*"))
}

func TestShutdownWaitsForDownloads(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	layer := w.Layer(4 << 20)
	gate := make(chan struct{})
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/*", Stall: gate, StallAfter: new(int64(2 << 20))})
	b, err := w.Open(t.Context(), layer.Digest)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- w.Shutdown(context.Background()) }()
	close(gate)
	testkit.AssertBody(t, layer.Digest, b)
	require.NoError(t, <-done)
	_, err = w.Mem.Blob(t.Context(), testkit.Repo("a"), layer.Digest)
	assert.NoError(t, err)
	assert.Equal(t, 1, w.Up.Count("*"))
}

func TestShutdownEndsDownloadsAtItsDeadline(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	layer := w.Layer(4 << 20)
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/*", Stall: make(chan struct{}), StallAfter: new(int64(2 << 20))})
	b, err := w.Open(t.Context(), layer.Digest)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	assert.ErrorIs(t, w.Shutdown(ctx), context.Canceled)
	_, err = io.Copy(io.Discard, b.Body)
	assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
	require.NoError(t, b.Body.Close())
	assert.Equal(t, 1, w.Up.Count("*"))
}

func TestOverTLSAndHTTP2(t *testing.T) {
	for name, c := range map[string]pullthroughtest.Config{
		"TLS":    {Auth: pullthroughtest.Bearer, TLS: true},
		"HTTP/2": {Auth: pullthroughtest.Bearer, TLS: true, HTTP2: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, c, nil)
			w.Transport = w.Up.Client().Transport
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 2, LayerSize: 2 << 20})
			w.Up.Push("a", "1", img)
			w.Pull(t, "a", "1", img)
			assert.Equal(t, 6, w.Up.Count("*"))
			w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/*", CutAfter: new(int64(1 << 20))})
			w.PullBlob(t, "a", w.Layer(3<<20+5).Digest)
			assert.Equal(t, 3, w.Up.Count("GET /v2/a/blobs/* 206"), "it goes on where it was cut")
		})
	}
}
