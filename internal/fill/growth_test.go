package fill_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
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

// herdSize is the size of the blob of BenchmarkHerd; HERD_BENCH_MIB says another one, such
// as 64.
func herdSize(b *testing.B) int64 {
	b.Helper()
	given := os.Getenv("HERD_BENCH_MIB")
	if given == "" {
		return herdBlob
	}
	n, err := strconv.ParseInt(given, 10, 64)
	require.NoError(b, err)
	return n << 20
}

// BenchmarkHerd is one blob that is not stored, for more and more clients at once. Each
// comes before the first byte does. B/client is what one costs while it waits, heap and
// stack.
func BenchmarkHerd(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000, 5000} {
		if n > testkit.Most(5000) {
			break
		}
		b.Run(fmt.Sprintf("clients=%d", n), func(b *testing.B) {
			layer := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: herdSize(b)}).Layers[0]
			b.SetBytes(int64(n) * layer.Size)
			var waiting uint64
			gets := 0
			for b.Loop() {
				cost, asked := herd(b, layer, n)
				waiting, gets = waiting+cost, gets+asked
			}
			b.ReportMetric(float64(waiting)/float64(b.N*n), "B/client")
			b.ReportMetric(float64(gets)/float64(b.N), "GETs")
		})
	}
}

// herd returns what the clients cost while they wait, and how many GETs they caused.
func herd(b *testing.B, layer *pullthroughtest.Blob, clients int) (waiting uint64, gets int) {
	b.Helper()
	up := pullthroughtest.New(b, pullthroughtest.Config{})
	up.Push("a", "", &pullthroughtest.Image{MediaType: "application/vnd.oci.image.manifest.v1+json", Content: []byte("{}"), Layers: []*pullthroughtest.Blob{layer}})
	begin := make(chan struct{})
	up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Stall: begin, StallAfter: new(int64(0))})
	p := &pullthrough.Proxy{
		Store: memstore.New(), Rules: pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: up.URL}}, SpoolDir: b.TempDir(),
	}
	before := testkit.InUse()
	var opened, done sync.WaitGroup
	opened.Add(clients)
	for range clients {
		done.Go(func() {
			blob, err := p.Blob(b.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: layer.Digest.String()})
			opened.Done()
			if !assert.NoError(b, err) {
				return
			}
			n, err := io.Copy(io.Discard, blob.Body)
			assert.NoError(b, err)
			assert.Equal(b, layer.Size, n)
			assert.NoError(b, blob.Body.Close())
		})
	}
	opened.Wait()
	waiting = max(testkit.InUse(), before) - before
	close(begin)
	done.Wait()
	require.NoError(b, p.Shutdown(b.Context()))
	up.Close()
	return waiting, up.Count("GET /v2/a/blobs/*")
}

const tenantCount = 100

// tenants is a proxy with a rule for each tenant, "t7", whose upstream has a host of its
// own, "t7.test". One upstream answers for all but the first.
type tenantWorld struct {
	*pullthrough.Proxy
	up, first *pullthroughtest.Upstream
	img       *pullthroughtest.Image
}

// newTenants returns the world, without its proxy.
func newTenants(tb testing.TB) *tenantWorld {
	tb.Helper()
	w := &tenantWorld{
		up: pullthroughtest.New(tb, pullthroughtest.Config{}), first: pullthroughtest.New(tb, pullthroughtest.Config{}),
		img: pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 2, LayerSize: 2 << 20}),
	}
	for i := range tenantCount {
		w.up.Push(fmt.Sprintf("t%d", i), "v1", w.img)
	}
	for i := range tenantCount {
		w.first.Push(fmt.Sprint("a", i), "v1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i)}))
	}
	return w
}

