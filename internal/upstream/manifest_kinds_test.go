package upstream_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func testMediaTypes(t *testing.T) {
	oci := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	index := pullthroughtest.NewIndex(oci)
	docker := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Docker: true})
	plain := &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageManifest, Content: replaceOnce(oci, `"mediaType":"`+oci.MediaType+`",`)}
	plainIndex := &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageIndex, Content: replaceOnce(index, `"mediaType":"`+index.MediaType+`",`)}
	for name, c := range map[string]struct {
		img    *pullthroughtest.Image
		served string
		want   string // "": refused
	}{
		"its own type":                          {oci, oci.MediaType, oci.MediaType},
		"its own type, with a charset":          {oci, oci.MediaType + "; charset=utf-8", oci.MediaType},
		"its own type, in capitals":             {oci, strings.ToUpper(oci.MediaType), oci.MediaType},
		"a Docker type":                         {docker, docker.MediaType, docker.MediaType},
		"octets":                                {oci, "application/octet-stream", oci.MediaType},
		"octets, an index":                      {index, "application/octet-stream", index.MediaType},
		"text":                                  {docker, "text/plain; charset=utf-8", docker.MediaType},
		"JSON":                                  {oci, "application/json", oci.MediaType},
		"nothing":                               {index, "", index.MediaType},
		"an index as a manifest":                {index, oci.MediaType, ""},
		"a manifest as an index":                {oci, index.MediaType, ""},
		"a Docker manifest as OCI":              {docker, oci.MediaType, ""},
		"a page":                                {oci, "text/html", ""},
		"no mediaType, and its own type":        {plain, oci.MediaType, oci.MediaType},
		"no mediaType, and octets":              {plain, "application/octet-stream", oci.MediaType},
		"no mediaType, an index, and nothing":   {plainIndex, "", index.MediaType},
		"no mediaType, an index, as a manifest": {plainIndex, oci.MediaType, ""},
		"no mediaType, a manifest, as a list":   {plain, pullthroughtest.NewIndex(docker).MediaType, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			w.Up.Push("a", "1", c.img)
			w.Up.Fault(pullthroughtest.Fault{Header: http.Header{"Content-Type": {c.served}}})
			m, err := w.Resolve(t.Context(), "1")
			stored, missing := w.Stored(t, "1")
			assert.Equal(t, 1, w.Up.Count("*"))
			if c.want == "" {
				assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
				assert.Error(t, missing)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.want, m.Descriptor.MediaType)
			require.NoError(t, missing)
			assert.Equal(t, c.want, stored.Descriptor.MediaType)
		})
	}
}

// replaceOnce is the image's content without part.
func replaceOnce(img *pullthroughtest.Image, part string) []byte {
	return []byte(strings.Replace(string(img.Content), part, "", 1))
}

func testSchema1IsNotFound(t *testing.T) {
	const signed = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	body := []byte(`{"schemaVersion":1,"name":"a","tag":"1","architecture":"amd64","fsLayers":[{"blobSum":"` + digest.FromString("").String() +
		`"}],"history":[{"v1Compatibility":"{}"}],"signatures":[{"signature":"x","protected":"x"}]}`)
	for _, served := range []string{signed, "application/vnd.docker.distribution.manifest.v1+json", "application/json", ""} {
		t.Run("as "+served, func(t *testing.T) {
			f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
			f.Up.Push("a", "1", &pullthroughtest.Image{MediaType: served, Content: body})
			for _, ref := range []string{"1", digest.FromBytes(body).String()} {
				f.Up.Reset()
				_, err := f.Resolve(t.Context(), ref)
				assert.ErrorIs(t, err, pullthrough.ErrNotFound)
				assert.ErrorContains(t, err, "schema 1")
				assert.Equal(t, 1, f.Up.Count("*"))
				testkit.AssertOCI(t, f.Get(t, testkit.ManifestPath("a", ref), "Accept", signed), 404, "MANIFEST_UNKNOWN")
				_, err = f.Stored(t, ref)
				assert.Error(t, err)
			}
		})
	}
}

func testOddJSONStaysAsItIs(t *testing.T) {
	small := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	odd := &pullthroughtest.Image{MediaType: small.MediaType, Config: small.Config, Layers: small.Layers}
	odd.Content = []byte(" \r\n\t" + strings.Replace(string(small.Content), `{"schemaVersion":2,`,
		"{\n\t\"annotations\" : {\"z\":\"\\u00e9 é <&> \\/\",\"n\":\"1e0\"},\r\n  \"x\":1.0e+02 , \"schemaVersion\" : 2,", 1) + "\n\n")
	odd.Digest = digest.FromBytes(odd.Content)
	f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
	f.Up.Push("a", "1", odd)
	for range 2 { // from upstream, and from the Store
		f.Pull(t, "a", "1", odd)
		r := f.Get(t, testkit.ManifestPath("a", "1"))
		assert.Equal(t, string(odd.Content), string(r.Content))
		assert.Equal(t, odd.Digest.String(), r.Header.Get("Docker-Content-Digest"))
	}
	stored, err := f.Stored(t, odd.Digest.String())
	require.NoError(t, err)
	assert.Equal(t, string(odd.Content), string(stored.Content))
	assert.Equal(t, 1, f.Up.Count("GET /v2/a/manifests/*"))
}
