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
	image = `"schemaVersion":2,"config":` + descA + `,"layers":[` + descA + `]`
	index = `"manifests":[` + descA + `]`

	ociManifest = ocispec.MediaTypeImageManifest
	ociIndex    = ocispec.MediaTypeImageIndex
	list        = manifest.MediaTypeDockerList
	v2          = manifest.MediaTypeDockerManifest
	artifact    = "application/vnd.oci.artifact.manifest.v1+json"
)

var trusts = []manifest.Trust{manifest.ByTag, manifest.ByDigest, manifest.Stored}

func TestTheTypeIsDecidedFromBodyAndContentType(t *testing.T) {
	for name, tc := range map[string]struct {
		served, body, want string
		refs               int
	}{
		"body and header agree":            {ociManifest, `{"mediaType":"` + ociManifest + `",` + image + `}`, ociManifest, 2},
		"header with parameters":           {v2 + "; charset=utf-8", `{"mediaType":"` + v2 + `",` + image + `}`, v2, 2},
		"header with half a parameter":     {v2 + "; charset", `{` + image + `}`, v2, 2},
		"header in upper case":             {strings.ToUpper(v2), `{"mediaType":"` + v2 + `",` + image + `}`, v2, 2},
		"no header: the body decides":      {"", `{"mediaType":"` + v2 + `",` + image + `}`, v2, 2},
		"no header, no mediaType: index":   {"", `{"schemaVersion":2,` + index + `}`, ociIndex, 1},
		"no header, no mediaType: image":   {"application/json", `{` + image + `}`, ociManifest, 2},
		"no mediaType: the header decides": {ociIndex, `{"schemaVersion":2,` + index + `}`, ociIndex, 1},
		"a list without mediaType":         {list, `{"schemaVersion":2,` + index + `}`, list, 1},
		"an empty index":                   {ociIndex, `{"schemaVersion":2,"manifests":[]}`, ociIndex, 0},
		"an index without schemaVersion":   {"", `{"manifests":[]}`, ociIndex, 0},
		"an artifact type of its own":      {"", `{"mediaType":"application/vnd.example.thing.v1+json","blobs":[` + descA + `]}`, "application/vnd.example.thing.v1+json", 1},
		"an artifact manifest":             {artifact, `{"mediaType":"` + artifact + `","blobs":[` + descA + `]}`, artifact, 1},
		"a child that is no digest":        {ociIndex, `{"manifests":[{"digest":"../../etc","size":1},` + descA + `]}`, ociIndex, 1},
		"a config of another algorithm":    {"", `{"schemaVersion":2,"config":{"digest":"blake3:` + hexA + `","size":1},"layers":[]}`, ociManifest, 0},
		"white space is none of ours":      {ociManifest, " {\n\"mediaType\" : \"" + ociManifest + "\",\t" + image + "} \n", ociManifest, 2},
		"null for no layers":               {"application/octet-stream", `{"schemaVersion":2,"config":` + descA + `,"layers":null}`, ociManifest, 1},
		"null for no layers, and its type": {v2, `{"schemaVersion":2,"mediaType":"` + v2 + `","config":` + descA + `,"layers":null}`, v2, 1},
	} {
		t.Run(name, func(t *testing.T) {
			for _, trust := range trusts {
				info, err := manifest.Inspect(tc.served, []byte(tc.body), trust)
				require.NoError(t, err)
				assert.Equal(t, tc.want, info.MediaType)
				assert.Len(t, append(info.Manifests, info.Blobs...), tc.refs)
			}
		})
	}
}

