package pullthrough_test

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
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

func TestAColdPullCostsOneChallengeOneTokenAndOneGetPerObject(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 5})
	w.Up.Push("library/alpine", "latest", img)

	w.Pull(t, "library/alpine", "latest", img)
	want := []string{"GET /v2/library/alpine/manifests/latest 401", "GET /token 200", "GET /v2/library/alpine/manifests/latest 200"}
	for _, b := range img.Blobs() {
		want = append(want, "GET /v2/library/alpine/blobs/"+b.Digest.String()+" 200")
	}
	assert.Equal(t, want, w.Up.Log())

	w.Up.Reset()
	w.Pull(t, "library/alpine", "latest", img)
	w.Pull(t, "library/alpine", img.Digest.String(), img)
	assert.Empty(t, w.Up.Log(), "a warm pull asks nobody")
}

func TestEveryKindOfImagePulls(t *testing.T) {
	images := map[string]*pullthroughtest.Image{
		"oci image":    pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}),
		"docker image": pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2, Docker: true}),
		"artifact":     pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 3, ArtifactType: "application/vnd.example.chart"}),
		"sha512":       pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 4, Algorithm: digest.SHA512}),
		"empty layer":  pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 5, Layers: 1, LayerSize: -1}),
		"large layer":  pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 6, Layers: 1, LayerSize: 3<<20 + 5}),
	}
	for name, img := range images {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			w.Up.Push("a", "1", img)
			ref := "1"
			if img.Digest.Algorithm() != digest.SHA256 {
				ref = img.Digest.String() // by tag a manifest's identity is its sha256
			}
			w.Pull(t, "a", ref, img)
			assert.Equal(t, 1+len(img.Blobs()), w.Up.Count("*"))
			w.Up.Reset()
			w.Pull(t, "a", ref, img)
			assert.Empty(t, w.Up.Log())
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

func TestTheUpstreamPrefixAndNestedNames(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	w.Rules = pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: w.Up.URL() + "/", UpstreamPrefix: "org/team"}}
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("org/team/blobs/manifests", "1", img)
	w.Pull(t, "blobs/manifests", "1", img)
	assert.Equal(t, 1, w.Up.Count("GET /v2/org/team/blobs/manifests/manifests/1 200"))
}

func TestDockerHubBySeveralNames(t *testing.T) {
	for _, spelled := range []string{"registry-1.docker.io", "docker.io", "index.docker.io", "https://docker.io"} {
		var asked string
		p := &pullthrough.Proxy{
			Store: memstore.New(),
			Rules: pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: spelled}},
			Policy: func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
				return pullthrough.Policy{Retries: -1}
			},
			Transport: testkit.RoundTripper(func(r *http.Request) (*http.Response, error) {
				asked = r.URL.String()
				return nil, errors.New("no network here")
			}),
		}
		_, err := p.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("library/alpine"), Ref: "3"})
		assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
		assert.Equal(t, "https://registry-1.docker.io/v2/library/alpine/manifests/3", asked)
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

func TestStoredContentOutlivesItsRule(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, testkit.EveryPull)
	rules := w.Rules
	w.Rules = pullthrough.RuleSourceFunc(func(ctx context.Context, account, region string) ([]pullthrough.Rule, error) {
		return rules.Rules(ctx, account, region)
	})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("a", "1", img)
	w.Pull(t, "a", "1", img)
	rules = pullthrough.StaticRules{}
	w.Up.Reset()
	w.Pull(t, "a", "1", img)
	_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "2"})
	assert.ErrorIs(t, err, pullthrough.ErrNoRule)
	assert.Empty(t, w.Up.Log())
}

// What comes in by a rule that is deleted meanwhile is served and not stored.
func TestARuleThatGoesDuringTheFetchStoresNothing(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	var mu sync.Mutex
	rules := w.Rules
	w.Rules = pullthrough.RuleSourceFunc(func(ctx context.Context, account, region string) ([]pullthrough.Rule, error) {
		mu.Lock()
		defer mu.Unlock()
		return rules.Rules(ctx, account, region)
	})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("a", "1", img)
	gate := make(chan struct{})
	w.Up.Fault(pullthroughtest.Fault{Stall: gate})
	done := make(chan error, 1)
	go func() {
		_, err := w.Manifest(context.Background(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
		done <- err
	}()
	require.Eventually(t, func() bool { return w.Running() == 1 }, 10*time.Second, time.Millisecond)
	mu.Lock()
	rules = pullthrough.StaticRules{}
	mu.Unlock()
	close(gate)
	require.NoError(t, <-done)
	_, err := w.Stored(t, "1")
	assert.Error(t, err)
	assert.Equal(t, 1, w.Up.Count("*"))
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

func TestStoresMustNotLoseWhatTheHostKnows(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("a", "1", img)
	w.Up.Push("a", "2", img)
	w.Pull(t, "a", "1", img)
	first, err := w.Stored(t, img.Digest.String())
	require.NoError(t, err)
	w.Pull(t, "a", "2", img)
	again, err := w.Stored(t, img.Digest.String())
	require.NoError(t, err)
	assert.Same(t, first, again, "a second tag of a known digest changes nothing else")
	assert.Equal(t, 2, w.Up.Count("GET /v2/a/manifests/* 200"))
}

func TestABlobIsVisibleOnlyWhereUpstreamHasIt(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("mine", "1", img)
	w.Pull(t, "mine", "1", img)
	w.Up.Reset()
	d := img.Blobs()[0].Digest
	_, err := w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("theirs"), Ref: d.String()})
	assert.ErrorIs(t, err, pullthrough.ErrNotFound)
	assert.Equal(t, []string{"GET /v2/theirs/blobs/" + d.String() + " 404"}, w.Up.Log())
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

func TestAfterShutdownHitsAreServedAndMissesRefused(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("a", "1", img)
	w.Pull(t, "a", "1", img)
	require.NoError(t, w.Shutdown(t.Context()))
	w.Up.Reset()
	w.Pull(t, "a", "1", img)
	_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "2"})
	assert.ErrorIs(t, err, pullthrough.ErrClosed)
	_, err = w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("b"), Ref: img.Blobs()[0].Digest.String()})
	assert.ErrorIs(t, err, pullthrough.ErrClosed)
	assert.Empty(t, w.Up.Log())
}

func TestEventsSayWhatHappened(t *testing.T) {
	told := &testkit.Events{}
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(p *pullthrough.Proxy) { p.OnEvent = told.On })
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 1})
	w.Up.Push("a", "1", img)
	for range 2 {
		_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1", Caller: "arn", Head: true})
		require.NoError(t, err)
		w.Settled(t)
	}
	fetches, answers := told.Of(pullthrough.EventFetch), told.Of(pullthrough.EventManifest)
	require.Len(t, fetches, 1)
	assert.Equal(t, 3, fetches[0].Upstream, "a challenge, a token, a manifest")
	assert.Equal(t, []pullthrough.Source{pullthrough.SourceFill, pullthrough.SourceHit}, told.Sources())
	assert.Equal(t, "arn", answers[1].Request.Caller)
	assert.True(t, answers[1].Request.Head)
	assert.EqualValues(t, len(img.Content), answers[1].Bytes)
	assert.Equal(t, 3, w.Up.Count("*"))
}
