package pullthrough_test

import (
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func testSlowHeadersAndBodies(t *testing.T) {
	for name, config := range map[string]pullthroughtest.Config{"http": {}, "https": {TLS: true}, "HTTP/2": secure} {
		t.Run(name+", a header that trickles", func(t *testing.T) { inTime(t, config, nil, testTrickledHeader) })
		for size, ok := range map[int]bool{100 << 10: true, 1 << 20: false} {
			t.Run(fmt.Sprint(name, ", a header of ", size), func(t *testing.T) {
				inTime(t, config, nil, func(t *testing.T, p *pipeworks) {
					big := http.Header{}
					for i := range size >> 10 {
						big.Set(fmt.Sprint("X-", i), strings.Repeat("x", 1<<10))
					}
					heal := p.Up.Fault(pullthroughtest.Fault{Header: big})
					assert.Equal(t, ok, pullsManifest(t.Context(), t, p) == nil)
					assert.LessOrEqual(t, p.Up.Count("*"), 4)
					heal()
					assert.NoError(t, pullsManifest(t.Context(), t, p))
				})
			})
		}
		t.Run(name+", bodies that stall", func(t *testing.T) { inTime(t, config, nil, testStallsHoldUpNobodyElse) })
		t.Run(name+", a body that takes ten minutes", func(t *testing.T) {
			inTime(t, config, nil, func(t *testing.T, p *pipeworks) {
				layer := p.Layer(1200 << 10)
				p.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Rate: 2 << 10})
				start := time.Now()
				assert.NoError(t, p.Whole(t.Context(), layer.Digest))
				assert.InDelta(t, 10*time.Minute, time.Since(start), float64(time.Minute))
				assert.Equal(t, 1, p.Up.Count(testkit.Blobs))
			})
		})
	}
	t.Run("a connection that nobody uses for 90 s", func(t *testing.T) {
		inTime(t, pullthroughtest.Config{}, testkit.EveryPull, testIdleConnectionsAreKept)
	})
	t.Run("cookies", func(t *testing.T) {
		inTime(t, pullthroughtest.Config{}, testkit.EveryPull, testHugeHeaderIsRefused)
	})
}

func testTrickledHeader(t *testing.T, p *pipeworks) {
	// On HTTP/2 a header comes in one piece, or not at all.
	heal := p.Up.Fault(pullthroughtest.Fault{HeaderRate: 1, Stall: p.whereHTTP2(make(chan struct{}))})
	start := time.Now()
	assert.ErrorIs(t, pullsManifest(t.Context(), t, p), pullthrough.ErrUnavailable)
	assertTook(t, 30*time.Second, start)
	assert.Equal(t, 1, p.Up.Count("*"))
	heal()
	assert.NoError(t, pullsManifest(t.Context(), t, p))
}

// whereHTTP2 is stall on HTTP/2.
func (p *pipeworks) whereHTTP2(stall <-chan struct{}) <-chan struct{} {
	if p.config.HTTP2 {
		return stall
	}
	return nil
}

func testStallsHoldUpNobodyElse(t *testing.T, p *pipeworks) {
	stall := make(chan struct{})
	p.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Stall: stall, StallAfter: new(int64(100 << 10))})
	start := time.Now()
	for i := range 4 {
		layer := p.Layer(1<<20 + 1 + int64(i))
		b, err := p.Open(t.Context(), layer.Digest)
		require.NoError(t, err)
		defer func() { assert.NoError(t, b.Body.Close()) }()
	}
	require.NoError(t, p.Up.Wait(t.Context(), testkit.Blobs, 4))
	assert.NoError(t, pullsManifest(t.Context(), t, p))
	assertTook(t, 0, start)
	close(stall)
}

func testIdleConnectionsAreKept(t *testing.T, p *pipeworks) {
	for _, c := range []struct {
		idle time.Duration
		want int
	}{{0, 1}, {89 * time.Second, 1}, {91 * time.Second, 2}} {
		time.Sleep(c.idle)
		require.NoError(t, pullsManifest(t.Context(), t, p))
		p.Settled(t)
		assert.Equal(t, c.want, p.connections(), c.idle)
	}
	assert.Equal(t, 3, p.Up.Count("*"))
}

