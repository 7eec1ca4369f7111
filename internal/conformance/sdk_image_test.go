package conformance_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecr/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const (
	sdkRepo     = "quay/team/app"
	sdkUpstream = "team/app"
	nowhere     = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
)

// testImage is a small image of its own for each seed.
func testImage(seed int64) *pullthroughtest.Image {
	return pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: seed})
}

func tagged(tag string) types.ImageIdentifier { return types.ImageIdentifier{ImageTag: &tag} }

func byDigest(d string) types.ImageIdentifier { return types.ImageIdentifier{ImageDigest: &d} }

// idOf is how ECR names an image; no tag: "".
func idOf(img *pullthroughtest.Image, tag string) types.ImageIdentifier {
	id := byDigest(img.Digest.String())
	if tag != "" {
		id.ImageTag = &tag
	}
	return id
}

// batchGet gets images, which pulls them.
func (f *fakeAWS) batchGet(t *testing.T, repo string, ids ...types.ImageIdentifier) *ecr.BatchGetImageOutput {
	t.Helper()
	out, err := f.BatchGetImage(t.Context(), &ecr.BatchGetImageInput{RepositoryName: &repo, ImageIds: ids, RegistryId: str(sdkAccount)})
	require.NoError(t, err)
	return out
}

// gotten is an image as BatchGetImage answers it.
func gotten(img *pullthroughtest.Image, tag string) types.Image {
	id := idOf(img, tag)
	return types.Image{
		RegistryId: str(sdkAccount), RepositoryName: str(sdkRepo), ImageId: &id,
		ImageManifest: str(string(img.Content)), ImageManifestMediaType: &img.MediaType,
	}
}

func failed(id types.ImageIdentifier, code types.ImageFailureCode, reason string) types.ImageFailure {
	return types.ImageFailure{ImageId: &id, FailureCode: code, FailureReason: &reason}
}

// sdkBatchGetImage pulls through, by tag and by digest, once; what is wrong with one
// image is told beside the others.
func sdkBatchGetImage(t *testing.T, log *sdkLog) {
	f, one, two := startAWS(t, log), testImage(1), testImage(2)
	f.quay.Push(sdkUpstream, "v1", one)
	f.quay.Push(sdkUpstream, "v2", two)
	createQuay(t, f, "quay")
	want := &ecr.BatchGetImageOutput{Images: []types.Image{gotten(one, "v1"), gotten(two, "")}, Failures: []types.ImageFailure{}}
	assertAnswer(t, want, f.batchGet(t, sdkRepo, tagged("v1"), byDigest(two.Digest.String())))
	cold := []string{"GET /v2/team/app/manifests/v1 200", "GET /v2/team/app/manifests/" + two.Digest.String() + " 200"}
	assert.Equal(t, cold, f.quay.Log())
	assertAnswer(t, want, f.batchGet(t, sdkRepo, tagged("v1"), byDigest(two.Digest.String())))
	assert.Equal(t, cold, f.quay.Log(), "it is cached")

	both := idOf(one, "v2")
	assertAnswer(t, &ecr.BatchGetImageOutput{Images: []types.Image{gotten(one, "v1")}, Failures: []types.ImageFailure{
		failed(both, types.ImageFailureCodeImageTagDoesNotMatchDigest, "Requested image tag does not match the requested image digest"),
		failed(types.ImageIdentifier{}, types.ImageFailureCodeMissingDigestAndTag, "Invalid request parameters: both tag and digest cannot be null"),
		failed(tagged("v3"), types.ImageFailureCodeImageNotFound, "Requested image not found"),
		failed(byDigest(nowhere), types.ImageFailureCodeImageNotFound, "Requested image not found"),
		failed(byDigest("sha256:1"), types.ImageFailureCodeInvalidImageDigest, "Invalid request parameters: image digest should satisfy the regex '[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+'"),
		failed(tagged("a b"), types.ImageFailureCodeInvalidImageTag, "Invalid request parameters: image tag should satisfy the regex '[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}'"),
	}}, f.batchGet(t, sdkRepo, idOf(one, "v1"), both, types.ImageIdentifier{}, tagged("v3"), byDigest(nowhere), byDigest("sha256:1"), tagged("a b")))

	other, err := f.BatchGetImage(t.Context(), &ecr.BatchGetImageInput{RepositoryName: str(sdkRepo), ImageIds: []types.ImageIdentifier{tagged("v1")}, AcceptedMediaTypes: []string{"application/vnd.docker.distribution.manifest.v2+json"}})
	require.NoError(t, err)
	assertAnswer(t, &ecr.BatchGetImageOutput{Images: []types.Image{}, Failures: []types.ImageFailure{failed(tagged("v1"), types.ImageFailureCodeImageNotFound, "Requested image not found")}}, other)
	_, err = f.BatchGetImage(t.Context(), &ecr.BatchGetImageInput{RepositoryName: str("elsewhere/app"), ImageIds: []types.ImageIdentifier{tagged("v1")}})
	assertException[*types.RepositoryNotFoundException](t, err, noRepository("elsewhere/app"))
	_, err = f.BatchGetImage(t.Context(), &ecr.BatchGetImageInput{RepositoryName: str("quay/none/none"), ImageIds: []types.ImageIdentifier{tagged("v1")}})
	assertException[*types.RepositoryNotFoundException](t, err, noRepository("quay/none/none"))
}

