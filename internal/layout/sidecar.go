package layout

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
)

// MaxSidecar is the size of the largest sidecar, in bytes.
const MaxSidecar = 4 << 10

// Sidecar is what we know of a manifest, or of a tag, and the registry does not
// keep. It is about one digest: when the registry moves a tag, the sidecar that
// stays behind says nothing about where the tag points now. It is comparable.
type Sidecar struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	CheckedAt time.Time     `json:"checkedAt,omitzero"`
	Origin    string        `json:"origin,omitempty"`
	// Tag is the tag that a tag's sidecar is about. A file system may not tell V1 from v1.
	// "": a revision's, or written before there was the field.
	Tag string `json:"tag,omitempty"`
}

// SidecarOf is what there is to know of m, which is stored as mediaType.
func SidecarOf(m *pullthrough.Manifest, mediaType string) Sidecar {
	return Sidecar{
		Digest: m.Descriptor.Digest, MediaType: mediaType,
		CheckedAt: m.CheckedAt.UTC().Round(0), Origin: m.Origin,
	}
}

// TagSidecarOf is what there is to know of m.Tag, which names a manifest that is stored as
// mediaType.
func TagSidecarOf(m *pullthrough.Manifest, mediaType string) Sidecar {
	side := SidecarOf(m, mediaType)
	side.Tag = strings.Clone(m.Tag)
	return side
}

// SidecarFile is the sidecar of d in the directory of a tag or a revision. It has
// the digest in its name, so that a tag's next sidecar can be written before the
// tag moves and each reader finds that of the link it has read.
func SidecarFile(dir string, d digest.Digest) string {
	return path.Join(dir, d.Algorithm().String()+"-"+d.Encoded()+".json")
}

// ParseSidecar reads the sidecar of d. One that cannot be used is as good as none:
// then another program stored d there.
func ParseSidecar(content []byte, d digest.Digest) (side Sidecar, ok bool) {
	if json.Unmarshal(content, &side) != nil || side.Digest != d || side.MediaType == "" {
		return Sidecar{}, false
	}
	return side, true
}

// Encode is the content of the sidecar's file.
func (s Sidecar) Encode() ([]byte, error) {
	content, err := json.Marshal(s)
	if err == nil && len(content) > MaxSidecar {
		err = fmt.Errorf("%d bytes about a manifest are too many", len(content))
	}
	return content, err
}

// NewManifest is the manifest d with this content, which has been checked. side is
// the revision's sidecar; a zero one says that the registry stored the manifest,
// and its content tells what it is. The error Is [ErrDamaged].
func NewManifest(content []byte, d digest.Digest, side Sidecar) (*pullthrough.Manifest, error) {
	m := &pullthrough.Manifest{Content: content, CheckedAt: side.CheckedAt, Origin: side.Origin}
	m.Descriptor = ocispec.Descriptor{MediaType: side.MediaType, Digest: d, Size: int64(len(content))}
	if side.MediaType != "" {
		return m, nil
	}
	info, err := manifest.Inspect("", content, manifest.Stored)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrDamaged)
	}
	m.Descriptor.MediaType = info.MediaType
	return m, nil
}
