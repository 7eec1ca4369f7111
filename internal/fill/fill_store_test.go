package fill_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var errOnFire = errors.New("disk on fire")

// storeFault is what happens to one call of one method.
type storeFault struct {
	method string
	mode   string
	n      int64 // the call, from 1 on; 0: none

	seen  atomic.Int64
	fired atomic.Bool
	off   atomic.Bool
}

// call does what a method does, or fails. undo takes back what do has done.
func (f *storeFault) call(method string, do func() error, undo func()) error {
	if method != f.method || f.off.Load() || f.seen.Add(1) != f.n {
		return do()
	}
	f.fired.Store(true)
	switch f.mode {
	case "after":
		if err := do(); err == nil && undo != nil {
			undo()
		}
	case "panic":
		panic(errOnFire)
	}
	return errOnFire
}

// sweep is a Store of which one call fails.
type sweep struct {
	*files
	f *storeFault
}

func (s *sweep) Manifest(ctx context.Context, r pullthrough.Repo, ref string) (m *pullthrough.Manifest, err error) {
	err = s.f.call("Manifest", func() (err error) { m, err = s.files.Manifest(ctx, r, ref); return err }, func() { m = nil })
	return m, err
}

func (s *sweep) PutManifest(ctx context.Context, r pullthrough.Repo, m *pullthrough.Manifest) error {
	return s.f.call("PutManifest", func() error { return s.files.PutManifest(ctx, r, m) }, nil)
}

func (s *sweep) Blob(ctx context.Context, r pullthrough.Repo, d digest.Digest) (b *pullthrough.Blob, err error) {
	err = s.f.call("Blob", func() (err error) { b, err = s.files.Blob(ctx, r, d); return err }, func() { _, b = b.Body.Close(), nil })
	return b, err
}

func (s *sweep) PutBlob(ctx context.Context, r pullthrough.Repo, desc ocispec.Descriptor, body io.ReadSeeker) error {
	return s.f.call("PutBlob", func() error { return s.files.PutBlob(ctx, r, desc, body) }, nil)
}

// stagingSweep is sweep with stages.
type stagingSweep struct{ *sweep }

func (s stagingSweep) StageBlob(ctx context.Context, _ pullthrough.Repo, _ digest.Digest) (stage pullthrough.Stage, err error) {
	var st *staged
	err = s.f.call("StageBlob", func() (err error) { st, err = s.stage(); return err }, func() { _ = st.Abort() })
	if err != nil {
		return nil, err
	}
	return &sweptStage{st, s.f}, nil
}

type sweptStage struct {
	*staged
	f *storeFault
}

func (s *sweptStage) WriteAt(p []byte, off int64) (n int, err error) {
	err = s.f.call("WriteAt", func() (err error) { n, err = s.staged.WriteAt(p, off); return err }, nil)
	if s.f.mode == "short" && errors.Is(err, errOnFire) {
		return s.staged.WriteAt(p[:len(p)/2], off)
	}
	return n, err
}

func (s *sweptStage) ReadAt(p []byte, off int64) (n int, err error) {
	err = s.f.call("ReadAt", func() (err error) { n, err = s.staged.ReadAt(p, off); return err }, func() { n = 0 })
	return n, err
}

func (s *sweptStage) Open() (f *os.File, err error) {
	err = s.f.call("Open", func() (err error) { f, err = s.staged.Open(); return err }, func() { _ = f.Close(); f = nil })
	return f, err
}

func (s *sweptStage) Commit(ctx context.Context, desc ocispec.Descriptor) error {
	done := false
	defer func() {
		if !done { // a Store whose Commit fails keeps nothing
			s.commits.Add(1)
			_ = s.discard()
		}
	}()
	return s.f.call("Commit", func() error { done = true; return s.staged.Commit(ctx, desc) }, nil)
}

func (s *sweptStage) Abort() error {
	done := false
	defer func() {
		if !done {
			_ = s.staged.Abort()
		}
	}()
	return s.f.call("Abort", func() error { done = true; return s.staged.Abort() }, nil)
}

