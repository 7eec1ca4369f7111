package fill_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestSpoolBytesSecondDownloadWaits(t *testing.T) {
	testkit.Baseline(t)
	up, enter := testkit.Piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		w.SpoolBytes = 5 << 20
		first, second := w.Layer(3<<20), w.Layer(3<<20+1)
		g := testkit.NewGate(t)
		stall(w, g, first, 1<<20)
		b, err := w.Open(t.Context(), first.Digest)
		require.NoError(t, err)
		start := time.Now()
		done := make(chan error)
		go func() { done <- w.Whole(t.Context(), second.Digest) }()
		time.Sleep(5 * time.Second)
		select {
		case err := <-done:
			assert.Fail(t, "it did not wait", "%v", err)
		default:
		}
		g.Open()
		testkit.AssertBody(t, first.Digest, b)
		assert.NoError(t, <-done)
		assert.InDelta(t, 5*time.Second, time.Since(start), float64(time.Second), "it goes on as soon as there is room")
		w.Settled(t)
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

func TestSpoolBytesNoRoom(t *testing.T) {
	testkit.Baseline(t)
	up, enter := testkit.Piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		w.SpoolBytes = 5 << 20
		first, second, small := w.Layer(3<<20), w.Layer(3<<20+1), w.Layer(1000)
		g := testkit.NewGate(t)
		stall(w, g, first, 1<<20)
		b, err := w.Open(t.Context(), first.Digest)
		require.NoError(t, err)
		start := time.Now()
		_, err = w.Open(t.Context(), second.Digest)
		assertBusy(t, err)
		assert.InDelta(t, 10*time.Second, time.Since(start), float64(time.Second))
		start = time.Now()
		w.PullBlob(t, "a", small.Digest)
		assert.Less(t, time.Since(start), time.Second, "what needs no room does not wait for it")
		g.Open()
		testkit.AssertBody(t, first.Digest, b)
		w.Settled(t)
		w.PullBlob(t, "a", second.Digest)
		assert.Equal(t, 4, up.Count("*"))
	})
}

func TestSpoolBytesLargerThanAllIsRefusedAtOnce(t *testing.T) {
	for name, fault := range map[string]pullthroughtest.Fault{"declared": {}, "undeclared": {NoLength: true}} {
		t.Run(name, func(t *testing.T) {
			testkit.Baseline(t)
			up, enter := testkit.Piped(t, pullthroughtest.Config{})
			synctest.Test(t, func(t *testing.T) {
				w := enter(t)
				w.SpoolBytes = 2 << 20
				layer, fits := w.Layer(3<<20), w.Layer(2<<20)
				fault.Match = testkit.Blobs
				up.Fault(fault)
				start := time.Now()
				assert.ErrorIs(t, w.Whole(t.Context(), layer.Digest), pullthrough.ErrUnavailable)
				assert.Less(t, time.Since(start), time.Second, "there never will be room")
				w.Settled(t)
				start = time.Now()
				assert.NoError(t, w.Whole(t.Context(), fits.Digest), "one that takes all there is")
				assert.Less(t, time.Since(start), time.Second, "and waits for nobody, least of all for itself")
				w.Settled(t)
				assert.Equal(t, 2, up.Count("*"))
			})
		})
	}
}

