package pullthrough_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// fetches are all that a client may make the proxy fetch, by what it asks for. The
// image img is upstream's tag 1 of the repository a.
var fetches = map[string]struct {
	line string // upstream's answer
	due  bool   // the tag is stored, and is to be checked
	pull func(ctx context.Context, w *testkit.World, img *pullthroughtest.Image) error
}{
	"a tag": {line: "GET /v2/a/manifests/1 200", pull: func(ctx context.Context, w *testkit.World, _ *pullthroughtest.Image) error {
		_, err := w.Resolve(ctx, "1")
		return err
	}},
	"a digest": {line: "GET /v2/a/manifests/sha256:* 200", pull: func(ctx context.Context, w *testkit.World, img *pullthroughtest.Image) error {
		_, err := w.Resolve(ctx, img.Digest.String())
		return err
	}},
	"a check": {line: "HEAD /v2/a/manifests/1 200", due: true, pull: func(ctx context.Context, w *testkit.World, _ *pullthroughtest.Image) error {
		_, err := w.Resolve(ctx, "1")
		return err
	}},
	"a small blob": {line: "GET /v2/a/blobs/* 200", pull: func(ctx context.Context, w *testkit.World, img *pullthroughtest.Image) error {
		return w.Whole(ctx, img.Config.Digest)
	}},
	"a large blob": {line: "GET /v2/a/blobs/* 200", pull: func(ctx context.Context, w *testkit.World, img *pullthroughtest.Image) error {
		return w.Whole(ctx, img.Layers[0].Digest)
	}},
	"the size of a blob": {line: "GET /v2/a/blobs/* 206", pull: func(ctx context.Context, w *testkit.World, img *pullthroughtest.Image) error {
		_, err := w.Blob(ctx, pullthrough.Request{Repo: testkit.Repo("a"), Ref: img.Layers[0].Digest.String(), Head: true})
		return err
	}},
	"a list of referrers": {line: "GET /v2/a/referrers/* 200", pull: func(ctx context.Context, w *testkit.World, img *pullthroughtest.Image) error {
		_, err := w.Referrers(ctx, pullthrough.Request{Repo: testkit.Repo("a"), Ref: img.Digest.String()}, "")
		return err
	}},
	"an import": {line: "GET /v2/a/manifests/1 200", pull: func(ctx context.Context, w *testkit.World, _ *pullthroughtest.Image) error {
		_, err := w.Import(ctx, pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"}, pullthrough.ImportOptions{})
		return err
	}},
	"a rule": {line: "GET /v2/ 200", pull: func(ctx context.Context, w *testkit.World, _ *pullthroughtest.Image) error {
		rules, _ := w.Rules.Rules(ctx, "", "")
		return w.ValidateRule(ctx, pullthrough.Repo{}, rules[0])
	}},
}

// thinkingUpstream waits for so long before each answer; nil: not at all.
func thinkingUpstream(thinks *time.Duration) pullthroughtest.Config {
	return pullthroughtest.Config{Handler: func(_ http.ResponseWriter, r *http.Request) bool {
		select {
		case <-time.After(*thinks):
			return false
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	}}
}

// inLeaving runs test for each fetch, before an upstream that thinks.
func inLeaving(t *testing.T, pol pullthrough.Policy, thinks time.Duration, test func(t *testing.T, w *testkit.World, pull func(context.Context) error, line string)) {
	for name, f := range fetches {
		t.Run(name, func(t *testing.T) {
			delay := time.Duration(0)
			testkit.InBubble(t, thinkingUpstream(&delay), func(t *testing.T, w *testkit.World) {
				testkit.WithPolicy(pol)(w.Proxy)
				img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 2 << 20})
				w.Up.Push("a", "1", img)
				if f.due {
					w.Pull(t, "a", "1", img)
					time.Sleep(25 * time.Hour)
				}
				w.Up.Reset()
				delay = thinks
				test(t, w, func(ctx context.Context) error { return f.pull(ctx, w, img) }, f.line)
			})
		})
	}
}

// hurried calls pull for a client that has d.
func hurried(t *testing.T, d time.Duration, pull func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	return pull(ctx)
}

// A client that gives up too early, and tries again, finds what its last try began.
func TestTheNextTryFindsWhatTheLastOneBegan(t *testing.T) {
	inLeaving(t, pullthrough.Policy{}, 3*time.Second, func(t *testing.T, w *testkit.World, pull func(context.Context) error, line string) {
		tries := 0
		for err := error(context.DeadlineExceeded); err != nil && tries < 10; tries++ {
			err = hurried(t, 1900*time.Millisecond, pull)
		}
		assert.Less(t, tries, 10)
		w.Settled(t)
		assert.Equal(t, 1, w.Up.Count(line), w.Up.Log())
		log := w.Up.Log()
		assert.Len(t, slices.Compact(slices.Sorted(slices.Values(log))), len(log), "nothing was asked for twice")
	})
}

