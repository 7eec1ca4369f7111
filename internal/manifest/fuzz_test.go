package manifest_test

import (
	"bytes"
	"encoding/json"
	"mime"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
)

// FuzzInspect holds Inspect against what the usual decoder makes of the
// same bytes: what is accepted is one kind for every reader, in every order of
// its keys, and complete where it was not stored before; and what a strict reader
// takes is accepted. The less is known about a document, the more is asked of it.
func FuzzInspect(f *testing.F) {
	for _, body := range slices.Concat(documents(f, "accepted"), documents(f, "refused")) {
		for _, served := range []string{"", ociManifest, ociIndex, v2 + "; charset=utf-8", list, artifact, "binary/octet-stream", "application/vnd.example.thing.v1+json", "text/html"} {
			f.Add(served, body.content)
		}
	}
	f.Fuzz(func(t *testing.T, served string, body []byte) {
		var accepted bool
		for _, trust := range trusts {
			info, err := manifest.Inspect(served, body, trust)
			if want, ok := strict(served, body, trust); ok {
				require.NoError(t, err)
				require.Equal(t, want, info.MediaType)
			}
			checkSpelling(t, served, body, trust, info, err)
			if err != nil {
				require.Zero(t, info)
				require.False(t, accepted, "with less known about it, it was accepted: %v", err)
				continue
			}
			accepted = true
			require.True(t, json.Valid(body))
			checkServed(t, served, body, trust, info)
			checkOneKind(t, body, info)
			checkRefs(t, body, info)
			if trust != manifest.Stored {
				checkComplete(t, body, info)
			}
		}
	})
}

// readings are what Go programs make of a document, who match keys in any case.
func readings(t *testing.T, body []byte) (asIndex ocispec.Index, asImage ocispec.Manifest, isIndex, isImage bool) {
	t.Helper()
	isIndex = json.Unmarshal(body, &asIndex) == nil && asIndex.Manifests != nil
	isImage = json.Unmarshal(body, &asImage) == nil && (asImage.Layers != nil || asImage.Config.Digest != "")
	return asIndex, asImage, isIndex, isImage
}

// generic are types that say nothing about manifests.
var generic = []string{"", "application/octet-stream", "binary/octet-stream", "text/plain", "application/json"}

// checkServed: a Content-Type that says what the document is must be right, a page is
// none, and any other type is passed on only for a document of no kind that is known, whose
// digest was asked for, and which does not say a type itself.
func checkServed(t *testing.T, served string, body []byte, trust manifest.Trust, info manifest.Info) {
	mediaType, _, _ := mime.ParseMediaType(served)
	known := []string{ociManifest, ociIndex, v2, list, artifact}
	var doc struct{ MediaType string }
	require.NoError(t, json.Unmarshal(body, &doc))
	assert.Equal(t, doc.MediaType != "", info.IsTyped)
	switch {
	case slices.Contains(known, mediaType):
		assert.Equal(t, mediaType, info.MediaType)
	case doc.MediaType != "":
		assert.Equal(t, doc.MediaType, info.MediaType)
	case trust == manifest.ByTag || info.MediaType != mediaType:
		assert.Contains(t, []string{ociManifest, ociIndex}, info.MediaType)
	}
	if trust == manifest.ByTag {
		assert.NotEqual(t, "text/html", mediaType)
	}
}

// checkComplete: an image or an index has what its specification requires.
func checkComplete(t *testing.T, body []byte, info manifest.Info) {
	var doc struct {
		SchemaVersion int
		Config        *ocispec.Descriptor
		Manifests     *[]ocispec.Descriptor
		Layers        json.RawMessage
	}
	require.NoError(t, json.Unmarshal(body, &doc))
	switch info.MediaType {
	case ociManifest, v2:
		require.NotNil(t, doc.Config)
		assert.NotEmpty(t, doc.Config.Digest)
		assert.NotEmpty(t, doc.Layers)
		assert.Equal(t, 2, doc.SchemaVersion)
	case ociIndex, list:
		assert.NotNil(t, doc.Manifests)
		assert.Contains(t, []int{0, 2}, doc.SchemaVersion)
	}
}

