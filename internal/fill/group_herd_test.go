package fill_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
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
	herdBlob = 2 << 20
	// A client that waits may cost so much, beyond what net/http needs for its
	// connection at both ends, in the case of HTTP.
	waitingCost = 25 << 10
	netHTTPCost = 64 << 10
	herdMemory  = 200 << 20
)

// Many clients of the real handler share one download. One of them never reads.
func TestHerdOverHTTP(t *testing.T) {
	const n = 64
	testkit.Baseline(t)
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
	layer := w.Layer(herdBlob)
	content := testkit.BlobContent(t, layer)
	path := testkit.BlobPath("a", layer.Digest)
	g := testkit.NewGate(t)
	stall(w, g, layer, 0)
	var active atomic.Int64
	srv := testkit.Serve(t, counting(w.Proxy, &active))
	transport := &http.Transport{DialContext: pullthroughtest.DialLoopback, DisableCompression: true}
	defer transport.CloseIdleConnections()

	stuck, err := net.Dial("tcp", srv.Listener.Addr().String())
	require.NoError(t, err)
	defer func() { assert.NoError(t, stuck.Close()) }()
	require.NoError(t, stuck.(*net.TCPConn).SetReadBuffer(4096))
	_, err = io.WriteString(stuck, "GET "+path+" HTTP/1.1\r\nHost: registry.test\r\n\r\n")
	require.NoError(t, err)
	require.NoError(t, w.Up.Wait(t.Context(), testkit.Blobs+" 200", 1))

	before := testkit.InUse()
	var headers, done sync.WaitGroup
	headers.Add(n)
	for range n {
		done.Go(func() {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+path, nil)
			assert.NoError(t, err)
			resp, err := transport.RoundTrip(r)
			headers.Done()
			if !assert.NoError(t, err) {
				return
			}
			assert.Equal(t, 200, resp.StatusCode)
			assert.EqualValues(t, herdBlob, resp.ContentLength)
			assertStream(t, content, resp.Body, make([]byte, 1), make([]byte, 32<<10))
			assert.NoError(t, resp.Body.Close())
		})
	}
	headers.Wait() // the header does not wait for the body
	assert.EqualValues(t, n+1, active.Load())
	growth := int64(testkit.InUse()) - int64(before) // the 32 KiB are the clients' own
	assert.Less(t, growth, int64(n*(waitingCost+netHTTPCost+32<<10)), "%d B for each that waits", growth/n)
	g.Open()
	done.Wait()
	w.Settled(t)
	assert.Equal(t, 1, w.Up.Count("GET /v2/a/blobs/* 200"))
	assert.Equal(t, 1, w.Up.Count("GET /token*"))
	assert.Equal(t, 1, w.Up.Count("* 401"))
}

// assertStream compares what comes with content. The first byte is read into
// one: who waits needs no more.
func assertStream(t *testing.T, content []byte, r io.Reader, one, buf []byte) {
	n, err := io.ReadFull(r, one)
	if !assert.NoError(t, err) || !assert.True(t, bytes.Equal(content[:n], one)) {
		return
	}
	rest := content[n:]
	for len(rest) > 0 {
		n, err := io.ReadFull(r, buf[:min(len(buf), len(rest))])
		if !assert.NoError(t, err) || !assert.True(t, bytes.Equal(rest[:n], buf[:n]), "wrong bytes") {
			return
		}
		rest = rest[n:]
	}
	_, err = r.Read(one)
	assert.Equal(t, io.EOF, err)
}

// counting counts the requests that h is answering.
func counting(h http.Handler, active *atomic.Int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		active.Add(1)
		defer active.Add(-1)
		h.ServeHTTP(w, r)
	})
}

