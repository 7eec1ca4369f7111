package fill_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const (
	farSize = 4 << 20
	// here is how far the main stream has come when farther readers come.
	here = 512 << 10
	// least is the shortest window.
	least = 256 << 10
)

// far is a world in which a blob of farSize comes slowly.
type far struct {
	*testkit.World
	client  *http.Client
	layer   *pullthroughtest.Blob
	content []byte
	path    string
	release func() // lets the main stream go on
}

// inFar runs test in a bubble. The main stream stands still at here.
func inFar(t *testing.T, change func(*pullthrough.Proxy), test func(t *testing.T, f *far)) {
	t.Helper()
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		if change != nil {
			change(w.Proxy)
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		f := &far{World: w, release: cancel, layer: w.Layer(farSize)}
		f.client = &http.Client{Transport: testkit.ServePiped(t, w.Proxy)}
		f.path, f.content = testkit.BlobPath("a", f.layer.Digest), testkit.BlobContent(t, f.layer)
		w.Up.Reset()
		w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 200", Times: 1, Stall: ctx.Done(), StallAfter: new(int64(here))})
		test(t, f)
	})
}

// ask asks for a part, "" for all.
func (f *far) ask(t *testing.T, header string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://registry.test"+f.path, nil)
	require.NoError(t, err)
	if header != "" {
		r.Header.Set("Range", header)
	}
	resp, err := f.client.Do(r)
	require.NoError(t, err)
	return resp
}

// lead is a client of all. It is answered when the main stream stands still.
func (f *far) lead(t *testing.T) func() testkit.Reply {
	t.Helper()
	resp := f.ask(t, "")
	answer := make(chan testkit.Reply, 1)
	go func() {
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		answer <- testkit.Reply{Response: resp, Content: b, Err: err}
	}()
	synctest.Wait()
	return func() testkit.Reply { return <-answer }
}

func span(from, to int) testkit.RangeCase {
	return testkit.RangeCase{Header: fmt.Sprintf("bytes=%d-%d", from, to-1), From: from, To: to, Status: http.StatusPartialContent}
}

// get asks for a part and must get it.
func (f *far) get(t *testing.T, c testkit.RangeCase) {
	t.Helper()
	testkit.AssertRange(t, testkit.ReadReply(t, f.ask(t, c.Header)), c, f.content)
}

// ranges are the Range headers that upstream has seen, "" for none, in order.
func (f *far) ranges() (all []string) {
	for _, r := range f.Up.Requests() {
		all = append(all, fmt.Sprintf("%s %d", r.Range, r.Status))
	}
	slices.Sort(all)
	return all
}

func (f *far) bytes() (n int64) {
	for _, r := range f.Up.Requests() {
		n += r.Bytes
	}
	return n
}

// assertStored makes sure that the Store has the blob.
func (f *far) assertStored(t *testing.T) {
	t.Helper()
	f.Settled(t)
	b, err := f.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: f.layer.Digest.String()})
	require.NoError(t, err)
	testkit.AssertBody(t, f.layer.Digest, b)
}

const whole = " 200"

// What is far ahead comes at once, is there for all, and is not fetched again by a window.
func TestAPartFarAhead(t *testing.T) {
	stores := map[string]func(*testing.T) func(*pullthrough.Proxy){
		"in memory": func(*testing.T) func(*pullthrough.Proxy) { return nil },
		"in a stage": func(t *testing.T) func(*pullthrough.Proxy) {
			store := stager{newFiles(t.TempDir())}
			return func(p *pullthrough.Proxy) { p.Store = store }
		},
		"in a stage that is full": func(t *testing.T) func(*pullthrough.Proxy) {
			store := &filling{files: newFiles(t.TempDir()), room: 3 << 20}
			return func(p *pullthrough.Proxy) { p.Store = store }
		},
	}
	for name, store := range stores {
		t.Run(name, func(t *testing.T) {
			change := store(t)
			inFar(t, change, func(t *testing.T, f *far) {
				leader := f.lead(t)
				began := time.Now()
				f.get(t, span(3_500_000, 3_500_100))
				f.get(t, span(3_500_050, 3_600_000)) // by the same window
				assert.Zero(t, time.Since(began))
				window := fmt.Sprintf("bytes=3500000-%d 206", 3_500_000+least-1)
				assert.Equal(t, []string{whole, window}, f.ranges())
				f.release()
				all := leader()
				assert.NoError(t, all.Err)
				testkit.AssertSame(t, f.content, all.Content)
				f.assertStored(t)
				assert.Equal(t, []string{whole, window}, f.ranges())
				assert.Equal(t, int64(farSize+least), f.bytes())
			})
		})
	}
}

