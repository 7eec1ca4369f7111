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
	"slices"
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

	// mediaTypeArtifact is that of the artifact manifest of image-spec 1.1.0-rc.
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
	IsTyped   bool // the document says its media type itself, so it never has another
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

// Trust says what is known about a document before it is read. The less that is, the
// more [Inspect] asks of it. What can be read in two ways is refused in any case.
type Trust int

const (
	// ByTag: a registry answered a tag with the document, so it may be anything. It must
	// be a manifest by its content, as the specifications define it.
	ByTag Trust = iota
	// ByDigest: the document has the digest that was asked for. A Content-Type that no
	// manifest has is no reason to refuse a manifest, and a document of a kind that is
	// not known here is what its Content-Type says.
	ByDigest
	// Stored: a Store has the document. Only its references are wanted.
	Stored
)

// Inspect parses body, which was served as contentType; "" means without a Content-Type.
// It is the one place that decides what a document is. In this order:
//
//  1. The document must be one for every parser: no key twice, no known key in odd case,
//     no index that is an image as well (CVE-2021-41190).
//  2. Its mediaType counts. Where it has none, a Content-Type that is a manifest's counts,
//     and then what the document looks like. None of the three may contradict another. A
//     Content-Type that is no manifest's, such as binary/octet-stream, says nothing.
//  3. An image has schemaVersion 2, a config with a digest, and layers; an index has
//     manifests. Each layer and each manifest has a digest. So say image-spec and Docker's schema 2. A null for no layers is common,
//     and allowed.
//
// The error Is [ErrSchema1] for Docker's schema 1.
func Inspect(contentType string, body []byte, trust Trust) (Info, error) {
	if len(body) > MaxSize {
		return Info{}, fmt.Errorf("manifest of %d bytes is larger than %d", len(body), MaxSize)
	}
	served := essence(contentType)
	doc, err := read(body)
	if err != nil {
		return Info{}, fmt.Errorf("served as %.100q: not a manifest: %w", served, err)
	}
	mediaType, err := doc.decide(served, trust)
	if err != nil {
		return Info{}, err
	}
	blobs := append(doc.layers, doc.blobs...)
	if doc.config != nil {
		blobs = append([]ocispec.Descriptor{*doc.config}, blobs...)
	}
	info := Info{MediaType: mediaType, IsTyped: doc.mediaType != ""}
	if info.Manifests, err = verifiable(doc.manifests); err != nil {
		return Info{}, err
	}
	if info.Blobs, err = verifiable(blobs); err != nil {
		return Info{}, err
	}
	return info, nil
}

