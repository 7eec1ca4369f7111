package pullthrough_test

import (
	"context"
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
// of the context.
type deafStore struct {
	*memstore.Store
	repo  pullthrough.Repo
	nth   int64
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
	return s.Store.Blob(ctx, repo, d)
}

// A Store that blocks in a look-up holds up the request that makes it, and nothing
// else. A look-up for a fetch (the second one) is left when its client leaves.
func TestALookUpThatBlocksHoldsUpOneRequest(t *testing.T) {
	for name, nth := range map[string]int64{"on the way of a hit": 1, "in a fetch": 2} {
		for object, ref := range map[string]func(*pullthroughtest.Image) string{
			"manifest": func(*pullthroughtest.Image) string { return "1" },
			"blob":     func(img *pullthroughtest.Image) string { return img.Layers[0].Digest.String() },
		} {
			t.Run(name+", "+object, func(t *testing.T) {
				testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
					store := &deafStore{Store: w.Mem, repo: testkit.Repo("a"), nth: nth, gate: testkit.NewGate(t)}
					w.Store = store
					img := testkit.Image(1)
					w.Up.Push("a", "1", img)
					w.Up.Push("b", "1", img)
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					left := make(chan error, 1)
					go func() {
						r := pullthrough.Request{Repo: testkit.Repo("a"), Ref: ref(img)}
						var err error
						if object == "manifest" {
							_, err = w.Manifest(ctx, r)
						} else {
							_, err = w.Blob(ctx, r)
						}
						left <- err
					}()
					synctest.Wait()
					start := time.Now()
					w.ReadImage(t, testkit.Repo("b"), "1", img)
					assert.Zero(t, time.Since(start), "another repository's pull goes on")
					if nth > 1 {
						assert.ErrorIs(t, <-left, context.DeadlineExceeded)
						require.NoError(t, w.Idle(t.Context()), "the fetch ends with its last client")
						assert.Zero(t, w.Up.Count("* /v2/a/*"))
					}
					require.NoError(t, w.Shutdown(t.Context()))
					store.gate.Open()
					synctest.Wait()
				})
			})
		}
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
