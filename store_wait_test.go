package pullthrough_test

import (
	"context"
	"io"
	"io/fs"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// deafStore is a Store that blocks in the nth look-up of one repository, whatever becomes
// of the context. Those of blobs before that fail.
type deafStore struct {
	*memstore.Store
	repo  pullthrough.Repo
	nth   int64
	first error // what they say; nil: none fails
	calls atomic.Int64
	gate  *testkit.Gate
}

func (s *deafStore) wait(repo pullthrough.Repo) {
	if repo == s.repo && s.calls.Add(1) == s.nth {
		<-s.gate.C
	}
}

func (s *deafStore) Manifest(ctx context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	s.wait(repo)
	return s.Store.Manifest(ctx, repo, ref)
}

func (s *deafStore) Blob(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	s.wait(repo)
	if s.first != nil && s.calls.Load() < s.nth {
		return nil, s.first
	}
	return s.Store.Blob(ctx, repo, d)
}

// A Store that blocks in a look-up on the way of a hit holds up the request that makes
// it, and nothing else: not another repository's pull, not another request for the same
// object where the Store answers, and not Shutdown.
func TestALookUpThatBlocksHoldsUpOneRequest(t *testing.T) {
	for object, ref := range objects {
		t.Run(object, func(t *testing.T) {
			testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
				store := &deafStore{Store: w.Mem, repo: testkit.Repo("a"), nth: 1, gate: testkit.NewGate(t)}
				w.Store = store
				img := testkit.Image(1)
				w.Up.Push("a", "1", img)
				w.Up.Push("b", "1", img)
				held := make(chan error, 1)
				go func() { held <- pullObject(t.Context(), w, object, ref(img)) }()
				synctest.Wait()
				start := time.Now()
				w.ReadImage(t, testkit.Repo("b"), "1", img)
				w.ReadImage(t, testkit.Repo("a"), "1", img)
				assert.Zero(t, time.Since(start))
				require.NoError(t, w.Shutdown(t.Context()))
				assert.Zero(t, time.Since(start))
				select {
				case err := <-held:
					t.Error("the request that the Store holds up waits for it:", err)
				default:
				}
				store.gate.Open()
				assert.NoError(t, <-held, "what was stored meanwhile is served")
				assert.Equal(t, 1, w.Up.Count("* /v2/a/*/"+ref(img)+" 200"))
			})
		})
	}
}

var objects = map[string]func(*pullthroughtest.Image) string{
	"manifest": func(*pullthroughtest.Image) string { return "1" },
	"blob":     func(img *pullthroughtest.Image) string { return img.Layers[0].Digest.String() },
}

// pullObject asks for a manifest or a blob of the repository a.
func pullObject(ctx context.Context, w *testkit.World, object, ref string) error {
	if object == "manifest" {
		_, err := w.Resolve(ctx, ref)
		return err
	}
	return w.Whole(ctx, digest.Digest(ref))
}

// A fetch looks into the Store again, of a blob where the first look has failed. A Store
// that blocks there holds up that fetch for ten seconds, also where clients leave and come
// back to it.
func TestALookUpThatBlocksHoldsUpNoFetchForLong(t *testing.T) {
	for object, ref := range objects {
		t.Run(object, func(t *testing.T) {
			testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
				heard := &testkit.Events{}
				w.OnEvent = heard.On
				store := &deafStore{Store: w.Mem, repo: testkit.Repo("a"), nth: 2, gate: testkit.NewGate(t), first: io.ErrNoProgress}
				w.Store = store
				img := testkit.Image(1)
				w.Up.Push("a", "1", img)
				start := time.Now()
				for range 4 {
					ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
					defer cancel()
					assert.ErrorIs(t, pullObject(ctx, w, object, ref(img)), context.DeadlineExceeded)
				}
				assert.NoError(t, pullObject(t.Context(), w, object, ref(img)))
				assert.Equal(t, 10*time.Second, time.Since(start))
				w.Settled(t)
				assert.Len(t, heard.StoreFailures(), map[string]int{"manifest": 1, "blob": 2}[object])
				assert.Equal(t, 1, w.Up.Count("*"))
				store.gate.Open()
				synctest.Wait()
			})
		})
	}
}

