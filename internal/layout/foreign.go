package layout

import (
	"encoding/json"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
)

// registryReads reports whether distribution 3 can read the manifest. One that
// it cannot read ends its garbage collection, with an error or a panic, so
// anything doubtful is kept out of its sight.
func registryReads(content []byte) bool {
	var kind struct {
		SchemaVersion int    `json:"schemaVersion"`
		MediaType     string `json:"mediaType"`
	}
	if json.Unmarshal(content, &kind) != nil || kind.SchemaVersion != 2 {
		return false
	}
	switch kind.MediaType {
	case manifest.MediaTypeDockerManifest, ocispec.MediaTypeImageManifest:
		return json.Unmarshal(content, new(ocispec.Manifest)) == nil
	case manifest.MediaTypeDockerList, ocispec.MediaTypeImageIndex:
		return readsIndex(content)
	case "": // it is tried as the one, then as the other
		return readsIndex(content) && json.Unmarshal(content, new(ocispec.Manifest)) == nil
	}
	return false
}

func readsIndex(content []byte) bool {
	var list struct { // Docker's platform has a field that OCI's has not
		Manifests []struct {
			Platform *struct {
				Features []string `json:"features"`
			} `json:"platform"`
		} `json:"manifests"`
	}
	return json.Unmarshal(content, new(ocispec.Index)) == nil && json.Unmarshal(content, &list) == nil
}
