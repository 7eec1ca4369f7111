package layout

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// ErrDamaged is for what is there and cannot be used: it is a miss, and Is
// [fs.ErrNotExist].
var ErrDamaged = fmt.Errorf("damaged: %w", fs.ErrNotExist)

const (
	// MaxLink is more than any digest: so many bytes of a link are read at most.
	MaxLink = 256
	// MaxManifest is the size of the largest manifest, in bytes.
	MaxManifest = manifest.MaxSize
	// BlobType is the media type of every blob.
	BlobType = "application/octet-stream"
)

// Link is the file in dir that says which digest is meant. Its content is the
// digest and nothing else.
func Link(dir string) string { return path.Join(dir, "link") }

// ParseLink returns the digest in the content of a link. Only the content counts,
// not the path: the registry keeps what was pushed under sha512 as sha256, and
// the link for the one names the other. With another digest d of the same
// algorithm it is no link to d; d is "" for tags. The error Is [ErrDamaged].
func ParseLink(content []byte, d digest.Digest) (digest.Digest, error) {
	target := digest.Digest(content)
	if !ocipath.ValidDigest(string(target)) || d != "" && target != d && target.Algorithm() == d.Algorithm() {
		return "", fmt.Errorf("a link that says %.80q: %w", content, ErrDamaged)
	}
	return target, nil
}

// CheckManifest refuses a manifest whose content is too large or not the
// digest's: the error Is [pullthrough.ErrTooLarge] or [pullthrough.ErrDigest].
func CheckManifest(m *pullthrough.Manifest) error {
	switch {
	case len(m.Content) > MaxManifest:
		return pullthrough.ErrTooLarge
	case m.Descriptor.Digest.Algorithm().FromBytes(m.Content) != m.Descriptor.Digest:
		return pullthrough.ErrDigest
	}
	return nil
}

// CheckContent is nil if content has the digest d, and Is [ErrDamaged] if not.
func CheckContent(content []byte, d digest.Digest) error {
	if d.Algorithm().FromBytes(content) != d {
		return fmt.Errorf("content of %s: %w", d, ErrDamaged)
	}
	return nil
}

// CheckBlobSize refuses what is left of a file that was not synced when the
// power went: size bytes cannot be the content of d. The error Is [ErrDamaged].
func CheckBlobSize(size int64, d digest.Digest) error {
	if size == 0 && d != d.Algorithm().FromBytes(nil) {
		return fmt.Errorf("content of %s: %w", d, ErrDamaged)
	}
	return nil
}

// CheckWritten is nil if n bytes are the size that was announced.
func CheckWritten(n, size int64) error {
	switch {
	case n < size:
		return fmt.Errorf("content has %d bytes of %d: %w", n, size, io.ErrUnexpectedEOF)
	case n > size:
		return fmt.Errorf("content is longer than the %d bytes announced", size)
	}
	return nil
}

// References are the digests that a manifest refers to: config, layers, children.
// Invalid ones are left out, and what is no manifest refers to nothing.
func References(content []byte) []digest.Digest {
	all := Descriptors(content)
	refs := make([]digest.Digest, len(all))
	for i, ref := range all {
		refs[i] = ref.Digest
	}
	return refs
}

// Descriptor is what a manifest says of something that it refers to.
type Descriptor struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"` // 0: nothing is said
}

// Descriptors are what the digests of [References] stand in.
func Descriptors(content []byte) []Descriptor {
	var doc struct {
		Config    Descriptor   `json:"config"`
		Layers    []Descriptor `json:"layers"`
		Manifests []Descriptor `json:"manifests"`
		Blobs     []Descriptor `json:"blobs"` // of the OCI artifact manifest of image-spec 1.1.0-rc
	}
	// A field of another kind is skipped, and the others are read all the same.
	_ = json.Unmarshal(content, &doc)
	all := slices.Concat([]Descriptor{doc.Config}, doc.Layers, doc.Manifests, doc.Blobs)
	return slices.DeleteFunc(all, func(ref Descriptor) bool { return !ocipath.ValidDigest(string(ref.Digest)) })
}
