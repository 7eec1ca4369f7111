package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func manifestPath(ref string) string               { return "/manifests/" + ref }
func blobPath(b *pullthroughtest.Blob) string      { return "/blobs/" + b.Digest.String() }
func digestPath(img *pullthroughtest.Image) string { return manifestPath(img.Digest.String()) }

// layer pushes an image with one layer.
func (g *stage) layer(repo string, size, seed int64) *pullthroughtest.Blob {
	img := g.image(pullthroughtest.ImageOptions{LayerSize: size, Seed: seed})
	g.up.Push(repo, "", img)
	return img.Layers[0]
}

// warmUp pushes an image with a layer of that size, and returns what pulls it: the layer
// once, and the manifest by so many clients, who keep their connections.
func (g *stage) warmUp(repo string, size int64, clients int) func(*task) error {
	img := g.image(pullthroughtest.ImageOptions{LayerSize: g.bench.bytes(size), Seed: -1})
	g.up.Push(repo, "", img)
	layer := img.Layers[0]
	return func(t *task) error {
		if err := t.verify(repo, blobPath(layer), layer.Digest.Encoded(), layer.Size); err != nil {
			return err
		}
		return inParallel(clients, func(int) error { return t.get(repo, digestPath(img), int64(len(img.Content))) })
	}
}

// manifestHits is n GETs of a stored manifest by so many clients.
func manifestHits(byTag bool, clients, n int) func(*stage) job {
	return func(g *stage) job {
		img := g.image(pullthroughtest.ImageOptions{Layers: 8})
		g.up.Push("hits", "v1", img)
		size, ref := int64(len(img.Content)), img.Digest.String()
		if byTag {
			ref = "v1"
		}
		get := func(t *task, each int) error {
			c, url := t.as("hits"), t.base+"hits"+manifestPath(ref)
			return inParallel(clients, func(int) error {
				for range each {
					if err := t.fetch(c, fetch{url: url, size: size}); err != nil {
						return err
					}
				}
				return nil
			})
		}
		return job{
			warm: func(t *task) error {
				return errors.Join(t.verify("hits", manifestPath(ref), img.Digest.Encoded(), size), get(t, 1))
			},
			work: func(t *task) error { return get(t, max(1, g.times(n)/clients)) },
		}
	}
}

func blobHits(connections int) func(*stage) job {
	return func(g *stage) job {
		layer := g.layer("hits", g.bench.bytes(64*mib), 0)
		return job{
			warm: func(t *task) error {
				return t.verify("hits", blobPath(layer), layer.Digest.Encoded(), layer.Size)
			},
			work: func(t *task) error {
				return inParallel(connections, func(int) error {
					for range 8 {
						if err := t.get("hits", blobPath(layer), layer.Size); err != nil {
							return err
						}
					}
					return nil
				})
			},
		}
	}
}

// cold is so many clients that ask for one blob.
func cold(size int64, clients int) func(*stage) job {
	return func(g *stage) job {
		layer := g.layer("cold", g.bench.bytes(size), 0)
		g.size = layer.Size
		return job{
			warm: g.warmUp("warm", 64*mib, clients),
			work: func(t *task) error {
				return inParallel(clients, func(int) error { return t.get("cold", blobPath(layer), layer.Size) })
			},
		}
	}
}

// firstBytes is 20 blobs of one repository, for which the server has a token.
func firstBytes(size int64) func(*stage) job {
	return func(g *stage) job {
		var layers []*pullthroughtest.Blob
		for i := range g.times(20) {
			layers = append(layers, g.layer("first", g.bench.bytes(size), int64(i)))
		}
		return job{
			warm: g.warmUp("first", size, 1),
			work: func(t *task) error {
				for _, layer := range layers {
					if err := t.get("first", blobPath(layer), layer.Size); err != nil {
						return err
					}
				}
				return nil
			},
		}
	}
}

const (
	coldRepos   = 50
	coldPerRepo = 10
	coldClients = 16 // each takes one repository after the other
)

// coldManifests is manifests of many repositories. Who needs a token for the upstream is
// refused first, and fetches it.
func coldManifests(g *stage) job {
	var images []*pullthroughtest.Image
	repos := g.times(coldRepos)
	for i := range coldPerRepo {
		img := g.image(pullthroughtest.ImageOptions{Seed: int64(i)})
		images = append(images, img)
		g.size += int64(repos * len(img.Content))
	}
	for i := range repos {
		for _, img := range images {
			g.up.Push(fmt.Sprintf("many%d", i), "", img)
		}
	}
	pull := func(t *task, repo string) (err error) {
		c := t.http
		if t.token {
			if c, err = c.handshake(t.base+repo+digestPath(images[0]), g.up.URL, repo); err != nil {
				return err
			}
		}
		for _, img := range images {
			if err := t.fetch(c, fetch{url: t.base + repo + digestPath(img), size: int64(len(img.Content))}); err != nil {
				return err
			}
		}
		return nil
	}
	return job{work: func(t *task) error {
		return inParallel(coldClients, func(worker int) error {
			for i := worker; i < repos; i += coldClients {
				if err := pull(t, fmt.Sprintf("many%d", i)); err != nil {
					return err
				}
			}
			return nil
		})
	}}
}

