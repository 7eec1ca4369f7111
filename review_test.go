package pullthrough_test

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestAFetchThatRunsAtShutdownMayStillGetAToken(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, testkit.WithSecret(nil))
	img := testkit.Image(1)
	w.Up.Push("a", "1", img)
	gate := testkit.NewGate(t)
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/1 401", Stall: gate.C})
	pulled := make(chan error, 1)
	go func() {
		_, err := w.Resolve(context.Background(), "1")
		pulled <- err
	}()
	require.Eventually(t, func() bool { return w.Running() == 1 }, 10*time.Second, time.Millisecond)
	ended := make(chan error, 1)
	go func() { ended <- w.Shutdown(context.Background()) }()
	require.Eventually(t, func() bool {
		_, err := w.Resolve(context.Background(), digest.FromString(time.Now().String()).String())
		return errors.Is(err, pullthrough.ErrClosed)
	}, 10*time.Second, time.Millisecond)
	gate.Open()
	assert.NoError(t, <-pulled, "it was under way")
	assert.NoError(t, <-ended)
	_, err := w.Mem.Manifest(t.Context(), testkit.Repo("a"), "1")
	assert.NoError(t, err)
}

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

// gatedPuts waits at its gate before it puts a manifest, once there is a gate.
type gatedPuts struct {
	*memstore.Store
	gate atomic.Pointer[testkit.Gate]
}

func (s *gatedPuts) PutManifest(ctx context.Context, r pullthrough.Repo, m *pullthrough.Manifest) error {
	if g := s.gate.Load(); g != nil {
		select {
		case <-g.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return s.Store.PutManifest(ctx, r, m)
}

func TestTheNewDigestOfAMovedTagIsServedWhileTheStoreIsSlow(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		store := &gatedPuts{Store: w.Mem}
		w.Store = store
		one, two := testkit.Image(1), testkit.Image(2)
		w.Up.Push("a", "1", one)
		_, err := w.Tagged(t, "1")
		require.NoError(t, err)
		w.Up.Push("a", "1", two)
		time.Sleep(25 * time.Hour)
		g := &testkit.Gate{C: make(chan struct{})}
		defer g.Open()
		store.gate.Store(g)
		m, err := w.Resolve(t.Context(), "1")
		require.NoError(t, err)
		require.Equal(t, pullthrough.SourceStale, m.Source, "the Store has not said that the tag may move")
		m, err = w.Resolve(t.Context(), two.Digest.String())
		if assert.NoError(t, err) {
			assert.Equal(t, two.Digest, m.Descriptor.Digest)
		}
		g.Open()
		w.Settled(t)
	})
}

func TestATagThatWasRefusedDoesNotWaitForASlowStoreForEver(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		store := &gatedPuts{Store: w.Mem}
		w.Store = store
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
		g := &testkit.Gate{C: make(chan struct{})}
		defer g.Open()
		store.gate.Store(g)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		_, err = w.Resolve(ctx, "1")
		assert.NoError(t, err, "upstream has confirmed the tag")
		assert.LessOrEqual(t, time.Since(start), 2*time.Second)
		g.Open()
		w.Settled(t)
	})
}

// repoStore is a RepoCreator without repositories.
type repoStore struct {
	*memstore.Store
	made atomic.Bool
}

func (s *repoStore) RepoExists(context.Context, pullthrough.Repo) (bool, error) {
	return s.made.Load(), nil
}

func (s *repoStore) CreateRepo(context.Context, pullthrough.Repo, pullthrough.Rule, pullthrough.Request) error {
	s.made.Store(true)
	return nil
}

func TestAnImportThatMadeTheRepositoryDoesNotSayThatItIsNotThere(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store = &repoStore{Store: memstore.New()} })
	w.Up.Push("a", "1", testkit.Image(1))
	w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Status: http.StatusNotFound})
	_, err := w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"}, pullthrough.ImportOptions{})
	require.ErrorIs(t, err, pullthrough.ErrNotFound)
	_, code, message := pullthrough.OCI(err)
	assert.Equal(t, "MANIFEST_UNKNOWN", code)
	assert.Equal(t, testkit.SayNotFound, message)
}

// emptyCatalog is a RepoLister that knows no registry.
type emptyCatalog struct{ pullthrough.Store }

func (emptyCatalog) Repos(context.Context, string, string) ([]string, error) {
	return nil, fs.ErrNotExist
}

