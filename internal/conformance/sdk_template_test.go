package conformance_test

import (
	"fmt"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecr/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	forPulls = []types.RCTAppliedFor{types.RCTAppliedForPullThroughCache}
	kmsKey   = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	wildcard = []types.ImageTagMutabilityExclusionFilter{
		{FilterType: types.ImageTagMutabilityExclusionFilterTypeWildcard, Filter: str("latest")},
		{FilterType: types.ImageTagMutabilityExclusionFilterTypeWildcard, Filter: str("dev-*")},
	}
	aes256 = &types.EncryptionConfigurationForRepositoryCreationTemplate{EncryptionType: types.EncryptionTypeAes256}
)

// fullTemplate has each member that there is.
func fullTemplate() *ecr.CreateRepositoryCreationTemplateInput {
	return &ecr.CreateRepositoryCreationTemplateInput{
		Prefix: str("quay"), AppliedFor: []types.RCTAppliedFor{types.RCTAppliedForPullThroughCache, types.RCTAppliedForReplication, types.RCTAppliedForCreateOnPush},
		Description: str("For <images> & \"more\""), CustomRoleArn: str(roleARN),
		EncryptionConfiguration:            &types.EncryptionConfigurationForRepositoryCreationTemplate{EncryptionType: types.EncryptionTypeKms, KmsKey: &kmsKey},
		ImageTagMutability:                 types.ImageTagMutabilityImmutableWithExclusion,
		ImageTagMutabilityExclusionFilters: wildcard,
		LifecyclePolicy:                    &lifecycleText, RepositoryPolicy: &policyText,
		ResourceTags: []types.Tag{{Key: str("team"), Value: str("tools")}, {Key: str("empty"), Value: str("")}},
	}
}

func answeredTemplate(in *ecr.CreateRepositoryCreationTemplateInput) *types.RepositoryCreationTemplate {
	return &types.RepositoryCreationTemplate{
		Prefix: in.Prefix, AppliedFor: in.AppliedFor, Description: in.Description, CustomRoleArn: in.CustomRoleArn,
		EncryptionConfiguration: in.EncryptionConfiguration, ImageTagMutability: in.ImageTagMutability,
		ImageTagMutabilityExclusionFilters: in.ImageTagMutabilityExclusionFilters, LifecyclePolicy: in.LifecyclePolicy,
		RepositoryPolicy: in.RepositoryPolicy, ResourceTags: in.ResourceTags, CreatedAt: recent, UpdatedAt: recent,
	}
}

// sdkTemplates follows templates through their life: one with everything, one with
// what ECR fills in.
func sdkTemplates(t *testing.T, log *sdkLog) {
	f, in := startAWS(t, log), fullTemplate()
	full, err := f.CreateRepositoryCreationTemplate(t.Context(), in)
	require.NoError(t, err)
	want := answeredTemplate(in)
	assertAnswer(t, &ecr.CreateRepositoryCreationTemplateOutput{RegistryId: str(sdkAccount), RepositoryCreationTemplate: want}, full)
	plain, err := f.CreateRepositoryCreationTemplate(t.Context(), &ecr.CreateRepositoryCreationTemplateInput{Prefix: str("ROOT"), AppliedFor: forPulls})
	require.NoError(t, err)
	root := types.RepositoryCreationTemplate{
		Prefix: str("ROOT"), AppliedFor: forPulls, CreatedAt: recent, UpdatedAt: recent,
		EncryptionConfiguration: aes256, ImageTagMutability: types.ImageTagMutabilityMutable,
	}
	assertAnswer(t, &ecr.CreateRepositoryCreationTemplateOutput{RegistryId: str(sdkAccount), RepositoryCreationTemplate: &root}, plain)

	for _, row := range []struct {
		prefixes []string
		want     []types.RepositoryCreationTemplate
	}{
		{nil, []types.RepositoryCreationTemplate{root, *want}},
		{[]string{"none", "quay"}, []types.RepositoryCreationTemplate{*want}},
		{[]string{"none"}, []types.RepositoryCreationTemplate{}},
	} {
		out, err := f.DescribeRepositoryCreationTemplates(t.Context(), &ecr.DescribeRepositoryCreationTemplatesInput{Prefixes: row.prefixes})
		require.NoError(t, err)
		assertAnswer(t, &ecr.DescribeRepositoryCreationTemplatesOutput{RegistryId: str(sdkAccount), RepositoryCreationTemplates: row.want}, out)
	}

	updated, err := f.UpdateRepositoryCreationTemplate(t.Context(), &ecr.UpdateRepositoryCreationTemplateInput{
		Prefix: str("quay"), ImageTagMutability: types.ImageTagMutabilityImmutable, Description: str("less"), AppliedFor: forPulls,
		EncryptionConfiguration: aes256, ResourceTags: []types.Tag{{Key: str("team"), Value: str("other")}},
		RepositoryPolicy: str(""), LifecyclePolicy: str(""), CustomRoleArn: str(roleARN + "2"),
	})
	require.NoError(t, err)
	assertAnswer(t, &ecr.UpdateRepositoryCreationTemplateOutput{RegistryId: str(sdkAccount), RepositoryCreationTemplate: &types.RepositoryCreationTemplate{
		Prefix: str("quay"), ImageTagMutability: types.ImageTagMutabilityImmutable, Description: str("less"), AppliedFor: forPulls,
		EncryptionConfiguration: aes256, ResourceTags: []types.Tag{{Key: str("team"), Value: str("other")}},
		CustomRoleArn: str(roleARN + "2"), CreatedAt: recent, UpdatedAt: recent,
	}}, updated)
	deleted, err := f.DeleteRepositoryCreationTemplate(t.Context(), &ecr.DeleteRepositoryCreationTemplateInput{Prefix: str("ROOT")})
	require.NoError(t, err)
	assertAnswer(t, &ecr.DeleteRepositoryCreationTemplateOutput{RegistryId: str(sdkAccount), RepositoryCreationTemplate: &root}, deleted)
}

