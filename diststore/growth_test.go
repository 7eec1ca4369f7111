package diststore_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/diststore"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// fleet is proxies on one bucket, and the upstream of them all.
type fleet struct {
	proxies []*pullthrough.Proxy
	up      *pullthroughtest.Upstream
	img     *pullthroughtest.Image
}

func newFleet(tb testing.TB, driver storagedriver.StorageDriver, n int) *fleet {
	tb.Helper()
	f := &fleet{
		up:  pullthroughtest.New(tb, pullthroughtest.Config{}),
		img: pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 3, LayerSize: 2 << 20}),
	}
	f.up.Push("a", "v1", f.img)
	for range n {
		p := &pullthrough.Proxy{
			Store: diststore.New(driver), SpoolDir: tb.TempDir(),
			Rules: pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: f.up.URL}},
		}
		tb.Cleanup(func() { assert.NoError(tb, p.Shutdown(context.Background())) })
		f.proxies = append(f.proxies, p)
	}
	return f
}

// pull has so many clients pull the image through each of some proxies, all at once, and
// waits until the bucket has it.
func (f *fleet) pull(tb testing.TB, proxies []*pullthrough.Proxy, clients int) {
	tb.Helper()
	var wg sync.WaitGroup
	for _, p := range proxies {
		for range clients {
			wg.Go(func() {
				assert.NoError(tb, testkit.PullImage(tb.Context(), p, pullthrough.Repo{Name: "hub/a"}, "v1", f.img))
			})
		}
	}
	wg.Wait()
	for _, p := range proxies {
		require.NoError(tb, p.Idle(tb.Context()))
	}
}

// TestMoreProxiesOnABucketAskUpstreamNoMore than once each for an object when they are all
// asked for it at once, and once in all when they are asked one after the other.
func TestMoreProxiesOnABucketAskUpstreamNoMore(t *testing.T) {
	for n := 1; n <= 8; n *= 2 {
		t.Run(fmt.Sprintf("proxies=%d", n), func(t *testing.T) {
			f := newFleet(t, drivers["inmemory"](t), n+1)
			f.pull(t, f.proxies[:n], 4)
			for _, b := range f.img.Blobs() {
				assert.LessOrEqual(t, f.up.Count("GET /v2/a/blobs/"+b.Digest.String()), n)
			}
			assert.LessOrEqual(t, f.up.Count("GET /v2/a/manifests/v1"), n)
			f.up.Reset()
			f.pull(t, f.proxies[n:], 1)
			assert.Empty(t, f.up.Log(), "the bucket has all of it")

			one := newFleet(t, drivers["inmemory"](t), n)
			for i := range one.proxies {
				one.pull(t, one.proxies[i:i+1], 1)
			}
			assert.Equal(t, 1+len(one.img.Blobs()), one.up.Count(""), "a manifest, a config and three layers")
		})
	}
}

// BenchmarkProxies is four clients at each of more and more proxies on one bucket, of an
// image that it does not have.
func BenchmarkProxies(b *testing.B) {
	for n := 1; n <= 8; n *= 2 {
		b.Run(fmt.Sprintf("proxies=%d", n), func(b *testing.B) {
			gets, blobs := 0, 0
			for b.Loop() {
				b.StopTimer()
				f := newFleet(b, drivers["inmemory"](b), n)
				b.StartTimer()
				f.pull(b, f.proxies, 4)
				gets, blobs = gets+f.up.Count("GET /v2/a/blobs/*"), blobs+len(f.img.Blobs())
			}
			b.ReportMetric(float64(gets)/float64(blobs), "GETs/blob")
		})
	}
}
