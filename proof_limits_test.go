package pullthrough_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestProofSpoolBytesSecondDownloadWaits(t *testing.T) {
	baseline(t)
	up, enter := piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		w.SpoolBytes = 5 << 20
		first, second := w.layer(3<<20), w.layer(3<<20+1)
		g := newGate(t)
		w.stall(g, first, 1<<20)
		b, err := w.open(t.Context(), first.Digest)
		require.NoError(t, err)
		start := time.Now()
		done := make(chan error)
		go func() { done <- w.whole(t.Context(), second.Digest) }()
		time.Sleep(5 * time.Second)
		select {
		case err := <-done:
			assert.Fail(t, "it did not wait", "%v", err)
		default:
		}
		g.open()
		assertBody(t, first.Digest, b)
		assert.NoError(t, <-done)
		assert.InDelta(t, 5*time.Second, time.Since(start), float64(time.Second), "it goes on as soon as there is room")
		w.settled(t)
		assert.Equal(t, 2, up.Count("*"))
		assertEmptyDir(t, w.SpoolDir)
	})
}

// assertBusy checks that err is answered 503, with the time to come back.
func assertBusy(t *testing.T, err error) {
	t.Helper()
	assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
	rec := httptest.NewRecorder()
	pullthrough.WriteError(rec, err)
	assert.Equal(t, http.StatusServiceUnavailable, rec.Code, "%s", rec.Body)
	assert.NotEmpty(t, rec.Header().Get("Retry-After"))
}

func TestProofSpoolBytesNoRoom(t *testing.T) {
	baseline(t)
	up, enter := piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		w.SpoolBytes = 5 << 20
		first, second, small := w.layer(3<<20), w.layer(3<<20+1), w.layer(1000)
		g := newGate(t)
		w.stall(g, first, 1<<20)
		b, err := w.open(t.Context(), first.Digest)
		require.NoError(t, err)
		start := time.Now()
		_, err = w.open(t.Context(), second.Digest)
		assertBusy(t, err)
		assert.InDelta(t, 10*time.Second, time.Since(start), float64(time.Second))
		start = time.Now()
		w.pullBlob(t, "a", small.Digest)
		assert.Less(t, time.Since(start), time.Second, "what needs no room does not wait for it")
		g.open()
		assertBody(t, first.Digest, b)
		w.settled(t)
		w.pullBlob(t, "a", second.Digest)
		assert.Equal(t, 4, up.Count("*"))
	})
}

func TestProofSpoolBytesLargerThanAllIsRefusedAtOnce(t *testing.T) {
	for name, fault := range map[string]pullthroughtest.Fault{"declared": {}, "undeclared": {NoLength: true}} {
		t.Run(name, func(t *testing.T) {
			baseline(t)
			up, enter := piped(t, pullthroughtest.Config{})
			synctest.Test(t, func(t *testing.T) {
				w := enter(t)
				w.SpoolBytes = 2 << 20
				layer, fits := w.layer(3<<20), w.layer(2<<20)
				fault.Match = blobs
				up.Fault(fault)
				start := time.Now()
				assert.ErrorIs(t, w.whole(t.Context(), layer.Digest), pullthrough.ErrUnavailable)
				assert.Less(t, time.Since(start), time.Second, "there never will be room")
				w.settled(t)
				start = time.Now()
				assert.NoError(t, w.whole(t.Context(), fits.Digest), "one that takes all there is")
				assert.Less(t, time.Since(start), time.Second, "and waits for nobody, least of all for itself")
				w.settled(t)
				assert.Equal(t, 2, up.Count("*"))
			})
		})
	}
}

