package pullthrough_test

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestProofStagedBlobIsCommitted(t *testing.T) {
	for name, size := range layerSizes {
		t.Run(name, func(t *testing.T) {
			baseline(t)
			store := stager{newFiles(t.TempDir())}
			w := newWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				p.Store = noPutBlob{store, t}
				p.SpoolDir = "/nonexistent"
				p.SpoolBytes = 1 // does not count here
			})
			layer := w.layer(size)
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() { assert.NoError(t, w.whole(t.Context(), layer.Digest)) })
			}
			wg.Wait()
			w.settled(t)
			require.NotEmpty(t, store.stages)
			assert.EqualValues(t, 1, store.stages[0].commits.Load())
			store.assertEnded(t)
			assert.Empty(t, store.leftovers(t))
			w.pullBlob(t, "a", layer.Digest)
			assert.Equal(t, 1, w.up.Count("*"))
		})
	}
}

// noPutBlob fails the test when a blob is copied into the Store.
type noPutBlob struct {
	stager
	t *testing.T
}

func (s noPutBlob) PutBlob(context.Context, pullthrough.Repo, ocispec.Descriptor, io.ReadSeeker) error {
	assert.Fail(s.t, "PutBlob of a staged blob")
	return errOnFire
}

// After Commit a Stage may fail to read, and its name is gone. Clients that
// have only begun, or not even that, go on all the same.
func TestProofReadersOutliveTheStage(t *testing.T) {
	for name, opens := range map[string]bool{"with files": true, "Open fails": false} {
		t.Run(name, func(t *testing.T) { testReadersOutliveTheStage(t, opens) })
	}
}

// openless is a Store whose stages open no files.
type openless struct{ *files }

func (s openless) StageBlob(context.Context, pullthrough.Repo, digest.Digest) (pullthrough.Stage, error) {
	st, err := s.stage()
	return openlessStage{st}, err
}

type openlessStage struct{ *staged }

func (openlessStage) Open() (*os.File, error) { return nil, errors.ErrUnsupported }

func testReadersOutliveTheStage(t *testing.T, opens bool) {
	baseline(t)
	store := stager{newFiles(t.TempDir())}
	w := newWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Store = store
		if !opens {
			p.Store = openless(store)
		}
	})
	layer := w.layer(4 << 20)
	unread, err := w.open(t.Context(), layer.Digest)
	require.NoError(t, err)
	begun, err := w.open(t.Context(), layer.Digest)
	require.NoError(t, err)
	first := requireRead(t, begun.Body, 1000)
	w.settled(t)
	store.assertEnded(t)
	assertBody(t, layer.Digest, unread)
	v := layer.Digest.Verifier()
	_, _ = v.Write(first)
	_, err = io.Copy(v, begun.Body)
	assert.NoError(t, err)
	assert.True(t, v.Verified())
	assert.NoError(t, begun.Body.Close())
	assert.Equal(t, 1, w.up.Count("*"))
}

// fullStage has no room after so many bytes.
type fullStage struct {
	*staged
	room int64
}

func (s *fullStage) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > s.room {
		n, err := s.staged.WriteAt(p[:max(0, s.room-off)], off)
		return n, errors.Join(err, syscall.ENOSPC)
	}
	return s.staged.WriteAt(p, off)
}

// filling is a Store whose stages are full after so many bytes.
type filling struct {
	*files
	room int64
	puts atomic.Int64
}

func (s *filling) StageBlob(context.Context, pullthrough.Repo, digest.Digest) (pullthrough.Stage, error) {
	st, err := s.stage()
	return &fullStage{st, s.room}, err
}

func (s *filling) PutBlob(ctx context.Context, r pullthrough.Repo, desc ocispec.Descriptor, body io.ReadSeeker) error {
	s.puts.Add(1)
	return s.files.PutBlob(ctx, r, desc, body)
}

// A full disk below the Store: the rest goes to SpoolDir, and nobody notices.
func TestProofStageIsFull(t *testing.T) {
	const size = 4<<20 + 5
	for name, room := range map[string]int64{"at once": 0, "in the first MiB": 100_000, "in the middle": 2 << 20, "in the tail": size - 10} {
		t.Run(name, func(t *testing.T) {
			baseline(t)
			store := &filling{files: newFiles(t.TempDir()), room: room}
			heard := &events{}
			w := newWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store, p.OnEvent = store, heard.on })
			layer := w.layer(size)
			content := blobContent(t, layer)
			g := newGate(t)
			w.stall(g, layer, 3<<20)
			late, err := w.open(t.Context(), layer.Digest)
			require.NoError(t, err)
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() { assert.NoError(t, w.whole(t.Context(), layer.Digest), "by Body") })
				wg.Go(func() {
					s := serveSink(t.Context(), w.Proxy, blobPath("a", layer.Digest))
					assert.False(t, s.aborted, "by HTTP")
					assertSame(t, content, s.body.Bytes())
				})
			}
			g.open()
			wg.Wait()
			w.settled(t)
			assertBody(t, layer.Digest, late)
			require.Len(t, store.stages, 1)
			assert.EqualValues(t, 1, store.stages[0].aborts.Load())
			assert.Zero(t, store.stages[0].commits.Load())
			assert.EqualValues(t, 1, store.puts.Load(), "it reaches the Store all the same")
			assert.Empty(t, store.leftovers(t))
			assertEmptyDir(t, w.SpoolDir)
			w.pullBlob(t, "a", layer.Digest)
			assert.Equal(t, 1, w.up.Count("*"))
			failures := heard.storeFailures()
			if assert.NotEmpty(t, failures, "the host hears that its disk is full") {
				assert.ErrorIs(t, failures[0], syscall.ENOSPC)
			}
		})
	}
}