func TestTheCatalogOfARegistryThatTheStoreDoesNotKnowIsNotFound(t *testing.T) {
	f := testkit.NewFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store = emptyCatalog{memstore.New()} })
	testkit.AssertOCI(t, f.Get(t, "/v2/_catalog"), http.StatusNotFound, "NAME_UNKNOWN")
}

// fixedTags never moves a tag.
type fixedTags struct{ *memstore.Store }

func (s fixedTags) PutManifest(ctx context.Context, r pullthrough.Repo, m *pullthrough.Manifest) error {
	have, err := s.Store.Manifest(ctx, r, m.Tag)
	if m.Tag != "" && err == nil && have.Descriptor.Digest != m.Descriptor.Digest {
		return pullthrough.ErrImmutable
	}
	return s.Store.PutManifest(ctx, r, m)
}

func TestABackgroundImportBringsInTheImageOfATagThatDoesNotMove(t *testing.T) {
	clock := new(testkit.HandClock)
	store := fixedTags{memstore.New()}
	one := testkit.Image(1)
	fill := func(p *pullthrough.Proxy) { p.Store, p.Now = store, clock.Now }
	lazy := testkit.NewWorld(t, pullthroughtest.Config{}, fill)
	lazy.Up.Push("a", "1", one)
	_, err := lazy.Tagged(t, "1")
	require.NoError(t, err)

	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { fill(p); p.Fill = pullthrough.FillBackground })
	w.Up.Push("a", "1", one)
	w.Up.Push("a", "1", testkit.Image(2))
	clock.Pass(25 * time.Hour)
	m, err := w.Tagged(t, "1")
	require.NoError(t, err)
	require.Equal(t, one.Digest, m.Descriptor.Digest)
	for _, b := range one.Blobs() {
		_, err := store.Blob(t.Context(), testkit.Repo("a"), b.Digest)
		assert.NoError(t, err)
	}
}

func TestAProgressThatPanicsEndsItsImportOnly(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	w.Up.Push("a", "1", testkit.Image(1))
	seen := new(atomic.Int32)
	_, err := w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"}, pullthrough.ImportOptions{
		Progress: func(pullthrough.ImportProgress) {
			if seen.Add(1) > 1 {
				panic("no bar")
			}
		},
	})
	assert.ErrorContains(t, err, "no bar")
}

func TestAnImportReturnsWhenTheStoreHasItsManifest(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		store := &gatedPuts{Store: w.Mem}
		g := &testkit.Gate{C: make(chan struct{})}
		store.gate.Store(g)
		w.Store = store
		time.AfterFunc(5*time.Second, g.Open)
		w.Up.Push("a", "1", testkit.Image(1))
		_, err := w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"}, pullthrough.ImportOptions{
			Progress: func(p pullthrough.ImportProgress) {
				if p.Stored && p.Descriptor.Digest == testkit.Image(1).Digest {
					_, err := w.Mem.Manifest(context.Background(), testkit.Repo("a"), "1")
					assert.NoError(t, err, "it is told as stored")
				}
			},
		})
		require.NoError(t, err)
		_, err = w.Mem.Manifest(t.Context(), testkit.Repo("a"), "1")
		assert.NoError(t, err)
		w.Settled(t)
	})
}

// A call that a fetch makes after its answer is out has nobody who could leave. Where
// as many of them hang as may run, the look-ups of others do not wait behind them for
// long.
func TestARuleSourceThatHangsForOneAccountHoldsUpNoOther(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		rules := w.Rules
		gate := make(chan struct{})
		var asked atomic.Int32
		w.Rules = pullthrough.RuleSourceFunc(func(ctx context.Context, account, region string) ([]pullthrough.Rule, error) {
			if account == "slow" && asked.Add(1) > 64 { // after the fetch, when the rule is compared
				<-gate
			}
			return rules.Rules(ctx, account, region)
		})
		w.Up.Push("a", "1", testkit.Image(1))
		answer := make(chan struct{})
		heal := w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/*", Stall: answer})
		for i := range 64 {
			repo := pullthrough.Repo{Account: "slow", Region: string(rune('A' + i)), Name: testkit.Prefix + "/a"}
			go func() { _, _ = w.Manifest(t.Context(), pullthrough.Request{Repo: repo, Ref: "1"}) }()
		}
		time.Sleep(time.Second)
		require.Equal(t, 64, w.Running())
		heal()
		close(answer)
		time.Sleep(time.Second)
		require.Equal(t, 64, w.Running())
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		_, err := w.Resolve(ctx, "1")
		assert.NoError(t, err)
		close(gate)
		w.Settled(t)
	})
}
