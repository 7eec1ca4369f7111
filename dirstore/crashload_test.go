//go:build unix

package dirstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// tagged is a tag and what it is, one after the other.
type tagged struct {
	repo   pullthrough.Repo
	tag    string
	images []*pullthroughtest.Image
}

// upstreamName is the repository's name there.
func upstreamName(repo pullthrough.Repo) string { return strings.TrimPrefix(repo.Name, "hub/") }

// crowd are tags of several platforms, tags that move, layers that images and
// repositories share, a large layer, an artifact out of the registry's sight and one
// that refers to another image. It is the same each time.
var crowd = sync.OnceValue(func() []tagged {
	img := func(seed int64, layers int, arch string) *pullthroughtest.Image {
		o := pullthroughtest.ImageOptions{Seed: seed, Layers: layers, LayerSize: 20 << 10}
		o.Platform.OS, o.Platform.Architecture = "linux", arch
		return pullthroughtest.NewImage(o)
	}
	app, base := pullthrough.Repo{Name: "hub/library/app"}, pullthrough.Repo{Name: "hub/library/base"}
	index1 := pullthroughtest.NewIndex(img(1, 2, "amd64"), img(1, 3, "arm64"))
	index2 := pullthroughtest.NewIndex(img(2, 2, "amd64"), img(1, 3, "arm64"))
	signature := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 5, ArtifactType: "application/vnd.example.signature", Subject: img(1, 2, "amd64")})
	huge := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 9, LayerSize: 1536 << 10})
	return []tagged{
		{app, "latest", []*pullthroughtest.Image{index1, index2, img(3, 4, "amd64")}},
		{app, "v1", []*pullthroughtest.Image{index1}},
		{base, "v1", []*pullthroughtest.Image{img(1, 2, "amd64")}},
		{base, "latest", []*pullthroughtest.Image{img(3, 1, "amd64"), artifact("1")}},
		{base, "signature", []*pullthroughtest.Image{signature}},
		{tenant, "v1", []*pullthroughtest.Image{img(2, 2, "amd64")}},
		{other, "huge", []*pullthroughtest.Image{huge}},
	}
})

// newCrowd is an upstream registry whose tags move while they are asked for.
func newCrowd(t *testing.T) *pullthroughtest.Upstream {
	t.Helper()
	all := crowd()
	var up *pullthroughtest.Upstream
	var mu sync.Mutex
	asked := make(map[string]int)
	mu.Lock() // requests of other processes do not happen after what is done here
	defer mu.Unlock()
	up = pullthroughtest.New(t, pullthroughtest.Config{Handler: func(_ http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range all {
			if strings.HasSuffix(r.URL.Path, "/"+upstreamName(c.repo)+"/manifests/"+c.tag) && len(c.images) > 1 {
				n := asked[r.URL.Path]
				asked[r.URL.Path]++
				up.Push(upstreamName(c.repo), c.tag, c.images[n/3%len(c.images)])
			}
		}
		return false
	}})
	for _, c := range all {
		for _, img := range c.images {
			up.Push(upstreamName(c.repo), c.tag, img)
		}
	}
	return up
}

// otherName is another name for the address of an upstream registry, so that its log
// tells from whom a request came.
func otherName(address string) string { return strings.Replace(address, "127.0.0.1", "localhost", 1) }

// newProxy pulls through s from the upstream at url. It must be shut down.
func newProxy(s pullthrough.Store, url string, fill pullthrough.FillMode, policy pullthrough.Policy) *pullthrough.Proxy {
	return &pullthrough.Proxy{
		Store: s, Rules: pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: url}}, Fill: fill,
		Transport: &http.Transport{DialContext: pullthroughtest.DialLoopback, MaxIdleConnsPerHost: 64},
		Policy: func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return policy
		},
	}
}

// pullImage pulls a manifest and all that it refers to, and checks each byte.
func pullImage(ctx context.Context, p *pullthrough.Proxy, repo pullthrough.Repo, ref string) error {
	m, err := p.Manifest(ctx, pullthrough.Request{Repo: repo, Ref: ref})
	if err != nil {
		return err
	}
	if digest.FromBytes(m.Content) != m.Descriptor.Digest || strings.Contains(ref, ":") && ref != m.Descriptor.Digest.String() {
		return fmt.Errorf("%s %s: content of another digest", repo.Name, ref)
	}
	info, err := manifest.Inspect(m.Descriptor.MediaType, m.Content, manifest.Stored)
	if err != nil {
		return err
	}
	for _, d := range info.Manifests {
		if err := pullImage(ctx, p, repo, d.Digest.String()); err != nil {
			return err
		}
	}
	for _, d := range info.Blobs {
		if err := pullBlob(ctx, p, repo, d.Digest); err != nil {
			return err
		}
	}
	return nil
}

