package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// prefix is the prefix of the only rule.
const prefix = "hub"

const (
	manifestGets    = 4000
	manifestClients = 32
	herdClients     = 64

	coldRepos       = 50
	coldPerRepo     = 10
	coldClients     = 16 // each takes one repository after the other
	upstreamLatency = 20 * time.Millisecond
)

// scenario is one line of the table.
type scenario struct {
	name    string
	what    string // what a round does
	boundIs string // what the bound does
	rounds  int
	fresh   bool          // each round has a new process
	delay   time.Duration // delay of the upstream's answers
	prepare func(*rig) (job, error)
}

// job is the work of a round. Its functions get the number of the round.
type job struct {
	before      func(n int) // nil: nothing
	ours, bound func(n int) error
	plain       bool // the bound is the plain server, so its processor time is measured
}

var scenarios = []scenario{
	{name: "manifest", what: "4,000 GETs of a stored manifest by digest, 32 at a time", boundIs: "the same from a map", rounds: 9, prepare: manifestHits},
	{name: "blob", what: "8 GETs of a stored blob of 64 MiB over one connection", boundIs: "http.ServeContent on a file", rounds: 9, prepare: blobHits(1)},
	{name: "blob4", what: "the same over each of four connections", boundIs: "http.ServeContent on a file", rounds: 7, prepare: blobHits(4)},
	{name: "cold", what: "a layer of 1 GiB that is not stored", boundIs: "upstream to sha256, file and client with io.Copy", rounds: 3, prepare: coldLayer},
	{name: "herd", what: "64 clients ask for one blob of 256 MiB that is not stored", boundIs: "64 downloads from the upstream itself", rounds: 3, prepare: herd},
	{name: "manifests", what: "500 manifests in 50 repositories, none stored, upstream 20 ms late", boundIs: "the same from the upstream itself, with the handshakes", rounds: 7, fresh: true, delay: upstreamLatency, prepare: coldManifests},
}

func manifestHits(g *rig) (job, error) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 8})
	g.up.Push("hits", "", img)
	g.size = int64(len(img.Content))
	ours := g.repo("hits") + "/manifests/" + img.Digest.String()
	bound := g.plain.url + plainMap + "manifest"
	if err := os.WriteFile(filepath.Join(g.dir, "manifest"), img.Content, 0o600); err != nil {
		return job{}, err
	}
	get := func(from string) func(int) error {
		return func(int) error {
			return inParallel(manifestClients, func(int) error {
				for range manifestGets / manifestClients {
					if err := g.client.get(from, g.size, nil); err != nil {
						return err
					}
				}
				return nil
			})
		}
	}
	return job{ours: get(ours), bound: get(bound), plain: true}, g.verify(img.Digest.Encoded(), g.size, ours, bound)
}

func blobHits(connections int) func(*rig) (job, error) {
	return func(g *rig) (job, error) {
		layer := g.pushLayer("hits", 64<<20)
		ours := g.repo("hits") + "/blobs/" + layer.Digest.String()
		bound := g.plain.url + plainFile + "blob"
		if err := writeFile(filepath.Join(g.dir, "blob"), layer.Open()); err != nil {
			return job{}, err
		}
		get := func(from string) func(int) error {
			return func(int) error {
				return inParallel(connections, func(int) error {
					for range 8 {
						if err := g.client.get(from, g.size, nil); err != nil {
							return err
						}
					}
					return nil
				})
			}
		}
		return job{ours: get(ours), bound: get(bound), plain: true}, g.verify(layer.Digest.Encoded(), g.size, ours, bound)
	}
}

