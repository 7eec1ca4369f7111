package fill_test

import (
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const (
	stripe = 8 << 20
	// wide is enough for four connections, broad for two.
	wide  = 4*stripe + 5<<20
	broad = 2*stripe + 5<<20
)

// inStripes is inFar with a blob of that size, and as many connections as it is enough for.
func inStripes(t *testing.T, size int64, change func(*pullthrough.Proxy), test func(t *testing.T, f *far)) {
	t.Helper()
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		testkit.WithPolicy(pullthrough.Policy{Connections: int(size / stripe)})(w.Proxy)
		if change != nil {
			change(w.Proxy)
		}
		f := &far{World: w, layer: w.Layer(size)}
		f.client = &http.Client{Transport: testkit.ServePiped(t, w.Proxy)}
		f.path, f.content = testkit.BlobPath("a", f.layer.Digest), testkit.BlobContent(t, f.layer)
		w.Up.Reset()
		test(t, f)
	})
}

// slowly makes upstream give 1 MiB/s to each answer.
func (f *far) slowly() {
	f.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 20*", Rate: 1 << 20})
}

// all is the whole blob as a client gets it.
func (f *far) all(t *testing.T) {
	t.Helper()
	resp := f.ask(t, "")
	got, err := digest.FromReader(resp.Body) // a herd of whole contents does not fit into memory
	assert.NoError(t, err)
	assert.NoError(t, resp.Body.Close())
	assert.Equal(t, f.layer.Digest, got)
}

// assertOnce makes sure that upstream has sent each byte once, and the Store has all.
func (f *far) assertOnce(t *testing.T) {
	t.Helper()
	f.assertStored(t)
	assert.Equal(t, f.layer.Size, f.bytes(), "%q", f.ranges())
}

func stretch(from, to int) string { return fmt.Sprintf("bytes=%d-%d 206", from, to-1) }

func TestABlobOverSeveralConnections(t *testing.T) {
	stores := map[string]func(*testing.T) func(*pullthrough.Proxy){
		"in memory": func(*testing.T) func(*pullthrough.Proxy) { return nil },
		"in a stage that takes any order": func(t *testing.T) func(*pullthrough.Proxy) {
			store := sparseStager{stager{newFiles(t.TempDir())}}
			return func(p *pullthrough.Proxy) { p.Store = store }
		},
		"in a stage": func(t *testing.T) func(*pullthrough.Proxy) {
			store := stager{newFiles(t.TempDir())}
			return func(p *pullthrough.Proxy) { p.Store = store }
		},
	}
	for name, store := range stores {
		t.Run(name, func(t *testing.T) {
			change := store(t)
			inStripes(t, wide, change, func(t *testing.T, f *far) {
				f.slowly()
				began := time.Now()
				f.all(t)
				assert.Less(t, time.Since(began), 14*time.Second, "over one connection it takes 37")
				f.assertOnce(t)
				assert.Equal(t, []string{stretch(0, stripe), stretch(2*stripe, 3*stripe), stretch(3*stripe, 4*stripe), stretch(4*stripe, wide), stretch(stripe, 2*stripe)}, f.ranges())
			})
		})
	}
}

// Blobs that are small for the connections come by one, and without a Policy all do.
func TestBlobsOverOneConnection(t *testing.T) {
	for name, c := range map[string]struct {
		connections int
		known       bool
		size        int64
		want        []string
	}{
		"none said":                 {0, true, broad, []string{whole}},
		"one":                       {1, true, broad, []string{whole}},
		"small":                     {2, true, 2*stripe - 1, []string{whole}},
		"small, size unknown":       {2, false, 2*stripe - 1, []string{stretch(0, stripe), stretch(stripe, 2*stripe-1)}},
		"very small":                {2, true, 1000, []string{whole}},
		"very small, size unknown":  {2, false, 1000, []string{stretch(0, stripe)}},
		"one stretch, size unknown": {2, false, stripe, []string{stretch(0, stripe)}},
	} {
		t.Run(name, func(t *testing.T) {
			inStripes(t, broad, testkit.WithPolicy(pullthrough.Policy{Connections: c.connections}), func(t *testing.T, f *far) {
				f.layer = f.Layer(c.size)
				f.path, f.content = testkit.BlobPath("a", f.layer.Digest), testkit.BlobContent(t, f.layer)
				if c.known {
					_, err := f.Tagged(t, "1")
					require.NoError(t, err)
				}
				f.Up.Reset()
				f.all(t)
				f.assertStored(t)
				assert.Equal(t, c.want, f.ranges())
			})
		})
	}
}

