package upstream_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func testJSONThatIsNoImage(t *testing.T) {
	const config = `{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:` + testkit.Hex64 + `","size":0}`
	for name, content := range map[string]string{
		"an empty document":       `{}`,
		"an error":                `{"errors":[{"code":"DENIED","message":"log in"}]}`,
		"a version":               `{"schemaVersion":2}`,
		"no config":               `{"schemaVersion":2,"layers":[]}`,
		"null for a config":       `{"schemaVersion":2,"config":null,"layers":[]}`,
		"a config of nothing":     `{"schemaVersion":2,"config":{},"layers":[]}`,
		"no layers":               `{"schemaVersion":2,"config":` + config + `}`,
		"no version":              `{"config":` + config + `,"layers":[]}`,
		"null for manifests":      `{"schemaVersion":2,"manifests":null}`,
		"an image configuration":  `{"architecture":"amd64","os":"linux","config":{"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":[]}}`,
		"a descriptor":            config,
		"the answer to tags/list": `{"name":"a","tags":["1"]}`,
	} {
		for _, served := range []string{
			"", "application/json", "application/octet-stream", ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex,
			manifest.MediaTypeDockerManifest, manifest.MediaTypeDockerList,
		} {
			if name == "a descriptor" && !strings.Contains(served, "manifest") && !strings.Contains(served, "index") {
				continue // it says a type of its own
			}
			t.Run(name+" as "+served, func(t *testing.T) {
				f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
				f.Up.Push("a", "1", &pullthroughtest.Image{MediaType: served, Content: []byte(content)})
				for _, ref := range []string{"1", digest.FromString(content).String()} {
					testkit.AssertOCI(t, f.Get(t, testkit.ManifestPath("a", ref)), http.StatusBadGateway, "UNKNOWN")
					_, err := f.Stored(t, ref)
					assert.Error(t, err)
				}
				assert.Equal(t, 2, f.Up.Count("*"), "the same would come again")
				img := testkit.Image(1)
				f.Up.Push("a", "1", img)
				f.Pull(t, "a", "1", img)
			})
		}
	}
	t.Run("under a stored tag", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, testkit.EveryPull)
		img := testkit.Image(1)
		w.Up.Push("a", "1", img)
		w.Pull(t, "a", "1", img)
		w.Up.Push("a", "1", &pullthroughtest.Image{MediaType: img.MediaType, Content: []byte(`{}`)})
		m, err := w.Resolve(t.Context(), "1")
		require.NoError(t, err)
		assert.Equal(t, pullthrough.SourceStale, m.Source)
		assert.Equal(t, img.Digest, m.Descriptor.Digest)
	})
}

