package pullthrough_test

import (
	"context"
	"errors"
	"slices"
	"sync"
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

func TestARefusalIsNotOvertakenByTheCheckTimeout(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		testkit.WithPolicy(pullthrough.Policy{RefuseStale: true})(w.Proxy)
		w.OnEvent = func(_ context.Context, e pullthrough.Event) {
			if e.Kind == pullthrough.EventFetch && e.Err != nil {
				time.Sleep(3 * time.Second) // longer than the check may take
			}
		}
		w.Up.Push("a", "1", testkit.Image(1))
		_, err := w.Tagged(t, "1")
		require.NoError(t, err)
		time.Sleep(25 * time.Hour)
		w.Up.Fault(testkit.Status(403))
		m, err := w.Resolve(t.Context(), "1")
		assert.ErrorIs(t, err, pullthrough.ErrDenied)
		assert.Nil(t, m)
		w.Settled(t)
	})
}

// A tag that upstream refuses is refused to a caller who may not have it checked, too.
func TestATagThatWasRefusedIsRefusedToEveryCaller(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		testkit.WithPolicy(pullthrough.Policy{RefuseStale: true})(w.Proxy)
		w.Authorize = func(_ context.Context, a pullthrough.Action, r pullthrough.Request) error {
			if a == pullthrough.ActionImport && r.Caller == "guest" {
				return errors.New("guests import nothing")
			}
			return nil
		}
		guest := pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1", Caller: "guest"}
		w.Up.Push("a", "1", testkit.Image(1))
		_, err := w.Tagged(t, "1")
		require.NoError(t, err)
		time.Sleep(25 * time.Hour)
		_, err = w.Manifest(t.Context(), guest)
		require.NoError(t, err)
		heal := w.Up.Fault(testkit.Status(403))
		_, err = w.Tagged(t, "1")
		require.ErrorIs(t, err, pullthrough.ErrDenied)
		asked := w.Up.Count("*")
		_, err = w.Manifest(t.Context(), guest)
		assert.ErrorIs(t, err, pullthrough.ErrDenied)
		assert.Equal(t, asked, w.Up.Count("*"), "a guest causes no check")
		heal()
		_, err = w.Tagged(t, "1")
		require.NoError(t, err)
		_, err = w.Manifest(t.Context(), guest)
		assert.NoError(t, err)
	})
}

func TestTheNewDigestOfAMovedTagIsServedWhileTheStoreIsSlow(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		hold := heldPuts(w)
		one, two := testkit.Image(1), testkit.Image(2)
		w.Up.Push("a", "1", one)
		_, err := w.Tagged(t, "1")
		require.NoError(t, err)
		w.Up.Push("a", "1", two)
		time.Sleep(25 * time.Hour)
		release := hold()
		defer release()
		m, err := w.Resolve(t.Context(), "1")
		require.NoError(t, err)
		require.Equal(t, pullthrough.SourceStale, m.Source, "the Store has not said that the tag may move")
		m, err = w.Resolve(t.Context(), two.Digest.String())
		if assert.NoError(t, err) {
			assert.Equal(t, two.Digest, m.Descriptor.Digest)
		}
		release()
		w.Settled(t)
	})
}

func TestATagThatWasRefusedDoesNotWaitForASlowStoreForEver(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		hold := heldPuts(w)
		testkit.WithPolicy(pullthrough.Policy{RefuseStale: true})(w.Proxy)
		one, two := testkit.Image(1), testkit.Image(2)
		w.Up.Push("a", "1", one)
		_, err := w.Tagged(t, "1")
		require.NoError(t, err)
		time.Sleep(25 * time.Hour)
		heal := w.Up.Fault(testkit.Status(403))
		_, err = w.Tagged(t, "1")
		require.ErrorIs(t, err, pullthrough.ErrDenied)
		heal()
		w.Up.Push("a", "1", two)
		release := hold()
		defer release()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		_, err = w.Resolve(ctx, "1")
		assert.NoError(t, err, "upstream has confirmed the tag")
		assert.LessOrEqual(t, time.Since(start), 2*time.Second)
		release()
		w.Settled(t)
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
		"the Store takes too long": {10 * time.Second, nil, false, 2 * time.Second, pullthrough.SourceStale},
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
				m, err := w.Resolve(t.Context(), "1")
				require.NoError(t, err)
				assert.Equal(t, tc.waited, time.Since(start))
				assert.Equal(t, tc.source, m.Source)
				assert.Equal(t, tc.moves, m.Descriptor.Digest == moved.Digest)
				w.Settled(t)
				assert.Equal(t, []string{"HEAD /v2/a/manifests/1 200", "GET /v2/a/manifests/" + moved.Digest.String() + " 200"}, w.Up.Log())
				if tc.put > time.Second {
					m, err := w.Resolve(t.Context(), "1")
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
		m, err := w.Resolve(t.Context(), "1")
		require.NoError(t, err)
		assert.Equal(t, pullthrough.SourceRevalidated, m.Source)
		assert.Zero(t, time.Since(start))
		release()
		w.Settled(t)
		assert.Equal(t, []string{"HEAD /v2/a/manifests/1 200"}, w.Up.Log())
	})
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
				_, err = w.Resolve(t.Context(), "1")
				require.NoError(t, err)
				w.Settled(t)
				assert.Equal(t, tc.checks, w.Up.Count("HEAD /v2/a/manifests/1 200"))
				assert.Equal(t, tc.checks, w.Up.Count("*"))
				synctest.Wait()
			})
		})
	}
}

