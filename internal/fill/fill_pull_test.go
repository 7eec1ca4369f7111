package fill_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
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

// countingFiles is files without stages. It counts how often a blob is opened, and
// can fail to.
type countingFiles struct {
	*files
	opened atomic.Int64
	fails  atomic.Bool
}

func (s *countingFiles) Blob(ctx context.Context, r pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	s.opened.Add(1)
	if s.fails.Load() {
		return nil, errOnFire
	}
	return s.files.Blob(ctx, r, d)
}

// spools are the descriptors on spool files.
func spools(t *testing.T) (open []string) {
	for _, name := range testkit.OpenFiles(t) {
		if strings.Contains(name, ".spool") {
			open = append(open, name)
		}
	}
	return open
}

func TestHandingOver(t *testing.T) {
	const size = 3 << 20
	testkit.Baseline(t)
	store := &countingFiles{files: newFiles(t.TempDir())}
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store, p.SpoolBytes = store, size+1 })
	layer, next := w.Layer(size), w.Layer(size+1)
	content := testkit.BlobContent(t, layer)
	g := testkit.NewGate(t)
	stall(w, g, layer, 2<<20)
	var slow []*pullthrough.Blob
	for range 3 {
		b, err := w.Open(t.Context(), layer.Digest)
		require.NoError(t, err)
		slow = append(slow, b)
	}
	testkit.RequireRead(t, slow[0].Body, 1<<20)
	testkit.RequireRead(t, slow[1].Body, 10)
	assert.NotEmpty(t, spools(t))
	g.Open()
	w.Settled(t)
	for i, at := range []int{1 << 20, 10, 0} {
		testkit.AssertSame(t, content[at:at+5], testkit.RequireRead(t, slow[i].Body, 5))
	}
	assert.Empty(t, spools(t), "the spool is gone while they read")
	assertEmptyDir(t, w.SpoolDir)
	start := time.Now()
	w.PullBlob(t, "a", next.Digest)
	assert.Less(t, time.Since(start), 9*time.Second, "its room is free")
	for i, at := range []int{1 << 20, 10, 0} {
		got, err := io.ReadAll(slow[i].Body)
		assert.NoError(t, err)
		testkit.AssertSame(t, content[at+5:], got)
		_, err = slow[i].Body.(io.Seeker).Seek(-7, io.SeekEnd)
		assert.NoError(t, err)
		testkit.AssertSame(t, content[size-7:], testkit.RequireRead(t, slow[i].Body, 7))
		require.NoError(t, slow[i].Body.Close())
	}
	w.Settled(t)
	assert.Equal(t, 2, w.Up.Count("*"))
}

// A Store that cannot open what it has just stored keeps the reader where it
// is, and is not asked again for every read.
func TestHandingOverFails(t *testing.T) {
	testkit.Baseline(t)
	store := &countingFiles{files: newFiles(t.TempDir())}
	heard := &testkit.Events{}
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store, p.OnEvent = store, heard.On })
	layer := w.Layer(3 << 20)
	b, err := w.Open(t.Context(), layer.Digest)
	require.NoError(t, err)
	w.Settled(t)
	store.fails.Store(true)
	before := store.opened.Load()
	v := layer.Digest.Verifier()
	_, err = io.CopyBuffer(struct{ io.Writer }{v}, struct{ io.Reader }{b.Body}, make([]byte, 4<<10))
	assert.NoError(t, err)
	assert.True(t, v.Verified())
	assert.NoError(t, b.Body.Close())
	assert.LessOrEqual(t, store.opened.Load()-before, int64(10), "calls of Store.Blob by one reader")
	assert.LessOrEqual(t, len(heard.StoreFailures()), 10)
	assert.Equal(t, 1, w.Up.Count("*"))
}