func checkOneKind(t *testing.T, body []byte, info manifest.Info) {
	asIndex, _, isIndex, isImage := readings(t, body)
	var schema1 struct { // keys in any case, as everywhere here
		SchemaVersion any
		FSLayers      any
	}
	require.NoError(t, json.Unmarshal(body, &schema1))
	assert.False(t, isIndex && isImage, "an index and an image at once")
	assert.Nil(t, schema1.FSLayers, "schema 1")
	assert.NotEqual(t, 1.0, schema1.SchemaVersion, "schema 1")
	switch info.MediaType {
	case ociIndex, list:
		assert.False(t, isImage)
		assert.Empty(t, info.Blobs)
	case ociManifest, v2:
		assert.False(t, isIndex)
		assert.Empty(t, info.Manifests)
	}
	if asIndex.MediaType != "" {
		assert.Equal(t, asIndex.MediaType, info.MediaType, "what the body says of itself counts")
	}
	assert.NotContains(t, info.MediaType, "html")
	assert.False(t, strings.ContainsFunc(info.MediaType, func(r rune) bool { return r <= ' ' || r > '~' }))
}

// checkRefs: the descriptors are the decoder's, without those that nobody can verify.
func checkRefs(t *testing.T, body []byte, info manifest.Info) {
	asIndex, asImage, isIndex, isImage := readings(t, body)
	if isIndex {
		assert.Equal(t, verifiable(asIndex.Manifests), digests(info.Manifests))
	}
	if isImage && asImage.Layers != nil && asImage.Config.Digest != "" {
		var all []digest.Digest
		all = append(all, verifiable([]ocispec.Descriptor{asImage.Config})...)
		all = append(all, verifiable(asImage.Layers)...)
		assert.Subset(t, digests(info.Blobs), all)
		assert.Equal(t, all, digests(info.Blobs)[:len(all)])
	}
	for _, ref := range slices.Concat(info.Manifests, info.Blobs) {
		assert.GreaterOrEqual(t, ref.Size, int64(0))
		assert.Empty(t, ref.URLs)
	}
}

func verifiable(refs []ocispec.Descriptor) (all []digest.Digest) {
	for _, ref := range refs {
		if ref.Digest.Validate() == nil && (ref.Digest.Algorithm() == digest.SHA256 || ref.Digest.Algorithm() == digest.SHA512) {
			all = append(all, ref.Digest)
		}
	}
	return all
}

func digests(refs []ocispec.Descriptor) (all []digest.Digest) {
	for _, ref := range refs {
		all = append(all, ref.Digest)
	}
	return all
}

// checkSpelling: white space and the order of keys, at any depth, are nobody's business.
func checkSpelling(t *testing.T, served string, body []byte, trust manifest.Trust, info manifest.Info, err error) {
	if !json.Valid(body) || len(body) > manifest.MaxSize/4 {
		return
	}
	var indented, compact bytes.Buffer
	require.NoError(t, json.Indent(&indented, body, "", " "))
	require.NoError(t, json.Compact(&compact, body))
	for name, other := range map[string][]byte{
		"keys reversed": reversed(t, body, 100), "indented": indented.Bytes(), "compact": compact.Bytes(),
	} {
		if len(other) > manifest.MaxSize {
			continue
		}
		again, err2 := manifest.Inspect(served, other, trust)
		assert.Equal(t, err == nil, err2 == nil, "%s: %v and %v: %s", name, err, err2, other)
		assert.Equal(t, info, again, "%s: %s", name, other)
	}
}

