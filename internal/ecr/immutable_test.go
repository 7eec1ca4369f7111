package ecr_test

import (
	"context"
	"sync"
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

// immutableStore refuses to move a tag that it has, as an immutable repository
// does, and waits at gate, if there is one, before it says so.
type immutableStore struct {
	*memstore.Store
	gate    chan struct{}
	refused atomic.Int32
}

func (s *immutableStore) PutManifest(ctx context.Context, r pullthrough.Repo, m *pullthrough.Manifest) error {
	have, err := s.Store.Manifest(ctx, r, m.Tag)
	if m.Tag != "" && err == nil && have.Descriptor.Digest != m.Descriptor.Digest {
		s.refused.Add(1)
		if s.gate != nil {
			<-s.gate
		}
		return pullthrough.ErrImmutable
	}
	return s.Store.PutManifest(ctx, r, m)
}

func TestAnImmutableTagStaysAndItsNewDigestIsStillTheNewManifest(t *testing.T) {
	store := &immutableStore{Store: memstore.New(), gate: make(chan struct{})}
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store = store; testkit.EveryPull(p) })
	one, two := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	w.Up.Push("a", "1", one)
	w.Pull(t, "a", "1", one)
	w.Up.Push("a", "1", two)
	byTag := make(chan digest.Digest, 1)
	byDigest := make(chan digest.Digest, 1)
	get := func(ref string, to chan<- digest.Digest) {
		m, err := w.Manifest(context.Background(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: ref})
		if assert.NoError(t, err) {
			to <- m.Descriptor.Digest
		}
	}
	go get("1", byTag)
	require.Eventually(t, func() bool { return store.refused.Load() == 1 }, 10*time.Second, time.Millisecond)
	go get(two.Digest.String(), byDigest)
	close(store.gate)
	assert.Equal(t, one.Digest, <-byTag)
	assert.Equal(t, two.Digest, <-byDigest)
	w.Settled(t)
	got, err := store.Manifest(t.Context(), testkit.Repo("a"), "1")
	require.NoError(t, err)
	assert.Equal(t, one.Digest, got.Descriptor.Digest)
	assert.LessOrEqual(t, w.Up.Count("GET /v2/a/manifests/*"), 3)
}

func TestAnImmutableTagThatMovedIsNotFetchedOnEveryPull(t *testing.T) {
	store := &immutableStore{Store: memstore.New()}
	clock := new(testkit.HandClock)
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store, p.Now = store, clock.Now })
	one, two := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	w.Up.Push("a", "1", one)
	w.Pull(t, "a", "1", one)
	w.Up.Push("a", "1", two)
	clock.Pass(25 * time.Hour)
	w.Up.Reset()
	for range 5 {
		m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
		require.NoError(t, err)
		assert.Equal(t, one.Digest, m.Descriptor.Digest)
		w.Settled(t)
	}
	assert.Len(t, w.Up.Log(), 2, "one check a day")
}

// slowPut is a Store whose first put of a manifest waits.
type slowPut struct {
	*memstore.Store
	once    sync.Once
	entered chan struct{}
	gate    chan struct{}
}

func (s *slowPut) PutManifest(ctx context.Context, r pullthrough.Repo, m *pullthrough.Manifest) error {
	s.once.Do(func() { close(s.entered); <-s.gate })
	return s.Store.PutManifest(ctx, r, m)
}

// A put that comes late must not undo a newer one: nobody fetches the tag anew
// before the put of what was fetched has ended.
func TestAnOlderPutDoesNotOverwriteANewerTag(t *testing.T) {
	store := &slowPut{Store: memstore.New(), entered: make(chan struct{}), gate: make(chan struct{})}
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store = store; testkit.EveryPull(p) })
	one, two := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	w.Up.Push("a", "1", one)
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := w.Manifest(ctx, pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
		gone <- err
	}()
	<-store.entered
	cancel()
	if err := <-gone; err != nil { // else it was answered before it left
		assert.ErrorIs(t, err, context.Canceled)
	}
	w.Up.Push("a", "1", two)
	shared, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
	require.NoError(t, err)
	assert.Equal(t, one.Digest, shared.Descriptor.Digest)
	close(store.gate)
	w.Settled(t)
	w.Pull(t, "a", "1", two)
	got, err := store.Manifest(t.Context(), testkit.Repo("a"), "1")
	require.NoError(t, err)
	assert.Equal(t, two.Digest, got.Descriptor.Digest)
	assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/1 200"))
}

func TestALateCheckDoesNotUndoAPush(t *testing.T) {
	store := memstore.New()
	pushed := testkit.LocalManifest("1")
	require.NoError(t, store.PutManifest(t.Context(), testkit.Repo("a"), pushed))
	old := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1})
	late := &pullthrough.Manifest{Content: old.Content, Tag: "1", CheckedAt: time.Now(), Source: pullthrough.SourceRevalidated}
	late.Descriptor = old.Descriptor()
	require.NoError(t, store.PutManifest(t.Context(), testkit.Repo("a"), late))
	got, err := store.Manifest(t.Context(), testkit.Repo("a"), "1")
	require.NoError(t, err)
	assert.Equal(t, pushed.Descriptor.Digest, got.Descriptor.Digest)
}