// sdkTemplateLimits fills a registry with templates, and reads them page by page.
func sdkTemplateLimits(t *testing.T, log *sdkLog) {
	f := startAWS(t, log)
	const quota = 100 // template-quota
	var want []string
	for i := range quota {
		want = append(want, fmt.Sprintf("t%02d", i))
		_, err := f.CreateRepositoryCreationTemplate(t.Context(), &ecr.CreateRepositoryCreationTemplateInput{Prefix: &want[i], AppliedFor: forPulls})
		require.NoError(t, err)
	}
	_, err := f.CreateRepositoryCreationTemplate(t.Context(), &ecr.CreateRepositoryCreationTemplateInput{Prefix: str("more"), AppliedFor: forPulls})
	assertException[*types.LimitExceededException](t, err, "The registry with id '123456789012' has 100 repository creation templates already, which is as many as there may be")
	_, err = f.CreateRepositoryCreationTemplate(t.Context(), &ecr.CreateRepositoryCreationTemplateInput{Prefix: str("t07"), AppliedFor: forPulls})
	assertException[*types.TemplateAlreadyExistsException](t, err, "The repository creation template with prefix 't07' already exists in the registry with id '123456789012'")

	p := ecr.NewDescribeRepositoryCreationTemplatesPaginator(f, &ecr.DescribeRepositoryCreationTemplatesInput{}, func(o *ecr.DescribeRepositoryCreationTemplatesPaginatorOptions) { o.Limit = 50 })
	var got []string
	pages := 0
	for ; p.HasMorePages(); pages++ {
		out, err := p.NextPage(t.Context())
		require.NoError(t, err)
		for _, template := range out.RepositoryCreationTemplates {
			got = append(got, *template.Prefix)
		}
	}
	assert.Equal(t, want, got)
	assert.Equal(t, 2, pages)
}

// sdkTemplateExceptions asks for what templates cannot be.
func sdkTemplateExceptions(t *testing.T, log *sdkLog) {
	f := startAWS(t, log)
	none := "The repository creation template with prefix 'none' does not exist in the registry with id '123456789012'"
	_, err := f.UpdateRepositoryCreationTemplate(t.Context(), &ecr.UpdateRepositoryCreationTemplateInput{Prefix: str("none")})
	assertException[*types.TemplateNotFoundException](t, err, none)
	_, err = f.DeleteRepositoryCreationTemplate(t.Context(), &ecr.DeleteRepositoryCreationTemplateInput{Prefix: str("none")})
	assertException[*types.TemplateNotFoundException](t, err, none)

	in := fullTemplate()
	in.EncryptionConfiguration.KmsKey = str("arn:aws:kms:eu-west-1:123456789012:key/1234abcd")
	_, err = f.CreateRepositoryCreationTemplate(t.Context(), in)
	assertException[*types.KmsException](t, err, "Invalid arn eu-west-1")
	for change, message := range map[*ecr.CreateRepositoryCreationTemplateInput]string{
		{EncryptionConfiguration: &types.EncryptionConfigurationForRepositoryCreationTemplate{EncryptionType: types.EncryptionTypeAes256, KmsKey: &kmsKey}}: constraint("encryptionConfiguration",
			"Invalid encryption configuration: Encryption key should not be set for AES256 encryption."),
		{ImageTagMutability: types.ImageTagMutabilityImmutable, ImageTagMutabilityExclusionFilters: wildcard}: constraint("imageTagMutabilityExclusionFilters",
			"ImageTagMutabilityExclusionFilters are not allowed when imageTagMutability is set to IMMUTABLE"),
		{ImageTagMutability: types.ImageTagMutabilityMutableWithExclusion}: constraint("imageTagMutabilityExclusionFilters",
			"ImageTagMutabilityExclusionFilters can't be null when imageTagMutability is set to MUTABLE_WITH_EXCLUSION"),
		{AppliedFor: []types.RCTAppliedFor{"PULL"}}: constraint("appliedFor",
			"Member must satisfy constraint: [Member must satisfy enum value set: [REPLICATION, PULL_THROUGH_CACHE, CREATE_ON_PUSH]]"),
	} {
		change.Prefix = str("quay")
		if change.AppliedFor == nil {
			change.AppliedFor = forPulls
		}
		_, err := f.CreateRepositoryCreationTemplate(t.Context(), change)
		assertException[*types.InvalidParameterException](t, err, message)
	}
}