// Whatever ends a download, its reservation is given back: one of full size
// finds room afterwards.
func TestProofSpoolBytesAreGivenBack(t *testing.T) {
	const size = 3 << 20
	for name, tc := range map[string]struct {
		faults []pullthroughtest.Fault
		stall  bool
		leave  bool
		policy pullthrough.Policy
		store  *faultyStore
	}{
		"well":             {},
		"wrong":            {faults: []pullthroughtest.Fault{{Flip: new(int64(-1))}}},
		"gone":             {faults: []pullthroughtest.Fault{{Times: 1, CutAfter: new(int64(1 << 20))}, {Status: 404}}},
		"of no length":     {faults: []pullthroughtest.Fault{{NoLength: true}}},
		"too long":         {faults: []pullthroughtest.Fault{{NoLength: true, Extend: 5}}, policy: pullthrough.Policy{MaxBlobBytes: size}},
		"endless":          {faults: []pullthroughtest.Fault{{NoLength: true, Extend: 1 << 40}}},
		"everybody leaves": {stall: true, leave: true, policy: pullthrough.Policy{Orphans: -1}},
		"nobody reads on":  {leave: true},
		"the Store fails":  {store: &faultyStore{putBlob: func(io.ReadSeeker) error { return errOnFire }}},
		"the Store panics": {store: &faultyStore{putBlob: func(io.ReadSeeker) error { panic(errOnFire) }}},
	} {
		t.Run(name, func(t *testing.T) {
			baseline(t)
			up, enter := piped(t, pullthroughtest.Config{})
			synctest.Test(t, func(t *testing.T) {
				w := enter(t)
				w.SpoolBytes = size
				w.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy { return tc.policy }
				if tc.store != nil {
					tc.store.Store = w.store
					w.Store = tc.store
				}
				layer, full := w.layer(size-100), w.layer(size)
				for _, f := range tc.faults {
					f.Match = blobs
					up.Fault(f)
				}
				if tc.stall {
					w.stall(newGate(t), layer, 1<<20)
				}
				for range 3 {
					b, err := w.open(t.Context(), layer.Digest)
					if err == nil {
						if !tc.leave {
							_, _ = io.Copy(io.Discard, b.Body)
						}
						require.NoError(t, b.Body.Close())
					}
					w.settled(t)
				}
				up.Heal()
				up.Reset()
				start := time.Now()
				w.pullBlob(t, "a", full.Digest)
				assert.Less(t, time.Since(start), time.Second, "it did not wait for room")
				w.settled(t)
				assert.Equal(t, []string{"GET /v2/a/blobs/" + full.Digest.String() + " 200"}, up.Log())
				assertEmptyDir(t, w.SpoolDir)
			})
		})
	}
}

// One rule's downloads that stall delay no other rule's, nor manifests and
// tokens of their own.
func TestProofMaxDownloads(t *testing.T) {
	baseline(t)
	up, enter := piped(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		w.Rules = pullthrough.StaticRules{{Prefix: prefix, UpstreamURL: up.URL()}, {Prefix: "other", UpstreamURL: up.URL()}}
		w.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{MaxDownloads: 2}
		}
		g := newGate(t)
		var open []*pullthrough.Blob
		var stalled []*pullthroughtest.Blob
		for i := range 2 {
			layer := w.layer(2<<20 + int64(i))
			w.stall(g, layer, 1<<20)
			b, err := w.open(t.Context(), layer.Digest)
			require.NoError(t, err)
			open, stalled = append(open, b), append(stalled, layer)
		}
		third := w.layer(1000)
		img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 99})
		up.Push("b", "1", img)
		up.RevokeTokens()

		start := time.Now()
		m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: repo("b"), Ref: "1"})
		require.NoError(t, err)
		assert.Equal(t, img.Digest, m.Descriptor.Digest)
		b, err := w.Blob(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: third.Digest.String(), Head: true})
		require.NoError(t, err)
		assert.EqualValues(t, 1000, b.Descriptor.Size)
		other := pullthrough.Repo{Name: "other/b"}
		b, err = w.Blob(t.Context(), pullthrough.Request{Repo: other, Ref: img.Layers[0].Digest.String()})
		require.NoError(t, err)
		assertBody(t, img.Layers[0].Digest, b)
		assert.Less(t, time.Since(start), time.Second, "none of them waits")

		_, err = w.open(t.Context(), third.Digest)
		assertBusy(t, err)
		assert.InDelta(t, 10*time.Second, time.Since(start), float64(time.Second), "the rule's third download does")
		done := make(chan error)
		go func() { done <- w.whole(t.Context(), third.Digest) }()
		time.Sleep(time.Second)
		g.open()
		for i, b := range open {
			assertBody(t, stalled[i].Digest, b)
		}
		assert.NoError(t, <-done)
		w.settled(t)
		for _, layer := range stalled {
			assert.Equal(t, 1, up.Count(blobs+layer.Digest.Encoded()+" 20*"))
		}
		assert.Equal(t, 1, up.Count(blobs+third.Digest.Encoded()+" 200"))
	})
}

// countingFiles is files without stages. It counts how often a blob is opened, and
// can fail to.
type countingFiles struct {
	*files
	opened atomic.Int64
	fails  atomic.Bool
}

func (s *countingFiles) Blob(ctx context.Context, r pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	s.opened.Add(1)
	if s.fails.Load() {
		return nil, errOnFire
	}
	return s.files.Blob(ctx, r, d)
}

