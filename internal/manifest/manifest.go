// Package manifest determines the kind of a manifest from its bytes and its Content-Type.
// It refuses a document that two parsers could read differently.
package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// MaxSize is the size of the largest manifest in bytes. It is ECR's limit, and the least
// that the OCI distribution spec requires registries to accept.
const MaxSize = 4 << 20

// Media types of Docker's image manifest version 2, schema 2.
const (
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"

	mediaTypeArtifact = "application/vnd.oci.artifact.manifest.v1+json"
	schema1Prefix     = "application/vnd.docker.distribution.manifest.v1+"
)

// Accept is the Accept header of every manifest request. It does not depend on the client,
// because a tag must have the same answer for all clients.
var Accept = strings.Join([]string{
	ocispec.MediaTypeImageIndex,
	ocispec.MediaTypeImageManifest,
	MediaTypeDockerList,
	MediaTypeDockerManifest,
	"*/*;q=0.1",
}, ", ")

// ErrSchema1 is the error for Docker image manifests version 2, schema 1. Their digest is
// not that of their bytes, and registries no longer support them.
var ErrSchema1 = errors.New("docker image manifest schema 1 is not supported")

// Info is the media type and the references of a manifest.
type Info struct {
	MediaType string
	// Manifests are the children of an index. Blobs are the config and the layers of an
	// image. Descriptors without a digest that can be verified are left out. Their URLs
	// are never fetched (CVE-2020-15157).
	Manifests, Blobs []ocispec.Descriptor
}

// maxRefs is how many descriptors a manifest may have. It bounds the memory that 4 MiB of
// hostile JSON can use.
const maxRefs = 10_000

// maxKeys is how many keys an object may have. The specs define a dozen.
const maxKeys = 1000

// document has the fields that distinguish the known kinds.
type document struct {
	schemaVersion int
	mediaType     string
	manifests     []ocispec.Descriptor
	config        *ocispec.Descriptor
	layers        []ocispec.Descriptor
	blobs         []ocispec.Descriptor // of the OCI artifact manifest of image-spec 1.1.0-rc
	keys          map[string]bool      // all top-level keys
}

// Inspect parses body, which was served as contentType; "" means without a Content-Type.
// A mediaType in the body must agree with the Content-Type, unless that is a general type
// such as text/plain. A document that fits two kinds is refused (CVE-2021-41190).
func Inspect(contentType string, body []byte) (Info, error) {
	if len(body) > MaxSize {
		return Info{}, fmt.Errorf("manifest of %d bytes is larger than %d", len(body), MaxSize)
	}
	served := essence(contentType)
	doc, err := read(body)
	if err != nil {
		return Info{}, fmt.Errorf("served as %.100q: not a manifest: %w", served, err)
	}
	if err := doc.check(doc.keys); err != nil {
		return Info{}, err
	}
	mediaType, err := doc.decide(served)
	if err != nil {
		return Info{}, err
	}
	blobs := append(doc.layers, doc.blobs...)
	if doc.config != nil {
		blobs = append([]ocispec.Descriptor{*doc.config}, blobs...)
	}
	info := Info{MediaType: mediaType}
	if info.Manifests, err = verifiable(doc.manifests); err != nil {
		return Info{}, err
	}
	if info.Blobs, err = verifiable(blobs); err != nil {
		return Info{}, err
	}
	return info, nil
}

// essence returns the media type without parameters. It returns "" for general types,
// since some registries serve every manifest as text or octet-stream.
func essence(contentType string) string {
	t, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return ""
	}
	switch t {
	case "application/octet-stream", "text/plain", "application/json":
		return ""
	}
	return t
}

// read parses the document in one pass. It refuses duplicate keys and keys that differ
// from a known one only by case, since parsers disagree about which of the two counts.
// Its errors contain keys of the document, shortened, and nothing else of it.
func read(body []byte) (*document, error) {
	dec := json.NewDecoder(bytes.NewReader(body))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	doc := &document{keys: make(map[string]bool)}
	folded := make(map[string]bool)
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, errors.New("broken JSON")
		}
		key, _ := t.(string)
		fold := foldKey(key)
		if len(folded) == maxKeys {
			return nil, fmt.Errorf("more than %d keys", maxKeys)
		}
		if folded[fold] {
			return nil, fmt.Errorf("the key %.50q stands twice", key)
		}
		doc.keys[key], folded[fold] = true, true
		if doc.read(dec, key) != nil {
			return nil, fmt.Errorf("the value of %.50q is broken or not of its kind", key)
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, errors.New("the document does not end")
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("something follows the document")
	}
	return doc, checkCase(doc.keys, "schemaVersion", "mediaType", "manifests", "config", "layers", "blobs", "fsLayers")
}

