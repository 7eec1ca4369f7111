package conformance_test

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecr/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// sdkDeletion deletes tags, images and their repository: the next pull asks upstream.
func sdkDeletion(t *testing.T, log *sdkLog) {
	f, one, child := startAWS(t, log), testImage(1), testImage(2)
	index := pullthroughtest.NewIndex(child)
	f.quay.Push(sdkUpstream, "v1", one)
	f.quay.Push(sdkUpstream, "list", index)
	createQuay(t, f, "quay")
	require.Empty(t, f.batchGet(t, sdkRepo, tagged("v1"), tagged("list"), byDigest(child.Digest.String())).Failures)
	f.quay.Reset()

	missing := tagged("none")
	assertAnswer(t, &ecr.BatchDeleteImageOutput{
		ImageIds: []types.ImageIdentifier{idOf(one, "v1")},
		Failures: []types.ImageFailure{
			failed(missing, types.ImageFailureCodeImageNotFound, "Requested image not found"),
			failed(byDigest(child.Digest.String()), types.ImageFailureCodeImageReferencedByManifestList,
				"Requested image referenced by manifest list: ["+index.Digest.String()+"]"),
		},
	}, f.batchDelete(t, tagged("v1"), missing, byDigest(child.Digest.String())))
	assert.Empty(t, f.quay.Log())
	require.Empty(t, f.batchGet(t, sdkRepo, tagged("v1")).Failures)
	assert.Equal(t, []string{"GET /v2/team/app/manifests/v1 200"}, f.quay.Log())

	_, err := f.DeleteRepository(t.Context(), &ecr.DeleteRepositoryInput{RepositoryName: str(sdkRepo)})
	assertException[*types.RepositoryNotEmptyException](t, err,
		"The repository with name '"+sdkRepo+"' in registry with id '123456789012' cannot be deleted because it still contains images")
	all, err := f.DescribeRepositories(t.Context(), nil)
	require.NoError(t, err)
	require.Len(t, all.Repositories, 1)
	gone, err := f.DeleteRepository(t.Context(), &ecr.DeleteRepositoryInput{RepositoryName: str(sdkRepo), RegistryId: str(sdkAccount), Force: true})
	require.NoError(t, err)
	levelled := all.Repositories[0]
	levelled.CreatedAt = recent
	assertAnswer(t, &ecr.DeleteRepositoryOutput{Repository: &levelled}, gone)
	_, err = f.DeleteRepository(t.Context(), &ecr.DeleteRepositoryInput{RepositoryName: str(sdkRepo), Force: true})
	assertException[*types.RepositoryNotFoundException](t, err, noRepository(sdkRepo))
	_, err = f.BatchDeleteImage(t.Context(), &ecr.BatchDeleteImageInput{RepositoryName: str(sdkRepo), ImageIds: []types.ImageIdentifier{missing}})
	assertException[*types.RepositoryNotFoundException](t, err, noRepository(sdkRepo))
}

// batchDelete deletes images of the SDK's repository.
func (f *fakeAWS) batchDelete(t *testing.T, ids ...types.ImageIdentifier) *ecr.BatchDeleteImageOutput {
	t.Helper()
	out, err := f.BatchDeleteImage(t.Context(), &ecr.BatchDeleteImageInput{RepositoryName: str(sdkRepo), ImageIds: ids})
	require.NoError(t, err)
	return out
}
