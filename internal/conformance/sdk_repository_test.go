package conformance_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecr/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// sdkRepositories describes repositories that pulls have made, with and without a
// template.
func sdkRepositories(t *testing.T, log *sdkLog) {
	f := startAWS(t, log)
	createQuay(t, f, "quay")
	createQuay(t, f, "other")
	template := fullTemplate()
	_, err := f.CreateRepositoryCreationTemplate(t.Context(), template)
	require.NoError(t, err)
	empty, err := f.DescribeRepositories(t.Context(), nil)
	require.NoError(t, err)
	assertAnswer(t, &ecr.DescribeRepositoriesOutput{Repositories: []types.Repository{}}, empty)

	f.quay.Push(sdkUpstream, "v1", testImage(1))
	for _, repo := range []string{sdkRepo, "other/team/app"} {
		require.Empty(t, f.batchGet(t, repo, tagged("v1")).Failures)
	}
	plain := f.repository("other/team/app")
	plain.EncryptionConfiguration, plain.ImageTagMutability = &types.EncryptionConfiguration{EncryptionType: types.EncryptionTypeAes256}, types.ImageTagMutabilityMutable
	made := f.repository(sdkRepo)
	made.EncryptionConfiguration = &types.EncryptionConfiguration{EncryptionType: types.EncryptionTypeKms, KmsKey: &kmsKey}
	made.ImageTagMutability, made.ImageTagMutabilityExclusionFilters = types.ImageTagMutabilityImmutableWithExclusion, wildcard
	all, err := f.DescribeRepositories(t.Context(), &ecr.DescribeRepositoriesInput{RegistryId: str(sdkAccount)})
	require.NoError(t, err)
	assertAnswer(t, &ecr.DescribeRepositoriesOutput{Repositories: []types.Repository{plain, made}}, all)
	named, err := f.DescribeRepositories(t.Context(), &ecr.DescribeRepositoriesInput{RepositoryNames: []string{sdkRepo}})
	require.NoError(t, err)
	assertAnswer(t, &ecr.DescribeRepositoriesOutput{Repositories: []types.Repository{made}}, named)
	_, err = f.DescribeRepositories(t.Context(), &ecr.DescribeRepositoriesInput{RepositoryNames: []string{sdkRepo, "quay/none"}})
	assertException[*types.RepositoryNotFoundException](t, err, noRepository("quay/none"))
}

// repository is what is the same of all that pulls make.
func (f *fakeAWS) repository(name string) types.Repository {
	_, host, _ := strings.Cut(f.url, "://")
	return types.Repository{
		RepositoryArn: str("arn:aws:ecr:us-east-1:123456789012:repository/" + name), RegistryId: str(sdkAccount), RepositoryName: &name,
		RepositoryUri: str(host + "/" + name), CreatedAt: recent, ImageScanningConfiguration: &types.ImageScanningConfiguration{},
	}
}

// sdkRepositoryPages reads the list of repositories page by page.
func sdkRepositoryPages(t *testing.T, log *sdkLog) {
	f := startAWS(t, log)
	createQuay(t, f, "quay")
	for i := range 5 {
		name := "app" + strconv.Itoa(5-i)
		f.quay.Push(name, "v1", testImage(int64(i)))
		require.Empty(t, f.batchGet(t, "quay/"+name, tagged("v1")).Failures)
	}
	p := ecr.NewDescribeRepositoriesPaginator(f, nil, func(o *ecr.DescribeRepositoriesPaginatorOptions) { o.Limit = 3 })
	var pages [][]string
	for p.HasMorePages() {
		out, err := p.NextPage(t.Context())
		require.NoError(t, err)
		var page []string
		for _, r := range out.Repositories {
			page = append(page, *r.RepositoryName)
		}
		pages = append(pages, page)
	}
	assert.Equal(t, [][]string{{"quay/app1", "quay/app2", "quay/app3"}, {"quay/app4", "quay/app5"}}, pages)
}
