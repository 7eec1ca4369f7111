package upstream_test

import (
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"

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

func testWrongKindOfManifestIsRefused(t *testing.T) {
	all := kindsOfManifests()
	others := []string{"application/vnd.oci.artifact.manifest.v1+json"}
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
