package conformance_test

import (
	"net/http"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecr/types"
	"github.com/aws/smithy-go/middleware"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// sdkRestart ends a fakeecr that keeps its directory, and finds everything in the
// next one as it was, the times to the millisecond.
func sdkRestart(t *testing.T, log *sdkLog) {
	up, img, dir := pullthroughtest.New(t, pullthroughtest.Config{}), testImage(1), t.TempDir()
	up.Push(sdkUpstream, "v1", img)
	args := []string{"-data", dir, "-endpoint", "quay.io=" + up.URL, "-secret", hubSecret + "=robot:" + hubToken}
	first := runFakeECR(t, args...)
	f := &fakeAWS{Client: log.client("http://" + first.host)}
	createQuay(t, f, "quay")
	_, err := f.CreatePullThroughCacheRule(t.Context(), &ecr.CreatePullThroughCacheRuleInput{
		EcrRepositoryPrefix: str("cache/hub"), UpstreamRegistryUrl: str(hubURL), CredentialArn: str(hubARN),
		UpstreamRegistry: types.UpstreamRegistryDockerHub, UpstreamRepositoryPrefix: str("library"),
	})
	require.NoError(t, err)
	_, err = f.CreateRepositoryCreationTemplate(t.Context(), fullTemplate())
	require.NoError(t, err)
	_, err = f.RegisterPullTimeUpdateExclusion(t.Context(), &ecr.RegisterPullTimeUpdateExclusionInput{PrincipalArn: str(roleARN)})
	require.NoError(t, err)
	require.Empty(t, f.batchGet(t, sdkRepo, tagged("v1")).Failures)
	want := everything(t, f)
	first.stop(t)

	second := runFakeECR(t, args...)
	f = &fakeAWS{Client: log.client("http://" + second.host)}
	got := everything(t, f)
	for _, repos := range []*ecr.DescribeRepositoriesOutput{want.repositories, got.repositories} {
		repos.Repositories[0].RepositoryUri = nil // the port is another one
	}
	assert.Equal(t, want, got)
	before := len(up.Log())
	assertAnswer(t, &ecr.BatchGetImageOutput{Images: []types.Image{gotten(img, "v1")}, Failures: []types.ImageFailure{}}, f.batchGet(t, sdkRepo, tagged("v1")))
	assert.Len(t, up.Log(), before, "it is cached")
	assert.Equal(t, http.StatusOK, status(t, "http://"+second.host+"/v2/"+sdkRepo+"/blobs/"+img.Layers[0].Digest.String(), ""), "the rule pulls on")
}

// answers are those of all operations that describe and list.
type answers struct {
	rules        *ecr.DescribePullThroughCacheRulesOutput
	templates    *ecr.DescribeRepositoryCreationTemplatesOutput
	exclusions   *ecr.ListPullTimeUpdateExclusionsOutput
	repositories *ecr.DescribeRepositoriesOutput
	images       *ecr.DescribeImagesOutput
}

func everything(t *testing.T, f *fakeAWS) (a answers) {
	t.Helper()
	var err error
	a.rules, err = f.DescribePullThroughCacheRules(t.Context(), nil)
	require.NoError(t, err)
	a.templates, err = f.DescribeRepositoryCreationTemplates(t.Context(), nil)
	require.NoError(t, err)
	a.exclusions, err = f.ListPullTimeUpdateExclusions(t.Context(), nil)
	require.NoError(t, err)
	a.repositories, err = f.DescribeRepositories(t.Context(), nil)
	require.NoError(t, err)
	a.images, err = f.DescribeImages(t.Context(), &ecr.DescribeImagesInput{RepositoryName: str(sdkRepo)})
	require.NoError(t, err)
	require.Len(t, a.rules.PullThroughCacheRules, 2)
	require.Len(t, a.templates.RepositoryCreationTemplates, 1)
	require.Len(t, a.exclusions.PullTimeUpdateExclusions, 1)
	require.Len(t, a.repositories.Repositories, 1)
	require.Len(t, a.images.ImageDetails, 1)
	a.rules.ResultMetadata, a.templates.ResultMetadata, a.exclusions.ResultMetadata = middleware.Metadata{}, middleware.Metadata{}, middleware.Metadata{}
	a.repositories.ResultMetadata, a.images.ResultMetadata = middleware.Metadata{}, middleware.Metadata{}
	return a
}
