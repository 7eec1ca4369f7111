package pullthrough_test

import (
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// away is an upstream that is being restarted: from the second request for a blob on
// it is not there for a while.
type away struct {
	*pipeworks
	begin  time.Time
	length time.Duration
	asked  atomic.Int64 // requests for blobs
}

// isGone reports whether nobody is there.
func (a *away) isGone() bool { return a.asked.Load() > 0 && time.Since(a.begin) < a.length }

// whileAway runs test before an upstream that cuts the first answer for a blob at 1 MiB
// and is away from then on for so long. While it is away it answers with status, or
// refuses connections where that is 0.
func whileAway(t *testing.T, length time.Duration, status int, change func(*pullthrough.Proxy), test func(*testing.T, *away)) {
	t.Helper()
	a := &away{length: length}
	c := pullthroughtest.Config{Handler: func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		if a.isGone() && status != 0 {
			w.WriteHeader(status)
			return true
		}
		a.asked.Add(1)
		return false
	}}
	inTime(t, c, change, func(t *testing.T, p *pipeworks) {
		a.pipeworks, a.begin = p, time.Now()
		if status == 0 {
			p.through = func(_ int, plain net.Conn) (net.Conn, error) {
				if a.isGone() {
					return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
				}
				return plain, nil
			}
		}
		p.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 200", Times: 1, CutAfter: new(int64(1 << 20))})
		test(t, a)
	})
}

func testUpstreamThatIsAwayIsWaitedFor(t *testing.T) {
	for name, status := range map[string]int{"refused": 0, "502": 502, "503": 503, "504": 504, "500": 500} {
		t.Run(name+" for a moment", func(t *testing.T) { testGoesOnAfter(t, time.Second, status) })
		t.Run(name+" for 29 s", func(t *testing.T) { testGoesOnAfter(t, 29*time.Second, status) })
		t.Run(name+" for two minutes", func(t *testing.T) {
			whileAway(t, 2*time.Minute, status, nil, func(t *testing.T, a *away) {
				layer := a.Layer(3 << 20)
				assertNoBlob(t, a.World, layer.Digest, pullthrough.ErrUnavailable)
				assert.InDelta(t, 33, time.Since(a.begin).Seconds(), 3, "for half a minute, and no longer")
				assert.LessOrEqual(t, a.Up.Count(testkit.Blobs), 20)
			})
		})
		t.Run(name+", and nobody reads", func(t *testing.T) { testOrphansDoNotWait(t, status) })
	}
	t.Run("and says when it is back", func(t *testing.T) {
		inTime(t, pullthroughtest.Config{}, nil, func(t *testing.T, p *pipeworks) {
			layer := p.Layer(3 << 20)
			p.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 200", Times: 1, CutAfter: new(int64(1 << 20))})
			p.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 206", Times: 1, Status: 503, Header: http.Header{"Retry-After": {"5"}}})
			began := time.Now()
			p.PullBlob(t, "a", layer.Digest)
			assert.GreaterOrEqual(t, time.Since(began), 5*time.Second)
			assert.Equal(t, 3, p.Up.Count(testkit.Blobs), "it is not asked before")
		})
	})
}

// testGoesOnAfter wants the whole blob, and nothing of it sent twice, although upstream
// was away for so long.
func testGoesOnAfter(t *testing.T, length time.Duration, status int) {
	whileAway(t, length, status, nil, func(t *testing.T, a *away) {
		layer := a.Layer(3 << 20)
		a.PullBlob(t, "a", layer.Digest)
		assert.InDelta(t, length.Seconds()+2.5, time.Since(a.begin).Seconds(), 2.5, "it goes on soon after")
		assert.EqualValues(t, 2, a.asked.Load(), "requests that were answered")
		assert.Equal(t, layer.Size, spentOn2xx(a.World))
		assert.LessOrEqual(t, a.Up.Count(testkit.Blobs), 20)
	})
}

// spentOn2xx is how many bytes of blobs upstream has sent.
func spentOn2xx(w *testkit.World) (n int64) {
	for _, r := range w.Up.Requests() {
		if strings.Contains(r.Path, "/blobs/") && r.Status/100 == 2 {
			n += r.Bytes
		}
	}
	return n
}

func testOrphansDoNotWait(t *testing.T, status int) {
	whileAway(t, 20*time.Second, status, nil, func(t *testing.T, a *away) {
		layer := a.Layer(3 << 20)
		b, err := a.Open(t.Context(), layer.Digest)
		require.NoError(t, err)
		testkit.RequireRead(t, b.Body, 100)
		require.NoError(t, b.Body.Close())
		time.Sleep(5 * time.Second)
		synctest.Wait()
		assert.Empty(t, a.Downloads(), "a download that nobody reads ends")
		time.Sleep(20 * time.Second)
		a.PullBlob(t, "a", layer.Digest)
	})
}

// Two restarts in a row, as of two replicas.
func testUpstreamThatIsAwayTwice(t *testing.T) {
	whileAway(t, 25*time.Second, 0, nil, func(t *testing.T, a *away) {
		layer := a.Layer(6 << 20)
		var again atomic.Bool
		a.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 206", Times: 1, CutAfter: new(int64(1 << 20))})
		back := a.through
		a.through = func(n int, plain net.Conn) (net.Conn, error) {
			if a.asked.Load() == 2 && !again.Swap(true) {
				a.begin = time.Now()
			}
			return back(n, plain)
		}
		a.PullBlob(t, "a", layer.Digest)
		assert.Equal(t, layer.Size, spentOn2xx(a.World))
		assert.EqualValues(t, 3, a.asked.Load())
	})
}

// slowly answers a request for a blob, whatever its Range, with all of it: a piece each
// second. The first answer ends after first bytes.
func slowly(content []byte, piece, first int, asked *atomic.Int64) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		n := asked.Add(1)
		w.Header().Set("Content-Type", "application/octet-stream")
		w.WriteHeader(http.StatusOK)
		for off := 0; off < len(content); off += piece {
			if n == 1 && off >= first {
				panic(http.ErrAbortHandler)
			}
			if _, err := w.Write(content[off:min(off+piece, len(content))]); err != nil {
				return true
			}
			if n > 1 {
				_ = http.NewResponseController(w).Flush() // a client that has gone is seen by Write
				time.Sleep(time.Second)
			}
		}
		return true
	}
}

// An upstream that knows no Range sends all again. That takes its time, and is no stall.
func testSkippingIsProgress(t *testing.T) {
	const size, piece = 8 << 20, 128 << 10 // 48 s for the first 6 MiB
	content := testkit.BlobContent(t, pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: size, LayerSize: size}).Layers[0])
	var asked atomic.Int64
	c := pullthroughtest.Config{Handler: slowly(content, piece, 6<<20, &asked)}
	inTime(t, c, nil, func(t *testing.T, p *pipeworks) {
		layer := p.Layer(size)
		grown := testkit.Allocated(func() { p.PullBlob(t, "a", layer.Digest) })
		assert.EqualValues(t, 2, asked.Load())
		assert.Less(t, grown, uint64(16<<20), "what is passed over is not kept")
	})
}