// essence returns the media type without parameters; "" for what is none.
func essence(contentType string) string {
	t, _, err := mime.ParseMediaType(contentType)
	if err != nil && !errors.Is(err, mime.ErrInvalidMediaParameter) {
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

// decide returns the media type of the document, or why it is no manifest.
func (d *document) decide(served string, trust Trust) (string, error) {
	switch {
	case d.keys["fsLayers"], d.schemaVersion == 1, strings.HasPrefix(d.mediaType, schema1Prefix), strings.HasPrefix(served, schema1Prefix):
		return "", ErrSchema1
	case trust == ByTag && isPage(served):
		return "", fmt.Errorf("served as %.100q, which is for people", served)
	case trust == ByTag && d.mediaType != "" && !strings.HasPrefix(d.mediaType, "application/vnd."):
		return "", fmt.Errorf("says mediaType %.100q, which is no manifest's", d.mediaType)
	case d.mediaType != "" && isManifestType(served) && served != d.mediaType:
		return "", fmt.Errorf("says mediaType %.100q, but was served as %.100q", d.mediaType, served)
	}
	mediaType := d.typeOf(served, trust)
	if mediaType == "" {
		return "", fmt.Errorf("neither its content nor its Content-Type %.100q says what it is", served)
	}
	err := d.contradicts(mediaType)
	if err == nil && trust != Stored {
		err = d.complete(mediaType)
	}
	if err == nil {
		err = checkType(mediaType)
	}
	return mediaType, err
}

// typeOf returns what the document says it is, or else what it was served as, or else what
// it looks like.
func (d *document) typeOf(served string, trust Trust) string {
	shape := d.shape()
	switch {
	case d.mediaType != "":
		return d.mediaType
	case isManifestType(served):
		return served
	case shape == "" && trust != ByTag && served != "application/json" && checkType(served) == nil:
		return served
	}
	return shape
}

// contradicts returns an error for a document that fits two kinds, or another one than
// mediaType.
func (d *document) contradicts(mediaType string) error {
	index, image := d.keys["manifests"], d.keys["layers"] || d.keys["config"] || d.keys["blobs"]
	switch {
	case index && image:
		return errors.New("ambiguous: both an index and an image manifest (CVE-2021-41190)")
	case isIndexType(mediaType) && image, isImageType(mediaType) && index, mediaType == mediaTypeArtifact && d.shape() != "":
		return fmt.Errorf("its mediaType or Content-Type is %.100q, and it is none", mediaType)
	}
	return nil
}

// complete returns an error for a document that lacks what the specification of its
// mediaType requires. What is not known here has none.
func (d *document) complete(mediaType string) error {
	switch {
	case isImageType(mediaType):
		return d.completeImage()
	case isIndexType(mediaType) && d.manifests == nil:
		return errors.New("an index without manifests")
	case isIndexType(mediaType) && d.keys["schemaVersion"] && d.schemaVersion != schemaVersion:
		return fmt.Errorf("an index with the schemaVersion %d", d.schemaVersion)
	case mediaType == mediaTypeArtifact && d.mediaType == "":
		return errors.New("an artifact manifest without its mediaType")
	case isIndexType(mediaType) && slices.ContainsFunc(d.manifests, namesNothing):
		return errors.New("an index of a manifest that has no digest")
	}
	return nil
}

func (d *document) completeImage() error {
	switch {
	case d.schemaVersion != schemaVersion:
		return fmt.Errorf("an image manifest with the schemaVersion %d", d.schemaVersion)
	case d.config == nil || !isDigest(d.config.Digest):
		return errors.New("an image manifest whose config has no digest")
	case !d.keys["layers"]:
		return errors.New("an image manifest without layers")
	case slices.ContainsFunc(d.layers, namesNothing):
		return errors.New("an image manifest with a layer that has no digest")
	}
	return nil
}

// namesNothing is about null and {} in a list of descriptors.
func namesNothing(d ocispec.Descriptor) bool { return d.Digest == "" }

// schemaVersion is that of image-spec, and of Docker's schema 2.
const schemaVersion = 2

// shape returns the media type that the document's fields imply, or "". It is an OCI type,
// since only OCI documents may omit their mediaType.
func (d *document) shape() string {
	switch {
	case d.manifests != nil:
		return ocispec.MediaTypeImageIndex
	case d.config != nil && d.keys["layers"]:
		return ocispec.MediaTypeImageManifest
	}
	return ""
}

func isManifestType(t string) bool { return isIndexType(t) || isImageType(t) || t == mediaTypeArtifact }

func isImageType(t string) bool {
	return t == ocispec.MediaTypeImageManifest || t == MediaTypeDockerManifest
}

func isIndexType(t string) bool {
	return t == ocispec.MediaTypeImageIndex || t == MediaTypeDockerList
}

// isPage reports whether t is the type of a web page, such as one that asks for a login.
func isPage(t string) bool { return t == "text/html" || t == "application/xhtml+xml" }

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

// isDigest reports whether d is a digest, of whatever algorithm.
func isDigest(d digest.Digest) bool {
	err := d.Validate()
	return err == nil || errors.Is(err, digest.ErrDigestUnsupported)
}

// isVerifiable reports whether d is a valid digest of an algorithm that we support.
func isVerifiable(d digest.Digest) bool {
	return d.Validate() == nil && (d.Algorithm() == digest.SHA256 || d.Algorithm() == digest.SHA512)
}

// IsType reports whether a descriptor of the media type is one of a manifest, which
// registries serve below /manifests/. All else is a blob. Docker's schema 1 is among
// them, and the artifact manifest of image-spec 1.1.0-rc.
func IsType(mediaType string) bool {
	return isManifestType(mediaType) || strings.HasPrefix(mediaType, schema1Prefix)
}

// IsForeign reports whether layers of the type need not be in any registry
// (image-spec, "Non-Distributable Layers", and Docker's foreign layers).
func IsForeign(mediaType string) bool {
	return strings.Contains(mediaType, "nondistributable") || strings.Contains(mediaType, ".foreign.")
}
