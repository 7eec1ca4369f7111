package pullthroughtest

import (
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// NewAttestation makes an attestation of img as BuildKit adds it to an index: an image for the platform unknown/unknown
// whose layer is an in-toto statement about where img comes from, and whose descriptor has img's digest in an annotation.
// Give it to [NewIndex] behind the images. crane validate complains of such an image, BuildKit's too: it does not count layers
// of that type.
func NewAttestation(img *Image) *Image {
	const predicate = "https://slsa.dev/provenance/v0.2"
	type object = map[string]any
	statement := newBlob("application/vnd.in-toto+json", digest.SHA256, marshal(object{
		"_type":         "https://in-toto.io/Statement/v0.1",
		"predicateType": predicate,
		"subject":       []object{{"name": "_", "digest": object{string(img.Digest.Algorithm()): img.Digest.Encoded()}}},
		"predicate":     object{"builder": object{"id": ""}, "buildType": "https://mobyproject.org/buildkit@v1"},
	}))
	statement.Annotations = map[string]string{"in-toto.io/predicate-type": predicate}
	unknown := ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	a := &Image{
		MediaType: ocispec.MediaTypeImageManifest,
		Config: newBlob(ocispec.MediaTypeImageConfig, digest.SHA256, marshal(ocispec.Image{
			Platform: unknown,
			RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{statement.Digest}},
		})),
		Layers:   []*Blob{statement},
		Platform: unknown,
		Annotations: map[string]string{
			"vnd.docker.reference.type":   "attestation-manifest",
			"vnd.docker.reference.digest": img.Digest.String(),
		},
	}
	a.writeManifest(nil, digest.SHA256)
	return a
}
