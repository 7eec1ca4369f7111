package conformance_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecr/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// enumSet finds the values that a refusal of another one names.
var enumSet = regexp.MustCompile(`enum value set: \[([^\]]*)\]`)

// The values that ecrapi takes for a member are those that the SDK knows for it.
func TestSDKEnums(t *testing.T) {
	t.Parallel()
	c := hostECR(t, nil).client()
	repo := str(sdkRepo)
	template := func(change func(*ecr.CreateRepositoryCreationTemplateInput)) error {
		in := fullTemplate()
		change(in)
		_, err := c.CreateRepositoryCreationTemplate(t.Context(), in)
		return err
	}
	_, err := c.CreatePullThroughCacheRule(t.Context(), &ecr.CreatePullThroughCacheRuleInput{EcrRepositoryPrefix: str("quay"), UpstreamRegistryUrl: str("quay.io"), UpstreamRegistry: "x"})
	assertValues(t, err, types.UpstreamRegistry("").Values())
	assertValues(t, template(func(in *ecr.CreateRepositoryCreationTemplateInput) { in.ImageTagMutability = "x" }), types.ImageTagMutability("").Values())
	assertValues(t, template(func(in *ecr.CreateRepositoryCreationTemplateInput) { in.EncryptionConfiguration.EncryptionType = "x" }), types.EncryptionType("").Values())
	assertValues(t, template(func(in *ecr.CreateRepositoryCreationTemplateInput) { in.AppliedFor[0] = "x" }), types.RCTAppliedFor("").Values())
	assertValues(t, template(func(in *ecr.CreateRepositoryCreationTemplateInput) {
		in.ImageTagMutabilityExclusionFilters = []types.ImageTagMutabilityExclusionFilter{{FilterType: "x", Filter: str("a")}}
	}), types.ImageTagMutabilityExclusionFilterType("").Values())
	_, err = c.ListImages(t.Context(), &ecr.ListImagesInput{RepositoryName: repo, Filter: &types.ListImagesFilter{TagStatus: "x"}})
	assertValues(t, err, types.TagStatus("").Values())
	_, err = c.DescribeImages(t.Context(), &ecr.DescribeImagesInput{RepositoryName: repo, Filter: &types.DescribeImagesFilter{ImageStatus: "x"}})
	assertValues(t, err, types.ImageStatusFilter("").Values())
	_, err = c.ListImageReferrers(t.Context(), &ecr.ListImageReferrersInput{
		RepositoryName: repo, SubjectId: &types.SubjectIdentifier{ImageDigest: str(nowhere)}, Filter: &types.ListImageReferrersFilter{ArtifactStatus: "x"},
	})
	assertValues(t, err, types.ArtifactStatusFilter("").Values())
}

// assertValues asserts that err, an InvalidParameterException, names these values.
func assertValues[E ~string](t *testing.T, err error, want []E) {
	t.Helper()
	e, ok := errors.AsType[*types.InvalidParameterException](err)
	require.True(t, ok, "%v", err)
	set := enumSet.FindStringSubmatch(e.ErrorMessage())
	require.Len(t, set, 2, e.ErrorMessage())
	assert.ElementsMatch(t, texts(want), strings.Split(set[1], ", "))
}
