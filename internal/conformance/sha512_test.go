package conformance_test

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"testing"

	"github.com/google/go-containerregistry/pkg/crane"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// distribution stores a blob that is pushed by sha512, but takes no manifest
// by another digest than sha256. The registry of go-containerregistry does.
// It still names the manifest's sha256 in Docker-Content-Digest.
func TestManifestBySHA512(t *testing.T) {
	t.Parallel()
	u := startRecorder(t, ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	img := &image{repo: "charts/sha512-manifest"}
	root, raw := pushBySHA512(t, u, img)
	u.take()
	f := startFakeECR(t, u.url())
	from := ref{host: f.host, repo: prefix + "/" + img.repo}.digest(root)

	pull := func() string {
		b, err := crane.Manifest(from, craneOptions(t)...)
		require.NoError(t, err)
		return string(b)
	}
	assert.Equal(t, raw, pull(), "cold")
	assert.Equal(t, []string{manifestLine(img, root.String(), http.StatusOK)}, u.take())
	assert.Equal(t, raw, pull(), "warm")
	assert.Empty(t, u.take(), "upstream requests")
	u.stop()
	assert.Equal(t, raw, pull(), "warm, the upstream stopped")

	desc, err := crane.Head(from, craneOptions(t)...)
	require.NoError(t, err)
	assert.Equal(t, root.String(), desc.Digest.String())
}

// pushBySHA512 pushes a manifest by its sha512 digest with plain PUT, since
// clients expect that digest in the answer.
func pushBySHA512(t testing.TB, u *recorder, img *image) (digest.Digest, string) {
	t.Helper()
	desc, raw := packArtifact(t, ocispec.DescriptorEmptyJSON)
	root := digest.SHA512.FromBytes(raw)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut,
		u.url()+"/v2/"+img.repo+"/manifests/"+root.String(), bytes.NewReader(raw))
	require.NoError(t, err)
	req.Header.Set("Content-Type", desc.MediaType)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusCreated, resp.StatusCode)
	return root, string(raw)
}