// spools are the descriptors on spool files.
func spools(t *testing.T) (open []string) {
	for _, name := range openFiles(t) {
		if strings.Contains(name, ".spool") {
			open = append(open, name)
		}
	}
	return open
}

func TestProofHandingOver(t *testing.T) {
	const size = 3 << 20
	baseline(t)
	store := &countingFiles{files: newFiles(t.TempDir())}
	w := newWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store, p.SpoolBytes = store, size+1 })
	layer, next := w.layer(size), w.layer(size+1)
	content := blobContent(t, layer)
	g := newGate(t)
	w.stall(g, layer, 2<<20)
	var slow []*pullthrough.Blob
	for range 3 {
		b, err := w.open(t.Context(), layer.Digest)
		require.NoError(t, err)
		slow = append(slow, b)
	}
	requireRead(t, slow[0].Body, 1<<20)
	requireRead(t, slow[1].Body, 10)
	assert.NotEmpty(t, spools(t))
	g.open()
	w.settled(t)
	for i, at := range []int{1 << 20, 10, 0} {
		assertSame(t, content[at:at+5], requireRead(t, slow[i].Body, 5))
	}
	assert.Empty(t, spools(t), "the spool is gone while they read")
	assertEmptyDir(t, w.SpoolDir)
	start := time.Now()
	w.pullBlob(t, "a", next.Digest)
	assert.Less(t, time.Since(start), 9*time.Second, "its room is free")
	for i, at := range []int{1 << 20, 10, 0} {
		got, err := io.ReadAll(slow[i].Body)
		assert.NoError(t, err)
		assertSame(t, content[at+5:], got)
		_, err = slow[i].Body.(io.Seeker).Seek(-7, io.SeekEnd)
		assert.NoError(t, err)
		assertSame(t, content[size-7:], requireRead(t, slow[i].Body, 7))
		require.NoError(t, slow[i].Body.Close())
	}
	w.settled(t)
	assert.Equal(t, 2, w.up.Count("*"))
}

// A Store that cannot open what it has just stored keeps the reader where it
// is, and is not asked again for every read.
func TestProofHandingOverFails(t *testing.T) {
	baseline(t)
	store := &countingFiles{files: newFiles(t.TempDir())}
	heard := &events{}
	w := newWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store, p.OnEvent = store, heard.on })
	layer := w.layer(3 << 20)
	b, err := w.open(t.Context(), layer.Digest)
	require.NoError(t, err)
	w.settled(t)
	store.fails.Store(true)
	before := store.opened.Load()
	v := layer.Digest.Verifier()
	_, err = io.CopyBuffer(struct{ io.Writer }{v}, struct{ io.Reader }{b.Body}, make([]byte, 4<<10))
	assert.NoError(t, err)
	assert.True(t, v.Verified())
	assert.NoError(t, b.Body.Close())
	assert.LessOrEqual(t, store.opened.Load()-before, int64(10), "calls of Store.Blob by one reader")
	assert.LessOrEqual(t, len(heard.storeFailures()), 10)
	assert.Equal(t, 1, w.up.Count("*"))
}

// A client that takes next to nothing loses its place when room is wanted, and
// others do not.
func TestProofSlowReaderIsCutWhenRoomIsWanted(t *testing.T) {
	baseline(t)
	up, enter := piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		w.SpoolBytes = 3<<20 + 1
		layer, next := w.layer(3<<20), w.layer(3<<20+1)
		g := newGate(t)
		w.stall(g, layer, 2<<20)
		transport := servePiped(t, w.Proxy)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://registry.test"+blobPath("a", layer.Digest), nil)
		require.NoError(t, err)
		slow, err := transport.RoundTrip(r)
		require.NoError(t, err)
		requireRead(t, slow.Body, 100)
		time.Sleep(time.Second) // it is in the middle of a piece
		g.open()
		w.settled(t)
		_, err = w.open(t.Context(), next.Digest)
		assertBusy(t, err) // it is not slow yet
		time.Sleep(11 * time.Minute)
		requireRead(t, slow.Body, 100)
		assert.NoError(t, w.whole(t.Context(), next.Digest))
		n, err := io.Copy(io.Discard, slow.Body)
		assert.Error(t, err, "it is told")
		assert.Less(t, n, int64(3<<20))
		assert.NoError(t, slow.Body.Close())
		w.settled(t)
		assert.Equal(t, 3, up.Count("*"))
	})
}