// Where the Policy lets nothing go on without a client, nothing does.
func TestWithoutOrphansAFetchEndsWithItsLastClient(t *testing.T) {
	inLeaving(t, pullthrough.Policy{Orphans: -1}, 3*time.Second, func(t *testing.T, w *testkit.World, pull func(context.Context) error, line string) {
		heard := &testkit.Events{}
		w.OnEvent = heard.On
		for range 3 {
			assert.ErrorIs(t, hurried(t, 1900*time.Millisecond, pull), context.DeadlineExceeded)
			start := time.Now()
			w.Settled(t)
			assert.Zero(t, time.Since(start))
		}
		assert.Zero(t, w.Up.Count(line), "each of them was cut off")
		assert.Empty(t, heard.StoreFailures())
	})
}

// What nobody comes back to ends after half a minute.
func TestAFetchThatNobodyComesBackToEnds(t *testing.T) {
	inLeaving(t, pullthrough.Policy{CheckTimeout: -1, Retries: -1}, time.Hour, func(t *testing.T, w *testkit.World, pull func(context.Context) error, line string) {
		heard := &testkit.Events{}
		w.OnEvent = heard.On
		assert.ErrorIs(t, hurried(t, time.Second, pull), context.DeadlineExceeded)
		start := time.Now()
		w.Settled(t)
		assert.InDelta(t, 30*time.Second, time.Since(start), float64(time.Second))
		assert.Zero(t, w.Up.Count(line))
		assert.Empty(t, heard.StoreFailures())
	})
}

// Shutdown does not wait for what nobody waits for.
func TestShutdownEndsWhatNobodyWaitsFor(t *testing.T) {
	inLeaving(t, pullthrough.Policy{CheckTimeout: -1}, 20*time.Second, func(t *testing.T, w *testkit.World, pull func(context.Context) error, _ string) {
		assert.ErrorIs(t, hurried(t, time.Second, pull), context.DeadlineExceeded)
		start := time.Now()
		require.NoError(t, w.Shutdown(t.Context()))
		assert.Zero(t, time.Since(start))
	})
}

// Of the fetches that nobody waits for 64 go on, whatever they fetch.
func TestSoManyFetchesGoOnWithoutAClient(t *testing.T) {
	delay := time.Hour
	testkit.InBubble(t, thinkingUpstream(&delay), func(t *testing.T, w *testkit.World) {
		img := testkit.Image(1)
		for i := range 100 {
			ref := fmt.Sprint(i)
			_ = hurried(t, time.Millisecond, func(ctx context.Context) error { _, err := w.Resolve(ctx, ref); return err })
			r := pullthrough.Request{Repo: testkit.Repo(fmt.Sprint("b", i)), Ref: img.Config.Digest.String(), Head: i%2 == 0}
			_ = hurried(t, time.Millisecond, func(ctx context.Context) error { _, err := w.Blob(ctx, r); return err })
		}
		synctest.Wait()
		assert.Equal(t, 64, w.Running())
		assert.ErrorIs(t, hurried(t, time.Second, func(ctx context.Context) error { _, err := w.Resolve(ctx, "0"); return err }), context.DeadlineExceeded)
		w.Settled(t)
		assert.Equal(t, 0, w.Up.Count("* 200"))
	})
}

