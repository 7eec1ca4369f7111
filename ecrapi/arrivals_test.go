package ecrapi_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// slowStore keeps the manifests that it is given waiting, and then fails if err is set.
type slowStore struct {
	*memstore.Store
	gate chan struct{}
	err  error
}

func (s *slowStore) PutManifest(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	<-s.gate
	if s.err != nil {
		return s.err
	}
	return s.Store.PutManifest(ctx, repo, m)
}

// inBubble runs a test with a registry over a slow Store, in a synctest bubble.
// Upstream has hub/a:v1 and hub/b:v1.
func inBubble(t *testing.T, run func(t *testing.T, r *registry, store *slowStore)) {
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	up.Push("a", "v1", image(1))
	up.Push("b", "v1", image(2))
	synctest.Test(t, func(t *testing.T) {
		store := &slowStore{Store: memstore.New(), gate: make(chan struct{})}
		transport := &http.Transport{DialContext: up.DialPipe, DisableCompression: true}
		t.Cleanup(transport.CloseIdleConnections)
		r := registryBefore(t, up, store, func(r *registry) { r.proxy.Transport = transport })
		run(t, r, store)
	})
}

// answer pulls a manifest, and returns when its client has it.
func (r *registry) answer(t *testing.T, name string) {
	t.Helper()
	_, err := r.proxy.Manifest(t.Context(), pullthrough.Request{Repo: repo(name), Ref: "v1"})
	require.NoError(t, err)
}

// took is how long f takes.
func took(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

func TestAReadWaitsForWhatWasJustAnswered(t *testing.T) {
	const wait = 300 * time.Millisecond
	nobody := pullthrough.Identity{}
	get := func(path string) func(*testing.T, *registry) any {
		return func(_ *testing.T, r *registry) any {
			w := httptest.NewRecorder()
			r.proxy.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
			return w.Body.String()
		}
	}
	for name, c := range map[string]struct {
		read func(*testing.T, *registry) any
		want any
		wait time.Duration
	}{
		"ListImages": {func(t *testing.T, r *registry) any { return r.tagged(t)["v1"] }, []string{image(1).Digest.String()}, wait},
		"DescribeImages": {func(t *testing.T, r *registry) any {
			return r.pulledAt(t, image(1))
		}, epoch.Unix(), wait},
		"DescribeRepositories": {func(t *testing.T, r *registry) any {
			out, err := r.api.DescribeRepositories(t.Context(), nobody, ecrapi.DescribeRepositoriesInput{})
			require.NoError(t, err)
			return len(out.Repositories)
		}, 1, 0},
		"DescribeRepositories by name": {func(t *testing.T, r *registry) any {
			out, err := r.api.DescribeRepositories(t.Context(), nobody, ecrapi.DescribeRepositoriesInput{RepositoryNames: []string{"hub/a"}})
			require.NoError(t, err)
			return len(out.Repositories)
		}, 1, 0},
		"BatchCheckLayerAvailability": {func(t *testing.T, r *registry) any {
			out, err := r.api.BatchCheckLayerAvailability(t.Context(), nobody, ecrapi.BatchCheckLayerAvailabilityInput{
				RepositoryName: new("hub/a"), LayerDigests: []string{image(1).Layers[0].Digest.String()},
			})
			require.NoError(t, err)
			return out.Layers[0].LayerAvailability
		}, "UNAVAILABLE", wait},
		"ListImageReferrers": {func(t *testing.T, r *registry) any {
			out, err := r.api.ListImageReferrers(t.Context(), nobody, ecrapi.ListImageReferrersInput{
				RepositoryName: new("hub/a"), SubjectId: &ecrapi.SubjectIdentifier{ImageDigest: new(image(1).Digest.String())},
			})
			require.NoError(t, err)
			return len(out.Referrers)
		}, 0, wait},
		"tags":         {get("/v2/hub/a/tags/list"), `{"name":"hub/a","tags":["old","v1"]}`, wait},
		"repositories": {get("/v2/_catalog"), `{"repositories":["hub/a"]}`, wait},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *registry, store *slowStore) {
				// The Store has the repository, and nobody has noted it.
				require.NoError(t, store.Store.PutManifest(t.Context(), repo("a"), manifestOf(image(3), "old")))
				r.answer(t, "a")
				time.AfterFunc(wait, func() { close(store.gate) })
				assert.Equal(t, c.wait, took(func() { assert.Equal(t, c.want, c.read(t, r)) }))
				assert.Zero(t, took(func() { assert.Equal(t, c.want, c.read(t, r)) }), "it is there now")
			})
		})
	}
}

func TestAReadDoesNotWaitLong(t *testing.T) {
	for name, c := range map[string]struct {
		run  func(t *testing.T, r *registry, store *slowStore)
		want time.Duration
	}{
		"the Store is slow": {func(*testing.T, *registry, *slowStore) {}, time.Second},
		"the Store fails": {func(_ *testing.T, _ *registry, store *slowStore) {
			store.err = assert.AnError
			time.AfterFunc(300*time.Millisecond, func() { close(store.gate) })
		}, 300 * time.Millisecond},
		"more is answered meanwhile": {func(t *testing.T, r *registry, _ *slowStore) {
			time.AfterFunc(500*time.Millisecond, func() { r.answer(t, "a") })
		}, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *registry, store *slowStore) {
				r.answer(t, "a")
				c.run(t, r, store)
				assert.Equal(t, c.want, took(func() { assert.Empty(t, r.tagged(t)) }))
				if c.want != 300*time.Millisecond {
					close(store.gate)
				}
			})
		})
	}
}

func TestAReadDoesNotWaitForOthers(t *testing.T) {
	inBubble(t, func(t *testing.T, r *registry, store *slowStore) {
		r.answer(t, "a")
		r.answer(t, "b")
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		in := ecrapi.DescribeImagesInput{RepositoryName: new("hub/a")}
		assert.Equal(t, 300*time.Millisecond, took(func() {
			_, err := r.api.DescribeImages(ctx, pullthrough.Identity{}, in)
			assert.NoError(t, err)
		}), "the caller has left")
		assert.Zero(t, took(func() {
			out, err := r.api.DescribeRepositories(t.Context(), pullthrough.Identity{}, ecrapi.DescribeRepositoriesInput{})
			assert.NoError(t, err)
			assert.Len(t, out.Repositories, 2)
		}), "both repositories were created before their pulls were answered")
		in.RepositoryName = new("hub/c")
		assert.Zero(t, took(func() {
			_, err := r.api.DescribeImages(t.Context(), pullthrough.Identity{}, in)
			assert.Error(t, err)
		}), "another repository")
		close(store.gate)
		r.idle(t)
		r.answer(t, "a")
		assert.Zero(t, took(func() { assert.Len(t, r.tagged(t), 1) }), "a hit")
	})
}

// A pull is recorded although the Store has not got its image in time.
func TestAPullIsRecordedBeforeTheImageIsStored(t *testing.T) {
	inBubble(t, func(t *testing.T, r *registry, store *slowStore) {
		r.answer(t, "a")
		assert.Empty(t, r.tagged(t), "the repository is there, the image is not yet")
		pulled := r.clock.Load()
		r.wait(time.Minute)
		close(store.gate)
		r.idle(t)
		assert.Equal(t, pulled, r.pulledAt(t, image(1)))
	})
}