func TestManifestsTellHowTheyCameAbout(t *testing.T) {
	clock := new(testkit.HandClock)
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Now = clock.Now })
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("a", "1", img)
	get := func(ref string) *pullthrough.Manifest {
		m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: ref})
		require.NoError(t, err)
		w.Settled(t)
		return m
	}
	m := get("1")
	assert.Equal(t, pullthrough.SourceFill, m.Source)
	assert.Equal(t, "1", m.Tag)
	assert.Equal(t, clock.Now(), m.CheckedAt)
	assert.Equal(t, w.Up.Host(), m.Origin)
	m = get(img.Digest.String())
	assert.Equal(t, pullthrough.SourceHit, m.Source)
	assert.Empty(t, m.Tag)

	clock.Pass(23 * time.Hour)
	assert.Equal(t, pullthrough.SourceHit, get("1").Source)
	assert.Equal(t, 1, w.Up.Count("*"))

	clock.Pass(time.Hour)
	assert.Equal(t, pullthrough.SourceRevalidated, get("1").Source)
	assert.Equal(t, pullthrough.SourceHit, get("1").Source, "the check is noted")
	assert.Equal(t, []string{"GET /v2/a/manifests/1 200", "HEAD /v2/a/manifests/1 200"}, w.Up.Log())
}

func TestAMovedTagIsFetchedByTheDigestItHasNow(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, testkit.EveryPull)
	one, two := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	w.Up.Push("a", "latest", one)
	w.Pull(t, "a", "latest", one)
	w.Up.Push("a", "latest", two)
	w.Up.Reset()
	w.Pull(t, "a", "latest", two)
	assert.Equal(t, []string{"HEAD /v2/a/manifests/latest 200", "GET /v2/a/manifests/" + two.Digest.String() + " 200"}, w.Up.Log()[:2])
	w.Pull(t, "a", one.Digest.String(), one) // the old image stays, untagged
}

func TestATagThatIsNeverChecked(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{TagTTL: -1}
		}
	})
	m := testkit.LocalManifest("pushed")
	require.NoError(t, w.Mem.PutManifest(t.Context(), testkit.Repo("a"), m))
	got, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "pushed"})
	require.NoError(t, err)
	assert.Equal(t, m.Content, got.Content)
	assert.Empty(t, w.Up.Log())
}

// A tag that is to be checked on every pull is not answered by a fetch whose answer is
// out, although that fetch goes on until the Store has the manifest. It is checked as if
// the Store had it, however slow the Store is.
func TestEveryPullIsNotAnsweredByAFetchThatIsOver(t *testing.T) {
	for name, put := range map[string]time.Duration{"the Store is quick": time.Second, "the Store hangs": time.Hour} {
		t.Run(name, func(t *testing.T) {
			testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
				testkit.EveryPull(w.Proxy)
				var puts atomic.Int32
				w.Store = &testkit.FaultyStore{Store: w.Mem, OnPutManifest: func() error {
					puts.Add(1)
					time.Sleep(put)
					return nil
				}}
				img := testkit.Image(1)
				w.Up.Push("a", "1", img)
				_, err := w.Resolve(t.Context(), "1")
				require.NoError(t, err)
				w.Up.Reset()
				start := time.Now()
				for range 20 {
					m, err := w.Resolve(t.Context(), "1")
					require.NoError(t, err)
					assert.Equal(t, pullthrough.SourceRevalidated, m.Source)
					assert.Equal(t, img.Digest, m.Descriptor.Digest)
				}
				assert.Zero(t, time.Since(start))
				synctest.Wait()
				assert.LessOrEqual(t, w.Running(), 2, "one puts, one waits for its turn")
				assert.Equal(t, slices.Repeat([]string{"HEAD /v2/a/manifests/1 200"}, 20), w.Up.Log())
				w.Settled(t)
				assert.EqualValues(t, 2, puts.Load(), "that it was checked is noted once")
				m, err := w.Mem.Manifest(t.Context(), testkit.Repo("a"), "1")
				require.NoError(t, err)
				assert.Equal(t, start, m.CheckedAt)
			})
		})
	}
}