func testHugeHeaderIsRefused(t *testing.T, p *pipeworks) {
	p.Up.Fault(pullthroughtest.Fault{Header: http.Header{"Set-Cookie": {"id=" + testkit.Canary}}})
	for range 2 {
		require.NoError(t, pullsManifest(t.Context(), t, p))
		p.Settled(t)
	}
	require.Equal(t, 2, p.Up.Count("*"))
	assert.False(t, p.Up.Saw(testkit.Canary))
}

func testSilentBodyIsAskedForAgain(t *testing.T) {
	t.Run("a stall", func(t *testing.T) {
		inTime(t, pullthroughtest.Config{}, nil, func(t *testing.T, p *pipeworks) {
			layer := p.Layer(4 << 20)
			p.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Times: 1, Stall: make(chan struct{}), StallAfter: new(int64(2 << 20))})
			start := time.Now()
			assert.NoError(t, p.Whole(t.Context(), layer.Digest))
			assert.InDelta(t, 30*time.Second, time.Since(start), float64(time.Second))
			assert.Equal(t, "bytes=2097152-", p.Up.Requests()[1].Range)
		})
	})
	t.Run("stalls without end", func(t *testing.T) {
		inTime(t, pullthroughtest.Config{}, nil, func(t *testing.T, p *pipeworks) {
			layer := p.Layer(4 << 20)
			p.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 200", Stall: make(chan struct{}), StallAfter: new(int64(10 << 10))})
			p.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 206", Stall: make(chan struct{}), StallAfter: new(int64(0))})
			start := time.Now()
			assertNoBlob(t, p.World, layer.Digest, pullthrough.ErrUnavailable)
			assert.LessOrEqual(t, time.Since(start), 4*time.Minute)
			assert.LessOrEqual(t, p.Up.Count(testkit.Blobs), 6)
		})
	})
	t.Run("a few bytes now and then", testTooSlowABodyIsGivenUp)
}

func testTooSlowABodyIsGivenUp(t *testing.T) {
	for name, c := range map[string]struct {
		portion int
		pause   time.Duration
		ok      bool
	}{
		"a byte in 5 s":         {1, 5 * time.Second, false},
		"a byte in 29 s":        {1, 29 * time.Second, false},
		"900 bytes in a second": {900, time.Second, false},
		"20 KiB in 10 s":        {20 << 10, 10 * time.Second, true},
		"64 KiB in 29 s":        {64 << 10, 29 * time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			const size = 3 << 20
			layer := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: size, LayerSize: size}).Layers[0]
			handler := func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/blobs/") {
					return false
				}
				w.Header().Set("Content-Length", fmt.Sprint(size))
				for body := layer.Open(); r.Context().Err() == nil; time.Sleep(c.pause) {
					if _, err := io.CopyN(w, body, int64(c.portion)); err != nil {
						break
					}
					w.(http.Flusher).Flush()
				}
				return true
			}
			inTime(t, pullthroughtest.Config{Handler: handler}, nil, func(t *testing.T, p *pipeworks) {
				start := time.Now()
				err := p.Whole(t.Context(), layer.Digest)
				if c.ok {
					assert.NoError(t, err)
				} else {
					assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
					assert.LessOrEqual(t, time.Since(start), 2*time.Minute+time.Second)
				}
				assert.Equal(t, 1, p.Up.Count(testkit.Blobs))
				time.Sleep(time.Minute) // the handler notices that its client has gone
			})
		})
	}
}