// 5,000 readers share one download. One of them never reads.
func TestHerdOfThousands(t *testing.T) {
	const n = 5000
	testkit.Baseline(t)
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
	layer := w.Layer(herdBlob)
	content := testkit.BlobContent(t, layer)
	g := testkit.NewGate(t)
	stall(w, g, layer, 0)
	lazy, err := w.Open(t.Context(), layer.Digest)
	require.NoError(t, err)

	buffers := make(chan []byte, 4) // as many as the machine can use: the readers' cost is measured, not the test's
	for range cap(buffers) {
		buffers <- make([]byte, 128<<10)
	}
	before := testkit.InUse()
	var opened, done sync.WaitGroup
	opened.Add(n)
	for i := range n {
		done.Go(func() {
			from := int64(herdBlob - 80<<10 - i) // from what was held back, and a little before
			b, err := w.Open(t.Context(), layer.Digest)
			opened.Done()
			if !assert.NoError(t, err) {
				return
			}
			var one [1]byte
			_, err = io.ReadFull(b.Body, one[:]) // waits here
			assert.NoError(t, err)
			_, err = b.Body.(io.Seeker).Seek(0, io.SeekStart)
			assert.NoError(t, err)
			buf := <-buffers
			if i%50 == 0 {
				assertStream(t, content, b.Body, one[:], buf)
			} else { // ten gigabytes in all would take a minute
				_, err = b.Body.(io.Seeker).Seek(from, io.SeekStart)
				assert.NoError(t, err)
				assertStream(t, content[from:], b.Body, one[:], buf)
			}
			buffers <- buf
			assert.NoError(t, b.Body.Close())
		})
	}
	opened.Wait()
	growth := int64(testkit.InUse()) - int64(before)
	t.Logf("%d B for each that waits", growth/n)
	assert.Less(t, growth, int64(herdMemory))
	assert.Less(t, growth/n, int64(waitingCost))
	g.Open()
	done.Wait()
	w.Settled(t)
	assert.Equal(t, 1, w.Up.Count("GET /v2/a/blobs/* 200"))
	windows := w.Up.Count("GET /v2/a/blobs/* 206") // for those that were far ahead
	assert.LessOrEqual(t, windows, 8)
	assert.Equal(t, 3+windows, w.Up.Count("*"), "challenge, token, blob")
	testkit.AssertBody(t, layer.Digest, lazy) // it may still read
}

// A client that takes one byte a second holds up nobody.
func TestSlowClientSlowsNobody(t *testing.T) {
	testkit.Baseline(t)
	up, enter := testkit.Piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		layer := w.Layer(4 << 20)
		content := testkit.BlobContent(t, layer)
		transport := testkit.ServePiped(t, w.Proxy)
		get := func() *http.Response {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://registry.test"+testkit.BlobPath("a", layer.Digest), nil)
			assert.NoError(t, err)
			resp, err := transport.RoundTrip(r)
			if !assert.NoError(t, err) {
				return httptest.NewRecorder().Result()
			}
			return resp
		}
		start := time.Now()
		slow := get()
		read := make(chan int)
		stop := make(chan struct{})
		go func() {
			n := 0
			for {
				select {
				case <-stop:
					read <- n
					return
				case <-time.After(time.Second):
				}
				m, err := slow.Body.Read(make([]byte, 1))
				assert.NoError(t, err)
				n += m
			}
		}()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				resp := get()
				assertStream(t, content, resp.Body, make([]byte, 1), make([]byte, 32<<10))
				assert.NoError(t, resp.Body.Close())
			})
		}
		wg.Wait()
		assert.Less(t, time.Since(start), time.Second, "as if the slow one were not there")
		w.Settled(t)
		assert.Less(t, time.Since(start), time.Second, "and the Store has it too")
		time.Sleep(90 * time.Second)
		close(stop)
		assert.InDelta(t, 90, <-read, 2, "it is served all the while")
		assert.NoError(t, slow.Body.Close())
		assert.Equal(t, []string{"GET /v2/a/blobs/" + layer.Digest.String() + " 200"}, up.Log())
	})
}

// The client that began a download leaves, and the others get all of it.
func TestLeaderLeaves(t *testing.T) {
	const size = 4 << 20
	for name, at := range map[string]int64{"at 0 %": 0, "at 50 %": size / 2, "at 98 %": size - 80<<10} {
		t.Run(name, func(t *testing.T) {
			testkit.Baseline(t)
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			layer := w.Layer(size)
			content := testkit.BlobContent(t, layer)
			g := testkit.NewGate(t)
			stall(w, g, layer, at+1)
			var active atomic.Int64
			srv := testkit.Serve(t, counting(w.Proxy, &active))
			get := func() (*http.Response, *http.Transport) {
				own := &http.Transport{DialContext: pullthroughtest.DialLoopback, DisableCompression: true}
				r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+testkit.BlobPath("a", layer.Digest), nil)
				require.NoError(t, err)
				resp, err := own.RoundTrip(r)
				require.NoError(t, err)
				return resp, own
			}
			leader, conn := get()
			testkit.AssertSame(t, content[:at], testkit.RequireRead(t, leader.Body, at))
			followers := make([]*http.Response, 3)
			for i := range followers {
				var own *http.Transport
				followers[i], own = get()
				defer own.CloseIdleConnections()
			}
			require.NoError(t, leader.Body.Close()) // its connection too: the body was not at its end
			conn.CloseIdleConnections()
			require.Eventually(t, func() bool { return active.Load() == 3 }, 10*time.Second, time.Millisecond)
			g.Open()
			for _, f := range followers {
				got, err := io.ReadAll(f.Body)
				assert.NoError(t, err)
				testkit.AssertSame(t, content, got)
				assert.NoError(t, f.Body.Close())
			}
			w.Settled(t)
			w.PullBlob(t, "a", layer.Digest)
			assert.Equal(t, []string{"GET /v2/a/blobs/" + layer.Digest.String() + " 200"}, w.Up.Log())
			assertEmptyDir(t, w.SpoolDir)
		})
	}
}