// enter makes the proxy, with dial for each of the two upstreams.
func (w *tenantWorld) enter(tb testing.TB, dir string, dial func(*pullthroughtest.Upstream) func(context.Context, string, string) (net.Conn, error)) {
	tb.Helper()
	var rules pullthrough.StaticRules
	for i := range tenantCount {
		rules = append(rules, pullthrough.Rule{Prefix: fmt.Sprintf("t%d", i), UpstreamURL: fmt.Sprintf("http://t%d.test", i)})
	}
	transport := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == "t0.test:80" {
			return dial(w.first)(ctx, network, address)
		}
		return dial(w.up)(ctx, network, address)
	}}
	w.Proxy = &pullthrough.Proxy{Store: memstore.New(), Rules: rules, SpoolDir: dir, Transport: transport}
	tb.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // what stalls is given up
		_ = w.Shutdown(ctx)
		transport.CloseIdleConnections()
	})
}

// pull pulls a tenant's image.
func (w *tenantWorld) pull(ctx context.Context, tenant int) error {
	repo := pullthrough.Repo{Name: fmt.Sprintf("t%d/t%d", tenant, tenant)}
	return testkit.PullImage(ctx, w.Proxy, repo, "v1", w.img)
}

// others pulls the images of all tenants but the first.
func (w *tenantWorld) others(tb testing.TB) {
	var wg sync.WaitGroup
	for i := 1; i < tenantCount; i++ {
		wg.Go(func() { assert.NoError(tb, w.pull(tb.Context(), i)) })
	}
	wg.Wait()
}

// clog has the first tenant's clients ask for so much that every limit of its rule is
// reached, and returns when upstream has 64 of the requests, none of which it answers.
func (w *tenantWorld) clog(tb testing.TB, wg *sync.WaitGroup) (unclog func()) {
	tb.Helper()
	w.first.Fault(pullthroughtest.Fault{Match: "*", Stall: make(chan struct{})})
	ctx, cancel := context.WithCancel(tb.Context())
	for i := range 2 * tenantCount {
		repo := pullthrough.Repo{Name: fmt.Sprint("t0/a", i)}
		wg.Go(func() { _, _ = w.Manifest(ctx, pullthrough.Request{Repo: repo, Ref: "v1"}) })
		wg.Go(func() {
			_, _ = w.Blob(ctx, pullthrough.Request{Repo: repo, Ref: w.img.Layers[0].Digest.String()})
		})
	}
	require.NoError(tb, w.first.Wait(tb.Context(), "", 64))
	return cancel
}

// TestATenantsUpstreamThatStallsHoldsUpNobodyElse: the others' requests are the same as
// without it, and none of them waits for anything that takes time.
func TestATenantsUpstreamThatStallsHoldsUpNobodyElse(t *testing.T) {
	testkit.Baseline(t)
	w, dir := newTenants(t), t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w.enter(t, dir, func(up *pullthroughtest.Upstream) func(context.Context, string, string) (net.Conn, error) {
			return up.DialPipe
		})
		var clogged sync.WaitGroup
		unclog := w.clog(t, &clogged)
		start := time.Now()
		w.others(t)
		assert.Zero(t, time.Since(start))
		assert.Equal(t, (tenantCount-1)*(1+len(w.img.Blobs())), w.up.Count("GET *"))
		assert.Equal(t, w.up.Count("GET * 200"), w.up.Count(""))
		unclog()
		clogged.Wait()
	})
}

// BenchmarkTenants is the pulls of 99 tenants alone, and beside one whose upstream stalls.
func BenchmarkTenants(b *testing.B) {
	for name, stalled := range map[string]bool{"alone": false, "beside=stalled": true} {
		b.Run(name, func(b *testing.B) {
			w := newTenants(b)
			for b.Loop() {
				b.StopTimer()
				w.enter(b, b.TempDir(), func(up *pullthroughtest.Upstream) func(context.Context, string, string) (net.Conn, error) {
					return func(ctx context.Context, network, _ string) (net.Conn, error) {
						return pullthroughtest.DialLoopback(ctx, network, up.Host())
					}
				})
				unclog := func() {}
				var clogged sync.WaitGroup
				if stalled {
					unclog = w.clog(b, &clogged)
				}
				b.StartTimer()
				w.others(b)
				b.StopTimer()
				unclog()
				clogged.Wait()
				w.first.Heal()
				w.first.Reset()
				b.StartTimer()
			}
		})
	}
}