func testDeadConnectionsAreFound(t *testing.T) {
	for name, config := range map[string]pullthroughtest.Config{"HTTP/1.1": {TLS: true}, "HTTP/2": secure} {
		t.Run(name+", between requests", func(t *testing.T) { inTime(t, config, nil, testConnectionThatDiesBetweenRequests) })
		t.Run(name+", in a blob", func(t *testing.T) { inTime(t, config, nil, testConnectionThatDiesInABlob) })
		t.Run(name+", as offered", func(t *testing.T) {
			inTime(t, config, nil, func(t *testing.T, p *pipeworks) {
				require.NoError(t, pullsManifest(t.Context(), t, p))
				assert.Equal(t, map[bool]int{true: 2, false: 1}[config.HTTP2], p.arrivals("GET ")[0].proto)
			})
		})
	}
	t.Run("HTTP/2, an idle connection is pinged", func(t *testing.T) { inTime(t, secure, nil, testConnectionsArePinged) })
	t.Run("HTTP/2, GOAWAY in a blob", func(t *testing.T) {
		inTime(t, secure, nil, func(t *testing.T, p *pipeworks) {
			layer := p.Layer(4 << 20)
			p.Up.Fault(breaking(framed(string(pullthroughtest.GoAway(0, 0))), testkit.Blobs, 2<<20))
			require.NoError(t, p.Whole(t.Context(), layer.Digest))
			assert.Equal(t, 2, p.connections())
			assert.Equal(t, 2, p.Up.Count(testkit.Blobs))
		})
	})
	t.Run("HTTP/2, several connections for a blob", func(t *testing.T) {
		inTime(t, secure, testkit.WithPolicy(pullthrough.Policy{Connections: 2}), func(t *testing.T, p *pipeworks) {
			layer := p.Layer(20 << 20)
			p.Up.Reset()
			p.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 20*", Rate: 8 << 20})
			start := time.Now()
			require.NoError(t, p.Whole(t.Context(), layer.Digest))
			assert.Less(t, time.Since(start), 2*time.Second, "over one connection it takes 2.5")
			assert.Equal(t, 2, p.connections())
			var bytes int64
			for _, r := range p.Up.Requests() {
				bytes += r.Bytes
			}
			assert.Equal(t, layer.Size, bytes)
			protos := map[int]int{}
			for _, a := range p.arrivals("GET /v2/a/blobs") {
				protos[a.proto]++
			}
			assert.Len(t, protos, 2, "what is beside the first speaks HTTP/1.1")
		})
	})
	t.Run("HTTP/1.1 by rule", func(t *testing.T) {
		inTime(t, secure, testkit.WithPolicy(pullthrough.Policy{HTTP1: true}), func(t *testing.T, p *pipeworks) {
			require.NoError(t, p.Whole(t.Context(), p.Layer(1000).Digest))
			require.NoError(t, pullsManifest(t.Context(), t, p))
			for _, a := range p.arrivals("GET ") {
				assert.Equal(t, 1, a.proto)
			}
			assert.Len(t, p.arrivals("GET "), 2)
		})
	})
}

func testConnectionThatDiesBetweenRequests(t *testing.T, p *pipeworks) {
	first := p.forgetFirst()
	require.NoError(t, pullsManifest(t.Context(), t, p))
	first.lost.Store(true)
	p.hundred()
	start := time.Now()
	_, _ = p.Resolve(t.Context(), "7") // nobody can know yet that nobody listens
	assert.LessOrEqual(t, time.Since(start), 31*time.Second)
	start = time.Now()
	_, err := p.Resolve(t.Context(), "8")
	assert.NoError(t, err)
	assert.LessOrEqual(t, time.Since(start), 200*time.Millisecond)
	assert.Equal(t, 2, p.connections())
	assert.Equal(t, 1, p.Up.Count("GET /v2/a/manifests/8"))
}

func testConnectionThatDiesInABlob(t *testing.T, p *pipeworks) {
	stall := make(chan struct{})
	first := p.forgetFirst()
	layer := p.Layer(4 << 20)
	p.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Times: 1, Stall: stall, StallAfter: new(int64(2 << 20))})
	b, err := p.Open(t.Context(), layer.Digest)
	require.NoError(t, err)
	testkit.RequireRead(t, b.Body, 1<<20)
	first.lost.Store(true)
	close(stall)
	start := time.Now()
	_, err = io.Copy(io.Discard, b.Body)
	assert.NoError(t, err)
	assert.NoError(t, b.Body.Close())
	assert.LessOrEqual(t, time.Since(start), 61*time.Second)
	assert.Equal(t, 2, p.connections())
	assert.Equal(t, 2, p.Up.Count(testkit.Blobs))
}

func testConnectionsArePinged(t *testing.T, p *pipeworks) {
	first := p.forgetFirst()
	require.NoError(t, pullsManifest(t.Context(), t, p))
	first.lost.Store(true)
	time.Sleep(31 * time.Second)
	p.hundred()
	start := time.Now()
	_, err := p.Resolve(t.Context(), "7")
	assert.NoError(t, err)
	assertTook(t, 0, start)
	assert.Equal(t, 1, p.Up.Count("GET /v2/a/manifests/7"))
}