// Whatever upstream answers, all comes, and each byte once.
func TestAnswersToSeveralConnections(t *testing.T) {
	for name, c := range map[string]struct {
		faults []pullthroughtest.Fault
		asked  int // how many requests there are at most
	}{
		"all cut":               {[]pullthroughtest.Fault{{CutAfter: new(int64(3 << 20))}}, 10},
		"one cut":               {[]pullthroughtest.Fault{{Skip: 1, Times: 1, CutAfter: new(int64(3 << 20))}}, 6},
		"the first cut":         {[]pullthroughtest.Fault{{Times: 1, CutAfter: new(int64(3 << 20))}}, 6},
		"ranges ignored":        {[]pullthroughtest.Fault{{Status: 200, Header: http.Header{"Content-Range": {""}, "Content-Length": {fmt.Sprint(broad)}}, Body: nil}}, 1},
		"limited":               {[]pullthroughtest.Fault{{Skip: 1, Times: 1, Status: 429, Header: http.Header{"Retry-After": {"3600"}}}}, 6},
		"busy":                  {[]pullthroughtest.Fault{{Skip: 1, Times: 1, Status: 503, Header: http.Header{"Retry-After": {"3600"}}}}, 6},
		"limited, for a second": {[]pullthroughtest.Fault{{Skip: 1, Times: 1, Status: 429, Header: http.Header{"Retry-After": {"1"}}}}, 6},
		"one refused":           {[]pullthroughtest.Fault{{Skip: 1, Times: 1, Status: 416}}, 6},
		"the first refused":     {[]pullthroughtest.Fault{{Times: 1, Status: 416}}, 2},
		"the first not found":   {[]pullthroughtest.Fault{{Times: 1, Status: 404}}, 2},
		"the first denied":      {[]pullthroughtest.Fault{{Times: 1, Status: 403}}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			inStripes(t, broad, nil, func(t *testing.T, f *far) {
				for _, fault := range c.faults {
					fault.Match = testkit.Blobs + " 206"
					if fault.Status == 200 {
						fault.Body = f.content
					} else if fault.Status == 0 {
						fault.Rate = 1 << 20
					}
					f.Up.Fault(fault)
				}
				f.slowly()
				f.all(t)
				f.assertStored(t)
				var sent int64
				for _, r := range f.Up.Requests() {
					if r.Status < 300 {
						sent += r.Bytes
					}
				}
				assert.Equal(t, f.layer.Size, sent, "%q", f.ranges())
				assert.LessOrEqual(t, len(f.ranges()), c.asked, "%q", f.ranges())
			})
		})
	}
}

// An upstream that gives one part and no others sends the whole, once.
func TestNoMoreParts(t *testing.T) {
	for _, status := range []int{200, 400, 403, 404, 416} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			inStripes(t, broad, nil, func(t *testing.T, f *far) {
				fault := pullthroughtest.Fault{Match: testkit.Blobs + " 206", Skip: 1, Status: status}
				if status == 200 {
					fault.Header = http.Header{"Content-Range": nil, "Content-Length": {fmt.Sprint(broad)}}
					fault.Body = f.content
				}
				f.Up.Fault(fault)
				f.slowly()
				f.all(t)
				f.assertStored(t)
				whole := 0
				for _, r := range f.Up.Requests() {
					if r.Status == http.StatusOK && r.Bytes == broad {
						whole++
					}
				}
				assert.Equal(t, 1, whole, "%q", f.ranges())
			})
		})
	}
}

// A 206 that is shorter than what was asked for is taken, and the rest is asked for.
func TestShortAnswersToSeveralConnections(t *testing.T) {
	for name, skip := range map[string]int{"the first": 0, "another": 1} {
		t.Run(name, func(t *testing.T) {
			inStripes(t, broad, nil, func(t *testing.T, f *far) {
				const short = 5 << 20
				from := skip * stripe
				f.Up.Fault(pullthroughtest.Fault{
					Match: testkit.Blobs + " 206", Skip: skip, Times: 1, Truncate: stripe - short, NoLength: true, Rate: 1 << 20,
					Header: http.Header{"Content-Range": {part(from, from+short-1, broad)}},
				})
				f.slowly()
				f.all(t)
				f.assertOnce(t)
				assert.LessOrEqual(t, len(f.ranges()), 4)
			})
		})
	}
}

