package manifest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
)

const (
	hexA  = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	descA = `{"mediaType":"application/octet-stream","digest":"sha256:` + hexA + `","size":3}`
	image = `"config":` + descA + `,"layers":[` + descA + `]`
	index = `"manifests":[` + descA + `]`

	ociManifest = ocispec.MediaTypeImageManifest
	ociIndex    = ocispec.MediaTypeImageIndex
	list        = manifest.MediaTypeDockerList
	v2          = manifest.MediaTypeDockerManifest
)

func TestTheTypeIsDecidedFromBodyAndContentType(t *testing.T) {
	for name, tc := range map[string]struct {
		served, body, want string
		refs               int
	}{
		"body and header agree":            {ociManifest, `{"mediaType":"` + ociManifest + `",` + image + `}`, ociManifest, 2},
		"header with parameters":           {v2 + "; charset=utf-8", `{"mediaType":"` + v2 + `",` + image + `}`, v2, 2},
		"header in upper case":             {strings.ToUpper(v2), `{"mediaType":"` + v2 + `",` + image + `}`, v2, 2},
		"octet-stream: the body decides":   {"application/octet-stream", `{"mediaType":"` + list + `",` + index + `}`, list, 1},
		"text: the body decides":           {"text/plain", `{"mediaType":"` + v2 + `",` + image + `}`, v2, 2},
		"no header: the body decides":      {"", `{"mediaType":"` + v2 + `",` + image + `}`, v2, 2},
		"no header, no mediaType: index":   {"", `{"schemaVersion":2,` + index + `}`, ociIndex, 1},
		"no header, no mediaType: image":   {"application/json", `{"schemaVersion":2,` + image + `}`, ociManifest, 2},
		"no mediaType: the header decides": {ociIndex, `{"schemaVersion":2,` + index + `}`, ociIndex, 1},
		"an empty index":                   {ociIndex, `{"schemaVersion":2,"manifests":[]}`, ociIndex, 0},
		"an artifact type of its own":      {"", `{"mediaType":"application/vnd.example.thing.v1+json","blobs":[` + descA + `]}`, "application/vnd.example.thing.v1+json", 1},
		"a child that is no digest":        {ociIndex, `{"manifests":[{"digest":"../../etc","size":1},` + descA + `]}`, ociIndex, 1},
		"white space is none of ours":      {ociManifest, " {\n\"mediaType\" : \"" + ociManifest + "\",\t" + image + "} \n", ociManifest, 2},
	} {
		t.Run(name, func(t *testing.T) {
			info, err := manifest.Inspect(tc.served, []byte(tc.body))
			require.NoError(t, err)
			assert.Equal(t, tc.want, info.MediaType)
			assert.Len(t, append(info.Manifests, info.Blobs...), tc.refs)
		})
	}
}

// document is a file of testdata/manifests, whose folder says what becomes of it.
type document struct {
	name    string
	content []byte
}

func documents(t testing.TB, folder string) (all []document) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "..", "testdata", "manifests", folder, "*.json"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		all = append(all, document{filepath.Base(file), content})
	}
	return all
}

// Where the Content-Type says nothing, the document alone decides.
func TestDocumentsAreAcceptedOrRefused(t *testing.T) {
	for _, served := range generic {
		for _, d := range documents(t, "accepted") {
			_, err := manifest.Inspect(served, d.content)
			assert.NoError(t, err, "%s served as %q", d.name, served)
		}
		for _, d := range documents(t, "refused") {
			_, err := manifest.Inspect(served, d.content)
			assert.Error(t, err, "%s served as %q", d.name, served)
		}
	}
}

func TestWhatIsRefused(t *testing.T) {
	for name, tc := range map[string]struct{ served, body string }{
		"a login page":                      {"text/html", "<!DOCTYPE html><html>"},
		"a login page served as a manifest": {ociManifest, "<!DOCTYPE html><html>"},
		"JSON served as a page":             {"text/html", `{"schemaVersion":2,` + image + `}`},
		"half a document":                   {ociManifest, `{"mediaType":"` + ociManifest + `",`},
		"deep nesting":                      {ociManifest, `{"config":` + strings.Repeat("[", 100_000)},
		"body says index, header manifest":  {ociManifest, `{"mediaType":"` + ociIndex + `",` + index + `}`},
		"shape is index, header manifest":   {ociManifest, `{` + index + `}`},
		"shape is manifest, header index":   {ociIndex, `{` + image + `}`},
		"says index, has layers":            {"", `{"mediaType":"` + ociIndex + `",` + image + `}`},
		"says image, has manifests":         {"", `{"mediaType":"` + v2 + `",` + index + `}`},
		"a key twice, in another case":      {ociManifest, `{` + image + `,"Layers":[]}`},
		"a known key in another case":       {ociIndex, `{"Manifests":[]}`},
		"nothing says what it is":           {"application/json", `{"hello":"world"}`},
		"a media type that is none":         {"", `{"mediaType":"text/html",` + image + `}`},
		"a media type with a line break":    {"", `{"mediaType":"application/a\r\nX: y+json",` + image + `}`},
		"too large":                         {ociIndex, `{"manifests":[],"a":"` + strings.Repeat("x", manifest.MaxSize) + `"}`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := manifest.Inspect(tc.served, []byte(tc.body))
			assert.Error(t, err)
			assert.NotErrorIs(t, err, manifest.ErrSchema1)
		})
	}
}

func TestSchema1IsRefusedByName(t *testing.T) {
	for name, tc := range map[string]struct{ served, body string }{
		"by version":      {"", `{"schemaVersion":1,"name":"x","fsLayers":[]}`},
		"by Content-Type": {"application/vnd.docker.distribution.manifest.v1+prettyjws", `{"schemaVersion":2}`},
		"by its layers":   {"application/json", `{"fsLayers":[]}`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := manifest.Inspect(tc.served, []byte(tc.body))
			assert.ErrorIs(t, err, manifest.ErrSchema1)
		})
	}
}
