package pullthrough_test

import (
	"context"
	"io/fs"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// A manifest is answered when it is verified. Until the Store has it, everybody who
// asks for it, by tag or by digest, is answered by the fetch that runs.
func TestAManifestIsAnsweredBeforeTheStoreHasIt(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		release := heldPuts(w)()
		img := testkit.Image(1)
		w.Up.Push("a", "1", img)
		start := time.Now()
		m, err := w.Resolve(t.Context(), "1")
		require.NoError(t, err)
		assert.Equal(t, pullthrough.SourceFill, m.Source)
		for _, ref := range []string{"1", img.Digest.String()} {
			m, err := w.Resolve(t.Context(), ref)
			require.NoError(t, err)
			assert.Equal(t, pullthrough.SourceShared, m.Source)
			assert.Equal(t, img.Digest, m.Descriptor.Digest)
		}
		assert.Zero(t, time.Since(start), "nobody has waited")
		_, err = w.Mem.Manifest(t.Context(), testkit.Repo("a"), "1")
		assert.Error(t, err)
		release()
		w.Settled(t)
		m, err = w.Resolve(t.Context(), "1")
		require.NoError(t, err)
		assert.Equal(t, pullthrough.SourceHit, m.Source)
		assert.Equal(t, []string{"GET /v2/a/manifests/1 200"}, w.Up.Log())
	})
}

// uncreated has no repository, and none shall be made.
type uncreated struct {
	pullthrough.Store
	t *testing.T
}

func (s *uncreated) RepoExists(context.Context, pullthrough.Repo) (bool, error) { return false, nil }

func (s *uncreated) CreateRepo(context.Context, pullthrough.Repo, pullthrough.Rule, pullthrough.Request) error {
	s.t.Error("a repository was made")
	return nil
}

// What came by a rule that is another one by now is served and not stored, and makes no
// repository.
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
				testkit.WithPolicy(pullthrough.Policy{BlobsFirst: true})(p)
				rules = p.Rules.(pullthrough.StaticRules)
				p.Rules = pullthrough.RuleSourceFunc(func(context.Context, string, string) ([]pullthrough.Rule, error) {
					mu.Lock()
					defer mu.Unlock()
					return rules, nil
				})
			})
			w.Store = &uncreated{w.Store, t}
			img := testkit.Image(1)
			w.Up.Push("a", "1", img)
			for _, pull := range []func(){
				func() {
					m, err := w.Resolve(t.Context(), "1")
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

func TestAnIndexIsPulledChildByChild(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	amd := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1, Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}})
	arm := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2, Platform: ocispec.Platform{OS: "linux", Architecture: "arm64"}})
	index := pullthroughtest.NewIndex(amd, arm)
	w.Up.Push("a", "1", index)
	m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
	require.NoError(t, err)
	assert.Equal(t, index.Content, m.Content)
	w.Pull(t, "a", arm.Digest.String(), arm)
	assert.Equal(t, 2, w.Up.Count("GET /v2/a/manifests/* 200"))
	assert.Zero(t, w.Up.Count("*"+amd.Digest.String()+"*"), "nobody asked for that platform")
}

func TestManyPullsOfOneTagAreOneRequest(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("a", "1", img)
	gate := make(chan struct{})
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/* 200", Stall: gate})
	var wg sync.WaitGroup
	sources := make([]pullthrough.Source, 32)
	for i := range sources {
		wg.Go(func() {
			m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
			if assert.NoError(t, err) {
				sources[i] = m.Source
			}
		})
	}
	require.NoError(t, w.Up.Wait(t.Context(), "GET /token 200", 1))
	close(gate)
	wg.Wait()
	assert.Equal(t, []string{"GET /v2/a/manifests/1 401", "GET /token 200", "GET /v2/a/manifests/1 200"}, w.Up.Log())
	fills := 0
	for _, s := range sources {
		if s == pullthrough.SourceFill {
			fills++
		}
	}
	assert.Equal(t, 1, fills, "one fetched, the others shared or found it stored")
}

func TestTheCallersContextEndsOnlyItsOwnWait(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("a", "1", img)
	gate := make(chan struct{})
	w.Up.Fault(pullthroughtest.Fault{Stall: gate})
	ctx, cancel := context.WithCancel(t.Context())
	leader := make(chan error, 1)
	go func() {
		_, err := w.Manifest(ctx, pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
		leader <- err
	}()
	require.Eventually(t, func() bool { return w.Running() == 1 }, 10*time.Second, time.Millisecond)
	follower := make(chan error, 1)
	go func() {
		m, err := w.Manifest(context.Background(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
		if err == nil {
			assert.Equal(t, img.Content, m.Content)
		}
		follower <- err
	}()
	require.Eventually(t, func() bool { return w.Waiting(testkit.Repo("a"), "1") == 2 }, 10*time.Second, time.Millisecond)
	cancel()
	assert.ErrorIs(t, <-leader, context.Canceled)
	close(gate)
	assert.NoError(t, <-follower)
	assert.Equal(t, 1, w.Up.Count("*"))
}

// A fetch looks into the Store once more, since another may have ended after its caller
// looked.
func TestAManifestThatHasBeenStoredMeanwhileIsNotFetched(t *testing.T) {
	img := testkit.Image(1)
	for _, ref := range []string{"1", img.Digest.String()} {
		t.Run(ref, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			w.Up.Push("a", "1", img)
			w.Pull(t, "a", "1", img)
			w.Up.Reset()
			var looks atomic.Int32
			store := &testkit.FaultyStore{Store: w.Mem, OnManifest: func() error {
				if looks.Add(1) == 1 {
					return fs.ErrNotExist
				}
				return nil
			}}
			again := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store, p.Rules = store, w.Rules })
			m, err := again.Resolve(t.Context(), ref)
			require.NoError(t, err)
			assert.Equal(t, img.Digest, m.Descriptor.Digest)
			assert.EqualValues(t, 2, looks.Load())
			assert.Empty(t, w.Up.Log())
		})
	}
}