func testDamagedManifestOfATag(t *testing.T) {
	tag := "GET /v2/a/manifests/1"
	img, other := testkit.Image(1), testkit.Image(2)
	flipped := bytes.Clone(img.Content)
	flipped[bytes.IndexByte(flipped, 'a')] ^= 1
	for name, c := range map[string]struct {
		body  []byte
		named string // "": the image's digest
		wrong bool   // upstream's header is
		want  *pullthroughtest.Image
	}{
		"a letter is another one":           {flipped, "", false, img},
		"it is a page":                      {[]byte("<html></html>"), "", false, img},
		"it is another image":               {other.Content, "", false, img},
		"it is nothing":                     {[]byte{}, "", false, img},
		"the header is wrong":               {img.Content, nobodys, true, img},
		"the header is a layer's":           {img.Content, img.Layers[0].Digest.String(), true, img},
		"both are wrong, and it is a page":  {[]byte("<html></html>"), nobodys, true, nil},
		"both are wrong, and it is damaged": {bytes.Replace(img.Content, []byte("config"), []byte("conf1g"), 1), nobodys, true, nil},
	} {
		for _, check := range []bool{false, true} {
			t.Run(name+map[bool]string{true: ", in a check"}[check], func(t *testing.T) {
				told := new(testkit.Events)
				w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
					testkit.EveryPull(p)
					p.OnEvent = func(ctx context.Context, e pullthrough.Event) { told.On(ctx, e) }
				})
				first := testkit.Image(3)
				if check {
					w.Up.Push("a", "1", first)
					w.Pull(t, "a", "1", first)
					w.Up.Fault(pullthroughtest.Fault{Match: "HEAD *", Status: http.StatusMethodNotAllowed})
				}
				w.Up.Push("a", "1", img)
				w.Up.Reset()
				told = new(testkit.Events)
				named := c.named
				if named == "" {
					named = img.Digest.String()
				}
				w.Up.Fault(pullthroughtest.Fault{Match: tag, Body: c.body, Header: http.Header{"Docker-Content-Digest": {named}}})
				m, err := w.Tagged(t, "1")
				assert.Equal(t, 1, w.Up.Count(tag))
				assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/"+named), "once")
				assert.Equal(t, c.wrong, fetchEvent(t, told).WrongDigest)
				switch {
				case c.want != nil:
					require.NoError(t, err)
					assert.Equal(t, c.want.Digest, m.Descriptor.Digest)
					assert.Equal(t, string(c.want.Content), string(m.Content))
					stored, err := w.Stored(t, "1")
					require.NoError(t, err)
					assert.Equal(t, c.want.Digest, stored.Descriptor.Digest)
				case check:
					require.NoError(t, err)
					assert.Equal(t, first.Digest, m.Descriptor.Digest, "what is stored is served")
				default:
					assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
				}
			})
		}
	}
	for _, status := range []int{403, 429, 500, 503} {
		t.Run(fmt.Sprint("nobody knows: ", status), func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			w.Up.Push("a", "1", img)
			w.Up.Fault(pullthroughtest.Fault{Match: tag, Times: 1, Body: flipped, Header: named(img.Digest.String())})
			w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/sha256:*", Times: 1, Status: status})
			_, err := w.Tagged(t, "1")
			assert.Error(t, err, "the damaged one is not kept")
			assert.Equal(t, 2, w.Up.Count("*"))
			w.Pull(t, "a", "1", img)
		})
	}
	t.Run("and a rule that minds", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, testkit.WithPolicy(pullthrough.Policy{RefuseWrongDigest: true}))
		w.Up.Push("a", "1", img)
		w.Up.Fault(pullthroughtest.Fault{Match: tag, Body: flipped, Header: named(img.Digest.String())})
		w.Pull(t, "a", "1", img)
	})
}

// stores keep what they are given in memory and on the disk.
var stores = map[string]func(*testing.T) pullthrough.Store{
	"memstore": func(*testing.T) pullthrough.Store { return memstore.New() },
	"dirstore": func(t *testing.T) pullthrough.Store {
		s, err := dirstore.Open(t.TempDir())
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, s.Close()) })
		return s
	},
}

