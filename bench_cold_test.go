package pullthrough_test

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// coldLayer is a layer in the upstream repository "a", and a way to pull it
// that is new each time.
type coldLayer struct {
	*pullthroughtest.Blob
	up     *pullthroughtest.Upstream
	direct *client // at the upstream itself, with a token
	remote string  // the layer's URL there
	local  *client
}

// upstreamDelay is what a registry that is not next door takes to begin an
// answer.
const upstreamDelay = 20 * time.Millisecond

func newColdLayer(b *testing.B, size int64, delay time.Duration) *coldLayer {
	b.Helper()
	up := pullthroughtest.New(b, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Handler: late(delay)})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: size})
	up.Push("a", "1", img)
	c := &coldLayer{Blob: img.Layers[0], up: up, local: newClient(b, "")}
	c.direct = newClient(b, up.IssueToken(time.Hour, "repository:a:pull"))
	c.remote = up.URL + "/v2/a/blobs/" + c.Digest.String()
	return c
}

// late is a Config.Handler that answers nothing itself.
func late(delay time.Duration) func(http.ResponseWriter, *http.Request) bool {
	return func(_ http.ResponseWriter, r *http.Request) bool {
		if delay <= 0 {
			return false
		}
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
		}
		return false
	}
}

// behind is a server in front of the layer's upstream, and what forgets the
// layer again once it is stored. It has pulled the layer once: buffers,
// connections and tokens are there.
func (c *coldLayer) behind(b *testing.B, store pullthrough.Store, forget func() error) (url string, again func() error) {
	b.Helper()
	p := &pullthrough.Proxy{
		Store:    store,
		Rules:    pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: c.up.URL}},
		SpoolDir: b.TempDir(),
	}
	s := httptest.NewServer(p)
	b.Cleanup(s.Close)
	b.Cleanup(func() { _ = p.Shutdown(b.Context()) })
	again = func() error {
		if err := p.Idle(b.Context()); err != nil {
			return err
		}
		return forget()
	}
	url = s.URL + "/v2/" + testkit.Prefix + "/a/blobs/" + c.Digest.String()
	c.local.verify(b, url, c.Size, c.Digest)
	if err := again(); err != nil {
		b.Fatal(err)
	}
	c.up.Reset()
	return url, again
}

// reportUpstream says what a pull cost the upstream: requests, and bytes as a
// multiple of the layer.
func (c *coldLayer) reportUpstream(b *testing.B, pulls int) {
	b.Helper()
	var bytes int64
	requests := c.up.Requests()
	for _, r := range requests {
		bytes += r.Bytes
	}
	b.ReportMetric(float64(len(requests))/float64(pulls), "requests")
	b.ReportMetric(float64(bytes)/float64(c.Size)/float64(pulls), "x-upstream-bytes")
}

// BenchmarkColdLayer pulls a layer of 1 GiB from an upstream, through a server,
// into a Store of files: one that is given the blob, and one that lends a place
// for it. The bound copies from the upstream to a file, with a sha256, and
// sends it to nobody. MiB-RSS is by how much the peak resident size of the
// whole process, upstream and client included, is above what it was before.
func BenchmarkColdLayer(b *testing.B) {
	layer := newColdLayer(b, testkit.Most(int64(1<<30)), 0)
	copied := filepath.Join(b.TempDir(), "copied")
	store := newLayerStore(b)
	for _, c := range []struct {
		name  string
		store pullthrough.Store
	}{{"put", store}, {"stage", stagingStore{store}}} {
		b.Run(c.name, func(b *testing.B) {
			url, again := layer.behind(b, c.store, func() error { return os.Remove(store.path(layer.Digest)) })
			b.SetBytes(layer.Size)
			before := resetPeak(b)
			ours := func() error {
				_, err := layer.local.get(url, layer.Size, nil)
				return errors.Join(err, again())
			}
			testkit.Beside(b, "copy", ours, func() error { return layer.copyTo(copied) })
			if before > 0 {
				b.ReportMetric(float64(peakRSS(b)-before)/(1<<20), "MiB-RSS")
			}
		})
	}
}

// copyTo is the least that a cache can do with the layer.
func (c *coldLayer) copyTo(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	h := sha256.New()
	_, err = c.direct.get(c.remote, c.Size, io.MultiWriter(h, f))
	if got := digest.NewDigest(digest.SHA256, h); err == nil && got != c.Digest {
		err = fmt.Errorf("copied %s", got)
	}
	return errors.Join(err, f.Close(), os.Remove(name))
}