// A tag that moves while its image is brought in, before the Store has it, is served as
// it is now. The Store gets the two in their order.
func TestATagThatMovesDuringItsEagerFill(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		testkit.EveryPull(w.Proxy)
		w.Fill = pullthrough.FillEager
		var images []*pullthroughtest.Image
		for seed := range int64(4) {
			images = append(images, pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: seed, LayerSize: 2 << 20}))
		}
		stall := testkit.NewGate(t)
		var mu sync.Mutex
		var tags []digest.Digest
		store := &tagLog{Store: w.Mem, tagged: func(d digest.Digest) { mu.Lock(); defer mu.Unlock(); tags = append(tags, d) }}
		w.Store = store
		w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/" + images[0].Layers[0].Digest.String(), Stall: stall.C, StallAfter: new(int64(1 << 20))})
		for _, img := range images {
			w.Up.Push("a", "1", img)
			start := time.Now()
			for _, source := range []pullthrough.Source{pullthrough.SourceFill, pullthrough.SourceRevalidated} {
				m, err := w.Resolve(t.Context(), "1")
				require.NoError(t, err)
				assert.Equal(t, img.Digest, m.Descriptor.Digest)
				assert.Equal(t, source, m.Source)
			}
			assert.Zero(t, time.Since(start))
			synctest.Wait()
			assert.Empty(t, tags, "the first image is not complete yet")
			time.Sleep(5 * time.Second)
		}
		stall.Open()
		w.Settled(t)
		assert.Equal(t, images[0].Digest, tags[0])
		assert.Equal(t, images[3].Digest, tags[len(tags)-1])
		assert.LessOrEqual(t, len(tags), 3)
		m, err := w.Mem.Manifest(t.Context(), testkit.Repo("a"), "1")
		require.NoError(t, err)
		assert.Equal(t, images[3].Digest, m.Descriptor.Digest)
		for _, b := range images[3].Blobs() {
			_, err := w.Mem.Blob(t.Context(), testkit.Repo("a"), b.Digest)
			assert.NoError(t, err)
		}
		assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/1 200"))
		assert.Equal(t, 7, w.Up.Count("HEAD /v2/a/manifests/1 200"))
		for _, img := range images[1:] {
			assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/"+img.Digest.String()+" 200"))
		}
	})
}

// tagLog is a Store that tells which digest a tag is put under.
type tagLog struct {
	*memstore.Store
	tagged func(digest.Digest)
}

func (s *tagLog) PutManifest(ctx context.Context, r pullthrough.Repo, m *pullthrough.Manifest) error {
	s.tagged(m.Descriptor.Digest)
	return s.Store.PutManifest(ctx, r, m)
}

// An answer that could not be stored is stored when upstream confirms it.
func TestWhatCouldNotBeStoredIsStoredWhenItIsConfirmed(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		testkit.EveryPull(w.Proxy)
		first := true
		w.Store = &testkit.FaultyStore{Store: w.Mem, OnPutManifest: func() error {
			if first {
				first = false
				time.Sleep(time.Minute)
				return errors.New("disk full")
			}
			return nil
		}}
		img := testkit.Image(1)
		w.Up.Push("a", "1", img)
		for range 2 {
			_, err := w.Resolve(t.Context(), "1")
			require.NoError(t, err)
		}
		m, err := w.Stored(t, "1")
		require.NoError(t, err)
		assert.Equal(t, img.Digest, m.Descriptor.Digest)
		assert.Equal(t, w.Up.Host(), m.Origin)
		assert.Equal(t, []string{"GET /v2/a/manifests/1 200", "HEAD /v2/a/manifests/1 200"}, w.Up.Log())
	})
}