// What serves the manifest need not know what a manifest is. The document does.
func TestContentTypesThatSayNothing(t *testing.T) {
	for name, tc := range map[string]struct{ body, want string }{
		"an image of its own type": {`{"mediaType":"` + v2 + `",` + image + `}`, v2},
		"an index of its own type": {`{"mediaType":"` + list + `",` + index + `}`, list},
		"an image by its shape":    {`{` + image + `}`, ociManifest},
		"an index by its shape":    {`{"schemaVersion":2,` + index + `}`, ociIndex},
		"a type of nobody's":       {`{"mediaType":"application/vnd.example.thing.v1+json"}`, "application/vnd.example.thing.v1+json"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, served := range []string{
				"", ";", "no type", "application/octet-stream", "binary/octet-stream", "application/json", "application/x-json", "text/json",
				"application/unknown", "text/plain; charset=utf-8", "image/png", "application/vnd.docker.container.image.v1+json",
				ocispec.MediaTypeImageConfig, "application/vnd.example.other.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip",
			} {
				for _, trust := range trusts {
					info, err := manifest.Inspect(served, []byte(tc.body), trust)
					require.NoError(t, err, served)
					assert.Equal(t, tc.want, info.MediaType, served)
				}
			}
			for _, page := range []string{"text/html", "TEXT/HTML; charset=utf-8", "text/html; charset", "application/xhtml+xml"} {
				_, err := manifest.Inspect(page, []byte(tc.body), manifest.ByTag)
				assert.Error(t, err, page)
				info, err := manifest.Inspect(page, []byte(tc.body), manifest.ByDigest)
				require.NoError(t, err, "that it is the manifest asked for is known: %s", page)
				assert.Equal(t, tc.want, info.MediaType, page)
			}
		})
	}
}

// A Store may have been given a document by somebody else, who was less strict.
func TestDocumentsThatLackWhatTheirSpecificationRequires(t *testing.T) {
	const thing = "application/vnd.example.thing.v1+json"
	for name, tc := range map[string]struct{ served, body string }{
		"nothing":                       {ociManifest, `{}`},
		"nothing, as a list":            {list, `{}`},
		"an error":                      {ociManifest, `{"errors":[{"code":"UNAUTHORIZED"}]}`},
		"an error, with a version":      {v2, `{"schemaVersion":2,"errors":[]}`},
		"a type and nothing else":       {"", `{"schemaVersion":2,"mediaType":"` + ociManifest + `"}`},
		"an index and nothing else":     {"", `{"schemaVersion":2,"mediaType":"` + ociIndex + `"}`},
		"no version":                    {ociManifest, `{"config":` + descA + `,"layers":[]}`},
		"another version":               {ociManifest, `{"schemaVersion":3,"config":` + descA + `,"layers":[]}`},
		"an index of another version":   {ociIndex, `{"schemaVersion":3,"manifests":[]}`},
		"version null":                  {ociManifest, `{"schemaVersion":null,"config":` + descA + `,"layers":[]}`},
		"no config":                     {ociManifest, `{"schemaVersion":2,"layers":[` + descA + `]}`},
		"config null":                   {ociManifest, `{"schemaVersion":2,"config":null,"layers":[` + descA + `]}`},
		"config empty":                  {v2, `{"schemaVersion":2,"config":{},"layers":[` + descA + `]}`},
		"config with a digest of none":  {v2, `{"schemaVersion":2,"config":{"digest":"latest","size":1},"layers":[` + descA + `]}`},
		"config with half a digest":     {v2, `{"schemaVersion":2,"config":{"digest":"sha256:aa","size":1},"layers":[` + descA + `]}`},
		"an image's configuration":      {ociManifest, `{"schemaVersion":2,"config":{"Cmd":["sh"]},"rootfs":{"type":"layers"}}`},
		"no layers":                     {ociManifest, `{"schemaVersion":2,"config":` + descA + `}`},
		"a layer that is null":          {ociManifest, `{"schemaVersion":2,"config":` + descA + `,"layers":[` + descA + `,null]}`},
		"a layer that is empty":         {v2, `{"schemaVersion":2,"config":` + descA + `,"layers":[{}]}`},
		"a manifest that is null":       {ociIndex, `{"schemaVersion":2,"manifests":[null]}`},
		"a manifest without a digest":   {list, `{"schemaVersion":2,"manifests":[{"size":1}]}`},
		"manifests null":                {ociIndex, `{"schemaVersion":2,"manifests":null}`},
		"a descriptor of an image":      {"", `{"mediaType":"` + ociManifest + `","digest":"sha256:` + hexA + `","size":3}`},
		"an artifact without its type":  {artifact, `{"blobs":[` + descA + `]}`},
		"a type that nobody knows":      {thing, `{"a":1}`},
		"a type that says nothing else": {"application/problem+json", `{"title":"no"}`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := manifest.Inspect(tc.served, []byte(tc.body), manifest.ByTag)
			assert.Error(t, err)
			assert.NotErrorIs(t, err, manifest.ErrSchema1)
			_, err = manifest.Inspect(tc.served, []byte(tc.body), manifest.ByDigest)
			assert.Equal(t, strings.Contains(name, "a type that"), err == nil, "only a kind that is not known may lack anything: %v", err)
			if tc.served != "" {
				_, err = manifest.Inspect(tc.served, []byte(tc.body), manifest.Stored)
				assert.NoError(t, err, "what is stored as something is that")
			}
		})
	}
}