func TestProofBothPlacesAreFull(t *testing.T) {
	baseline(t)
	store := &filling{files: newFiles(t.TempDir()), room: 2 << 20}
	w := newWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Store = store
		p.SpoolDir += "/missing"
	})
	layer := w.layer(4 << 20)
	g := newGate(t)
	w.stall(g, layer, 1<<20)
	var wg sync.WaitGroup
	for range 4 {
		b, err := w.open(t.Context(), layer.Digest)
		require.NoError(t, err)
		wg.Go(func() {
			n, err := io.Copy(io.Discard, b.Body)
			assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
			assert.Less(t, n, int64(4<<20))
			assert.NoError(t, b.Body.Close())
		})
	}
	g.open()
	wg.Wait()
	w.settled(t)
	store.assertEnded(t)
	assert.EqualValues(t, 1, store.stages[0].aborts.Load())
	assert.Empty(t, store.leftovers(t))
	assert.Zero(t, store.puts.Load())
	require.NoError(t, os.Mkdir(w.SpoolDir, 0o700))
	w.pullBlob(t, "a", layer.Digest)
	w.settled(t)
	assert.Equal(t, 2, w.up.Count("*"))
	store.assertEnded(t)
}

// Whatever ends a download, its stage has exactly one of Commit and Abort.
func TestProofStagesEndOnce(t *testing.T) {
	for name, tc := range map[string]struct {
		faults []pullthroughtest.Fault
		leave  bool
		policy pullthrough.Policy
		commit bool
	}{
		"well":               {commit: true},
		"wrong bytes":        {faults: []pullthroughtest.Fault{{Flip: new(int64(9))}}},
		"last byte wrong":    {faults: []pullthroughtest.Fault{{Flip: new(int64(-1))}}},
		"cut, then gone":     {faults: []pullthroughtest.Fault{{Times: 1, CutAfter: new(int64(1 << 20))}, {Status: 404}}},
		"cut once":           {faults: []pullthroughtest.Fault{{Times: 1, CutAfter: new(int64(1 << 20))}}, commit: true},
		"too long":           {faults: []pullthroughtest.Fault{{NoLength: true, Extend: 1}}},
		"over the limit":     {faults: []pullthroughtest.Fault{{NoLength: true, Extend: 4 << 20}}, policy: pullthrough.Policy{MaxBlobBytes: 4 << 20}},
		"everybody leaves":   {faults: []pullthroughtest.Fault{{Stall: make(chan struct{}), StallAfter: new(int64(1 << 20))}}, leave: true, policy: pullthrough.Policy{Orphans: -1}},
		"an orphan finishes": {leave: true, commit: true},
	} {
		t.Run(name, func(t *testing.T) {
			baseline(t)
			store := stager{newFiles(t.TempDir())}
			w := newWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				p.Store = store
				p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy { return tc.policy }
			})
			layer := w.layer(3 << 20)
			for _, f := range tc.faults {
				f.Match = blobs
				w.up.Fault(f)
			}
			b, err := w.open(t.Context(), layer.Digest)
			if err == nil {
				if !tc.leave {
					_, err = io.Copy(io.Discard, b.Body)
				}
				require.NoError(t, b.Body.Close())
			}
			assert.Equal(t, tc.commit || tc.leave, err == nil, "%v", err)
			w.settled(t)
			require.NotEmpty(t, store.stages)
			store.assertEnded(t)
			assert.EqualValues(t, tc.commit, store.stages[0].commits.Load() == 1)
			assert.Empty(t, store.leftovers(t))
			w.up.Heal()
			w.up.Reset()
			w.pullBlob(t, "a", layer.Digest)
			w.settled(t)
			if tc.commit {
				assert.Empty(t, w.up.Log())
			} else {
				assert.Equal(t, 1, w.up.Count(blobs+" 200"))
			}
			store.assertEnded(t)
		})
	}
}

// lateStager gives its Stage when nobody waits for it any more.
type lateStager struct {
	*files
	release <-chan struct{}
}

func (s *lateStager) StageBlob(context.Context, pullthrough.Repo, digest.Digest) (pullthrough.Stage, error) {
	<-s.release
	return s.stage()
}

// A stage that comes when nobody waits for it any more is aborted.
func TestProofStageThatComesTooLate(t *testing.T) {
	baseline(t)
	up, enter := piped(t, pullthroughtest.Config{})
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		g := newGate(t)
		store := &lateStager{newFiles(dir), g.c}
		w.Store = store
		layer := w.layer(2 << 20)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		assert.ErrorIs(t, w.whole(ctx, layer.Digest), context.DeadlineExceeded)
		w.settled(t)
		g.open()
		synctest.Wait()
		w.settled(t)
		store.assertEnded(t)
		assert.Empty(t, store.leftovers(t))
		assert.Equal(t, 1, up.Count("*"))
	})
}