// What a Store's place had no room for counts, from where it is in SpoolDir.
func TestSpoolBytesOfWhatAStageHadNoRoomFor(t *testing.T) {
	const size = 6 << 20
	for name, tc := range map[string]struct {
		stage   int64 // how much it takes
		limit   int64
		fits    bool
		refused bool // before there is an answer
	}{
		"nothing, and all fits":        {0, size, true, false},
		"nothing, and it does not fit": {0, 4 << 20, false, true},
		"half, and the rest fits":      {3 << 20, 3<<20 + 256<<10, true, false},
		"half, and the rest does not":  {3 << 20, 2 << 20, false, false},
		"all of it":                    {size, 1 << 20, true, false},
	} {
		for length, fault := range map[string]pullthroughtest.Fault{"declared": {}, "undeclared": {NoLength: true}} {
			t.Run(name+", "+length, func(t *testing.T) {
				testkit.Baseline(t)
				up, enter := testkit.Piped(t, pullthroughtest.Config{})
				dir := t.TempDir()
				synctest.Test(t, func(t *testing.T) {
					w := enter(t)
					w.SpoolBytes = tc.limit
					store := &filling{files: newFiles(dir), room: tc.stage}
					w.Store = store
					layer := w.Layer(size)
					fault.Match = testkit.Blobs
					up.Fault(fault)
					b, err := w.Open(t.Context(), layer.Digest)
					assert.Equal(t, tc.refused || !tc.fits && fault.NoLength, err != nil)
					if err == nil && tc.fits {
						testkit.AssertBody(t, layer.Digest, b)
					} else if err == nil {
						_, err = io.Copy(io.Discard, b.Body)
						assert.NoError(t, b.Body.Close())
					}
					if !tc.fits {
						assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
						assert.ErrorContains(t, err, "no room for the download")
					}
					w.Settled(t)
					store.assertEnded(t)
					assert.Empty(t, store.leftovers(t))
					assertEmptyDir(t, w.SpoolDir)
					assert.Equal(t, 1, up.Count("*"))
				})
			})
		}
	}
}

// Whatever ends a download, its reservation is given back: one of full size
// finds room afterwards.
func TestSpoolBytesAreGivenBack(t *testing.T) {
	const size = 3 << 20
	for name, tc := range map[string]struct {
		faults []pullthroughtest.Fault
		stall  bool
		leave  bool
		policy pullthrough.Policy
		store  *testkit.FaultyStore
	}{
		"well":             {},
		"wrong":            {faults: []pullthroughtest.Fault{{Flip: new(int64(-1))}}},
		"gone":             {faults: []pullthroughtest.Fault{{Times: 1, CutAfter: new(int64(1 << 20))}, {Status: 404}}},
		"of no length":     {faults: []pullthroughtest.Fault{{NoLength: true}}},
		"too long":         {faults: []pullthroughtest.Fault{{NoLength: true, Extend: 5}}, policy: pullthrough.Policy{MaxBlobBytes: size}},
		"endless":          {faults: []pullthroughtest.Fault{{NoLength: true, Extend: 1 << 40}}},
		"everybody leaves": {stall: true, leave: true, policy: pullthrough.Policy{Orphans: -1}},
		"nobody reads on":  {leave: true},
		"the Store fails":  {store: &testkit.FaultyStore{OnPutBlob: func(io.ReadSeeker) error { return errOnFire }}},
		"the Store panics": {store: &testkit.FaultyStore{OnPutBlob: func(io.ReadSeeker) error { panic(errOnFire) }}},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.Baseline(t)
			up, enter := testkit.Piped(t, pullthroughtest.Config{})
			synctest.Test(t, func(t *testing.T) {
				w := enter(t)
				w.SpoolBytes = size
				w.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy { return tc.policy }
				if tc.store != nil {
					tc.store.Store = w.Mem
					w.Store = tc.store
				}
				layer, full := w.Layer(size-100), w.Layer(size)
				for _, f := range tc.faults {
					f.Match = testkit.Blobs
					up.Fault(f)
				}
				if tc.stall {
					stall(w, testkit.NewGate(t), layer, 1<<20)
				}
				for range 3 {
					b, err := w.Open(t.Context(), layer.Digest)
					if err == nil {
						if !tc.leave {
							_, _ = io.Copy(io.Discard, b.Body)
						}
						require.NoError(t, b.Body.Close())
					}
					w.Settled(t)
				}
				up.Heal()
				up.Reset()
				start := time.Now()
				w.PullBlob(t, "a", full.Digest)
				assert.Less(t, time.Since(start), time.Second, "it did not wait for room")
				w.Settled(t)
				assert.Equal(t, []string{"GET /v2/a/blobs/" + full.Digest.String() + " 200"}, up.Log())
				assertEmptyDir(t, w.SpoolDir)
			})
		})
	}
}