func noRepository(name string) string {
	return "The repository with name '" + name + "' does not exist in the registry with id '123456789012'"
}

// sdkPrivateImage pulls with the secret of a rule, and not where the upstream refuses.
func sdkPrivateImage(t *testing.T, log *sdkLog) {
	f, img := startAWS(t, log), testImage(1)
	f.hub.Push("library/alpine", "latest", img)
	_, err := f.CreatePullThroughCacheRule(t.Context(), &ecr.CreatePullThroughCacheRuleInput{EcrRepositoryPrefix: str("docker-hub"), UpstreamRegistryUrl: str(hubURL), CredentialArn: str(hubARN)})
	require.NoError(t, err)
	out := f.batchGet(t, "docker-hub/library/alpine", tagged("latest"))
	require.Len(t, out.Images, 1, "%v", out.Failures)
	assert.Equal(t, string(img.Content), *out.Images[0].ImageManifest)
	assert.Equal(t, 1, f.hub.Count("GET /token 200"), "%s", f.hub.Log())
	assert.True(t, f.hub.Saw(hubToken))
	assert.False(t, f.quay.Saw(hubToken))

	for status, code := range map[int]types.ImageFailureCode{
		403: types.ImageFailureCodeUpstreamAccessDenied, 429: types.ImageFailureCodeUpstreamTooManyRequests, 501: types.ImageFailureCodeUpstreamUnavailable,
	} {
		heal := f.hub.Fault(pullthroughtest.Fault{Match: "GET /v2/library/alpine/manifests/*", Status: status})
		out := f.batchGet(t, "docker-hub/library/alpine", tagged("latest"), tagged("edge"))
		assert.Len(t, out.Images, 1, "what is cached comes along")
		if assert.Len(t, out.Failures, 1) {
			assert.Equal(t, code, out.Failures[0].FailureCode, "%d", status)
			assert.NotContains(t, *out.Failures[0].FailureReason, "canary")
		}
		heal()
	}
}