// foldKey returns the same string for keys that a case-insensitive parser takes for one.
func foldKey(key string) string { return strings.ToUpper(strings.ToLower(key)) }

// read decodes the value of one key.
func (d *document) read(dec *json.Decoder, key string) (err error) {
	switch key {
	case "schemaVersion":
		return dec.Decode(&d.schemaVersion)
	case "mediaType":
		return dec.Decode(&d.mediaType)
	case "config":
		d.config, err = readRef(dec)
	case "manifests":
		d.manifests, err = readRefs(dec)
	case "layers":
		d.layers, err = readRefs(dec)
	case "blobs":
		d.blobs, err = readRefs(dec)
	default:
		var skip json.RawMessage
		return dec.Decode(&skip)
	}
	return err
}

// readRefs decodes an array of descriptors. It returns nil for null.
func readRefs(dec *json.Decoder) ([]ocispec.Descriptor, error) {
	t, err := dec.Token()
	if err != nil || t == nil {
		return nil, err
	}
	if t != json.Delim('[') {
		return nil, errors.New("not an array")
	}
	refs := []ocispec.Descriptor{}
	for dec.More() {
		if len(refs) == maxRefs {
			return nil, fmt.Errorf("more than %d descriptors", maxRefs)
		}
		d, err := readRef(dec)
		if err != nil {
			return nil, err
		}
		if d == nil {
			d = &ocispec.Descriptor{}
		}
		refs = append(refs, *d)
	}
	_, err = dec.Token()
	return refs, err
}

// readRef decodes one descriptor. It returns nil for null. Like the keys of the document,
// those of the descriptor and its platform must be unambiguous for every parser.
func readRef(dec *json.Decoder) (*ocispec.Descriptor, error) {
	var raw json.RawMessage
	if err := dec.Decode(&raw); err != nil {
		return nil, err
	}
	if string(raw) == "null" {
		return nil, nil
	}
	var d ocispec.Descriptor
	if err := json.Unmarshal(raw, &d); err != nil {
		return nil, err
	}
	if err := checkKeys(raw, "mediaType", "digest", "size", "urls", "annotations", "data", "platform", "artifactType"); err != nil {
		return nil, err
	}
	return &ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Platform: d.Platform}, nil
}

// checkKeys refuses an object that has a key twice, or a known key in another case.
func checkKeys(raw json.RawMessage, known ...string) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if _, err := dec.Token(); err != nil {
		return err
	}
	keys, folded := make(map[string]bool), make(map[string]bool)
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		key, _ := t.(string)
		fold := foldKey(key)
		if folded[fold] || len(folded) == maxKeys {
			return fmt.Errorf("the key %.50q stands twice, or is one of too many", key)
		}
		keys[key], folded[fold] = true, true
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return err
		}
		if key == "platform" && bytes.HasPrefix(value, []byte("{")) {
			if err := checkKeys(value, "architecture", "os", "os.version", "os.features", "variant"); err != nil {
				return err
			}
		}
	}
	return checkCase(keys, known...)
}

// checkCase refuses keys that differ from a known one only by case.
func checkCase(keys map[string]bool, known ...string) error {
	for key := range keys {
		for _, known := range known {
			if key != known && strings.EqualFold(key, known) {
				return fmt.Errorf("the key %.50q is %q in odd case", key, known)
			}
		}
	}
	return nil
}