// An error document may say its type, too.
func TestOnlyVendorsHaveManifestTypesOfTheirOwn(t *testing.T) {
	for _, mediaType := range []string{"application/json", "application/problem+json", "application/ld+json", "application/VND.example+json"} {
		_, err := manifest.Inspect("application/json", []byte(`{"mediaType":"`+mediaType+`","title":"no"}`), manifest.ByTag)
		assert.Error(t, err, mediaType)
		info, err := manifest.Inspect("application/json", []byte(`{"mediaType":"`+mediaType+`","title":"no"}`), manifest.ByDigest)
		require.NoError(t, err, "it is what was asked for")
		assert.Equal(t, mediaType, info.MediaType)
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
		for _, trust := range trusts {
			for _, d := range documents(t, "accepted") {
				_, err := manifest.Inspect(served, d.content, trust)
				assert.NoError(t, err, "%s served as %q", d.name, served)
			}
			for _, d := range documents(t, "refused") {
				_, err := manifest.Inspect(served, d.content, trust)
				assert.Error(t, err, "%s served as %q", d.name, served)
			}
		}
	}
}

func TestWhatIsRefused(t *testing.T) {
	for name, tc := range map[string]struct{ served, body string }{
		"a login page":                      {"text/html", "<!DOCTYPE html><html>"},
		"a login page served as a manifest": {ociManifest, "<!DOCTYPE html><html>"},
		"half a document":                   {ociManifest, `{"mediaType":"` + ociManifest + `",`},
		"deep nesting":                      {ociManifest, `{"config":` + strings.Repeat("[", 100_000)},
		"body says index, header manifest":  {ociManifest, `{"mediaType":"` + ociIndex + `",` + index + `}`},
		"shape is index, header manifest":   {ociManifest, `{` + index + `}`},
		"shape is manifest, header index":   {ociIndex, `{` + image + `}`},
		"says artifact, header index":       {ociIndex, `{"mediaType":"` + artifact + `","blobs":[]}`},
		"header artifact, body says index":  {artifact, `{"mediaType":"` + ociIndex + `",` + index + `}`},
		"header artifact, shape is index":   {artifact, `{` + index + `}`},
		"header artifact, shape is image":   {artifact, `{` + image + `}`},
		"another type, in its own index":    {"", `{"mediaType":"application/vnd.example.thing.v1+json",` + index + `,` + image + `}`},
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
			for _, trust := range trusts {
				info, err := manifest.Inspect(tc.served, []byte(tc.body), trust)
				assert.Error(t, err)
				assert.NotErrorIs(t, err, manifest.ErrSchema1)
				assert.Zero(t, info)
			}
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
			for _, trust := range trusts {
				_, err := manifest.Inspect(tc.served, []byte(tc.body), trust)
				assert.ErrorIs(t, err, manifest.ErrSchema1)
			}
		})
	}
}