// forgetFirst makes the first connection one that can be lost.
func (p *pipeworks) forgetFirst() *tunnel {
	first := &tunnel{}
	p.through = func(n int, plain net.Conn) (net.Conn, error) {
		if n > 1 {
			return plain, nil
		}
		first.Conn = plain
		return first, nil
	}
	return first
}

func testHTTPIsNeverFallenBackTo(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	closed, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, closed.Close())
	for name, url := range map[string]string{
		"https, and the port is closed":           "https://" + closed.Addr().String(),
		"https, and the port speaks http":         "https://" + up.Host(),
		"no scheme, and the port is closed":       closed.Addr().String(),
		"no scheme, and the port speaks http":     up.Host(),
		"no scheme, localhost, and it is http":    "localhost:" + testkit.Port(up),
		"https in capitals, and the port is http": "HTTPS://" + up.Host(),
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				p.Rules = pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: url}}
			})
			_, err := w.Resolve(t.Context(), "1")
			assert.Error(t, err)
			if !strings.Contains(name, "closed") {
				assert.ErrorContains(t, err, "write http://")
			}
			assert.Empty(t, up.Log())
		})
	}
	t.Run("http, as the rule says", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
		require.True(t, strings.HasPrefix(w.Up.URL(), "http://"))
		assert.NoError(t, w.Whole(t.Context(), w.Layer(1000).Digest))
		assert.Equal(t, 1, w.Up.Count("*"))
	})
}

func testURLThatEndsInV2(t *testing.T) {
	for _, path := range []string{"/v2", "/v2/", "/mirror/v2/"} {
		up := pullthroughtest.New(t, pullthroughtest.Config{})
		w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
			p.Rules = pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: up.URL() + path}}
		})
		_, err := w.Resolve(t.Context(), "1")
		assert.ErrorIs(t, err, pullthrough.ErrInvalid)
		assert.ErrorContains(t, err, "write the URL without /v2")
		assert.Empty(t, up.Log())
	}
}

func testBodiesThatNobodyNeeds(t *testing.T) {
	for name, c := range map[string]struct {
		fault pullthroughtest.Fault
		conns int
	}{
		"nothing":      {pullthroughtest.Fault{Body: []byte{}}, 1},
		"10 KiB":       {pullthroughtest.Fault{Body: make([]byte, 10<<10)}, 1},
		"60 KiB":       {pullthroughtest.Fault{Body: make([]byte, 60<<10), NoLength: true}, 1},
		"200 KiB":      {pullthroughtest.Fault{Body: make([]byte, 200<<10)}, 2},
		"no end":       {pullthroughtest.Fault{Extend: math.MaxInt64, NoLength: true}, 2},
		"1 GB to come": {pullthroughtest.Fault{Extend: 1 << 30, Header: announced(1 << 30)}, 2},
	} {
		for _, status := range []int{401, 503} {
			t.Run(fmt.Sprint(status, " with ", name), func(t *testing.T) {
				config := pullthroughtest.Config{}
				if status == 401 {
					config = pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: testkit.Users}
				}
				inTime(t, config, testkit.WithSecret(nil), func(t *testing.T, p *pipeworks) {
					fault := c.fault
					fault.Times, fault.Status = 1, status
					p.Up.Fault(fault)
					start := time.Now()
					require.NoError(t, pullsManifest(t.Context(), t, p))
					assert.LessOrEqual(t, time.Since(start), 200*time.Millisecond)
					assert.Equal(t, c.conns, p.connections())
					assert.LessOrEqual(t, spent(p.World, "/manifests/"), int64(64<<10+readAhead))
					assert.Equal(t, 1, p.Up.Count("GET /v2/a/manifests/* 200"))
				})
			})
		}
	}
	t.Run("a body that does not come", func(t *testing.T) {
		inTime(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil, func(t *testing.T, p *pipeworks) {
			p.Up.Fault(pullthroughtest.Fault{Match: "* 401", Body: make([]byte, 100), Stall: make(chan struct{}), StallAfter: new(int64(10))})
			start := time.Now()
			require.NoError(t, pullsManifest(t.Context(), t, p))
			assert.LessOrEqual(t, time.Since(start), 3*time.Second)
			assert.Equal(t, 1, p.Up.Count("* 401"))
		})
	})
}