// check refuses documents that fit more than one kind.
func (d *document) check(keys map[string]bool) error {
	if keys["fsLayers"] || d.schemaVersion == 1 || strings.HasPrefix(d.mediaType, schema1Prefix) {
		return ErrSchema1
	}
	if keys["manifests"] && (keys["layers"] || keys["config"] || keys["blobs"]) {
		return errors.New("ambiguous: both an index and an image manifest (CVE-2021-41190)")
	}
	isIndex := d.mediaType == ocispec.MediaTypeImageIndex || d.mediaType == MediaTypeDockerList
	isImage := d.mediaType == ocispec.MediaTypeImageManifest || d.mediaType == MediaTypeDockerManifest
	if isIndex && (keys["layers"] || keys["config"] || keys["blobs"]) || isImage && keys["manifests"] {
		return fmt.Errorf("says mediaType %q, and is not", d.mediaType)
	}
	return nil
}

// decide returns the media type: the one in the body, or else the one that fits the body's
// shape. The Content-Type must not contradict it.
func (d *document) decide(served string) (string, error) {
	if strings.HasPrefix(served, schema1Prefix) {
		return "", ErrSchema1
	}
	if d.mediaType != "" {
		if served != "" && served != d.mediaType {
			return "", fmt.Errorf("says mediaType %.100q, but was served as %.100q", d.mediaType, served)
		}
		return d.mediaType, checkType(d.mediaType)
	}
	shape := d.shape()
	if shape != "" && !isKnownType(served) && checkType(served) == nil {
		served = "" // an unknown type for a known shape is not passed on
	}
	switch {
	case served == "" && shape == "":
		return "", errors.New("neither its content nor its Content-Type says what it is")
	case served == "":
		return shape, nil
	case shape != "" && isIndexType(served) != isIndexType(shape):
		return "", fmt.Errorf("looks like %q, but was served as %.100q", shape, served)
	case isIndexType(served) && (d.keys["blobs"] || d.keys["layers"] || d.keys["config"]):
		return "", fmt.Errorf("served as %.100q, and is none", served)
	}
	return served, checkType(served)
}

// shape returns the media type that the document's fields imply, or "". It is an OCI type,
// since only OCI documents may omit their mediaType.
func (d *document) shape() string {
	switch {
	case d.manifests != nil:
		return ocispec.MediaTypeImageIndex
	case d.config != nil && d.layers != nil:
		return ocispec.MediaTypeImageManifest
	}
	return ""
}

func isKnownType(t string) bool {
	return isIndexType(t) || t == ocispec.MediaTypeImageManifest || t == MediaTypeDockerManifest
}

func isIndexType(t string) bool {
	return t == ocispec.MediaTypeImageIndex || t == MediaTypeDockerList
}

// checkType refuses media types that no manifest has, so that web pages and the like are
// not stored.
func checkType(t string) error {
	if strings.HasPrefix(t, "application/") && strings.HasSuffix(t, "json") && len(t) <= 255 && isPrintable(t) {
		return nil
	}
	return fmt.Errorf("%.100q is no manifest's media type", t)
}

func isPrintable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// verifiable returns the descriptors whose content can be verified. It refuses a negative
// size, whose only use is to make a reader allocate or read without limit.
func verifiable(all []ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	kept := all[:0]
	for _, desc := range all {
		if desc.Size < 0 {
			return nil, fmt.Errorf("descriptor %.80q has the size %d", desc.Digest, desc.Size)
		}
		if isVerifiable(desc.Digest) {
			kept = append(kept, desc)
		}
	}
	return kept, nil
}

// isVerifiable reports whether d is a valid digest of an algorithm that we support.
func isVerifiable(d digest.Digest) bool {
	return d.Validate() == nil && (d.Algorithm() == digest.SHA256 || d.Algorithm() == digest.SHA512)
}

// IsType reports whether a descriptor of the media type is one of a manifest, which
// registries serve below /manifests/. All else is a blob. Docker's schema 1 is among
// them, and the artifact manifest of image-spec 1.1.0-rc.
func IsType(mediaType string) bool {
	return isKnownType(mediaType) || mediaType == mediaTypeArtifact || strings.HasPrefix(mediaType, schema1Prefix)
}

// IsForeign reports whether layers of the type need not be in any registry
// (image-spec, "Non-Distributable Layers", and Docker's foreign layers).
func IsForeign(mediaType string) bool {
	return strings.Contains(mediaType, "nondistributable") || strings.Contains(mediaType, ".foreign.")
}