func testTagOfASHA512Digest(t *testing.T) {
	short := testkit.Image(1)
	img := *short
	img.Digest = digest.SHA512.FromBytes(img.Content)
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			clock := new(testkit.HandClock)
			f := testkit.NewFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				p.Store, p.Now = open(t), clock.Now
			})
			f.Up.Push("a", "1", &img)
			for _, state := range []string{"cold", "warm"} {
				for _, method := range []string{http.MethodHead, http.MethodGet} {
					testkit.AssertManifest(t, f.Ask(t, method, testkit.ManifestPath("a", "1")), method, &img, img.Digest)
					testkit.AssertManifest(t, f.Ask(t, method, testkit.ManifestPath("a", img.Digest.String())), method, &img, img.Digest)
					testkit.AssertManifest(t, f.Ask(t, method, testkit.ManifestPath("a", short.Digest.String())), method, short, short.Digest)
				}
				assert.Equal(t, []string{"GET /v2/a/manifests/1 200"}, f.Up.Log(), state)
				f.Settled(t)
			}
			clock.Pass(25 * time.Hour)
			f.Up.Reset()
			m, err := f.Tagged(t, "1")
			require.NoError(t, err)
			assert.Equal(t, pullthrough.SourceRevalidated, m.Source)
			assert.Equal(t, img.Digest, m.Descriptor.Digest)
			assert.Equal(t, []string{"HEAD /v2/a/manifests/1 200"}, f.Up.Log())
		})
	}
	t.Run("that is wrong", func(t *testing.T) {
		var told testkit.Events
		w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.OnEvent = told.On })
		w.Up.Push("a", "1", short)
		w.Up.Fault(pullthroughtest.Fault{Match: "* /v2/a/manifests/1", Header: named(digest.SHA512.FromString("x").String())})
		m, err := w.Resolve(t.Context(), "1")
		require.NoError(t, err)
		assert.Equal(t, short.Digest, m.Descriptor.Digest)
		w.Settled(t)
		assert.True(t, fetchEvent(t, &told).WrongDigest)
	})
	t.Run("where the tag was stored by its sha256 digest", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, testkit.EveryPull)
		w.Up.Push("a", "1", short)
		w.Pull(t, "a", "1", short)
		w.Up.Push("a", "1", &img)
		m, err := w.Tagged(t, "1")
		require.NoError(t, err)
		assert.Equal(t, img.Digest, m.Descriptor.Digest)
		stored, err := w.Stored(t, short.Digest.String())
		require.NoError(t, err)
		assert.Equal(t, short.Digest, stored.Descriptor.Digest)
	})
}

func testOneTypeForTheSameBytes(t *testing.T) {
	img := testkit.Image(1)
	oci := &pullthroughtest.Image{MediaType: img.MediaType, Content: replaceOnce(img, `"mediaType":"`+img.MediaType+`",`)}
	oci.Digest = digest.FromBytes(oci.Content)
	docker := &pullthroughtest.Image{MediaType: manifest.MediaTypeDockerManifest, Content: oci.Content, Digest: oci.Digest}
	serve := func(w *testkit.World, tag string, img *pullthroughtest.Image) {
		w.Up.Push("a", tag, img)
		w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/" + tag, Header: http.Header{"Content-Type": {img.MediaType}}})
	}
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store = open(t) })
			serve(w, "1", docker)
			serve(w, "2", oci)
			for range 2 {
				for _, ref := range []string{"1", "2", oci.Digest.String()} {
					m, err := w.Tagged(t, ref)
					require.NoError(t, err)
					assert.Equal(t, docker.MediaType, m.Descriptor.MediaType, ref)
				}
			}
			assert.Equal(t, []string{"GET /v2/a/manifests/1 200", "GET /v2/a/manifests/2 200"}, w.Up.Log())
		})
	}
	t.Run("under a digest of another kind", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
		long := *oci
		long.Digest = digest.SHA512.FromBytes(oci.Content)
		serve(w, "1", docker)
		serve(w, "2", &long)
		for range 2 {
			for _, ref := range []string{"1", "2", oci.Digest.String(), long.Digest.String()} {
				m, err := w.Tagged(t, ref)
				require.NoError(t, err)
				assert.Equal(t, docker.MediaType, m.Descriptor.MediaType, ref)
			}
		}
		assert.Equal(t, 2, w.Up.Count("*"))
	})
	t.Run("when a tag moves to them", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, testkit.EveryPull)
		serve(w, "1", docker)
		_, err := w.Tagged(t, "1")
		require.NoError(t, err)
		first := testkit.Image(2)
		w.Up.Push("a", "3", first)
		w.Pull(t, "a", "3", first)
		w.Up.Push("a", "3", oci)
		m, err := w.Tagged(t, "3")
		require.NoError(t, err)
		assert.Equal(t, oci.Digest, m.Descriptor.Digest)
		assert.Equal(t, docker.MediaType, m.Descriptor.MediaType)
	})
}
