package pullthrough_test

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// heldPuts is a Store whose PutManifest waits at a gate while it is held.
func heldPuts(w *testkit.World) (hold func() (release func())) {
	var mu sync.Mutex
	var gate chan struct{}
	w.Store = &testkit.FaultyStore{Store: w.Mem, OnPutManifest: func() error {
		mu.Lock()
		g := gate
		mu.Unlock()
		if g != nil {
			<-g
		}
		return nil
	}}
	return func() func() {
		mu.Lock()
		defer mu.Unlock()
		g := make(chan struct{})
		gate = g
		return func() {
			mu.Lock()
			gate = nil
			mu.Unlock()
			close(g)
		}
	}
}

func get(w *testkit.World, ctx context.Context, ref string) (*pullthrough.Manifest, error) {
	return w.Manifest(ctx, pullthrough.Request{Repo: testkit.Repo("a"), Ref: ref})
}

// A manifest is answered when it is verified. Until the Store has it, everybody who
// asks for it, by tag or by digest, is answered by the fetch that runs.
func TestAManifestIsAnsweredBeforeTheStoreHasIt(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		release := heldPuts(w)()
		img := testkit.Image(1)
		w.Up.Push("a", "1", img)
		start := time.Now()
		m, err := get(w, t.Context(), "1")
		require.NoError(t, err)
		assert.Equal(t, pullthrough.SourceFill, m.Source)
		for _, ref := range []string{"1", img.Digest.String()} {
			m, err := get(w, t.Context(), ref)
			require.NoError(t, err)
			assert.Equal(t, pullthrough.SourceShared, m.Source)
			assert.Equal(t, img.Digest, m.Descriptor.Digest)
		}
		assert.Zero(t, time.Since(start), "nobody has waited")
		_, err = w.Mem.Manifest(t.Context(), testkit.Repo("a"), "1")
		assert.Error(t, err)
		release()
		w.Settled(t)
		m, err = get(w, t.Context(), "1")
		require.NoError(t, err)
		assert.Equal(t, pullthrough.SourceHit, m.Source)
		assert.Equal(t, []string{"GET /v2/a/manifests/1 200"}, w.Up.Log())
	})
}

// A tag that moves waits for the Store, which may say that it must not move.
func TestATagThatMovesWaitsForTheStore(t *testing.T) {
	for name, tc := range map[string]struct {
		put    time.Duration // how long it takes
		err    error         // what the Store says
		moves  bool          // the client gets the new image
		waited time.Duration
		source pullthrough.Source
	}{
		"it moves":                 {time.Second, nil, true, time.Second, pullthrough.SourceFill},
		"it must not move":         {time.Second, pullthrough.ErrImmutable, false, time.Second, pullthrough.SourceRevalidated},
		"the Store fails":          {time.Second, errors.New("disk full"), true, time.Second, pullthrough.SourceFill},
		"the Store takes too long": {time.Minute, nil, false, 2 * time.Second, pullthrough.SourceStale},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
				testkit.EveryPull(w.Proxy)
				store := &testkit.FaultyStore{Store: w.Mem}
				w.Store = store
				old, moved := testkit.Image(1), testkit.Image(2)
				w.Up.Push("a", "1", old)
				w.Pull(t, "a", "1", old)
				first := true
				store.OnPutManifest = func() error {
					if !first {
						return nil // that the stored one was checked
					}
					first = false
					time.Sleep(tc.put)
					return tc.err
				}
				w.Up.Push("a", "1", moved)
				w.Up.Reset()
				start := time.Now()
				m, err := get(w, t.Context(), "1")
				require.NoError(t, err)
				assert.Equal(t, tc.waited, time.Since(start))
				assert.Equal(t, tc.source, m.Source)
				assert.Equal(t, tc.moves, m.Descriptor.Digest == moved.Digest)
				w.Settled(t)
				assert.Equal(t, []string{"HEAD /v2/a/manifests/1 200", "GET /v2/a/manifests/" + moved.Digest.String() + " 200"}, w.Up.Log())
				if tc.put == time.Minute {
					m, err := get(w, t.Context(), "1")
					require.NoError(t, err)
					assert.Equal(t, moved.Digest, m.Descriptor.Digest)
					assert.Equal(t, pullthrough.SourceRevalidated, m.Source, "a slow Store pauses no check")
				}
			})
		})
	}
}