// A Store that fails at any one call, in any way, harms no pull: two clients of each
// object, one by Body and one by HTTP, get what they asked for, the host hears of it,
// and nothing stays behind.
func TestAnyOneCallOfTheStoreFails(t *testing.T) {
	testkit.Baseline(t)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 1<<20 + 100_000})
	dir := t.TempDir()
	type method struct {
		name   string
		stages bool
		modes  []string
	}
	modes := []string{"before", "after", "panic"}
	for _, m := range []method{
		{"Manifest", false, modes}, {"PutManifest", false, modes}, {"Blob", false, modes}, {"PutBlob", false, modes},
		{"StageBlob", true, modes}, {"WriteAt", true, append(modes, "short")}, {"ReadAt", true, modes},
		{"Open", true, modes}, {"Commit", true, modes}, {"Abort", true, modes}, {"Blob", true, modes},
	} {
		for _, mode := range m.modes {
			name := fmt.Sprintf("%s %s", m.name, mode)
			if m.stages {
				name = "staged, " + name
			}
			t.Run(name, func(t *testing.T) {
				up, enter := testkit.Piped(t, pullthroughtest.Config{})
				up.Push("a", "1", img)
				for n := int64(1); !t.Failed(); n++ {
					f := &storeFault{method: m.name, mode: mode, n: n}
					synctest.Test(t, func(t *testing.T) { pullWithFault(t, enter(t), img, f, m.stages, dir) })
					if t.Failed() {
						t.Logf("call %d", n)
					}
					if !f.fired.Load() {
						break
					}
					n += n / 2 // the later ones are all alike
				}
			})
		}
	}
}

// pullWithFault pulls img until it is stored, and once more.
func pullWithFault(t *testing.T, w *testkit.World, img *pullthroughtest.Image, f *storeFault, stages bool, dir string) {
	dir, err := os.MkdirTemp(dir, "*")
	require.NoError(t, err)
	store := &sweep{newFiles(dir), f}
	w.Store = store
	if stages {
		w.Store = stagingSweep{store}
	}
	heard := &testkit.Events{}
	w.OnEvent = heard.On
	w.Up.Reset()
	if f.method == "Abort" { // which only a bad download needs
		defer w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + img.Layers[0].Digest.Encoded() + " 200", Times: 1, Flip: new(int64(5))})()
		_ = w.Whole(t.Context(), img.Layers[0].Digest)
		time.Sleep(3 * time.Minute)
	}
	for range 2 {
		pullByTwo(t, w, img)
		time.Sleep(3 * time.Minute) // whatever blocks has been given up
		w.Settled(t)
	}
	for _, r := range []string{"GET /v2/a/manifests/1", "GET " + "/v2/a/blobs/" + img.Layers[0].Digest.String(), "GET /v2/a/blobs/" + img.Config.Digest.String()} {
		assert.LessOrEqual(t, w.Up.Count(r+" 200"), 2, "fetched again at most once")
	}
	switch f.method {
	case "Open", "Abort": // cost speed only; change nothing
	default:
		if f.fired.Load() {
			assert.NotEmpty(t, heard.StoreFailures(), "the host hears of it")
		}
	}
	f.off.Store(true)
	w.Up.Reset()
	pullByTwo(t, w, img)
	w.Settled(t)
	assert.Empty(t, w.Up.Log(), "it is stored by now")
	assertEmptyDir(t, w.SpoolDir)
	assert.Empty(t, store.leftovers(t), "nothing is left where stages are")
	store.assertEnded(t)
}

// pullByTwo pulls the image as a client of Proxy.Blob and one of ServeHTTP do,
// at the same time.
func pullByTwo(t *testing.T, w *testkit.World, img *pullthroughtest.Image) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	m, err := w.Manifest(ctx, pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
	if assert.NoError(t, err) {
		assert.Equal(t, img.Digest, m.Descriptor.Digest)
	}
	var wg sync.WaitGroup
	for _, b := range img.Blobs() {
		wg.Go(func() { assert.NoError(t, w.Whole(ctx, b.Digest), "by Body") })
		wg.Go(func() {
			s := testkit.ServeSink(ctx, w.Proxy, testkit.BlobPath("a", b.Digest))
			assert.False(t, s.Aborted, "by HTTP")
			assert.Equal(t, 200, s.Status)
			assert.Equal(t, b.Digest, digest.FromBytes(s.Body.Bytes()))
		})
	}
	wg.Wait()
}

