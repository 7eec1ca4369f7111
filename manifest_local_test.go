package pullthrough_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// pushedLate is a Store into which somebody pushes the tag 1 when it is about to get one.
type pushedLate struct {
	pullthrough.Store
	deaf bool // it does not know KeepLocal
	push func()
}

func (s *pushedLate) PutManifest(ctx context.Context, r pullthrough.Repo, m *pullthrough.Manifest) error {
	s.push()
	if s.deaf {
		own := *m
		own.KeepLocal = false
		m = &own
	}
	return s.Store.PutManifest(ctx, r, m)
}

// With KeepLocal a push that comes while upstream is asked wins, and the client gets
// what is stored. Without it upstream's image wins, as in Amazon ECR.
func TestAPushDuringAFirstPull(t *testing.T) {
	stores := map[string]func(t *testing.T) pullthrough.Store{
		"memstore": func(*testing.T) pullthrough.Store { return memstore.New() },
		"dirstore": func(t *testing.T) pullthrough.Store {
			s, err := dirstore.Open(t.TempDir())
			require.NoError(t, err)
			t.Cleanup(func() { assert.NoError(t, s.Close()) })
			return s
		},
	}
	for name, open := range stores {
		for when, tc := range map[string]struct {
			keep, late bool
			fill       pullthrough.FillMode
			due        bool // another image of the tag is stored, and is checked
			local      bool // the push wins
		}{
			"while upstream is asked":                   {keep: true, local: true},
			"while upstream is asked, eager":            {keep: true, fill: pullthrough.FillEager, local: true},
			"while upstream is asked about a stored":    {keep: true, due: true, local: true},
			"right before the put":                      {keep: true, late: true, local: true},
			"right before the put of one that moves":    {keep: true, late: true, due: true, local: true},
			"without KeepLocal":                         {},
			"without KeepLocal, right before the put":   {late: true},
			"without KeepLocal, of one that has moved":  {due: true},
			"without KeepLocal, eager, before the put ": {late: true, fill: pullthrough.FillEager},
		} {
			t.Run(name+", "+when, func(t *testing.T) {
				store := &pushedLate{Store: open(t), deaf: !tc.late, push: func() {}}
				clock := new(testkit.HandClock)
				w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
					p.Store, p.Fill, p.Now = store, tc.fill, clock.Now
					testkit.WithPolicy(pullthrough.Policy{KeepLocal: tc.keep})(p)
				})
				local := testkit.LocalManifest("1")
				img := testkit.Image(1)
				if tc.due {
					w.Up.Push("a", "1", testkit.Image(2))
					_, err := w.Tagged(t, "1")
					require.NoError(t, err)
					clock.Pass(25 * time.Hour)
				}
				w.Up.Push("a", "1", img)
				w.Up.Reset()
				var pushed atomic.Bool
				push := func() {
					if pushed.CompareAndSwap(false, true) {
						assert.NoError(t, store.Store.PutManifest(context.Background(), testkit.Repo("a"), local))
					}
				}
				stall := testkit.NewGate(t)
				w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/*", Stall: stall.C})
				got := make(chan *pullthrough.Manifest, 1)
				go func() {
					m, err := w.Resolve(context.Background(), "1")
					assert.NoError(t, err)
					got <- m
				}()
				require.NoError(t, w.Up.Wait(t.Context(), "GET /v2/a/manifests/*", 1))
				if tc.late {
					store.push = push
				} else {
					push()
				}
				stall.Open()
				m := <-got
				w.Settled(t)
				stored, err := store.Manifest(t.Context(), testkit.Repo("a"), "1")
				require.NoError(t, err)
				want := img.Digest
				if tc.local {
					want = local.Descriptor.Digest
				}
				assert.Equal(t, want, stored.Descriptor.Digest)
				assert.Equal(t, want, m.Descriptor.Digest, "the client gets what is stored")
				assert.Equal(t, tc.local, stored.Origin == "")
				assert.False(t, stored.KeepLocal)
				line := "GET /v2/a/manifests/1 200"
				if tc.due {
					line = "GET /v2/a/manifests/" + img.Digest.String() + " 200"
				}
				assert.Equal(t, 1, w.Up.Count(line))
			})
		}
	}
}

// The Store's word is waited for no longer than a check takes.
func TestKeepLocalWithASlowStore(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		testkit.WithPolicy(pullthrough.Policy{KeepLocal: true})(w.Proxy)
		release := heldPuts(w)()
		img := testkit.Image(1)
		w.Up.Push("a", "1", img)
		start := time.Now()
		m, err := w.Resolve(t.Context(), "1")
		require.NoError(t, err)
		assert.Equal(t, img.Digest, m.Descriptor.Digest)
		assert.Equal(t, 2*time.Second, time.Since(start))
		release()
		w.Settled(t)
		synctest.Wait()
		assert.Equal(t, 1, w.Up.Count("*"))
	})
}