// The main stream does not fetch what is there, if that is much.
func TestALongPartIsNotFetchedAgain(t *testing.T) {
	inFar(t, nil, func(t *testing.T, f *far) {
		leader := f.lead(t)
		f.get(t, span(2<<20, 3<<20+512<<10))
		f.release()
		testkit.AssertSame(t, f.content, leader().Content)
		f.assertStored(t)
		assert.Equal(t, []string{whole, fmt.Sprintf("bytes=%d-%d 206", 2<<20, 3<<20+512<<10-1), fmt.Sprintf("bytes=%d-%d 206", 3<<20+512<<10, farSize-1)}, f.ranges())
		assert.Less(t, f.bytes(), int64(farSize+256<<10), "but for what was under way when the main stream turned away")
	})
}

// A range request that begins the download asks for its part beside the whole.
func TestAPartFarAheadBeginsADownload(t *testing.T) {
	for name, c := range map[string]testkit.RangeCase{
		"closed": span(3_500_000, 3_800_000),
		"suffix": {Header: "bytes=-300000", From: farSize - 300_000, To: farSize, Status: http.StatusPartialContent},
	} {
		t.Run(name, func(t *testing.T) {
			inFar(t, nil, func(t *testing.T, f *far) {
				began := time.Now()
				f.get(t, c)
				assert.Zero(t, time.Since(began))
				f.release()
				f.assertStored(t)
				assert.Equal(t, []string{whole, fmt.Sprintf("bytes=%d-%d 206", c.From, c.To-1)}, f.ranges())
				twice := c.To - c.From // the main stream reads over it, rather than asking anew
				if c.To == farSize {
					twice = 0
				}
				assert.Equal(t, int64(farSize+twice), f.bytes())
			})
		})
	}
}

// Both questions are under way at the same time.
func TestAPartIsAskedForBesideTheWhole(t *testing.T) {
	inFar(t, nil, func(t *testing.T, f *far) {
		gate := make(chan struct{})
		f.Up.Heal()
		_, err := f.Tagged(t, "1") // the first request of all goes alone
		require.NoError(t, err)
		f.Up.Reset()
		f.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 200", Stall: gate}) // before its header
		done := make(chan struct{})
		go func() {
			defer close(done)
			f.get(t, span(3_500_000, 3_800_000))
		}()
		synctest.Wait()
		assert.Equal(t, 2, f.Up.Count(testkit.Blobs))
		close(gate)
		<-done
		f.assertStored(t)
		assert.Equal(t, []string{whole, "bytes=3500000-3799999 206"}, f.ranges())
	})
}

// A client that does not say where it ends is given small windows first.
func TestAnOpenPartComesInSteps(t *testing.T) {
	inFar(t, nil, func(t *testing.T, f *far) {
		leader := f.lead(t)
		resp := f.ask(t, fmt.Sprintf("bytes=%d-", 2<<20))
		got := testkit.RequireRead(t, resp.Body, 3<<19)
		testkit.AssertSame(t, f.content[2<<20:7<<19], got)
		require.NoError(t, resp.Body.Close())
		synctest.Wait()
		f.release()
		testkit.AssertSame(t, f.content, leader().Content)
		f.assertStored(t)
		assert.Subset(t, f.ranges(), []string{whole, fmt.Sprintf("bytes=%d-%d 206", 2<<20, 3<<20-1), fmt.Sprintf("bytes=%d-%d 206", 3<<20, 4<<20-1)})
	})
}

