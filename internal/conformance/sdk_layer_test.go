package conformance_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecr/types"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// sdkLayers asks where layers are, pulls one from there, and asks which are cached.
func sdkLayers(t *testing.T, log *sdkLog) {
	f := startAWS(t, log)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 2})
	f.quay.Push(sdkUpstream, "v1", img)
	createQuay(t, f, "quay")
	require.Empty(t, f.batchGet(t, sdkRepo, tagged("v1")).Failures)
	layer, other := img.Layers[0], img.Layers[1].Digest.String()
	where, err := f.downloadURL(t, sdkRepo, layer.Digest.String())
	require.NoError(t, err)
	require.NotNil(t, where.DownloadUrl)
	require.True(t, strings.HasPrefix(*where.DownloadUrl, f.url+"/"), *where.DownloadUrl)
	want := &ecr.GetDownloadUrlForLayerOutput{DownloadUrl: where.DownloadUrl, LayerDigest: str(layer.Digest.String())}
	assertAnswer(t, want, where)

	assert.Equal(t, layer.Digest, digest.FromBytes(get(t, *where.DownloadUrl)), "the URL needs no header")
	assert.Equal(t, 1, f.quay.Count("GET /v2/team/app/blobs/* 200"), "%s", f.quay.Log())
	where, err = f.downloadURL(t, sdkRepo, layer.Digest.String())
	require.NoError(t, err)
	assertAnswer(t, want, where)
	before := len(f.quay.Log())
	sdkAvailability(t, f, layer, other)
	assert.Len(t, f.quay.Log(), before, "upstream is not asked")

	_, err = f.downloadURL(t, sdkRepo, nowhere)
	assertException[*types.LayersNotFoundException](t, err, "The blob '"+nowhere+"' was not found in the repository with name 'quay/team/app'")
	_, err = f.downloadURL(t, "elsewhere/app", nowhere)
	assertException[*types.RepositoryNotFoundException](t, err, noRepository("elsewhere/app"))
	f.quay.Fault(pullthroughtest.Fault{Match: "* /v2/team/app/blobs/*", Status: 403})
	_, err = f.downloadURL(t, sdkRepo, strings.ReplaceAll(nowhere, "aaaa", "bbbb"))
	assertException[*types.UnableToGetUpstreamLayerException](t, err, "The authentication to the upstream registry failed. "+
		"Verify that the credentials provided in the pull through cache rule are correct, and try again.")
}

// sdkAvailability has cached layers, others, and what is none.
func sdkAvailability(t *testing.T, f *fakeAWS, cached *pullthroughtest.Blob, other string) {
	t.Helper()
	require.Eventually(t, func() bool { // a blob is stored after its last byte was sent
		out, err := f.BatchCheckLayerAvailability(t.Context(), &ecr.BatchCheckLayerAvailabilityInput{
			RepositoryName: str(sdkRepo), LayerDigests: []string{cached.Digest.String()},
		})
		return assert.NoError(t, err) && out.Layers[0].LayerAvailability == types.LayerAvailabilityAvailable
	}, 20*time.Second, time.Millisecond)
	out, err := f.BatchCheckLayerAvailability(t.Context(), &ecr.BatchCheckLayerAvailabilityInput{
		RepositoryName: str(sdkRepo), LayerDigests: []string{cached.Digest.String(), other, "", "sha256:1"}, RegistryId: str(sdkAccount),
	})
	require.NoError(t, err)
	assertAnswer(t, &ecr.BatchCheckLayerAvailabilityOutput{
		Layers: []types.Layer{
			{LayerDigest: str(cached.Digest.String()), LayerAvailability: types.LayerAvailabilityAvailable, LayerSize: &cached.Size, MediaType: &cached.MediaType},
			{LayerDigest: &other, LayerAvailability: types.LayerAvailabilityUnavailable},
		},
		Failures: []types.LayerFailure{
			{FailureCode: types.LayerFailureCodeMissingLayerDigest, FailureReason: str("Invalid request parameters: layer digest cannot be empty")},
			{LayerDigest: str("sha256:1"), FailureCode: types.LayerFailureCodeInvalidLayerDigest, FailureReason: str("Invalid request parameters: layer digest should satisfy the regex '[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+'")},
		},
	}, out)
	_, err = f.BatchCheckLayerAvailability(t.Context(), &ecr.BatchCheckLayerAvailabilityInput{RepositoryName: str("quay/none"), LayerDigests: []string{nowhere}})
	assertException[*types.RepositoryNotFoundException](t, err, noRepository("quay/none"))
}

func (f *fakeAWS) downloadURL(t *testing.T, repo, layer string) (*ecr.GetDownloadUrlForLayerOutput, error) {
	t.Helper()
	return f.GetDownloadUrlForLayer(t.Context(), &ecr.GetDownloadUrlForLayerInput{RepositoryName: &repo, LayerDigest: &layer, RegistryId: str(sdkAccount)})
}

// get downloads without any authorization.
func get(t *testing.T, url string) []byte {
	t.Helper()
	resp, err := http.Get(url)
	require.NoError(t, err)
	content, err := io.ReadAll(resp.Body)
	require.NoError(t, errors.Join(err, resp.Body.Close()))
	require.Equal(t, http.StatusOK, resp.StatusCode, "%s", content)
	return content
}
