package ecrapi_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// immutable-refresh: a tag that is there never moves, and may come once.
func TestTagsThatMustNotMove(t *testing.T) {
	for mutability, moves := range map[string]map[string]bool{
		`"MUTABLE"`:   {"v1": true, "latest": true},
		`"IMMUTABLE"`: {"v1": false, "latest": false},
		`"IMMUTABLE_WITH_EXCLUSION","imageTagMutabilityExclusionFilters":[{"filterType":"WILDCARD","filter":"la*st"}]`: {"v1": false, "latest": true, "last": true, "latest2": false},
		`"MUTABLE_WITH_EXCLUSION","imageTagMutabilityExclusionFilters":[{"filterType":"WILDCARD","filter":"v*"}]`:      {"v1": false, "v": false, "latest": true},
	} {
		t.Run(mutability, func(t *testing.T) {
			r := newRegistry(t, memstore.New(), nil)
			r.template(t, `"imageTagMutability":`+mutability)
			one, two := image(1), image(2)
			for tag := range moves {
				r.up.Push("a", tag, one)
				r.pull(t, "a", tag)
				r.up.Push("a", tag, two)
			}
			r.wait(25 * time.Hour)
			for tag, moved := range moves {
				want := one
				if moved {
					want = two
				}
				m, err := r.proxy.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: tag})
				require.NoError(t, err)
				r.idle(t)
				assert.Equal(t, want.Digest, m.Descriptor.Digest, tag)
				assert.Equal(t, []string{want.Digest.String()}, r.tagged(t)[tag])
			}
			before := len(r.up.Log())
			for tag := range moves {
				r.pull(t, "a", tag)
			}
			assert.Len(t, r.up.Log(), before, "one check a day")
		})
	}
}

// Of two manifests that come for one tag at the same time one stays.
func TestAnImmutableTagIsPutOnce(t *testing.T) {
	catalog := &ecrapi.Catalog{Template: func(context.Context, pullthrough.Repo) (ecrapi.Template, bool, error) {
		return ecrapi.Template{ImageTagMutability: "IMMUTABLE"}, true, nil
	}}
	gate := make(chan struct{})
	mem := memstore.New()
	store := catalog.Around(&slowStore{Store: mem, gate: gate})
	require.NoError(t, store.(pullthrough.RepoCreator).CreateRepo(t.Context(), repo("a"), pullthrough.Rule{}, pullthrough.Request{}))
	results := make(chan error, 20)
	var puts sync.WaitGroup
	for i := range cap(results) {
		puts.Go(func() {
			results <- store.PutManifest(context.Background(), repo("a"), manifestOf(image(int64(i%2)), "v1"))
		})
	}
	for range cap(results) / 2 { // those that lose need no Store
		assert.ErrorIs(t, <-results, pullthrough.ErrImmutable)
	}
	close(gate)
	puts.Wait()
	for range cap(results) / 2 {
		assert.NoError(t, <-results)
	}
	stays, err := mem.Manifest(t.Context(), repo("a"), "v1")
	require.NoError(t, err)
	for i := range int64(2) {
		err := store.PutManifest(t.Context(), repo("a"), manifestOf(image(i), "v1"))
		assert.Equal(t, image(i).Digest == stays.Descriptor.Digest, err == nil)
	}
}

// A put that failed holds no tag.
func TestAnImmutableTagThatCouldNotBePut(t *testing.T) {
	catalog := &ecrapi.Catalog{Template: func(context.Context, pullthrough.Repo) (ecrapi.Template, bool, error) {
		return ecrapi.Template{ImageTagMutability: "IMMUTABLE"}, true, nil
	}}
	broken := &brokenStore{Store: memstore.New(), err: assert.AnError}
	store := catalog.Around(broken)
	require.NoError(t, store.(pullthrough.RepoCreator).CreateRepo(t.Context(), repo("a"), pullthrough.Rule{}, pullthrough.Request{}))
	assert.ErrorIs(t, store.PutManifest(t.Context(), repo("a"), manifestOf(image(1), "v1")), assert.AnError)
	broken.err = nil
	assert.NoError(t, store.PutManifest(t.Context(), repo("a"), manifestOf(image(2), "v1")))
}

// A check that ends late is no new manifest: it moves nothing and is not refused.
func TestALateCheckOfATag(t *testing.T) {
	for _, mutability := range []string{"MUTABLE", "IMMUTABLE"} {
		r := newRegistry(t, memstore.New(), nil)
		r.template(t, `"imageTagMutability":"`+mutability+`"`)
		one, two := image(1), image(2)
		r.up.Push("a", "v1", one)
		r.up.Push("a", "v2", two)
		r.pull(t, "a", "v1")
		r.pull(t, "a", "v2")
		late := manifestOf(two, "v1")
		late.Source = pullthrough.SourceRevalidated
		require.NoError(t, r.proxy.Store.PutManifest(t.Context(), repo("a"), late))
		assert.Equal(t, map[string][]string{"v1": {one.Digest.String()}, "v2": {two.Digest.String()}}, r.tagged(t))
	}
}

// Of two puts of one manifest the one that fails leaves the tag to the other.
func TestAnImmutableTagThatIsPutTwice(t *testing.T) {
	catalog := &ecrapi.Catalog{Template: func(context.Context, pullthrough.Repo) (ecrapi.Template, bool, error) {
		return ecrapi.Template{ImageTagMutability: "IMMUTABLE"}, true, nil
	}}
	turns, entered := make(chan error), make(chan struct{}, 2)
	store := catalog.Around(&turnsStore{Store: memstore.New(), turns: turns, entered: entered})
	require.NoError(t, store.(pullthrough.RepoCreator).CreateRepo(t.Context(), repo("a"), pullthrough.Rule{}, pullthrough.Request{}))
	results := make(chan error, 2)
	for range 2 {
		go func() { results <- store.PutManifest(context.Background(), repo("a"), manifestOf(image(1), "v1")) }()
	}
	<-entered
	<-entered
	turns <- assert.AnError
	require.ErrorIs(t, <-results, assert.AnError)
	assert.ErrorIs(t, store.PutManifest(t.Context(), repo("a"), manifestOf(image(2), "v1")), pullthrough.ErrImmutable)
	turns <- nil
	require.NoError(t, <-results)
}

// turnsStore waits to be told what becomes of a put.
type turnsStore struct {
	*memstore.Store
	turns   <-chan error
	entered chan<- struct{}
}

func (s *turnsStore) PutManifest(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	s.entered <- struct{}{}
	if err := <-s.turns; err != nil {
		return err
	}
	return s.Store.PutManifest(ctx, repo, m)
}

type brokenStore struct {
	*memstore.Store
	err error
}

func (s *brokenStore) PutManifest(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	if s.err != nil {
		return s.err
	}
	return s.Store.PutManifest(ctx, repo, m)
}

func manifestOf(img *pullthroughtest.Image, tag string) *pullthrough.Manifest {
	m := &pullthrough.Manifest{Content: img.Content, Tag: tag}
	m.Descriptor.MediaType, m.Descriptor.Digest, m.Descriptor.Size = img.MediaType, img.Digest, int64(len(img.Content))
	return m
}