// Parts that are closed, and not all, may have the end before it is verified; nothing else
// may.
func TestWhoSeesTheEndEarly(t *testing.T) {
	const end = farSize
	for name, c := range map[string]struct {
		header string
		early  bool
		from   int
	}{
		"closed":              {fmt.Sprintf("bytes=%d-%d", end-100, end-1), true, end - 100},
		"suffix":              {"bytes=-50000", true, end - 50_000},
		"open":                {fmt.Sprintf("bytes=%d-", end-100), false, end - 100},
		"all, closed":         {fmt.Sprintf("bytes=0-%d", end-1), false, 0},
		"all, suffix":         {fmt.Sprintf("bytes=-%d", end), false, 0},
		"more than all":       {fmt.Sprintf("bytes=-%d", end+5), false, 0},
		"all, open":           {"bytes=0-", false, 0},
		"all, as two parts":   {fmt.Sprintf("bytes=0-9,10-%d", end-1), false, 0},
		"two parts, not all":  {fmt.Sprintf("bytes=%d-%d,%d-%d", end-300, end-200, end-100, end-1), true, 0},
		"two parts, one open": {fmt.Sprintf("bytes=0-9,%d-", end-100), false, end - 100},
	} {
		t.Run(name, func(t *testing.T) {
			inFar(t, nil, func(t *testing.T, f *far) {
				f.Up.Heal()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				f.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 200", Flip: new(int64(5000)), Stall: ctx.Done(), StallAfter: new(int64(here))})
				resp := f.ask(t, c.header)
				require.Equal(t, http.StatusPartialContent, resp.StatusCode)
				answer := make(chan testkit.Reply, 1)
				go func() {
					b, err := io.ReadAll(resp.Body)
					answer <- testkit.Reply{Response: resp, Content: b, Err: err}
				}()
				synctest.Wait()
				cancel()
				got := <-answer
				assert.Equal(t, c.early, got.Err == nil, "%v", got.Err)
				if !c.early {
					assert.LessOrEqual(t, int64(len(got.Content)), resp.ContentLength-min(64<<10, int64(end-c.from)), "nobody else sees the end")
				}
				f.Settled(t)
				_, err := f.Mem.Blob(t.Context(), testkit.Repo("a"), f.layer.Digest)
				assert.ErrorIs(t, err, fs.ErrNotExist)
			})
		})
	}
}