// A connection that lies spoils the blob, and then it comes over one.
func TestOneOfSeveralConnectionsLies(t *testing.T) {
	for skip := range 3 {
		t.Run(fmt.Sprint(skip), func(t *testing.T) {
			inStripes(t, broad, nil, func(t *testing.T, f *far) {
				f.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 206", Skip: skip, Times: 1, Flip: new(int64(200)), Rate: 1 << 20})
				f.slowly()
				got := testkit.ReadReply(t, f.ask(t, ""))
				assert.Error(t, got.Err, "nobody completes it")
				assert.LessOrEqual(t, len(got.Content), broad-64<<10)
				f.Settled(t)
				_, err := f.Mem.Blob(t.Context(), testkit.Repo("a"), f.layer.Digest)
				assert.ErrorIs(t, err, fs.ErrNotExist)
				f.Up.Reset()
				f.all(t)
				f.assertOnce(t)
				assert.Equal(t, []string{whole}, f.ranges())
				time.Sleep(10 * time.Minute)
				f.Up.Push("b", "1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: broad, LayerSize: broad}))
				f.path = testkit.BlobPath("b", f.layer.Digest)
				f.Up.Reset()
				f.all(t)
				f.Settled(t)
				assert.Greater(t, len(f.ranges()), 1)
				assert.Equal(t, f.layer.Size, f.bytes())
			})
		})
	}
}

// Many clients, some of them far ahead, are one download.
func TestAHerdOverSeveralConnections(t *testing.T) {
	inStripes(t, wide, nil, func(t *testing.T, f *far) {
		f.slowly()
		var clients sync.WaitGroup
		for i := range 16 { // each hashes all of it
			clients.Go(func() {
				if i%4 == 0 {
					time.Sleep(time.Duration(i) * 200 * time.Millisecond)
				}
				f.all(t)
			})
		}
		synctest.Wait()
		clients.Go(func() { f.get(t, span(wide-1<<20, wide)) })
		clients.Go(func() { f.get(t, span(wide-3<<20, wide-2<<20)) })
		clients.Wait()
		f.assertOnce(t)
	})
}

// What a client far ahead waits for comes at once.
func TestFarAheadOfSeveralConnections(t *testing.T) {
	inStripes(t, wide, nil, func(t *testing.T, f *far) {
		f.slowly()
		leader := f.lead(t)
		began := time.Now()
		f.get(t, span(wide-1<<20, wide))
		assert.Less(t, time.Since(began), 1100*time.Millisecond)
		testkit.AssertSame(t, f.content, leader().Content)
		f.assertOnce(t)
	})
}

// Connections of all blobs of a rule are as many again as it has downloads, and nobody waits
// for one.
func TestSeveralConnectionsAreTakenOnlyIfFree(t *testing.T) {
	limited := testkit.WithPolicy(pullthrough.Policy{Connections: 4, MaxDownloads: 2})
	inStripes(t, wide, limited, func(t *testing.T, f *far) {
		f.slowly()
		leader := f.lead(t)
		all := f.Downloads()
		require.Len(t, all, 1)
		assert.Equal(t, 3, all[0].Connections)
		another := f.Layer(wide + 1)
		path, content := f.path, f.content
		f.path, f.content = testkit.BlobPath("a", another.Digest), testkit.BlobContent(t, another)
		second := f.lead(t)
		f.path = path
		all = f.Downloads()
		require.Len(t, all, 2)
		assert.Equal(t, 3+1, all[0].Connections+all[1].Connections)
		testkit.AssertSame(t, content, leader().Content)
		testkit.AssertSame(t, f.content, second().Content)
		f.Settled(t)
		assert.Equal(t, int64(2*wide+1), f.bytes(), "%q", f.ranges())
	})
}

// When the last client leaves, one connection goes on, if any; a client that comes again has
// all of them.
func TestSeveralConnectionsWithoutAClient(t *testing.T) {
	inStripes(t, wide, nil, func(t *testing.T, f *far) {
		f.slowly()
		resp := f.ask(t, "")
		testkit.RequireRead(t, resp.Body, 1<<20)
		synctest.Wait()
		assert.Equal(t, 4, f.Downloads()[0].Connections)
		require.NoError(t, resp.Body.Close())
		time.Sleep(time.Second)
		synctest.Wait()
		assert.Equal(t, 1, f.Downloads()[0].Connections)
		before := f.Downloads()[0]
		time.Sleep(2 * time.Second)
		assert.InDelta(t, before.Written+2<<20, f.Downloads()[0].Written, 256<<10)
		leader := f.lead(t)
		time.Sleep(time.Second)
		assert.Equal(t, 4, f.Downloads()[0].Connections)
		testkit.AssertSame(t, f.content, leader().Content)
		f.assertStored(t)
		assert.Less(t, f.bytes(), int64(wide+1<<20))
	})
}

// A place that fails in the middle is left for another one, where the rest goes in order.
func TestAPlaceThatFailsUnderSeveralConnections(t *testing.T) {
	store := &sparseFilling{filling{files: newFiles(t.TempDir()), room: 12 << 20}}
	inStripes(t, broad, func(p *pullthrough.Proxy) { p.Store = store }, func(t *testing.T, f *far) {
		f.slowly()
		f.all(t)
		f.assertStored(t)
	})
}

type sparseStager struct{ stager }

type sparseStaged struct{ pullthrough.Stage }

func (sparseStaged) Sparse() bool { return true }

func (s sparseStager) StageBlob(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (pullthrough.Stage, error) {
	stage, err := s.stager.StageBlob(ctx, repo, d)
	return sparseStaged{stage}, err
}

type sparseFilling struct{ filling }

func (s *sparseFilling) StageBlob(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (pullthrough.Stage, error) {
	stage, err := s.filling.StageBlob(ctx, repo, d)
	return sparseStaged{stage}, err
}
