package upstream_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// twoPages answers a list of referrers in two pages, of which the first names next.
func twoPages(next string) func(http.ResponseWriter, *http.Request) bool {
	page := func(digit string) string {
		return `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[
			{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,"urls":["http://evil.test/"],"digest":"sha256:` + strings.Repeat(digit, 64) + `"},
			{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,"digest":"md5:00"}]}`
	}
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/referrers/") {
			return false
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
		if r.URL.RawQuery != "" {
			_, _ = w.Write([]byte(page("b")))
			return true
		}
		w.Header().Set("Link", "<"+next+`>; rel="next"`)
		_, _ = w.Write([]byte(page("a")))
		return true
	}
}

func TestReferrersComePageByPage(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{Handler: twoPages("?last=a")})
	img := w.push(pullthroughtest.ImageOptions{})
	all, err := w.Referrers(t.Context(), w.target, img.Digest)
	require.NoError(t, err)
	require.Len(t, all.Manifests, 2, "what cannot be verified is left out")
	assert.Equal(t, "sha256:"+strings.Repeat("b", 64), all.Manifests[1].Digest.String())
	assert.Empty(t, all.Manifests[0].URLs)
	path := "GET /v2/a/referrers/" + img.Digest.String()
	assert.Equal(t, []string{path + " 200", path + " 200"}, paths(w.up))
}

func TestTheNextPageIsOfTheSameList(t *testing.T) {
	for _, next := range []string{"http://elsewhere.test/v2/a/referrers/x?last=a", "/v2/b/referrers/x?last=a"} {
		w := newWorld(t, pullthroughtest.Config{Handler: twoPages(next)})
		img := w.push(pullthroughtest.ImageOptions{})
		_, err := w.Referrers(t.Context(), w.target, img.Digest)
		assert.ErrorIs(t, err, upstream.ErrUnavailable)
		assert.Len(t, w.up.Log(), 1)
	}
}

func TestARegistryWithoutReferrersHasAnEmptyListOrATag(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{})
	subject := w.push(pullthroughtest.ImageOptions{})
	w.up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/referrers/*", Status: 404})
	all, err := w.Referrers(t.Context(), w.target, subject.Digest)
	require.NoError(t, err)
	assert.Equal(t, upstream.EmptyIndex(), all)

	w.target.Options.ReferrersTag = true
	signature := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1, ArtifactType: "application/x-signature", Subject: subject})
	w.up.Push("a", "sig", signature)
	w.up.Push("a", strings.ReplaceAll(subject.Digest.String(), ":", "-"), pullthroughtest.NewIndex(signature))
	all, err = w.Referrers(t.Context(), w.target, subject.Digest)
	require.NoError(t, err)
	require.Len(t, all.Manifests, 1)
	assert.Equal(t, signature.Digest, all.Manifests[0].Digest)
	assert.Equal(t, 1, w.up.Count("GET /v2/a/manifests/sha256-* 200"))
}
