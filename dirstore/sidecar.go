package dirstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
)

const maxSidecar = 4 << 10

// sidecar is what we know of a manifest, or of a tag, and the registry does not
// keep. It is about one digest: when the registry moves a tag, the sidecar that
// stays behind says nothing about where the tag points now.
type sidecar struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	CheckedAt time.Time     `json:"checkedAt,omitzero"`
	Origin    string        `json:"origin,omitempty"`
}

func sidecarOf(m *pullthrough.Manifest, mediaType string) sidecar {
	return sidecar{
		Digest: m.Descriptor.Digest, MediaType: mediaType,
		CheckedAt: m.CheckedAt.UTC().Round(0), Origin: m.Origin,
	}
}

// sidecarName has the digest in it, so that a tag's next sidecar can be written
// before the tag moves and each reader finds that of the link it has read.
func sidecarName(dir string, d digest.Digest) string {
	return path.Join(dir, d.Algorithm().String()+"-"+d.Encoded()+".json")
}

// readSidecar returns the sidecar of d in dir. None that can be used is no
// error: then it was not us who stored d there.
func (s *Store) readSidecar(dir string, d digest.Digest) (side sidecar, ok bool, err error) {
	content, err := s.readSmall(sidecarName(dir, d), maxSidecar)
	if errors.Is(err, fs.ErrNotExist) {
		return sidecar{}, false, nil
	}
	if err != nil {
		return sidecar{}, false, err
	}
	if json.Unmarshal(content, &side) != nil || side.Digest != d || side.MediaType == "" {
		return sidecar{}, false, nil
	}
	return side, true, nil
}

func (s *Store) writeSidecar(dir string, side sidecar, c *changes) error {
	content, err := json.Marshal(side)
	if err == nil && len(content) > maxSidecar {
		err = fmt.Errorf("%d bytes about a manifest are too many", len(content))
	}
	if err != nil {
		return err
	}
	return s.write(sidecarName(dir, side.Digest), content, c)
}