func pullBlob(ctx context.Context, p *pullthrough.Proxy, repo pullthrough.Repo, d digest.Digest) error {
	b, err := p.Blob(ctx, pullthrough.Request{Repo: repo, Ref: d.String()})
	if err != nil {
		return err
	}
	return readWhole(b, d)
}

// readWhole reads a blob to its end, closes it, and checks each byte.
func readWhole(b *pullthrough.Blob, d digest.Digest) error {
	v := d.Verifier()
	n, err := io.Copy(v, b.Body)
	if err = errors.Join(err, b.Body.Close()); err != nil {
		return err
	}
	if n != b.Descriptor.Size || !v.Verified() {
		return fmt.Errorf("blob %s: %d bytes of other content", d, n)
	}
	return nil
}

// pullAtRandom pulls as clients do until the process is killed. A pull that fails
// ends the process in another way.
func pullAtRandom(plan childPlan, s *dirstore.Store) {
	p := newProxy(s, plan.Upstream, plan.Fill, pullthrough.Policy{TagTTL: pullthrough.EveryPull})
	p.OnEvent = func(_ context.Context, e pullthrough.Event) {
		if e.Kind == pullthrough.EventStoreFailed {
			giveUp(e.Err)
		}
	}
	all := crowd()
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(plan.Seed, uint64(worker)))
			for {
				c := all[r.IntN(len(all))]
				if err := pullImage(context.Background(), p, c.repo, c.tag); err != nil {
					giveUp(fmt.Errorf("%s:%s: %w", c.repo.Name, c.tag, err))
				}
			}
		})
	}
	wg.Wait()
}

// giveUp ends a child that has met what must not be.
func giveUp(err error) {
	fmt.Println("violation:", err)
	os.Exit(3)
}

// shutDown ends a proxy of newProxy, and its connections.
func shutDown(ctx context.Context, p *pullthrough.Proxy) error {
	err := p.Shutdown(ctx)
	p.Transport.(*http.Transport).CloseIdleConnections()
	return err
}

// everyStep does all that a store can do to a good directory, one after the other,
// with f asked before each step.
func everyStep(t *testing.T, dir, upstream string, f func(op, name string) error) {
	pullSteps(t, dir, upstream, 0, f)
	pullSteps(t, dir, upstream, 300<<10, f)
}

// pullSteps pulls everything, puts a bit more, and sweeps.
func pullSteps(t *testing.T, dir, upstream string, maxBytes int64, f func(op, name string) error) {
	t.Helper()
	s, err := dirstore.OpenProbed(dir, f)
	require.NoError(t, err)
	s.MaxBytes, s.VerifyBlobs = maxBytes, true
	p := newProxy(s, upstream, pullthrough.FillLazy, pullthrough.Policy{TagTTL: pullthrough.EveryPull})
	for range 3 { // tags are confirmed, and move
		for _, c := range crowd() {
			require.NoError(t, pullImage(t.Context(), p, c.repo, c.tag))
		}
		require.NoError(t, p.Idle(t.Context())) // or the next round would join this one
	}
	base := crowd()[2]
	_, err = p.Referrers(t.Context(), pullthrough.Request{Repo: base.repo, Ref: base.images[0].Digest.String()}, "")
	require.NoError(t, err)
	content := []byte("put, not staged")
	putBlob(t, s, base.repo, content)
	putBlob(t, s, tenant, content)
	require.NoError(t, shutDown(t.Context(), p))
	s.WaitForSweep()
	require.NoError(t, s.Sweep(t.Context()))
	require.NoError(t, s.Close())
}

// plantDamage stores all images and spoils one that shares nothing with others, for
// pullSteps to find and to heal.
func plantDamage(t *testing.T, dir, upstream string) {
	t.Helper()
	pullSteps(t, dir, upstream, 0, nil)
	damaged := crowd()[6].images[0]
	write(t, "sha256:", layerLink(dir, crowd()[6].repo.Name, damaged.Config.Digest))
	write(t, "{}", dataFile(dir, damaged.Digest))
	write(t, "", dataFile(dir, damaged.Layers[0].Digest))
}

// plantStaging leaves what a process that was killed leaves.
func plantStaging(t *testing.T, dir string) {
	write(t, "half", filepath.Join(dir, "pullthrough/staging/DEAD/half"))
}

// isMiss reports whether it is one.
func isMiss(err error) bool { return errors.Is(err, fs.ErrNotExist) }
