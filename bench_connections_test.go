package pullthrough_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// BenchmarkConnections pulls a cold blob over four connections, from an upstream that gives
// 64 MiB/s to each: one of 1 GiB by one client, and one of 256 MiB by 64. x-direct is
// beside the upstream itself, x-one and x-cpu beside the same over one connection.
func BenchmarkConnections(b *testing.B) {
	for _, c := range []struct {
		name    string
		size    int64
		clients int
	}{{"cold", 1 << 30, 1}, {"herd", 256 << 20, 64}} {
		b.Run(c.name, func(b *testing.B) {
			layer := newColdLayer(b, testkit.Most(c.size), 0)
			layer.up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 20*", Rate: 64 << 20})
			pull := func(from *client, url string) error {
				return inParallel(c.clients, func(int) error {
					_, err := from.get(url, layer.Size, nil)
					return err
				})
			}
			four, one := layer.over(b, 4), layer.over(b, 1)
			b.SetBytes(int64(c.clients) * layer.Size)
			b.Run("direct", func(b *testing.B) {
				testkit.Beside(b, "direct", four.pull(pull), func() error { return pull(layer.direct, layer.remote) })
			})
			b.Run("one", func(b *testing.B) { testkit.Beside(b, "one", four.pull(pull), one.pull(pull)) })
			layer.up.Reset()
			if err := four.pull(pull)(); err != nil {
				b.Fatal(err)
			}
			layer.reportUpstream(b, 1)
		})
	}
}

// overConnections is a server in front of a layer's upstream.
type overConnections struct {
	layer *coldLayer
	url   string
	again func() error
}

func (c *coldLayer) over(b *testing.B, n int) *overConnections {
	b.Helper()
	store := newLayerStore(b)
	p := &pullthrough.Proxy{
		Store:    sparseStore{stagingStore{store}},
		Rules:    pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: c.up.URL}},
		SpoolDir: b.TempDir(),
	}
	testkit.WithPolicy(pullthrough.Policy{Connections: n})(p)
	s := httptest.NewServer(p)
	b.Cleanup(s.Close)
	b.Cleanup(func() { _ = p.Shutdown(context.Background()) })
	return &overConnections{
		layer: c, url: s.URL + "/v2/" + testkit.Prefix + "/a/blobs/" + c.Digest.String(),
		again: func() error { return errors.Join(p.Idle(b.Context()), os.Remove(store.path(c.Digest))) },
	}
}

func (o *overConnections) pull(by func(*client, string) error) func() error {
	return func() error { return errors.Join(by(o.layer.local, o.url), o.again()) }
}

// sparseStore is a stagingStore whose places take content in any order.
type sparseStore struct{ stagingStore }

func (s sparseStore) StageBlob(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (pullthrough.Stage, error) {
	stage, err := s.stagingStore.StageBlob(ctx, repo, d)
	return sparseStage{stage.(*layerStage)}, err
}

type sparseStage struct{ *layerStage }

func (sparseStage) Sparse() bool { return true }