// Of ten downloads that everybody left some may finish, and the others end within a
// second.
func TestEverybodyLeaves(t *testing.T) {
	for name, tc := range map[string]struct {
		policy pullthrough.Policy
		left   int
	}{
		"as it is":            {pullthrough.Policy{}, 4},
		"none":                {pullthrough.Policy{Orphans: -1}, 0},
		"few bytes":           {pullthrough.Policy{Orphans: 100, OrphanBytes: 3<<20 + 512<<10}, 3},
		"as many as they are": {pullthrough.Policy{Orphans: 100}, 10},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.Baseline(t)
			up, enter := testkit.Piped(t, pullthroughtest.Config{})
			synctest.Test(t, func(t *testing.T) {
				w := enter(t)
				w.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy { return tc.policy }
				transport := testkit.ServePiped(t, w.Proxy)
				g := testkit.NewGate(t)
				up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Stall: g.C, StallAfter: new(int64(128 << 10))})
				var layers []*pullthroughtest.Blob
				var clients []*http.Response
				for i := range 10 {
					layer := w.Layer(1<<20 + 128<<10 + int64(i)) // 1 MiB is to come
					r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://registry.test"+testkit.BlobPath("a", layer.Digest), nil)
					require.NoError(t, err)
					resp, err := transport.RoundTrip(r)
					require.NoError(t, err)
					layers, clients = append(layers, layer), append(clients, resp)
				}
				time.Sleep(100 * time.Millisecond)
				for _, c := range clients {
					assert.NoError(t, c.Body.Close())
				}
				time.Sleep(time.Second)
				synctest.Wait()
				assert.Len(t, w.Downloads(), tc.left)
				g.Open()
				up.Heal()
				w.Settled(t)
				stored := 0
				for _, layer := range layers {
					if _, err := w.Mem.Blob(t.Context(), testkit.Repo("a"), layer.Digest); err == nil {
						stored++
					}
				}
				assert.Equal(t, tc.left, stored)
				assert.Equal(t, 10, up.Count(testkit.Blobs))
				for _, layer := range layers {
					w.PullBlob(t, "a", layer.Digest)
				}
				w.Settled(t)
				assert.Equal(t, 20-tc.left, up.Count(testkit.Blobs), "what was given up is fetched again")
				assertEmptyDir(t, w.SpoolDir)
			})
		})
	}
}

// A client that comes in the moment in which a download is given up gets that one or a
// fresh one, and never its end.
func TestJoiningADownloadThatIsGivenUp(t *testing.T) {
	testkit.Baseline(t)
	up, enter := testkit.Piped(t, pullthroughtest.Config{})
	for i := range 10 {
		synctest.Test(t, func(t *testing.T) {
			w := enter(t)
			w.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
				return pullthrough.Policy{Orphans: -1}
			}
			layer := w.Layer(1<<20 + 70_000)
			up.Reset()
			heal := up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Times: 1, Stall: make(chan struct{}), StallAfter: new(int64(1 << 19))})
			defer heal()
			b, err := w.Open(t.Context(), layer.Digest)
			require.NoError(t, err)
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					time.Sleep(500 * time.Millisecond) // when the watch looks
					for range i % 5 {
						synctestYield()
					}
					assert.NoError(t, w.Whole(t.Context(), layer.Digest))
				})
			}
			require.NoError(t, b.Body.Close())
			wg.Wait()
			w.Settled(t)
			assert.LessOrEqual(t, up.Count(testkit.Blobs), 2)
		})
	}
}

// synctestYield lets others run at the same instant.
func synctestYield() { time.Sleep(0) }