// Once all of it has come it is stored, although everybody has left. What has not come
// when its client leaves follows the rule for orphans, whether anybody was shown it or
// not.
func TestWhatHasComeIsStoredAlthoughEverybodyHasLeft(t *testing.T) {
	for name, tc := range map[string]struct {
		size   int64
		comes  int64 // bytes when the client leaves
		pol    pullthrough.Policy
		chunks bool // upstream does not say how long it is
		stored bool
	}{
		"large, all of it":                {2 << 20, 2 << 20, pullthrough.Policy{Orphans: -1}, false, true},
		"small, all of it":                {1000, 1000, pullthrough.Policy{Orphans: -1}, false, true},
		"large, half, an orphan":          {2 << 20, 1 << 20, pullthrough.Policy{}, false, true},
		"small, half, an orphan":          {100_000, 50_000, pullthrough.Policy{}, false, true},
		"large, half, no orphans":         {2 << 20, 1 << 20, pullthrough.Policy{Orphans: -1}, false, false},
		"small, half, no orphans":         {100_000, 50_000, pullthrough.Policy{Orphans: -1}, false, false},
		"small, half, too much":           {100_000, 50_000, pullthrough.Policy{OrphanBytes: 1000}, false, false},
		"half, and nobody knows the size": {2 << 20, 1 << 20, pullthrough.Policy{}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
				testkit.WithPolicy(tc.pol)(w.Proxy)
				heard := &testkit.Events{}
				w.OnEvent = heard.On
				slowly := &testkit.FaultyStore{Store: w.Mem, OnPutBlob: func(r io.ReadSeeker) error { time.Sleep(time.Minute); return nil }}
				w.Store = slowly
				layer := w.Layer(tc.size)
				gate := testkit.NewGate(t)
				fault := pullthroughtest.Fault{Match: testkit.Blobs, NoLength: tc.chunks}
				if tc.comes < tc.size {
					fault.Stall, fault.StallAfter = gate.C, &tc.comes
				}
				w.Up.Fault(fault)
				left := make(chan error, 1)
				ctx, leave := context.WithCancel(t.Context())
				go func() { left <- w.Whole(ctx, layer.Digest) }()
				synctest.Wait()
				leave()
				<-left
				time.Sleep(1100 * time.Millisecond)
				synctest.Wait()
				assert.Equal(t, tc.stored, w.Running() == 1, "what is given up ends within a second")
				gate.Open()
				w.Settled(t)
				_, err := w.Mem.Blob(t.Context(), testkit.Repo("a"), layer.Digest)
				assert.Equal(t, tc.stored, err == nil)
				assert.Empty(t, heard.StoreFailures())
				assert.Equal(t, 1, w.Up.Count("*"))
			})
		})
	}
}

// A manifest that has come is stored, too, although making its repository takes long.
func TestAManifestThatHasComeIsStored(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		heard := &testkit.Events{}
		w.OnEvent = heard.On
		w.Store = &slowCreator{w.Mem}
		testkit.WithPolicy(pullthrough.Policy{Orphans: -1})(w.Proxy)
		w.Up.Push("a", "1", testkit.Image(1))
		assert.ErrorIs(t, hurried(t, time.Second, func(ctx context.Context) error { _, err := w.Resolve(ctx, "1"); return err }), context.DeadlineExceeded)
		_, err := w.Stored(t, "1")
		assert.NoError(t, err)
		assert.Empty(t, heard.StoreFailures())
		assert.Equal(t, 1, w.Up.Count("*"))
	})
}

// slowCreator takes an hour to make a repository.
type slowCreator struct{ pullthrough.Store }

func (s *slowCreator) RepoExists(context.Context, pullthrough.Repo) (bool, error) { return false, nil }

func (s *slowCreator) CreateRepo(ctx context.Context, _ pullthrough.Repo, _ pullthrough.Rule, _ pullthrough.Request) error {
	select {
	case <-time.After(time.Hour):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Clients that make names up do not send any number of requests upstream, nor take the
// turns of another rule.
func TestFetchesOfOneRuleAreBounded(t *testing.T) {
	delay := 5 * time.Second
	config := thinkingUpstream(&delay)
	think := config.Handler
	var now, peak atomic.Int32
	config.Handler = func(w http.ResponseWriter, r *http.Request) bool {
		peak.Store(max(now.Add(1), peak.Load()))
		defer now.Add(-1)
		return think(w, r)
	}
	testkit.InBubble(t, config, func(t *testing.T, w *testkit.World) {
		rules := w.Rules.(pullthrough.StaticRules)
		w.Rules = append(slices.Clone(rules), pullthrough.Rule{Prefix: "other", UpstreamURL: rules[0].UpstreamURL})
		w.Up.Push("a", "1", testkit.Image(1))
		failed := make(chan error, 600)
		for i := range cap(failed) {
			go func() {
				_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo(fmt.Sprint("r", i)), Ref: "x"})
				failed <- err
			}()
		}
		time.Sleep(3 * time.Second) // at first one asks for all
		synctest.Wait()
		assert.EqualValues(t, 256, now.Load())
		start := time.Now()
		m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: pullthrough.Repo{Name: "other/a"}, Ref: "1"})
		require.NoError(t, err)
		assert.Equal(t, pullthrough.SourceFill, m.Source)
		assert.Equal(t, delay, time.Since(start))
		busy := 0
		for range cap(failed) {
			err := <-failed
			if strings.Contains(err.Error(), "too many requests") {
				busy++
				status, code, _ := pullthrough.OCI(err)
				assert.Equal(t, http.StatusServiceUnavailable, status)
				assert.Equal(t, "UNAVAILABLE", code)
			} else {
				assert.ErrorIs(t, err, pullthrough.ErrNotFound)
			}
		}
		assert.InDelta(t, cap(failed)-2*256, busy, 2, "those that waited for ten seconds in vain")
		assert.EqualValues(t, 257, peak.Load())
	})
}