// coldLayer uses a new repository in each round, since a blob is not visible in other
// repositories.
func coldLayer(g *rig) (job, error) {
	layer := g.pushLayer("cold", 1<<30)
	object := "/blobs/" + layer.Digest.String()
	repo := func(n int) string { return fmt.Sprintf("cold%d", n) }
	j := job{plain: true}
	j.before = func(n int) { g.pushLayer(repo(n), layer.Size) }
	j.ours = func(n int) error { return g.client.get(g.repo(repo(n))+object, layer.Size, nil) }
	j.bound = func(n int) error {
		from := g.up.URL() + "/v2/" + repo(n) + object
		direct := &client{g.client.Client, g.token(repo(n))}
		return direct.get(g.plain.url+plainCopy+"?from="+url.QueryEscape(from), layer.Size, nil)
	}
	return j, g.verify(layer.Digest.Encoded(), layer.Size, g.repo("cold")+object)
}

func herd(g *rig) (job, error) {
	layer := g.pushLayer("herd", 256<<20)
	object := "/blobs/" + layer.Digest.String()
	repo := func(n int) string { return fmt.Sprintf("herd%d", n) }
	get := func(c *client, from string) error {
		return inParallel(herdClients, func(int) error { return c.get(from, layer.Size, nil) })
	}
	var j job
	j.before = func(n int) { g.pushLayer(repo(n), layer.Size) }
	j.ours = func(n int) error { return get(g.client, g.repo(repo(n))+object) }
	j.bound = func(n int) error {
		return get(&client{g.client.Client, g.token(repo(n))}, g.up.URL()+"/v2/"+repo(n)+object)
	}
	return j, g.verify(layer.Digest.Encoded(), layer.Size, g.repo("herd")+object)
}

func coldManifests(g *rig) (job, error) {
	var images []*pullthroughtest.Image
	for i := range coldPerRepo {
		img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i)})
		images = append(images, img)
		g.size += coldRepos * int64(len(img.Content))
	}
	for i := range coldRepos {
		for _, img := range images {
			g.up.Push(fmt.Sprintf("many%d", i), "", img)
		}
	}
	pull := func(c *client, repo string) error {
		for _, img := range images {
			if err := c.getVerified(repo+"/manifests/"+img.Digest.String(), int64(len(img.Content)), img.Digest.Encoded()); err != nil {
				return err
			}
		}
		return nil
	}
	each := func(pullOne func(repo string) error) error {
		return inParallel(coldClients, func(worker int) error {
			for i := worker; i < coldRepos; i += coldClients {
				if err := pullOne(fmt.Sprintf("many%d", i)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return job{
		ours: func(int) error { return each(func(repo string) error { return pull(g.client, g.repo(repo)) }) },
		bound: func(int) error {
			return each(func(repo string) error {
				c, err := g.client.handshake(g.up.URL(), repo, "manifests/"+images[0].Digest.String())
				if err != nil {
					return err
				}
				return pull(c, g.up.URL()+"/v2/"+repo)
			})
		},
	}, nil
}

// pushLayer pushes a layer of that size to a repository of the upstream.
func (g *rig) pushLayer(repo string, size int64) *pullthroughtest.Blob {
	img, ok := g.images[size]
	if !ok {
		img = pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: size})
		g.images[size] = img // kept, since hashing takes a while
	}
	g.up.Push(repo, "", img)
	g.size = size
	return img.Layers[0]
}

func (g *rig) token(repo string) string {
	return g.up.IssueToken(time.Hour, "repository:"+repo+":pull")
}

// verify downloads each URL once and checks the sha256. It also warms the servers up.
func (g *rig) verify(want string, size int64, urls ...string) error {
	for _, u := range urls {
		if err := g.client.getVerified(u, size, want); err != nil {
			return err
		}
	}
	return nil
}

func (c *client) getVerified(url string, size int64, want string) error {
	h := sha256.New()
	if err := c.get(url, size, h); err != nil {
		return err
	}
	if got := fmt.Sprintf("%x", h.Sum(nil)); got != want {
		return fmt.Errorf("%s has the sha256 %s, not %s", url, got, want)
	}
	return nil
}

func writeFile(name string, r io.Reader) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	return f.Close()
}
