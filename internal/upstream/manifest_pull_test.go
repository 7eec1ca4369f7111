package upstream_test

import (
	"context"
	"encoding/json"
	"net/http"
	"testing"
	"testing/synctest"

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
	oddly(t, map[string]func(*pullthroughtest.Image) pullthroughtest.Fault{"no digest": always(pullthroughtest.Fault{Header: noDigest})})
}

func testTagWithoutDigestAndLength(t *testing.T) {
	oddly(t, map[string]func(*pullthroughtest.Image) pullthroughtest.Fault{
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

const (
	hugeManifest = 64_000_000
	maxManifest  = 4 << 20
	// drained is what may be read of an answer that is not wanted, in case its
	// connection can be used again, and what buffers hold.
	drained = 72 << 10
)

// refusesHuge pulls a manifest that fault makes huge, and checks how much of it
// upstream could send.
func refusesHuge(t *testing.T, fault pullthroughtest.Fault, most int64) {
	for _, by := range []string{"tag", "digest"} {
		t.Run(by, func(t *testing.T) {
			testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
				images := pushTags(w.Up, 1)
				ref := "0"
				if by == "digest" {
					ref = images[0].Digest.String()
				}
				fault.Match = manifestGets
				w.Up.Fault(fault)
				_ = refusesManifest(t, w, ref, pullthrough.ErrTooLarge)
				synctest.Wait() // for upstream to notice
				assert.LessOrEqual(t, sent(w), most)
				heals(t, w, ref, images[0])
			})
		})
	}
}

func testAnnouncedHugeManifestIsRefusedUnread(t *testing.T) {
	refusesHuge(t, pullthroughtest.Fault{Extend: hugeManifest, Header: http.Header{"Content-Length": {"64000000"}}}, drained)
}

func testHugeManifestIsRefusedAt4MiB(t *testing.T) {
	for name, fault := range map[string]pullthroughtest.Fault{
		"chunked":                  {NoLength: true, Extend: hugeManifest},
		"ends with the connection": {CloseDelimited: true, Extend: hugeManifest},
	} {
		t.Run(name, func(t *testing.T) { refusesHuge(t, fault, maxManifest+drained) })
	}
}

func servedAs(types ...string) http.Header { return http.Header{"Content-Type": types} }

func testCharsetIsTakenOffTheType(t *testing.T) {
	oddly(t, map[string]func(*pullthroughtest.Image) pullthroughtest.Fault{
		"charset": func(img *pullthroughtest.Image) pullthroughtest.Fault {
			return pullthroughtest.Fault{Header: servedAs(img.MediaType + "; charset=utf-8")}
		},
		"quoted, upper case": func(img *pullthroughtest.Image) pullthroughtest.Fault {
			return pullthroughtest.Fault{Header: servedAs(img.MediaType + ` ;Charset="UTF-8"`)}
		},
	})
}

func testTypeOfTheManifestItselfCounts(t *testing.T) {
	oddly(t, map[string]func(*pullthroughtest.Image) pullthroughtest.Fault{
		"octet-stream": always(pullthroughtest.Fault{Header: servedAs("application/octet-stream")}),
		"plain text":   always(pullthroughtest.Fault{Header: servedAs("text/plain; charset=utf-8")}),
		"JSON":         always(pullthroughtest.Fault{Header: servedAs("application/json")}),
		"nothing":      always(pullthroughtest.Fault{Header: servedAs()}),
	})
}

// refusedAs serves content as each of the types, by tag and by digest. All must
// be refused.
func refusedAs(t *testing.T, content []byte, types ...string) {
	for _, mediaType := range types {
		t.Run(mediaType, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			img := &pullthroughtest.Image{MediaType: mediaType, Digest: digest.FromBytes(content), Content: content}
			w.Up.Push("a", "1", img)
			_ = refusesManifest(t, w, "1", pullthrough.ErrUnavailable)
			_ = refusesManifest(t, w, img.Digest.String(), pullthrough.ErrUnavailable)
		})
	}
}

func testManifestThatIsAnIndexTooIsRefused(t *testing.T) {
	image := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	both := map[string]any{}
	for _, img := range []*pullthroughtest.Image{image, pullthroughtest.NewIndex(image)} {
		require.NoError(t, json.Unmarshal(img.Content, &both))
	}
	delete(both, "mediaType")
	for _, field := range []string{"config", "layers", "manifests"} {
		require.Contains(t, both, field)
	}
	content, err := json.Marshal(both)
	require.NoError(t, err)
	refusedAs(t, content, ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, "application/octet-stream")
}

func testWrongKindOfManifestIsRefused(t *testing.T) {
	all := kindsOfManifests()
	for called, kinds := range map[string][]string{
		"OCI manifest": {"OCI index", "Docker list"}, "OCI index": {"OCI manifest", "Docker manifest"},
		"Docker manifest": {"Docker list", "OCI index"}, "Docker list": {"Docker manifest", "OCI manifest"},
	} {
		for _, kind := range kinds {
			t.Run(kind+" called "+called, func(t *testing.T) { refusedAs(t, all[kind].Content, all[called].MediaType) })
		}
	}
}
