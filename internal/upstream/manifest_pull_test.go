package upstream_test

import (
	"context"
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestAHeadThatLiesAboutTheDigestFreezesNoTag(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, testkit.EveryPull)
	one, two := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	w.Up.Push("a", "1", one)
	w.Pull(t, "a", "1", one)
	w.Up.Push("a", "1", two)
	wrong := digest.FromString("nobody has this")
	w.Up.Fault(pullthroughtest.Fault{Match: "HEAD *", Header: http.Header{"Docker-Content-Digest": {wrong.String()}}})
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/sha256:*", Status: 200, Body: two.Content, Header: http.Header{"Content-Type": {two.MediaType}}})
	w.Settled(t)
	w.Pull(t, "a", "1", two)
	assert.Equal(t, 1, w.Up.Count("HEAD *"))
}

// kindsOfManifests are an image and an index in both dialects.
func kindsOfManifests() map[string]*pullthroughtest.Image {
	oci := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1})
	docker := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2, Docker: true})
	return map[string]*pullthroughtest.Image{
		"OCI manifest": oci, "OCI index": pullthroughtest.NewIndex(oci),
		"Docker manifest": docker, "Docker list": pullthroughtest.NewIndex(docker),
	}
}

// oddly pulls manifests of all kinds by tag, answered with fault. All must be
// kept with the type and digest of their content, after one request each.
func oddly(t *testing.T, faults map[string]func(*pullthroughtest.Image) pullthroughtest.Fault) {
	for kind, img := range kindsOfManifests() {
		for name, fault := range faults {
			t.Run(name+"/"+kind, func(t *testing.T) {
				w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
				w.Up.Push("a", "1", img)
				f := fault(img)
				f.Match = manifestGets
				w.Up.Fault(f)
				w.Pull(t, "a", "1", img)
				assert.Equal(t, 1, w.Up.Count(manifestGets+" 200"))
				assert.Equal(t, 1+len(img.Blobs()), w.Up.Count(""))
				for _, ref := range []string{"1", img.Digest.String()} {
					m, err := w.Stored(t, ref)
					require.NoError(t, err)
					assert.Equal(t, img.MediaType, m.Descriptor.MediaType)
					assert.Equal(t, img.Digest, m.Descriptor.Digest)
				}
			})
		}
	}
}

// always answers each image with the same fault.
func always(f pullthroughtest.Fault) func(*pullthroughtest.Image) pullthroughtest.Fault {
	return func(*pullthroughtest.Image) pullthroughtest.Fault { return f }
}

var noDigest = http.Header{"Docker-Content-Digest": nil, "Etag": nil}

func testTagWithoutDigestHeader(t *testing.T) {
	oddly(t, map[string]func(*pullthroughtest.Image) pullthroughtest.Fault{
		"no digest":           always(pullthroughtest.Fault{Header: noDigest}),
		"chunked":             always(pullthroughtest.Fault{Header: noDigest, NoLength: true}),
		"up to the very last": always(pullthroughtest.Fault{Header: noDigest, CloseDelimited: true}),
	})
}

func testTagWithWrongDigestHeader(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		for _, lie := range []bool{false, true} {
			t.Run(map[bool]string{false: "honest", true: "lying"}[lie]+map[bool]string{true: ", refused"}[refuse], func(t *testing.T) {
				var told testkit.Events
				w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
					p.OnEvent = told.On
					p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
						return pullthrough.Policy{RefuseWrongDigest: refuse}
					}
				})
				images := pushTags(w.Up, 2)
				other := images[1].Digest.String()
				if lie {
					w.Up.Fault(pullthroughtest.Fault{Match: manifestGets, Header: http.Header{"Docker-Content-Digest": {other}}})
				}
				if lie && refuse {
					_ = refusesManifest(t, w, "0", pullthrough.ErrDigest)
				} else {
					w.Pull(t, "a", "0", images[0])
					assert.Equal(t, 1, w.Up.Count(manifestGets))
				}
				assert.Equal(t, lie, wrongDigest(&told, "0"))
				_, stored := w.Stored(t, other)
				assert.Error(t, stored, "nothing is stored under the wrong digest")
			})
		}
	}
}

// wrongDigest reports whether the fetch of ref was told to have met one.
func wrongDigest(e *testkit.Events, ref string) bool {
	for _, event := range e.Of(pullthrough.EventFetch) {
		if event.Request.Ref == ref {
			return event.WrongDigest
		}
	}
	return false
}

// drained is what may be read of an answer that is not wanted, in case its
// connection can be used again, and what buffers hold.
const drained = 72 << 10

func servedAs(types ...string) http.Header { return http.Header{"Content-Type": types} }

func testTypeOfTheManifestItselfCounts(t *testing.T) {
	oddly(t, map[string]func(*pullthroughtest.Image) pullthroughtest.Fault{
		"charset": func(img *pullthroughtest.Image) pullthroughtest.Fault {
			return pullthroughtest.Fault{Header: servedAs(img.MediaType + "; charset=utf-8")}
		},
		"quoted, upper case": func(img *pullthroughtest.Image) pullthroughtest.Fault {
			return pullthroughtest.Fault{Header: servedAs(img.MediaType + ` ;Charset="UTF-8"`)}
		},
		"octet-stream": always(pullthroughtest.Fault{Header: servedAs("application/octet-stream")}),
		"plain text":   always(pullthroughtest.Fault{Header: servedAs("text/plain; charset=utf-8")}),
		"JSON":         always(pullthroughtest.Fault{Header: servedAs("application/json")}),
		"nothing":      always(pullthroughtest.Fault{Header: servedAs()}),
	})
}

func testWrongKindOfManifestIsRefused(t *testing.T) {
	all := kindsOfManifests()
	others := []string{ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageConfig, "text/html"}
	for _, img := range all {
		others = append(others, img.MediaType)
	}
	for kind, img := range all {
		for _, served := range others {
			if served == img.MediaType {
				continue
			}
			t.Run(kind+" called "+served, func(t *testing.T) {
				besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
					s.Up.Push("a", "1", img)
					s.Up.Fault(pullthroughtest.Fault{Match: manifests, Header: http.Header{"Content-Type": {served}}})
					s.refuse(t, "1", pullthrough.ErrUnavailable)
					s.refuse(t, img.Digest.String(), pullthrough.ErrUnavailable)
					assert.Equal(t, 2, s.Up.Count("*"), "the same would come again")
				})
			})
		}
	}
}

func testManifestsAreAskedForUncompressed(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	small := gzipped(t, img.Content)
	w := testkit.NewWorld(t, pullthroughtest.Config{Handler: func(rw http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/v2/a/manifests/1" || r.Header.Get("Accept-Encoding") == "identity" {
			return false
		}
		rw.Header().Set("Content-Type", img.MediaType)
		rw.Header().Set("Content-Encoding", "gzip")
		_, err := rw.Write(small)
		assert.NoError(t, err)
		return true
	}}, nil)
	w.Up.Push("a", "1", img)
	w.Pull(t, "a", "1", img)
	assert.Equal(t, 1+len(img.Blobs()), w.Up.Count(""))
	for _, r := range w.Up.Requests() {
		assert.Equal(t, []string{"identity"}, r.Header.Values("Accept-Encoding"))
	}
}