// sdkImages describes and lists what was pulled, and nothing else.
func sdkImages(t *testing.T, log *sdkLog) {
	f := startAWS(t, log)
	child := testImage(1)
	index, other := pullthroughtest.NewIndex(child), testImage(2)
	f.quay.Push(sdkUpstream, "latest", index)
	f.quay.Push(sdkUpstream, "v1", other)
	f.quay.Push(sdkUpstream, "v2", other)
	f.quay.Push(sdkUpstream, "never", testImage(3))
	createQuay(t, f, "quay")
	require.Empty(t, f.batchGet(t, sdkRepo, tagged("latest")).Failures)
	list, err := f.DescribeImages(t.Context(), &ecr.DescribeImagesInput{RepositoryName: str(sdkRepo)})
	require.NoError(t, err)
	lone := detailOf(index, "latest")
	lone.ImageSizeInBytes, lone.ArtifactMediaType = new(int64), nil
	assertAnswer(t, &ecr.DescribeImagesOutput{ImageDetails: []types.ImageDetail{lone}}, list)
	require.Empty(t, f.batchGet(t, sdkRepo, byDigest(child.Digest.String()), tagged("v1"), tagged("v2")).Failures)
	before := len(f.quay.Log())

	want := []types.ImageDetail{detailOf(index), detailOf(child), detailOf(other, "v1", "v2")}
	want[0].ImageTags, want[0].ArtifactMediaType = []string{"latest"}, nil
	want[0].ImageSizeInBytes = want[1].ImageSizeInBytes // the largest in the list
	slices.SortFunc(want, func(x, y types.ImageDetail) int { return strings.Compare(*x.ImageDigest, *y.ImageDigest) })
	out, err := f.DescribeImages(t.Context(), &ecr.DescribeImagesInput{RepositoryName: str(sdkRepo), RegistryId: str(sdkAccount)})
	require.NoError(t, err)
	assertAnswer(t, &ecr.DescribeImagesOutput{ImageDetails: want}, out)
	named, err := f.DescribeImages(t.Context(), &ecr.DescribeImagesInput{
		RepositoryName: str(sdkRepo), ImageIds: []types.ImageIdentifier{tagged("v2"), byDigest(other.Digest.String())},
		Filter: &types.DescribeImagesFilter{TagStatus: types.TagStatusTagged, ImageStatus: types.ImageStatusFilterActive},
	})
	require.NoError(t, err)
	assertAnswer(t, &ecr.DescribeImagesOutput{ImageDetails: []types.ImageDetail{detailOf(other, "v1", "v2")}}, named)

	untagged, err := f.ListImages(t.Context(), &ecr.ListImagesInput{RepositoryName: str(sdkRepo), Filter: &types.ListImagesFilter{TagStatus: types.TagStatusUntagged}})
	require.NoError(t, err)
	assertAnswer(t, &ecr.ListImagesOutput{ImageIds: []types.ImageIdentifier{idOf(child, "")}}, untagged)
	sdkImagePages(t, f, []types.ImageIdentifier{idOf(index, "latest"), idOf(child, ""), idOf(other, "v1"), idOf(other, "v2")}, want)

	_, err = f.DescribeImages(t.Context(), &ecr.DescribeImagesInput{RepositoryName: str(sdkRepo), ImageIds: []types.ImageIdentifier{tagged("never")}})
	assertException[*types.ImageNotFoundException](t, err, "The image with imageId {imageDigest:'null', imageTag:'never'} does not exist within the repository with name 'quay/team/app' in the registry with id '123456789012'")
	_, err = f.DescribeImages(t.Context(), &ecr.DescribeImagesInput{RepositoryName: str("quay/none")})
	assertException[*types.RepositoryNotFoundException](t, err, noRepository("quay/none"))
	_, err = f.ListImages(t.Context(), &ecr.ListImagesInput{RepositoryName: str("quay/none")})
	assertException[*types.RepositoryNotFoundException](t, err, noRepository("quay/none"))
	assert.Len(t, f.quay.Log(), before, "upstream is not asked")
}

// detailOf is what DescribeImages says of an image.
func detailOf(img *pullthroughtest.Image, tags ...string) types.ImageDetail {
	var size int64
	for _, b := range img.Blobs() {
		size += b.Size
	}
	return types.ImageDetail{
		RegistryId: str(sdkAccount), RepositoryName: str(sdkRepo), ImageDigest: str(img.Digest.String()), ImageTags: tags,
		ImageSizeInBytes: &size, ImagePushedAt: recent, LastRecordedPullTime: recent, ImageManifestMediaType: &img.MediaType,
		ArtifactMediaType: str("application/vnd.oci.image.config.v1+json"), ImageStatus: types.ImageStatusActive,
	}
}

// sdkImagePages reads both lists page by page.
func sdkImagePages(t *testing.T, f *fakeAWS, ids []types.ImageIdentifier, details []types.ImageDetail) {
	t.Helper()
	var gotIDs []types.ImageIdentifier
	lists := ecr.NewListImagesPaginator(f, &ecr.ListImagesInput{RepositoryName: str(sdkRepo)}, func(o *ecr.ListImagesPaginatorOptions) { o.Limit = 1 })
	for lists.HasMorePages() {
		out, err := lists.NextPage(t.Context())
		require.NoError(t, err)
		assert.Len(t, out.ImageIds, 1)
		gotIDs = append(gotIDs, out.ImageIds...)
	}
	assert.ElementsMatch(t, ids, gotIDs)
	var got []string
	described := ecr.NewDescribeImagesPaginator(f, &ecr.DescribeImagesInput{RepositoryName: str(sdkRepo), MaxResults: aws.Int32(2)})
	for described.HasMorePages() {
		out, err := described.NextPage(t.Context())
		require.NoError(t, err)
		for _, detail := range out.ImageDetails {
			got = append(got, *detail.ImageDigest)
		}
	}
	var want []string
	for _, detail := range details {
		want = append(want, *detail.ImageDigest)
	}
	assert.Equal(t, want, got)
}