// One rule's downloads that stall delay no other rule's, nor manifests and
// tokens of their own.
func TestMaxDownloads(t *testing.T) {
	testkit.Baseline(t)
	up, enter := testkit.Piped(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		w.Rules = pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: up.URL}, {Prefix: "other", UpstreamURL: up.URL}}
		w.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{MaxDownloads: 2}
		}
		g := testkit.NewGate(t)
		var open []*pullthrough.Blob
		var stalled []*pullthroughtest.Blob
		for i := range 2 {
			layer := w.Layer(2<<20 + int64(i))
			stall(w, g, layer, 1<<20)
			b, err := w.Open(t.Context(), layer.Digest)
			require.NoError(t, err)
			open, stalled = append(open, b), append(stalled, layer)
		}
		third := w.Layer(1000)
		img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 99})
		up.Push("b", "1", img)
		up.RevokeTokens()

		start := time.Now()
		m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("b"), Ref: "1"})
		require.NoError(t, err)
		assert.Equal(t, img.Digest, m.Descriptor.Digest)
		b, err := w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: third.Digest.String(), Head: true})
		require.NoError(t, err)
		assert.EqualValues(t, 1000, b.Descriptor.Size)
		other := pullthrough.Repo{Name: "other/b"}
		b, err = w.Blob(t.Context(), pullthrough.Request{Repo: other, Ref: img.Layers[0].Digest.String()})
		require.NoError(t, err)
		testkit.AssertBody(t, img.Layers[0].Digest, b)
		assert.Less(t, time.Since(start), time.Second, "none of them waits")

		_, err = w.Open(t.Context(), third.Digest)
		assertBusy(t, err)
		assert.InDelta(t, 10*time.Second, time.Since(start), float64(time.Second), "the rule's third download does")
		done := make(chan error)
		go func() { done <- w.Whole(t.Context(), third.Digest) }()
		time.Sleep(time.Second)
		g.Open()
		for i, b := range open {
			testkit.AssertBody(t, stalled[i].Digest, b)
		}
		assert.NoError(t, <-done)
		w.Settled(t)
		for _, layer := range stalled {
			assert.Equal(t, 1, up.Count(testkit.Blobs+layer.Digest.Encoded()+" 20*"))
		}
		assert.Equal(t, 1, up.Count(testkit.Blobs+third.Digest.Encoded()+" 200"))
	})
}

// A client that takes next to nothing loses its place when room is wanted, and
// others do not.
func TestSlowReaderIsCutWhenRoomIsWanted(t *testing.T) {
	testkit.Baseline(t)
	up, enter := testkit.Piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		w.SpoolBytes = 3<<20 + 1
		layer, next := w.Layer(3<<20), w.Layer(3<<20+1)
		g := testkit.NewGate(t)
		stall(w, g, layer, 2<<20)
		transport := testkit.ServePiped(t, w.Proxy)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://registry.test"+testkit.BlobPath("a", layer.Digest), nil)
		require.NoError(t, err)
		slow, err := transport.RoundTrip(r)
		require.NoError(t, err)
		testkit.RequireRead(t, slow.Body, 100)
		time.Sleep(time.Second) // it is in the middle of a piece
		g.Open()
		w.Settled(t)
		_, err = w.Open(t.Context(), next.Digest)
		assertBusy(t, err) // it is not slow yet
		time.Sleep(11 * time.Minute)
		testkit.RequireRead(t, slow.Body, 100)
		assert.NoError(t, w.Whole(t.Context(), next.Digest))
		n, err := io.Copy(io.Discard, slow.Body)
		assert.Error(t, err, "it is told")
		assert.Less(t, n, int64(3<<20))
		assert.NoError(t, slow.Body.Close())
		w.Settled(t)
		assert.Equal(t, 3, up.Count("*"))
	})
}