// blocking is a Store whose PutBlob never ends before it is released.
type blocking struct {
	*memstore.Store
	release <-chan struct{}
	calls   atomic.Int64
	inside  atomic.Int64
	after   chan error // what its reader said afterwards
}

func (s *blocking) PutBlob(_ context.Context, _ pullthrough.Repo, _ ocispec.Descriptor, r io.ReadSeeker) error {
	s.calls.Add(1)
	s.inside.Add(1)
	defer s.inside.Add(-1)
	<-s.release
	_, err := r.Read(make([]byte, 1))
	s.after <- err
	return err
}

// Eight puts that hang take all the turns there are. What comes then is served, and
// not stored when none of the eight has got anywhere for a minute. What hangs is not
// given up.
func TestPutBlobBlocksForEver(t *testing.T) {
	testkit.Baseline(t)
	up, enter := testkit.Piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		const n, turns = 12, 8
		w := enter(t)
		g := testkit.NewGate(t)
		store := &blocking{Store: w.Mem, release: g.C, after: make(chan error, n)}
		w.Store = store
		heard := &testkit.Events{}
		w.OnEvent = heard.On
		for i := range n {
			assert.NoError(t, w.Whole(t.Context(), w.Layer(100_000+int64(i)).Digest))
			synctest.Wait()
			if i == turns {
				assert.Empty(t, heard.StoreFailures(), "a put waits a minute for its turn")
				time.Sleep(time.Minute)
				synctest.Wait()
			}
			assert.Len(t, heard.StoreFailures(), max(0, i+1-turns))
		}
		assert.EqualValues(t, turns, store.inside.Load())
		assert.Equal(t, n, up.Count(testkit.Blobs))
		g.Open()
		w.Settled(t)
		assert.Len(t, heard.StoreFailures(), n-turns)
		for range turns {
			assert.NoError(t, <-store.after, "it may read on, however long it took")
		}
		assert.NoError(t, w.Whole(t.Context(), w.Layer(200_000).Digest))
		w.Settled(t)
		assert.EqualValues(t, turns+1, store.calls.Load(), "the Store is asked again once it is well")
	})
}

// A PutBlob may take its time, as long as it reads.
func TestPutBlobThatReadsSlowlyIsWaitedFor(t *testing.T) {
	testkit.Baseline(t)
	up, enter := testkit.Piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		w.Store = &testkit.FaultyStore{Store: w.Mem, OnPutBlob: func(r io.ReadSeeker) error {
			for range 10 {
				time.Sleep(50 * time.Second)
				if _, err := r.Read(make([]byte, 1)); err != nil {
					return err
				}
			}
			_, err := r.Seek(0, io.SeekStart)
			return err
		}}
		layer := w.Layer(100_000)
		assert.NoError(t, w.Whole(t.Context(), layer.Digest))
		time.Sleep(501 * time.Second)
		w.Settled(t)
		w.PullBlob(t, "a", layer.Digest)
		assert.Equal(t, 1, up.Count("*"))
	})
}

// A Store that hangs must not keep Shutdown from its deadline.
func TestShutdownDoesNotWaitForAStoreThatHangs(t *testing.T) {
	up, enter := testkit.Piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		release := make(chan struct{})
		w.Store = &blocking{Store: w.Mem, release: release, after: make(chan error, 8)}
		w.PullBlob(t, "a", w.Layer(1000).Digest)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		start := time.Now()
		assert.ErrorIs(t, w.Shutdown(ctx), context.DeadlineExceeded)
		assert.LessOrEqual(t, time.Since(start), 7*time.Second)
		close(release)
		synctest.Wait()
		assert.Equal(t, 1, up.Count(testkit.Blobs))
	})
}