// Whatever upstream answers to a window, the download goes on, and what is wrong is not
// taken.
func TestAnswersToAWindow(t *testing.T) {
	const from, to = 3_500_000, 3_500_000 + least
	header := func(contentRange ...string) http.Header { return http.Header{"Content-Range": contentRange} }
	for name, c := range map[string]struct {
		fault pullthroughtest.Fault
		asked int  // how often there was a window, at most
		early bool // the part was there before the main stream
	}{
		"all of it":             {asked: 1, early: true},
		"less than asked for":   {pullthroughtest.Fault{Header: header(part(from, from+999, farSize)), Truncate: least - 1000, NoLength: true, Times: 1}, 2, true},
		"it breaks off":         {pullthroughtest.Fault{CutAfter: new(int64(100_000)), Times: 1}, 2, true},
		"it breaks off at once": {pullthroughtest.Fault{CutAfter: new(int64(0))}, 1, false},
		"more than asked for":   {pullthroughtest.Fault{Extend: 1000, NoLength: true}, 1, true},
		"the whole":             {pullthroughtest.Fault{Status: 200, Header: header("")}, 1, false},
		"not satisfiable":       {pullthroughtest.Fault{Status: 416}, 1, false},
		"a bad request":         {pullthroughtest.Fault{Status: 400}, 1, false},
		"not found":             {pullthroughtest.Fault{Status: 404}, 1, false},
		"denied":                {pullthroughtest.Fault{Status: 403}, 1, false},
		"unauthorized":          {pullthroughtest.Fault{Status: 401}, 2, false},
		"an error":              {pullthroughtest.Fault{Status: 500}, 1, false},
		"a rate limit":          {pullthroughtest.Fault{Status: 429, Header: http.Header{"Retry-After": {"3600"}}}, 1, false},
		"a rate limit, no time": {pullthroughtest.Fault{Status: 429}, 1, false},
		"busy":                  {pullthroughtest.Fault{Status: 503, Header: http.Header{"Retry-After": {"3600"}}}, 1, false},
		"another total":         {pullthroughtest.Fault{Header: header(part(from, to-1, farSize+1))}, 1, false},
		"an unknown total":      {pullthroughtest.Fault{Header: header(part(from, to-1, "*"))}, 1, false},
		"another start":         {pullthroughtest.Fault{Header: header(part(from+1, to-1, farSize))}, 1, false},
		"a later end":           {pullthroughtest.Fault{Header: header(part(from, to, farSize))}, 1, false},
		"no Content-Range":      {pullthroughtest.Fault{Header: header("")}, 1, false},
		"two of them":           {pullthroughtest.Fault{Header: header(part(from, to-1, farSize), part(from, to-1, farSize))}, 1, false},
		"an encoding":           {pullthroughtest.Fault{Header: http.Header{"Content-Encoding": {"gzip"}}}, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			inFar(t, nil, func(t *testing.T, f *far) {
				c.fault.Match = testkit.Blobs + " 206"
				f.Up.Fault(c.fault)
				leader := f.lead(t)
				answer := make(chan testkit.Reply, 1)
				go func() { answer <- testkit.ReadReply(t, f.ask(t, span(from, to).Header)) }()
				synctest.Wait()
				assert.Equal(t, c.early, len(answer) == 1, "the part is there before the main stream is")
				windows := len(f.Up.Requests()) - 1
				assert.GreaterOrEqual(t, windows, 1)
				f.release()
				testkit.AssertRange(t, <-answer, span(from, to), f.content)
				testkit.AssertSame(t, f.content, leader().Content)
				f.assertStored(t)
				assert.LessOrEqual(t, len(f.Up.Requests()), 1+c.asked)
				assert.Less(t, f.bytes(), int64(farSize*102/100+4<<20))
			})
		})
	}
}

func part(first, last, total any) string { return fmt.Sprintf("bytes %v-%v/%v", first, last, total) }

// A registry that ignores Range is not asked for parts again, for a while.
func TestARegistryWithoutRanges(t *testing.T) {
	inFar(t, nil, func(t *testing.T, f *far) {
		f.Up.Heal()
		f.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 206", Status: 200, Header: http.Header{"Content-Range": {""}}, Body: f.content})
		f.get(t, span(3_500_000, 3_500_100))
		f.Settled(t)
		assert.Equal(t, 2, f.Up.Count(testkit.Blobs))
		another := f.Layer(farSize + 1)
		f.path, f.content = testkit.BlobPath("a", another.Digest), testkit.BlobContent(t, another)
		f.Up.Reset()
		f.get(t, span(3_500_000, 3_500_100))
		f.Settled(t)
		assert.Equal(t, []string{whole}, f.ranges())
	})
}

// A window that lies is neither stored nor completed, and the blob then comes over one
// connection.
func TestAWindowThatLies(t *testing.T) {
	for name, at := range map[string]int{"in the middle": 2 << 20, "at the end": farSize - 300_000} {
		t.Run(name, func(t *testing.T) {
			inFar(t, nil, func(t *testing.T, f *far) {
				f.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 206", Flip: new(int64(200))})
				leader := f.lead(t)
				c := span(at, at+least)
				got := testkit.ReadReply(t, f.ask(t, c.Header))
				assert.NoError(t, got.Err)
				assert.False(t, bytes.Equal(f.content[c.From:c.To], got.Content))
				f.release()
				all := leader()
				assert.Error(t, all.Err, "nobody completes it")
				assert.Less(t, len(all.Content), farSize)
				f.Settled(t)
				_, err := f.Mem.Blob(t.Context(), testkit.Repo("a"), f.layer.Digest)
				assert.ErrorIs(t, err, fs.ErrNotExist)
				f.Up.Reset()
				f.get(t, c)
				f.assertStored(t)
				assert.Equal(t, []string{whole}, f.ranges())
			})
		})
	}
}

