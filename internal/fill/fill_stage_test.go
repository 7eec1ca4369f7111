package fill_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func assertEmptyDir(t *testing.T, dir string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	assert.NoError(t, err)
	assert.Empty(t, left)
}

// files is a Store with its blobs in files, one by digest.
type files struct {
	*memstore.Store // manifests
	dir             string

	mu     sync.Mutex
	stages []*staged
}

func newFiles(dir string) *files { return &files{Store: memstore.New(), dir: dir} }

func (s *files) path(d digest.Digest) string { return filepath.Join(s.dir, d.Encoded()) }

func (s *files) Blob(_ context.Context, _ pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	f, err := os.Open(s.path(d))
	if err != nil {
		return nil, err
	}
	return &pullthrough.Blob{Body: f}, nil
}

func (s *files) PutBlob(_ context.Context, _ pullthrough.Repo, desc ocispec.Descriptor, r io.ReadSeeker) error {
	f, err := os.CreateTemp(s.dir, "put-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	err = errors.Join(err, f.Close())
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), s.path(desc.Digest))
}

// leftovers are the files in dir that are no blobs.
func (s *files) leftovers(t *testing.T) []string {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(s.dir, "*-*"))
	assert.NoError(t, err)
	return left
}

// stager is files that lends its directory to downloads.
type stager struct{ *files }

func (s stager) StageBlob(context.Context, pullthrough.Repo, digest.Digest) (pullthrough.Stage, error) {
	return s.stage()
}

func (s *files) stage() (*staged, error) {
	f, err := os.CreateTemp(s.dir, "stage-*")
	if err != nil {
		return nil, err
	}
	st := &staged{store: s, f: f}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stages = append(s.stages, st)
	return st, nil
}

// staged is a Stage as plain as can be: a file that Commit renames. After
// Commit and Abort it is closed and its name is gone, as a Stage may.
type staged struct {
	store           *files
	f               *os.File
	commits, aborts atomic.Int32
}

func (s *staged) WriteAt(p []byte, off int64) (int, error) { return s.f.WriteAt(p, off) }

func (s *staged) ReadAt(p []byte, off int64) (int, error) { return s.f.ReadAt(p, off) }

func (s *staged) Open() (*os.File, error) { return os.Open(s.f.Name()) }

func (s *staged) Commit(_ context.Context, desc ocispec.Descriptor) error {
	s.commits.Add(1)
	return errors.Join(s.f.Close(), os.Rename(s.f.Name(), s.store.path(desc.Digest)))
}

func (s *staged) Abort() error {
	s.aborts.Add(1)
	return s.discard()
}

func (s *staged) discard() error { return errors.Join(s.f.Close(), os.Remove(s.f.Name())) }

// assertEnded checks that every stage had exactly one of Commit and Abort.
func (s *files) assertEnded(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.stages {
		assert.EqualValues(t, 1, st.commits.Load()+st.aborts.Load(), "%d commits, %d aborts", st.commits.Load(), st.aborts.Load())
	}
}

// stall holds the layer's first answers after so many bytes.
func stall(w *testkit.World, g *testkit.Gate, layer *pullthroughtest.Blob, after int64) {
	w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + layer.Digest.Encoded() + " 200", Stall: g.C, StallAfter: &after})
}

