package conformance_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// puller is a client of a registry: it pulls whole images and checks each byte.
type puller struct {
	base   string // http://host:port
	prefix string // before each repository's name
	client *http.Client
}

// tagged is an image in a repository.
type tagged struct {
	repo, tag string
	*pullthroughtest.Image
}

// pullAll pulls every image, in an order of the client's own.
func (p puller) pullAll(ctx context.Context, images []tagged) error {
	for _, i := range rand.Perm(len(images)) {
		if err := p.pull(ctx, images[i]); err != nil {
			return fmt.Errorf("%s:%s: %w", images[i].repo, images[i].tag, err)
		}
	}
	return nil
}

// pull pulls an image by its tag, and all that it refers to by digest.
func (p puller) pull(ctx context.Context, img tagged) error {
	content, err := p.get(ctx, img.repo+"/manifests/"+img.tag, img.Digest)
	if err != nil {
		return err
	}
	if !bytes.Equal(content, img.Content) {
		return fmt.Errorf("manifest %s has other bytes", img.Digest)
	}
	return p.children(ctx, img.repo, content)
}

// children pulls what a manifest refers to.
func (p puller) children(ctx context.Context, repo string, content []byte) error {
	var m struct {
		Config    ocispec.Descriptor   `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(content, &m); err != nil {
		return err
	}
	for _, desc := range m.Manifests {
		child, err := p.get(ctx, repo+"/manifests/"+desc.Digest.String(), desc.Digest)
		if err != nil {
			return err
		}
		if err := p.children(ctx, repo, child); err != nil {
			return err
		}
	}
	for _, desc := range append(m.Layers, m.Config) {
		if desc.Digest == "" {
			continue
		}
		if _, err := p.get(ctx, repo+"/blobs/"+desc.Digest.String(), desc.Digest); err != nil {
			return err
		}
	}
	return nil
}

// get returns content that has its digest.
func (p puller) get(ctx context.Context, path string, d digest.Digest) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.base+"/v2/"+p.prefix+path, nil)
	if err != nil {
		return nil, err
	}
	for _, mediaType := range []string{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex,
		"application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json"} {
		req.Header.Add("Accept", mediaType)
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	content, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", path, err)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s: status %d: %.300s", path, resp.StatusCode, content)
	case d.Algorithm().FromBytes(content) != d:
		return nil, fmt.Errorf("%s: %d bytes without their digest", path, len(content))
	}
	return content, nil
}