// A tag that upstream confirms is answered at once, whatever the Store does.
func TestAConfirmedTagDoesNotWaitForTheStore(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		testkit.EveryPull(w.Proxy)
		img := testkit.Image(1)
		w.Up.Push("a", "1", img)
		hold := heldPuts(w)
		w.Pull(t, "a", "1", img)
		release := hold()
		w.Up.Reset()
		start := time.Now()
		m, err := get(w, t.Context(), "1")
		require.NoError(t, err)
		assert.Equal(t, pullthrough.SourceRevalidated, m.Source)
		assert.Zero(t, time.Since(start))
		release()
		w.Settled(t)
		assert.Equal(t, []string{"HEAD /v2/a/manifests/1 200"}, w.Up.Log())
	})
}

func TestIdle(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		release := heldPuts(w)()
		require.NoError(t, w.Idle(t.Context()), "nothing was ever asked for")
		img := testkit.Image(1)
		w.Up.Push("a", "1", img)
		_, err := get(w, t.Context(), "1")
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err = w.Idle(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.ErrorContains(t, err, "manifest hub/a:1", "it says what still goes on")
		go func() { time.Sleep(time.Second); release() }()
		require.NoError(t, w.Idle(t.Context()))
		_, err = w.Mem.Manifest(t.Context(), testkit.Repo("a"), "1")
		assert.NoError(t, err, "what was answered is stored")
		assert.Equal(t, 1, w.Up.Count("*"))
	})
}

// What came by a rule that is another one by now is served and not stored.
func TestWhatCameByARuleThatHasChangedIsNotStored(t *testing.T) {
	for name, change := range map[string]func(*pullthrough.Rule) bool{
		"deleted":                 func(*pullthrough.Rule) bool { return false },
		"of another upstream":     func(r *pullthrough.Rule) bool { r.UpstreamURL = "elsewhere.example"; return true },
		"with another credential": func(r *pullthrough.Rule) bool { r.CredentialARN = "arn:new"; return true },
		"made anew":               func(r *pullthrough.Rule) bool { r.CreatedAt = time.Unix(1e9, 0); return true },
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var rules pullthrough.StaticRules
			changeRule := func(http.ResponseWriter, *http.Request) bool {
				mu.Lock()
				defer mu.Unlock()
				r := rules[0]
				rules = nil
				if change(&r) {
					rules = pullthrough.StaticRules{r}
				}
				return false
			}
			w := testkit.NewWorld(t, pullthroughtest.Config{Handler: changeRule}, func(p *pullthrough.Proxy) {
				rules = p.Rules.(pullthrough.StaticRules)
				p.Rules = pullthrough.RuleSourceFunc(func(context.Context, string, string) ([]pullthrough.Rule, error) {
					mu.Lock()
					defer mu.Unlock()
					return rules, nil
				})
			})
			img := testkit.Image(1)
			w.Up.Push("a", "1", img)
			for _, pull := range []func(){
				func() {
					m, err := get(w, t.Context(), "1")
					require.NoError(t, err)
					assert.Equal(t, img.Digest, m.Descriptor.Digest)
				},
				func() { w.PullBlob(t, "a", img.Layers[0].Digest) },
			} {
				before := rules
				pull()
				w.Settled(t)
				rules = before
			}
			_, err := w.Mem.Manifest(t.Context(), testkit.Repo("a"), "1")
			assert.Error(t, err)
			_, err = w.Mem.Blob(t.Context(), testkit.Repo("a"), img.Layers[0].Digest)
			assert.Error(t, err)
			assert.Equal(t, 2, w.Up.Count("*"))
		})
	}
}

// A check that lies in the future is a broken clock's, but for a little.
func TestACheckInTheFutureCountsForLittle(t *testing.T) {
	for name, tc := range map[string]struct {
		ahead  time.Duration
		checks int
	}{
		"a little": {4 * time.Minute, 0},
		"far":      {6 * time.Minute, 1},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
				img := testkit.Image(1)
				w.Up.Push("a", "1", img)
				w.Pull(t, "a", "1", img)
				m, err := w.Mem.Manifest(t.Context(), testkit.Repo("a"), "1")
				require.NoError(t, err)
				ahead := *m
				ahead.CheckedAt, ahead.Source = time.Now().Add(tc.ahead), pullthrough.SourceRevalidated
				require.NoError(t, w.Mem.PutManifest(t.Context(), testkit.Repo("a"), &ahead))
				w.Up.Reset()
				_, err = get(w, t.Context(), "1")
				require.NoError(t, err)
				w.Settled(t)
				assert.Equal(t, tc.checks, w.Up.Count("HEAD /v2/a/manifests/1 200"))
				assert.Equal(t, tc.checks, w.Up.Count("*"))
				synctest.Wait()
			})
		})
	}
}