// indexes is an index by tag, and one platform of it, in each of some repositories.
func indexes(g *stage) job {
	var children []*pullthroughtest.Image
	for i, platform := range []string{"amd64", "arm64", "s390x"} {
		o := pullthroughtest.ImageOptions{Seed: int64(i), LayerSize: g.bench.bytes(mib), Platform: ocispec.Platform{OS: "linux", Architecture: platform}}
		children = append(children, g.image(o))
	}
	index, repos := pullthroughtest.NewIndex(children...), g.times(10)
	for i := range repos {
		g.up.Push(fmt.Sprintf("index%d", i), "v1", index)
	}
	g.size = int64(repos) * (int64(len(index.Content)) + imageSize(children[0]))
	return job{
		warm: g.warmUp("warm", mib, 1),
		work: func(t *task) error {
			for i := range repos {
				repo := fmt.Sprintf("index%d", i)
				if err := t.get(repo, manifestPath("v1"), int64(len(index.Content))); err != nil {
					return err
				}
				if err := t.image(repo, digestPath(children[0]), children[0]); err != nil {
					return err
				}
				t.first = t.first[:i+1]
			}
			return nil
		},
	}
}

// image is an image by tag, with all its layers.
func image(g *stage) job {
	img := g.image(pullthroughtest.ImageOptions{Layers: 20, LayerSize: g.bench.bytes(mib)})
	g.up.Push("image", "v1", img)
	g.size = imageSize(img)
	return job{work: func(t *task) error { return t.image("image", manifestPath("v1"), img) }}
}

func imageSize(img *pullthroughtest.Image) int64 {
	size := int64(len(img.Content))
	for _, blob := range img.Blobs() {
		size += blob.Size
	}
	return size
}

// image pulls an image as container engines do: the manifest, then three blobs at a time.
func (t *task) image(repo, manifest string, img *pullthroughtest.Image) error {
	if err := t.get(repo, manifest, int64(len(img.Content))); err != nil {
		return err
	}
	blobs := img.Blobs()
	return inParallel(3, func(worker int) error {
		for i := worker; i < len(blobs); i += 3 {
			if err := t.get(repo, blobPath(blobs[i]), blobs[i].Size); err != nil {
				return err
			}
		}
		return nil
	})
}

// farRange is the end of a blob, and then all of it. The server has a token.
func farRange(g *stage) job {
	layer := g.layer("far", g.bench.bytes(gib), 0)
	g.size = layer.Size
	return job{
		warm: g.warmUp("far", 64<<10, 1),
		work: func(t *task) error {
			if err := t.getRange("far", blobPath(layer), layer.Size-min(layer.Size/2, 64<<10), layer.Size-1); err != nil {
				return err
			}
			err := t.get("far", blobPath(layer), layer.Size)
			t.first = t.first[:1]
			return err
		},
	}
}

// lazyOpen is what a reader of eStargz layers asks for first. The server has a token.
func lazyOpen(g *stage) job {
	const footer = 51
	contents := g.bench.bytes(64 << 10)
	layer := g.layer("lazy", g.bench.bytes(31*mib), 0)
	g.size = layer.Size
	return job{
		warm: g.warmUp("lazy", 64<<10, 1),
		work: func(t *task) error {
			for _, span := range [][2]int64{
				{0, 0},
				{layer.Size - footer, layer.Size - 1},
				{layer.Size - footer - contents, layer.Size - footer - 1},
			} {
				if err := t.getRange("lazy", blobPath(layer), span[0], span[1]); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// killed is a client that comes back each time after the server was killed.
func killed(g *stage) job {
	layer := g.layer("killed", g.bench.bytes(gib), 0)
	g.size = layer.Size
	return job{work: func(t *task) error {
		for i := range int64(3) {
			part := &enough{left: (i + 1) * layer.Size / 4}
			err := t.fetch(t.as("killed"), fetch{url: t.base + "killed" + blobPath(layer), size: layer.Size, into: part})
			if err != nil && !errors.Is(err, errEnough) {
				return err
			}
			if err := t.crash(); err != nil {
				return err
			}
		}
		return t.verify("killed", blobPath(layer), layer.Digest.Encoded(), layer.Size)
	}}
}

// enough is a reader that leaves after some bytes.
type enough struct{ left int64 }

func (e *enough) Write(p []byte) (int, error) {
	if e.left -= int64(len(p)); e.left <= 0 {
		return 0, errEnough
	}
	return len(p), nil
}

// handlerAlone is the only contender that is no server: its handler runs in this process.
const handlerAlone = "handler"

func callHandler(g *stage) job {
	img := g.image(pullthroughtest.ImageOptions{Layers: 8})
	return job{work: func(t *task) error {
		repo := pullthrough.Repo{Account: "123456789012", Region: "eu-west-1", Name: prefix + "/a"}
		store := memstore.New()
		m := &pullthrough.Manifest{Descriptor: img.Descriptor(), Content: img.Content}
		if err := store.PutManifest(t.ctx, repo, m); err != nil {
			return err
		}
		proxy := &pullthrough.Proxy{Store: store, Rules: pullthrough.StaticRules{}, Identify: pullthrough.HostIdentity}
		r := httptest.NewRequest(http.MethodGet, "/v2/"+repo.Name+digestPath(img), nil)
		r.Host = repo.Account + ".dkr.ecr." + repo.Region + ".amazonaws.com"
		w := &counter{header: make(http.Header, 8)}
		calls := g.times(200_000)
		before, began := mallocs(), time.Now()
		for range calls {
			clear(w.header)
			proxy.ServeHTTP(w, r)
		}
		t.took = time.Since(began) / time.Duration(calls)
		t.allocs = float64((mallocs() - before) / uint64(calls))
		if want := calls * len(img.Content); w.n != want {
			return fmt.Errorf("%d bytes, not %d", w.n, want)
		}
		return nil
	}}
}

// counter is a ResponseWriter without a connection.
type counter struct {
	header http.Header
	n      int
}

func (w *counter) Header() http.Header { return w.header }
func (w *counter) WriteHeader(int)     {}
func (w *counter) Write(p []byte) (int, error) {
	w.n += len(p)
	return len(p), nil
}