// reversed is the document with the keys of each object in reverse, down to depth.
func reversed(t *testing.T, doc []byte, depth int) []byte {
	doc = bytes.TrimSpace(doc)
	if depth == 0 || len(doc) == 0 || doc[0] != '{' && doc[0] != '[' {
		return doc
	}
	dec := json.NewDecoder(bytes.NewReader(doc))
	_, err := dec.Token()
	require.NoError(t, err)
	var members [][]byte
	for dec.More() {
		var member []byte
		if doc[0] == '{' {
			start := dec.InputOffset()
			_, err := dec.Token()
			require.NoError(t, err)
			member = append(bytes.TrimLeft(bytes.Clone(doc[start:dec.InputOffset()]), ", \t\r\n"), ':')
		}
		var value json.RawMessage
		require.NoError(t, dec.Decode(&value))
		members = append(members, append(member, reversed(t, value, depth-1)...))
	}
	if doc[0] == '{' {
		slices.Reverse(members)
	}
	return slices.Concat(doc[:1], bytes.Join(members, []byte(",")), doc[len(doc)-1:])
}

// strict reports whether the strictest of readers would take the document, and
// as what: one of the four known kinds, complete, each key once and in its own
// case, and not served as anything else.
func strict(served string, body []byte, trust manifest.Trust) (mediaType string, ok bool) {
	var top map[string]json.RawMessage
	if !utf8.Valid(body) || len(body) > manifest.MaxSize/4 || json.Unmarshal(body, &top) != nil || !plainKeys(body, 100) {
		return "", false
	}
	isIndex := top["manifests"] != nil && top["layers"] == nil && top["config"] == nil
	isImage := top["manifests"] == nil && top["layers"] != nil && top["config"] != nil
	if string(top["schemaVersion"]) != "2" || isIndex == isImage || top["blobs"] != nil || top["fsLayers"] != nil {
		return "", false
	}
	var doc struct {
		MediaType         string
		Config            ocispec.Descriptor
		Layers, Manifests []ocispec.Descriptor
	}
	if json.Unmarshal(body, &doc) != nil || isIndex && doc.Manifests == nil || isImage && !isDigest(doc.Config.Digest) {
		return "", false
	}
	refs := slices.Concat(doc.Manifests, doc.Layers, []ocispec.Descriptor{doc.Config})
	if len(refs) > 1000 || slices.ContainsFunc(refs, func(d ocispec.Descriptor) bool { return d.Size < 0 }) {
		return "", false
	}
	mediaType = doc.MediaType
	if _, said := top["mediaType"]; !said {
		mediaType = map[bool]string{true: ociIndex, false: ociManifest}[isIndex]
	}
	kinds := map[string]bool{ociIndex: true, list: true, ociManifest: false, v2: false}
	index, known := kinds[mediaType]
	page := trust == manifest.ByDigest && served == "text/html"
	return mediaType, known && index == isIndex && (served == mediaType || page || slices.Contains(generic, served))
}

func isDigest(d digest.Digest) bool { return len(verifiable([]ocispec.Descriptor{{Digest: d}})) == 1 }

// plainKeys reports whether no object has two keys that some reader takes for
// one, and no key stands for one of the descriptors' or manifests' by its case.
func plainKeys(doc []byte, depth int) bool {
	doc = bytes.TrimSpace(doc)
	if len(doc) == 0 || doc[0] != '{' && doc[0] != '[' {
		return true
	}
	dec := json.NewDecoder(bytes.NewReader(doc))
	if _, err := dec.Token(); err != nil || depth == 0 {
		return false
	}
	var keys []string
	for dec.More() {
		if doc[0] == '{' {
			key, err := dec.Token()
			name, ok := key.(string)
			if err != nil || !ok || slices.ContainsFunc(keys, func(k string) bool { return strings.EqualFold(k, name) }) {
				return false
			}
			known := []string{"schemaVersion", "mediaType", "manifests", "config", "layers", "blobs", "fsLayers", "digest", "size", "urls", "annotations", "data", "platform", "artifactType", "subject"}
			if slices.ContainsFunc(known, func(k string) bool { return k != name && strings.EqualFold(k, name) }) {
				return false
			}
			keys = append(keys, name)
		}
		var value json.RawMessage
		if dec.Decode(&value) != nil || !plainKeys(value, depth-1) {
			return false
		}
	}
	return true
}