func TestStagedBlobIsCommitted(t *testing.T) {
	for name, size := range testkit.LayerSizes {
		t.Run(name, func(t *testing.T) {
			testkit.Baseline(t)
			store := stager{newFiles(t.TempDir())}
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				p.Store = noPutBlob{store, t}
				p.SpoolDir = "/nonexistent"
				p.SpoolBytes = 1 // does not count here
			})
			layer := w.Layer(size)
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() { assert.NoError(t, w.Whole(t.Context(), layer.Digest)) })
			}
			wg.Wait()
			w.Settled(t)
			require.NotEmpty(t, store.stages)
			assert.EqualValues(t, 1, store.stages[0].commits.Load())
			store.assertEnded(t)
			assert.Empty(t, store.leftovers(t))
			w.PullBlob(t, "a", layer.Digest)
			assert.Equal(t, 1, w.Up.Count("*"))
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
func TestReadersOutliveTheStage(t *testing.T) {
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
	testkit.Baseline(t)
	store := stager{newFiles(t.TempDir())}
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Store = store
		if !opens {
			p.Store = openless(store)
		}
	})
	layer := w.Layer(4 << 20)
	unread, err := w.Open(t.Context(), layer.Digest)
	require.NoError(t, err)
	begun, err := w.Open(t.Context(), layer.Digest)
	require.NoError(t, err)
	first := testkit.RequireRead(t, begun.Body, 1000)
	w.Settled(t)
	store.assertEnded(t)
	testkit.AssertBody(t, layer.Digest, unread)
	v := layer.Digest.Verifier()
	_, _ = v.Write(first)
	_, err = io.Copy(v, begun.Body)
	assert.NoError(t, err)
	assert.True(t, v.Verified())
	assert.NoError(t, begun.Body.Close())
	assert.Equal(t, 1, w.Up.Count("*"))
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
func TestStageIsFull(t *testing.T) {
	const size = 4<<20 + 5
	for name, room := range map[string]int64{"at once": 0, "in the first MiB": 100_000, "in the middle": 2 << 20, "in the tail": size - 10} {
		t.Run(name, func(t *testing.T) {
			testkit.Baseline(t)
			store := &filling{files: newFiles(t.TempDir()), room: room}
			heard := &testkit.Events{}
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store, p.OnEvent = store, heard.On })
			layer := w.Layer(size)
			content := testkit.BlobContent(t, layer)
			g := testkit.NewGate(t)
			stall(w, g, layer, 3<<20)
			late, err := w.Open(t.Context(), layer.Digest)
			require.NoError(t, err)
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() { assert.NoError(t, w.Whole(t.Context(), layer.Digest), "by Body") })
				wg.Go(func() {
					s := testkit.ServeSink(t.Context(), w.Proxy, testkit.BlobPath("a", layer.Digest))
					assert.False(t, s.Aborted, "by HTTP")
					testkit.AssertSame(t, content, s.Body.Bytes())
				})
			}
			g.Open()
			wg.Wait()
			w.Settled(t)
			testkit.AssertBody(t, layer.Digest, late)
			require.Len(t, store.stages, 1)
			assert.EqualValues(t, 1, store.stages[0].aborts.Load())
			assert.Zero(t, store.stages[0].commits.Load())
			assert.EqualValues(t, 1, store.puts.Load(), "it reaches the Store all the same")
			assert.Empty(t, store.leftovers(t))
			assertEmptyDir(t, w.SpoolDir)
			w.PullBlob(t, "a", layer.Digest)
			assert.Equal(t, 1, w.Up.Count("*"))
			failures := heard.StoreFailures()
			if assert.NotEmpty(t, failures, "the host hears that its disk is full") {
				assert.ErrorIs(t, failures[0], syscall.ENOSPC)
			}
		})
	}
}

func TestBothPlacesAreFull(t *testing.T) {
	testkit.Baseline(t)
	store := &filling{files: newFiles(t.TempDir()), room: 2 << 20}
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Store = store
		p.SpoolDir += "/missing"
	})
	layer := w.Layer(4 << 20)
	g := testkit.NewGate(t)
	stall(w, g, layer, 1<<20)
	var wg sync.WaitGroup
	for range 4 {
		b, err := w.Open(t.Context(), layer.Digest)
		require.NoError(t, err)
		wg.Go(func() {
			n, err := io.Copy(io.Discard, b.Body)
			assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
			assert.Less(t, n, int64(4<<20))
			assert.NoError(t, b.Body.Close())
		})
	}
	g.Open()
	wg.Wait()
	w.Settled(t)
	store.assertEnded(t)
	assert.EqualValues(t, 1, store.stages[0].aborts.Load())
	assert.Empty(t, store.leftovers(t))
	assert.Zero(t, store.puts.Load())
	require.NoError(t, os.Mkdir(w.SpoolDir, 0o700))
	w.PullBlob(t, "a", layer.Digest)
	w.Settled(t)
	assert.Equal(t, 2, w.Up.Count("*"))
	store.assertEnded(t)
}

// Whatever ends a download, its stage has exactly one of Commit and Abort.
func TestStagesEndOnce(t *testing.T) {
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
			testkit.Baseline(t)
			store := stager{newFiles(t.TempDir())}
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				p.Store = store
				p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy { return tc.policy }
			})
			layer := w.Layer(3 << 20)
			for _, f := range tc.faults {
				f.Match = testkit.Blobs
				w.Up.Fault(f)
			}
			b, err := w.Open(t.Context(), layer.Digest)
			if err == nil {
				if !tc.leave {
					_, err = io.Copy(io.Discard, b.Body)
				}
				require.NoError(t, b.Body.Close())
			}
			assert.Equal(t, tc.commit || tc.leave, err == nil, "%v", err)
			w.Settled(t)
			require.NotEmpty(t, store.stages)
			store.assertEnded(t)
			assert.EqualValues(t, tc.commit, store.stages[0].commits.Load() == 1)
			assert.Empty(t, store.leftovers(t))
			w.Up.Heal()
			w.Up.Reset()
			w.PullBlob(t, "a", layer.Digest)
			w.Settled(t)
			if tc.commit {
				assert.Empty(t, w.Up.Log())
			} else {
				assert.Equal(t, 1, w.Up.Count(testkit.Blobs+" 200"))
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
func TestStageThatComesTooLate(t *testing.T) {
	testkit.Baseline(t)
	up, enter := testkit.Piped(t, pullthroughtest.Config{})
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		g := testkit.NewGate(t)
		store := &lateStager{newFiles(dir), g.C}
		w.Store = store
		layer := w.Layer(2 << 20)
		assert.NoError(t, w.Whole(t.Context(), layer.Digest), "it goes elsewhere")
		w.Settled(t)
		g.Open()
		synctest.Wait()
		store.assertEnded(t)
		assert.Empty(t, store.leftovers(t))
		assert.Equal(t, 1, up.Count("*"))
	})
}