// A put that hangs is ended by a Shutdown that runs out of time, and by nothing else.
func TestAPutThatHangsEndsWithShutdown(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		heard := &testkit.Events{}
		w.OnEvent = heard.On
		gate := testkit.NewGate(t)
		w.Store = &testkit.FaultyStore{Store: w.Mem, OnPutManifest: func() error { <-gate.C; return nil }}
		w.Up.Push("a", "1", testkit.Image(1))
		_, err := w.Resolve(t.Context(), "1")
		require.NoError(t, err)
		time.Sleep(time.Hour)
		assert.Empty(t, heard.StoreFailures(), "it may take as long as it takes")
		assert.Equal(t, 1, w.Running())
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		assert.ErrorIs(t, w.Shutdown(ctx), context.DeadlineExceeded)
		assert.Equal(t, time.Minute+time.Second, time.Since(start), "a put has a second to notice")
		assert.Zero(t, w.Running())
		gate.Open()
		synctest.Wait()
		assert.Equal(t, 1, w.Up.Count("*"))
	})
}

// deafStager is a Store that blocks in one of the calls around a download's place, whatever
// becomes of the context. It has always something to go on with.
type deafStager struct {
	*memstore.Store
	deaf string // the call
	gate *testkit.Gate
	dir  string
}

func (s *deafStager) wait(call string) {
	if call == s.deaf {
		<-s.gate.C
	}
}

func (s *deafStager) StageBlob(_ context.Context, r pullthrough.Repo, _ digest.Digest) (pullthrough.Stage, error) {
	s.wait("Store.StageBlob")
	f, err := os.CreateTemp(s.dir, "")
	return &slowStage{f, &slowStore{Store: s.Store}, r}, err
}

func (s *deafStager) ResumeBlob(context.Context, pullthrough.Repo, digest.Digest, string) (pullthrough.Stage, error) {
	s.wait("Store.ResumeBlob")
	if s.deaf != "Stage.Keep" {
		return nil, fs.ErrNotExist
	}
	f, err := os.CreateTemp(s.dir, "")
	return &deafStage{slowStage{File: f}, s}, err
}

type deafStage struct {
	slowStage
	s *deafStager
}

func (s *deafStage) KeepAs(string, int64) {}

func (s *deafStage) Have() (int64, [][2]int64) { return 8 << 20, [][2]int64{{0, 4 << 20}} }

func (s *deafStage) Keep() error {
	s.s.wait("Stage.Keep")
	return s.Close()
}

// A Store that blocks when it is asked for a place holds up the download for ten seconds, and
// a second when it gets the place back.
func TestAPlaceThatBlocksHoldsUpNoFetchForLong(t *testing.T) {
	for call, c := range map[string]struct {
		patience time.Duration
		lacking  bool // upstream does not have the blob
	}{
		"Store.StageBlob":  {patience: 10 * time.Second},
		"Store.ResumeBlob": {patience: 10 * time.Second},
		"Stage.Keep":       {patience: time.Second, lacking: true},
	} {
		t.Run(call, func(t *testing.T) {
			testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
				heard := &testkit.Events{}
				w.OnEvent = heard.On
				store := &deafStager{Store: w.Mem, deaf: call, gate: testkit.NewGate(t), dir: t.TempDir()}
				w.Store = store
				layer := w.Layer(8 << 20)
				if c.lacking {
					w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Status: 404})
				}
				start := time.Now()
				err := w.Whole(t.Context(), layer.Digest)
				assert.Equal(t, c.patience, time.Since(start))
				if c.lacking {
					assert.ErrorIs(t, err, pullthrough.ErrNotFound)
				} else {
					assert.NoError(t, err)
					assert.Len(t, heard.StoreFailures(), 1)
					assert.Equal(t, 1, w.Up.Count("*"))
				}
				store.gate.Open()
				require.NoError(t, w.Shutdown(t.Context()))
			})
		})
	}
}