// A client that walks backwards byte by byte gets what it wants, and no window for each.
func TestBackwardsByteByByte(t *testing.T) {
	inFar(t, nil, func(t *testing.T, f *far) {
		leader := f.lead(t)
		const steps = 200
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range steps {
				f.get(t, span(farSize-1-i, farSize-i))
			}
		}()
		synctest.Wait()
		assert.LessOrEqual(t, len(f.Up.Requests()), 1+64+8)
		f.release()
		<-done
		testkit.AssertSame(t, f.content, leader().Content)
		f.assertStored(t)
		assert.LessOrEqual(t, len(f.Up.Requests()), 1+64+8)
		assert.LessOrEqual(t, f.bytes(), int64(farSize+steps))
	})
}

// A reader that leaves closes its window; what has come stays.
func TestAReaderThatLeavesClosesItsWindow(t *testing.T) {
	inFar(t, nil, func(t *testing.T, f *far) {
		f.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 206", Rate: 100_000})
		leader := f.lead(t)
		resp := f.ask(t, span(2<<20, 4<<20-1).Header)
		testkit.RequireRead(t, resp.Body, 200_000)
		require.NoError(t, resp.Body.Close())
		time.Sleep(time.Second)
		synctest.Wait()
		came := f.bytes()
		time.Sleep(10 * time.Second)
		assert.Equal(t, came, f.bytes(), "nothing comes any more")
		began := time.Now()
		f.get(t, span(2<<20, 2<<20+200_000))
		assert.Zero(t, time.Since(began), "it is there")
		f.release()
		testkit.AssertSame(t, f.content, leader().Content)
		f.assertStored(t)
		assert.Equal(t, []string{whole, fmt.Sprintf("bytes=%d-%d 206", 2<<20, 4<<20-1)}, f.ranges())
	})
}

// When everybody leaves, nothing goes on.
func TestWindowsEndWithTheirDownload(t *testing.T) {
	inFar(t, func(p *pullthrough.Proxy) {
		p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{Orphans: -1}
		}
	}, func(t *testing.T, f *far) {
		f.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 206", Rate: 100_000})
		resp := f.ask(t, span(2<<20, 4<<20-1).Header)
		testkit.RequireRead(t, resp.Body, 200_000)
		require.NoError(t, resp.Body.Close())
		f.Settled(t)
		assert.Empty(t, f.Downloads())
		assertEmptyDir(t, f.SpoolDir)
	})
}

// All parts that a client asks for at once are fetched at once.
func TestSeveralPartsFarAhead(t *testing.T) {
	inFar(t, nil, func(t *testing.T, f *far) {
		leader := f.lead(t)
		f.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 206", Rate: 1 << 20})
		c := testkit.RangeCase{
			Header: "bytes=0-9,1800000-2099999,2800000-3099999,-300000", Status: http.StatusPartialContent,
			Parts: []testkit.RangeCase{{From: 0, To: 10}, {From: 1_800_000, To: 2_100_000}, {From: 2_800_000, To: 3_100_000}, {From: farSize - 300_000, To: farSize}},
		}
		began := time.Now()
		f.get(t, c)
		assert.Less(t, time.Since(began), time.Second/2, "one after the other would take longer")
		assert.Len(t, f.ranges(), 4)
		f.release()
		testkit.AssertSame(t, f.content, leader().Content)
		f.assertStored(t)
		assert.Equal(t, int64(farSize+600_000), f.bytes())
	})
}

// Windows whose bytes lie beside the content need room in SpoolBytes, at once, and do without.
func TestWindowsWithoutRoom(t *testing.T) {
	store := stager{newFiles(t.TempDir())}
	inFar(t, func(p *pullthrough.Proxy) { p.Store, p.SpoolBytes = store, 100_000 }, func(t *testing.T, f *far) {
		leader := f.lead(t)
		done := make(chan struct{})
		go func() {
			defer close(done)
			f.get(t, span(3_500_000, 3_500_100))
		}()
		synctest.Wait()
		f.release()
		<-done
		testkit.AssertSame(t, f.content, leader().Content)
		f.assertStored(t)
		assert.Equal(t, []string{whole}, f.ranges())
	})
}
