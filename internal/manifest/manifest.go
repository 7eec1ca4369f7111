// Package manifest decides what a manifest is, from its bytes and its
// Content-Type together, and refuses what two readers could read differently.
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

// MaxSize is the largest manifest in bytes: ECR's limit, and what the OCI
// distribution spec asks registries to take at least.
const MaxSize = 4 << 20

// Media types of Docker's image manifest version 2, schema 2.
const (
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"

	schema1Prefix = "application/vnd.docker.distribution.manifest.v1+"
)

// Accept is the one Accept header of every manifest request: a tag must have
// one answer, whatever the client would have accepted.
var Accept = strings.Join([]string{
	ocispec.MediaTypeImageIndex,
	ocispec.MediaTypeImageManifest,
	MediaTypeDockerList,
	MediaTypeDockerManifest,
	"*/*;q=0.1",
}, ", ")

// ErrSchema1 is the error for Docker image manifests version 2, schema 1:
// their digest is not that of their bytes, and registries have dropped them.
var ErrSchema1 = errors.New("docker image manifest schema 1 is not supported")

// Info is what a manifest says of itself.
type Info struct {
	MediaType string
	// Manifests are the children of an index, Blobs the config and layers of an
	// image. Only those with a digest that can be verified, and none of their URLs
	// is ever fetched (CVE-2020-15157).
	Manifests, Blobs []ocispec.Descriptor
}

// maxRefs bounds the descriptors of one manifest, and with it the memory that
// 4 MiB of hostile JSON can cost.
const maxRefs = 10_000

// maxKeys is how many keys an object may have that we look at. The specs know a
// dozen.
const maxKeys = 1000

// document has the fields that tell the known kinds apart.
type document struct {
	schemaVersion int
	mediaType     string
	manifests     []ocispec.Descriptor
	config        *ocispec.Descriptor
	layers        []ocispec.Descriptor
	blobs         []ocispec.Descriptor // of the OCI artifact manifest of image-spec 1.1.0-rc
	keys          map[string]bool      // all top-level keys
}

// Inspect reads body, which was served as contentType ("" where it was not
// said). A mediaType in the body must agree with a Content-Type that says
// something; a document that fits two kinds is refused (CVE-2021-41190).
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
	if info.Manifests, err = valid(doc.manifests); err != nil {
		return Info{}, err
	}
	if info.Blobs, err = valid(blobs); err != nil {
		return Info{}, err
	}
	return info, nil
}

// essence is the media type without parameters, "" if it says nothing about
// manifests: some registries serve every manifest as text or octet-stream.
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

// read walks over the document once. It refuses duplicate keys and keys that
// differ only by case from one we read: parsers disagree about which of the two
// counts. Its errors hold nothing of the document but its keys, cut short.
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
	return doc, foreignCase(doc.keys, "schemaVersion", "mediaType", "manifests", "config", "layers", "blobs", "fsLayers")
}

// foldKey is equal for keys that a parser which ignores case takes for one.
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

// readRefs decodes an array of descriptors; null is none.
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

// readRef decodes one descriptor; nil for null. Its keys, and its platform's, must
// mean the same to every parser, as those of the document.
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
	if err := plainKeys(raw, "mediaType", "digest", "size", "urls", "annotations", "data", "platform", "artifactType"); err != nil {
		return nil, err
	}
	return &ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Platform: d.Platform}, nil
}

// plainKeys refuses an object that has a key twice, or one of the known ones in
// odd case.
func plainKeys(raw json.RawMessage, known ...string) error {
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
			if err := plainKeys(value, "architecture", "os", "os.version", "os.features", "variant"); err != nil {
				return err
			}
		}
	}
	return foreignCase(keys, known...)
}

func foreignCase(keys map[string]bool, known ...string) error {
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

// decide picks the media type: the body's own, else what the shape of the
// body says, with the Content-Type as a witness that must not disagree.
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
		served = "" // upstream's own word for it is not passed on
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

// shape is the type of a document without a mediaType, which is optional in
// OCI documents only.
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

// checkType keeps web pages and the like out of the Store.
func checkType(t string) error {
	if strings.HasPrefix(t, "application/") && strings.HasSuffix(t, "json") && len(t) <= 255 && printable(t) {
		return nil
	}
	return fmt.Errorf("%.100q is no manifest's media type", t)
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// valid returns the descriptors that can be verified. A negative size is
// refused: it is there to make somebody allocate or read without a bound.
func valid(all []ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	kept := all[:0]
	for _, desc := range all {
		if desc.Size < 0 {
			return nil, fmt.Errorf("descriptor %.80q has the size %d", desc.Digest, desc.Size)
		}
		if known(desc.Digest) {
			kept = append(kept, desc)
		}
	}
	return kept, nil
}

// known reports whether d is a digest that we could verify.
func known(d digest.Digest) bool {
	return d.Validate() == nil && (d.Algorithm() == digest.SHA256 || d.Algorithm() == digest.SHA512)
}

// IsForeign reports whether layers of the type need not be in any registry
// (image-spec, "Non-Distributable Layers", and Docker's foreign layers).
func IsForeign(mediaType string) bool {
	return strings.Contains(mediaType, "nondistributable") || strings.Contains(mediaType, ".foreign.")
}
