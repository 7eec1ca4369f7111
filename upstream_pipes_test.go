package pullthrough_test

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// secure is a registry that speaks HTTP/2, and HTTP/1.1 with those who prefer it.
var secure = pullthroughtest.Config{TLS: true, HTTP2: true}

// pipeworks is a world in a bubble: waiting takes no time. The proxy has the
// transport of its own, over pipes.
type pipeworks struct {
	*testkit.World
	config pullthroughtest.Config
	// through, if not nil, decides about the nth connection; plain is what it would be.
	through func(n int, plain net.Conn) (net.Conn, error)
	others  []*pullthroughtest.Upstream // that connections may go to

	mu    sync.Mutex
	dials int
	came  []arrival
}

// arrival is a request that came.
type arrival struct {
	line  string // "GET /v2/a/manifests/1"
	proto int    // 1 or 2
	at    time.Time
}

// inTime runs test before an upstream of the given kind. change, if not nil, may
// change the proxy before its first use.
func inTime(t *testing.T, c pullthroughtest.Config, change func(*pullthrough.Proxy), test func(*testing.T, *pipeworks)) {
	t.Helper()
	p := &pipeworks{config: c}
	answer := c.Handler
	c.Handler = func(w http.ResponseWriter, r *http.Request) bool {
		p.arrive(r)
		return answer != nil && answer(w, r)
	}
	up, dir := pullthroughtest.New(t, c), t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p.World = &testkit.World{Up: up, Mem: memstore.New()}
		p.Proxy = &pullthrough.Proxy{
			Store:    p.Mem,
			Rules:    pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: up.URL}},
			SpoolDir: dir,
		}
		if change != nil {
			change(p.Proxy)
		}
		require.NoError(t, p.Connect(testkit.Repo("a"), p.dial, up.Roots()))
		t.Cleanup(func() { assert.NoError(t, p.Shutdown(context.Background())) })
		test(t, p)
	})
}

func (p *pipeworks) dial(ctx context.Context, network, address string) (net.Conn, error) {
	p.mu.Lock()
	p.dials++
	n := p.dials
	p.mu.Unlock()
	up := p.Up
	if strings.HasSuffix(address, ":1") { // where nobody listens
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	}
	for _, other := range p.others {
		if other.Host() == address {
			up = other
		}
	}
	conn, err := up.DialPipe(ctx, network, address)
	if err != nil || p.through == nil {
		return conn, err
	}
	through, err := p.through(n, conn)
	if err != nil {
		_ = conn.Close() // nobody got it
	}
	return through, err
}

func (p *pipeworks) arrive(r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.came = append(p.came, arrival{r.Method + " " + r.URL.Path, r.ProtoMajor, time.Now()})
}

// arrivals are the requests whose line begins so.
func (p *pipeworks) arrivals(line string) (all []arrival) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.came {
		if strings.HasPrefix(a.line, line) {
			all = append(all, a)
		}
	}
	return all
}

// gaps are the times between the requests whose line begins so.
func (p *pipeworks) gaps(line string) (gaps []time.Duration) {
	all := p.arrivals(line)
	for i := 1; i < len(all); i++ {
		gaps = append(gaps, all[i].at.Sub(all[i-1].at))
	}
	return gaps
}

func (p *pipeworks) connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dials
}

// assertTook: time passes in a bubble only when somebody waits for it, so that it
// can be told exactly.
func assertTook(t *testing.T, want time.Duration, start time.Time) {
	t.Helper()
	assert.Equal(t, want, time.Since(start))
}

// spent is how much of bodies upstream has sent in answer to such paths.
func spent(w *testkit.World, part string) (n int64) {
	for _, r := range w.Up.Requests() {
		if strings.Contains(r.Path, part) {
			n += r.Bytes
		}
	}
	return n
}