// BenchmarkHerd has 64 clients ask for one cold blob of 256 MiB at once. The
// bound is 64 downloads from the upstream itself.
func BenchmarkHerd(b *testing.B) {
	const clients = 64
	layer := newColdLayer(b, testkit.Most(int64(256<<20)), 0)
	store := newLayerStore(b)
	url, again := layer.behind(b, stagingStore{store}, func() error { return os.Remove(store.path(layer.Digest)) })
	b.SetBytes(clients * layer.Size)
	var firsts []time.Duration
	herd := func(c *client, url string) ([]time.Duration, error) {
		first := make([]time.Duration, clients)
		err := inParallel(clients, func(i int) (err error) {
			first[i], err = c.get(url, layer.Size, nil)
			return err
		})
		return first, err
	}
	ours := func() error {
		first, err := herd(layer.local, url)
		firsts = append(firsts, first...)
		return errors.Join(err, again())
	}
	pulls := 0
	testkit.Beside(b, "direct", ours, func() error {
		// The log is ours alone, whoever goes first.
		seen := layer.up.Count("")
		pulls++
		_, err := herd(layer.direct, layer.remote)
		if got := layer.up.Count("") - seen; got != clients {
			return errors.Join(err, fmt.Errorf("%d direct requests", got))
		}
		return err
	})
	b.ReportMetric(float64(layer.up.Count("")-clients*pulls)/float64(pulls), "requests")
	b.ReportMetric(float64(testkit.Median(firsts).Microseconds())/1000, "ms-first-p50")
	b.ReportMetric(float64(testkit.Percentile(firsts, 99).Microseconds())/1000, "ms-first-p99")
}

// BenchmarkFirstByte is the first byte of a cold blob of 4 MiB from an upstream
// that is 20 ms late. ms-late is by how much ours comes after the upstream's.
func BenchmarkFirstByte(b *testing.B) {
	layer := newColdLayer(b, 4<<20, upstreamDelay)
	store := newLayerStore(b)
	url, again := layer.behind(b, stagingStore{store}, func() error { return os.Remove(store.path(layer.Digest)) })
	var ours, direct []time.Duration
	for b.Loop() {
		for range 2 {
			first, err := layer.local.get(url, layer.Size, nil)
			if err := errors.Join(err, again()); err != nil {
				b.Fatal(err)
			}
			ours = append(ours, first)
			first, err = layer.direct.get(layer.remote, layer.Size, nil)
			if err != nil {
				b.Fatal(err)
			}
			direct = append(direct, first)
		}
	}
	b.ReportMetric(float64(testkit.Median(ours).Microseconds())/1000, "ms-first")
	b.ReportMetric(float64((testkit.Median(ours)-testkit.Median(direct)).Microseconds())/1000, "ms-late")
	layer.reportUpstream(b, len(ours)+len(direct))
}

// The manifests of BenchmarkColdManifests.
const (
	manifestRepos    = 50
	manifestsPerRepo = 10
	manifestClients  = 16 // each takes one repository after the other
)

// BenchmarkColdManifests pulls 500 manifests in 50 repositories, through a
// proxy that knows nothing yet, from an upstream that is 20 ms late and wants a
// token for each repository. The bound is a client that does so itself: 401,
// token, manifest, and nine more.
func BenchmarkColdManifests(b *testing.B) {
	up := pullthroughtest.New(b, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Handler: late(upstreamDelay)})
	var images []*pullthroughtest.Image
	for i := range manifestsPerRepo {
		images = append(images, pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i)}))
	}
	for i := range manifestRepos {
		for _, img := range images {
			up.Push(fmt.Sprintf("r%d", i), "", img)
		}
	}
	var requests int
	pullAll := func(base string, newToken func(repo string) (string, error)) error {
		shared := newClient(b, "")
		defer shared.CloseIdleConnections()
		return inParallel(manifestClients, func(worker int) error {
			for i := worker; i < manifestRepos; i += manifestClients {
				repo := fmt.Sprintf("r%d", i)
				token, err := newToken(repo)
				if err != nil {
					return err
				}
				c := &client{shared.Client, token}
				for _, img := range images {
					h := sha256.New()
					_, err := c.get(base+repo+"/manifests/"+img.Digest.String(), int64(len(img.Content)), h)
					if got := digest.NewDigest(digest.SHA256, h); err == nil && got != img.Digest {
						err = fmt.Errorf("manifest %s is %s", img.Digest, got)
					}
					if err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	ours := func() error {
		p := &pullthrough.Proxy{Store: memstore.New(), Rules: pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: up.URL}}}
		s := httptest.NewServer(p)
		defer s.Close()
		up.Reset()
		err := pullAll(s.URL+"/v2/"+testkit.Prefix+"/", func(string) (string, error) { return "", nil })
		requests = up.Count("")
		return errors.Join(err, p.Shutdown(b.Context()))
	}
	testkit.Beside(b, "direct", ours, func() error {
		return pullAll(up.URL+"/v2/", func(repo string) (string, error) { return handshake(up, repo, images[0]) })
	})
	b.ReportMetric(float64(requests), "requests")
}

// handshake asks in vain, then for a token.
func handshake(up *pullthroughtest.Upstream, repo string, img *pullthroughtest.Image) (string, error) {
	resp, err := up.Client().Get(up.URL + "/v2/" + repo + "/manifests/" + img.Digest.String())
	if err != nil {
		return "", err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		return "", fmt.Errorf("let in without a token: %s", resp.Status)
	}
	resp, err = up.Client().Get(up.URL + "/token?service=registry.test&scope=repository:" + repo + ":pull")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var answer struct{ Token string }
	err = json.NewDecoder(resp.Body).Decode(&answer)
	return answer.Token, err
}
