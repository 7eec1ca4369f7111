package conformance_test

import (
	"fmt"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecr/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// sdkExclusions fills a registry with exclusions and reads them page by page, for
// which the SDK has no paginator.
func sdkExclusions(t *testing.T, log *sdkLog) {
	f := startAWS(t, log)
	empty, err := f.ListPullTimeUpdateExclusions(t.Context(), nil)
	require.NoError(t, err)
	assertAnswer(t, &ecr.ListPullTimeUpdateExclusionsOutput{PullTimeUpdateExclusions: []string{}}, empty)

	const quota = 100
	var want []string
	for i := range quota {
		want = append(want, fmt.Sprintf("arn:aws:iam::123456789012:role/scan/r%02d", i))
		out, err := f.RegisterPullTimeUpdateExclusion(t.Context(), &ecr.RegisterPullTimeUpdateExclusionInput{PrincipalArn: &want[i]})
		require.NoError(t, err)
		assertAnswer(t, &ecr.RegisterPullTimeUpdateExclusionOutput{PrincipalArn: &want[i], CreatedAt: recent}, out)
	}
	_, err = f.RegisterPullTimeUpdateExclusion(t.Context(), &ecr.RegisterPullTimeUpdateExclusionInput{PrincipalArn: str(roleARN)})
	assertException[*types.LimitExceededException](t, err, "The registry with id '123456789012' has 100 pull time update exclusions already, which is as many as there may be")
	_, err = f.RegisterPullTimeUpdateExclusion(t.Context(), &ecr.RegisterPullTimeUpdateExclusionInput{PrincipalArn: &want[7]})
	assertException[*types.ExclusionAlreadyExistsException](t, err, "The pull time update exclusion of '"+want[7]+"' already exists in the registry with id '123456789012'")

	var got []string
	var token *string
	for range 4 {
		out, err := f.ListPullTimeUpdateExclusions(t.Context(), &ecr.ListPullTimeUpdateExclusionsInput{MaxResults: aws.Int32(30), NextToken: token})
		require.NoError(t, err)
		got, token = append(got, out.PullTimeUpdateExclusions...), out.NextToken
	}
	assert.Equal(t, want, got)
	assert.Nil(t, token, "after the last page")

	gone, err := f.DeregisterPullTimeUpdateExclusion(t.Context(), &ecr.DeregisterPullTimeUpdateExclusionInput{PrincipalArn: &want[7]})
	require.NoError(t, err)
	assertAnswer(t, &ecr.DeregisterPullTimeUpdateExclusionOutput{PrincipalArn: &want[7]}, gone)
	_, err = f.DeregisterPullTimeUpdateExclusion(t.Context(), &ecr.DeregisterPullTimeUpdateExclusionInput{PrincipalArn: &want[7]})
	assertException[*types.ExclusionNotFoundException](t, err, "The pull time update exclusion of '"+want[7]+"' does not exist in the registry with id '123456789012'")
	out, err := f.ListPullTimeUpdateExclusions(t.Context(), nil)
	require.NoError(t, err)
	assertAnswer(t, &ecr.ListPullTimeUpdateExclusionsOutput{PullTimeUpdateExclusions: append(want[:7:7], want[8:]...)}, out)
}
