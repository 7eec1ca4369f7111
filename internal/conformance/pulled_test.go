package conformance_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// ref names a tag in a registry that speaks plain HTTP.
type ref struct{ host, repo, tag string }

func (r ref) String() string                { return r.name() + ":" + r.tag }
func (r ref) name() string                  { return r.host + "/" + r.repo }
func (r ref) digest(d digest.Digest) string { return r.name() + "@" + d.String() }

// pulled is all that a client got for a tag. Two pulls of one image are equal.
type pulled struct {
	Root      digest.Digest
	Manifests map[digest.Digest]string // the bytes, the root's among them
	Blobs     map[digest.Digest]int64  // the sizes
}

// fetcher opens one object of what a client got.
type fetcher func(d digest.Digest, manifest bool) (io.ReadCloser, error)

// graph is what the manifests of all kinds refer to others with.
type graph struct {
	Manifests []ocispec.Descriptor `json:"manifests"`
	Config    *ocispec.Descriptor  `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
}

// collect follows the manifest root and checks each object, to its last byte,
// against the digest and the size by which it was found.
func collect(root digest.Digest, fetch fetcher) (*pulled, error) {
	p := &pulled{Root: root, Manifests: map[digest.Digest]string{}, Blobs: map[digest.Digest]int64{}}
	return p, p.manifest(ocispec.Descriptor{Digest: root, Size: -1}, fetch)
}

func (p *pulled) manifest(desc ocispec.Descriptor, fetch fetcher) error {
	rc, err := fetch(desc.Digest, true)
	if err != nil {
		return err
	}
	defer func() { _ = rc.Close() }()
	raw, err := io.ReadAll(rc)
	if err != nil {
		return err
	}
	if got := desc.Digest.Algorithm().FromBytes(raw); got != desc.Digest || desc.Size >= 0 && desc.Size != int64(len(raw)) {
		return fmt.Errorf("manifest %s: got %s, %d bytes", desc.Digest, got, len(raw))
	}
	p.Manifests[desc.Digest] = string(raw)

	var g graph
	if err := json.Unmarshal(raw, &g); err != nil {
		return err
	}
	for _, child := range g.Manifests {
		if err := p.manifest(child, fetch); err != nil {
			return err
		}
	}
	if g.Config != nil {
		g.Layers = append(g.Layers, *g.Config)
	}
	for _, blob := range g.Layers {
		if err := p.blob(blob, fetch); err != nil {
			return err
		}
	}
	return nil
}

func (p *pulled) blob(desc ocispec.Descriptor, fetch fetcher) error {
	rc, err := fetch(desc.Digest, false)
	if err != nil {
		return err
	}
	defer func() { _ = rc.Close() }()
	verifier := desc.Digest.Verifier()
	n, err := io.Copy(verifier, rc)
	if err != nil {
		return err
	}
	if !verifier.Verified() || n != desc.Size {
		return fmt.Errorf("blob %s: wrong bytes, or %d of them", desc.Digest, n)
	}
	p.Blobs[desc.Digest] = n
	return nil
}

// readLayout collects the image that is tagged in an OCI layout.
func readLayout(t testing.TB, dir, tag string) *pulled {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "index.json"))
	require.NoError(t, err)
	var index ocispec.Index
	require.NoError(t, json.Unmarshal(raw, &index))
	i := slices.IndexFunc(index.Manifests, func(d ocispec.Descriptor) bool {
		return d.Annotations[ocispec.AnnotationRefName] == tag
	})
	require.GreaterOrEqual(t, i, 0, "no %q in the layout: %s", tag, raw)

	p, err := collect(index.Manifests[i].Digest, func(d digest.Digest, _ bool) (io.ReadCloser, error) {
		return os.Open(filepath.Join(dir, "blobs", d.Algorithm().String(), d.Encoded()))
	})
	require.NoError(t, err)
	return p
}
