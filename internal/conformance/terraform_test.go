package conformance_test

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecr/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The calls of the resources of terraform-provider-aws, in its order: create, read, update,
// read again, destroy, and the read after it. An import is a read. A plan is empty if what
// is read is what was configured.

func TestTerraformRepository(t *testing.T) {
	t.Parallel()
	f := startAWS(t, &sdkLog{})
	ctx, name := t.Context(), str("team/app")
	created, err := f.CreateRepository(ctx, &ecr.CreateRepositoryInput{
		RepositoryName: name, ImageTagMutability: types.ImageTagMutabilityMutable, Tags: []types.Tag{{Key: str("Name"), Value: str("app")}},
		ImageScanningConfiguration: &types.ImageScanningConfiguration{ScanOnPush: true},
	})
	require.NoError(t, err)
	read := func() types.Repository { // the resource, its import, and the data source
		t.Helper()
		out, err := f.DescribeRepositories(ctx, &ecr.DescribeRepositoriesInput{RepositoryNames: []string{*name}})
		require.NoError(t, err)
		require.Len(t, out.Repositories, 1)
		images, err := f.DescribeImages(ctx, &ecr.DescribeImagesInput{RepositoryName: name, RegistryId: out.Repositories[0].RegistryId})
		require.NoError(t, err)
		assert.Empty(t, images.ImageDetails)
		return out.Repositories[0]
	}
	assert.Equal(t, *created.Repository, read())
	tags := func() []types.Tag {
		t.Helper()
		out, err := f.ListTagsForResource(ctx, &ecr.ListTagsForResourceInput{ResourceArn: created.Repository.RepositoryArn})
		require.NoError(t, err)
		return out.Tags
	}
	assert.Equal(t, []types.Tag{{Key: str("Name"), Value: str("app")}}, tags())

	registry := created.Repository.RegistryId
	_, err = f.PutImageTagMutability(ctx, &ecr.PutImageTagMutabilityInput{RepositoryName: name, RegistryId: registry, ImageTagMutability: types.ImageTagMutabilityImmutableWithExclusion, ImageTagMutabilityExclusionFilters: wildcard})
	require.NoError(t, err)
	_, err = f.PutImageScanningConfiguration(ctx, &ecr.PutImageScanningConfigurationInput{RepositoryName: name, RegistryId: registry, ImageScanningConfiguration: &types.ImageScanningConfiguration{}})
	require.NoError(t, err)
	_, err = f.UntagResource(ctx, &ecr.UntagResourceInput{ResourceArn: created.Repository.RepositoryArn, TagKeys: []string{"Name"}})
	require.NoError(t, err)
	_, err = f.TagResource(ctx, &ecr.TagResourceInput{ResourceArn: created.Repository.RepositoryArn, Tags: []types.Tag{{Key: str("team"), Value: str("a")}}})
	require.NoError(t, err)
	want := *created.Repository
	want.ImageTagMutability, want.ImageTagMutabilityExclusionFilters = types.ImageTagMutabilityImmutableWithExclusion, wildcard
	want.ImageScanningConfiguration = &types.ImageScanningConfiguration{}
	assert.Equal(t, want, read())
	assert.Equal(t, []types.Tag{{Key: str("team"), Value: str("a")}}, tags())

	destroy := &ecr.DeleteRepositoryInput{RepositoryName: name, RegistryId: registry} // force_delete is not set
	_, err = f.DeleteRepository(ctx, destroy)
	require.NoError(t, err)
	_, err = f.DeleteRepository(ctx, destroy)
	assert.ErrorAs(t, err, new(*types.RepositoryNotFoundException), "it is gone already")
	_, err = f.DescribeRepositories(ctx, &ecr.DescribeRepositoriesInput{RepositoryNames: []string{*name}})
	assert.ErrorAs(t, err, new(*types.RepositoryNotFoundException))
}

func TestTerraformPolicies(t *testing.T) {
	t.Parallel()
	f := startAWS(t, &sdkLog{})
	ctx, name := t.Context(), str("team/app")
	_, err := f.CreateRepository(ctx, &ecr.CreateRepositoryInput{RepositoryName: name})
	require.NoError(t, err)
	_, err = f.SetRepositoryPolicy(ctx, &ecr.SetRepositoryPolicyInput{RepositoryName: name, PolicyText: &policyText})
	require.NoError(t, err)
	policy, err := f.GetRepositoryPolicy(ctx, &ecr.GetRepositoryPolicyInput{RepositoryName: name})
	require.NoError(t, err)
	assert.Equal(t, []string{policyText, *name, sdkAccount}, []string{*policy.PolicyText, *policy.RepositoryName, *policy.RegistryId})
	for range 2 { // destroyed, and destroyed again
		_, err = f.DeleteRepositoryPolicy(ctx, &ecr.DeleteRepositoryPolicyInput{RepositoryName: name, RegistryId: policy.RegistryId})
	}
	assert.ErrorAs(t, err, new(*types.RepositoryPolicyNotFoundException))

	put, err := f.PutLifecyclePolicy(ctx, &ecr.PutLifecyclePolicyInput{RepositoryName: name, LifecyclePolicyText: &lifecycleText})
	require.NoError(t, err)
	assert.Equal(t, []string{*name, sdkAccount}, []string{*put.RepositoryName, *put.RegistryId})
	lifecycle, err := f.GetLifecyclePolicy(ctx, &ecr.GetLifecyclePolicyInput{RepositoryName: name})
	require.NoError(t, err)
	assert.JSONEq(t, lifecycleText, *lifecycle.LifecyclePolicyText)
	_, err = f.DeleteLifecyclePolicy(ctx, &ecr.DeleteLifecyclePolicyInput{RepositoryName: name})
	require.NoError(t, err)
	_, err = f.GetLifecyclePolicy(ctx, &ecr.GetLifecyclePolicyInput{RepositoryName: name})
	assert.ErrorAs(t, err, new(*types.LifecyclePolicyNotFoundException))
	for _, missing := range []error{
		func() error {
			_, err := f.GetRepositoryPolicy(ctx, &ecr.GetRepositoryPolicyInput{RepositoryName: str("gone")})
			return err
		}(),
		func() error {
			_, err := f.GetLifecyclePolicy(ctx, &ecr.GetLifecyclePolicyInput{RepositoryName: str("gone")})
			return err
		}(),
	} {
		assert.ErrorAs(t, missing, new(*types.RepositoryNotFoundException))
	}
}

func TestTerraformRegistry(t *testing.T) {
	t.Parallel()
	f := startAWS(t, &sdkLog{})
	ctx := t.Context()
	put, err := f.PutRegistryPolicy(ctx, &ecr.PutRegistryPolicyInput{PolicyText: &registryPolicyText})
	require.NoError(t, err)
	assert.Equal(t, sdkAccount, *put.RegistryId)
	policy, err := f.GetRegistryPolicy(ctx, &ecr.GetRegistryPolicyInput{})
	require.NoError(t, err)
	assert.JSONEq(t, registryPolicyText, *policy.PolicyText)
	_, err = f.DeleteRegistryPolicy(ctx, &ecr.DeleteRegistryPolicyInput{})
	require.NoError(t, err)
	_, err = f.GetRegistryPolicy(ctx, &ecr.GetRegistryPolicyInput{})
	assert.ErrorAs(t, err, new(*types.RegistryPolicyNotFoundException))

	for name, value := range map[string]string{"BASIC_SCAN_TYPE_VERSION": "AWS_NATIVE", "REGISTRY_POLICY_SCOPE": "V2"} {
		_, err := f.PutAccountSetting(ctx, &ecr.PutAccountSettingInput{Name: &name, Value: &value})
		require.NoError(t, err)
		setting, err := f.GetAccountSetting(ctx, &ecr.GetAccountSettingInput{Name: &name}) // an import has the name only
		require.NoError(t, err)
		assert.Equal(t, []string{name, value}, []string{*setting.Name, *setting.Value})
	}

	rules := []types.RegistryScanningRule{{ScanFrequency: types.ScanFrequencyScanOnPush, RepositoryFilters: []types.ScanningRepositoryFilter{{Filter: str("example"), FilterType: types.ScanningRepositoryFilterTypeWildcard}}}}
	for _, want := range []types.RegistryScanningConfiguration{
		{ScanType: types.ScanTypeBasic, Rules: rules}, {ScanType: types.ScanTypeEnhanced, Rules: rules}, {ScanType: types.ScanTypeBasic, Rules: []types.RegistryScanningRule{}}, // the last destroys
	} {
		_, err := f.PutRegistryScanningConfiguration(ctx, &ecr.PutRegistryScanningConfigurationInput{ScanType: want.ScanType, Rules: want.Rules})
		require.NoError(t, err)
		got, err := f.GetRegistryScanningConfiguration(ctx, &ecr.GetRegistryScanningConfigurationInput{})
		require.NoError(t, err)
		assert.Equal(t, want, *got.ScanningConfiguration)
		assert.Equal(t, sdkAccount, *got.RegistryId)
	}
}

func TestTerraformPullThroughCacheRule(t *testing.T) {
	t.Parallel()
	f := startAWS(t, &sdkLog{})
	ctx, prefix := t.Context(), str("hub")
	_, err := f.CreatePullThroughCacheRule(ctx, &ecr.CreatePullThroughCacheRuleInput{EcrRepositoryPrefix: prefix, UpstreamRegistryUrl: str(hubURL), CredentialArn: str(hubARN)})
	require.NoError(t, err)
	read := func() types.PullThroughCacheRule {
		t.Helper()
		out, err := f.DescribePullThroughCacheRules(ctx, &ecr.DescribePullThroughCacheRulesInput{EcrRepositoryPrefixes: []string{*prefix}})
		require.NoError(t, err)
		require.Len(t, out.PullThroughCacheRules, 1)
		assert.Nil(t, out.NextToken)
		return out.PullThroughCacheRules[0]
	}
	rule := read()
	assert.Equal(t, []string{hubARN, hubURL, sdkAccount}, []string{*rule.CredentialArn, *rule.UpstreamRegistryUrl, *rule.RegistryId})
	assert.Nil(t, rule.CustomRoleArn)
	assert.Nil(t, rule.UpstreamRepositoryPrefix, "a ROOT that nobody configured would replace the rule at each apply")
	_, err = f.UpdatePullThroughCacheRule(ctx, &ecr.UpdatePullThroughCacheRuleInput{EcrRepositoryPrefix: prefix, CredentialArn: str(ghcrARN)})
	require.NoError(t, err)
	assert.Equal(t, ghcrARN, *read().CredentialArn)
	// What it sends when credential_arn is taken out of the configuration.
	_, err = f.UpdatePullThroughCacheRule(ctx, &ecr.UpdatePullThroughCacheRuleInput{EcrRepositoryPrefix: prefix})
	assertException[*types.InvalidParameterException](t, err, "Invalid input: Please set either credential arn or role arn to update the credentials")
	_, err = f.DeletePullThroughCacheRule(ctx, &ecr.DeletePullThroughCacheRuleInput{EcrRepositoryPrefix: prefix, RegistryId: rule.RegistryId})
	require.NoError(t, err)
	_, err = f.DescribePullThroughCacheRules(ctx, &ecr.DescribePullThroughCacheRulesInput{EcrRepositoryPrefixes: []string{*prefix}})
	assert.ErrorAs(t, err, new(*types.PullThroughCacheRuleNotFoundException))
}

func TestTerraformRepositoryCreationTemplate(t *testing.T) {
	t.Parallel()
	f := startAWS(t, &sdkLog{})
	ctx, prefix := t.Context(), str("hub")
	_, err := f.CreateRepositoryCreationTemplate(ctx, &ecr.CreateRepositoryCreationTemplateInput{Prefix: prefix, AppliedFor: forPulls, ImageTagMutability: types.ImageTagMutabilityMutable, LifecyclePolicy: &lifecycleText, RepositoryPolicy: &policyText})
	require.NoError(t, err)
	read := func() []types.RepositoryCreationTemplate {
		t.Helper()
		out, err := f.DescribeRepositoryCreationTemplates(ctx, &ecr.DescribeRepositoryCreationTemplatesInput{Prefixes: []string{*prefix}})
		require.NoError(t, err)
		assert.Equal(t, sdkAccount, *out.RegistryId)
		return out.RepositoryCreationTemplates
	}
	require.Len(t, read(), 1)
	assert.Equal(t, types.EncryptionTypeAes256, read()[0].EncryptionConfiguration.EncryptionType)
	assert.JSONEq(t, lifecycleText, *read()[0].LifecyclePolicy)
	_, err = f.UpdateRepositoryCreationTemplate(ctx, &ecr.UpdateRepositoryCreationTemplateInput{
		Prefix: prefix, ImageTagMutability: types.ImageTagMutabilityImmutableWithExclusion, ImageTagMutabilityExclusionFilters: wildcard, LifecyclePolicy: str(""), Description: str(""),
	})
	require.NoError(t, err)
	assert.Equal(t, wildcard, read()[0].ImageTagMutabilityExclusionFilters)
	assert.Nil(t, read()[0].LifecyclePolicy)
	assert.JSONEq(t, policyText, *read()[0].RepositoryPolicy)
	_, err = f.DeleteRepositoryCreationTemplate(ctx, &ecr.DeleteRepositoryCreationTemplateInput{Prefix: prefix})
	require.NoError(t, err)
	assert.Empty(t, read(), "the provider takes this for not found")
	_, err = f.DeleteRepositoryCreationTemplate(ctx, &ecr.DeleteRepositoryCreationTemplateInput{Prefix: prefix})
	assert.ErrorAs(t, err, new(*types.TemplateNotFoundException))
}

func TestTerraformPullTimeUpdateExclusion(t *testing.T) {
	t.Parallel()
	f := startAWS(t, &sdkLog{})
	ctx, principal := t.Context(), aws.String(roleARN)
	_, err := f.RegisterPullTimeUpdateExclusion(ctx, &ecr.RegisterPullTimeUpdateExclusionInput{PrincipalArn: principal})
	require.NoError(t, err)
	list, err := f.ListPullTimeUpdateExclusions(ctx, &ecr.ListPullTimeUpdateExclusionsInput{})
	require.NoError(t, err)
	assert.Contains(t, list.PullTimeUpdateExclusions, roleARN)
	for range 2 {
		_, err = f.DeregisterPullTimeUpdateExclusion(ctx, &ecr.DeregisterPullTimeUpdateExclusionInput{PrincipalArn: principal})
	}
	assert.ErrorAs(t, err, new(*types.ExclusionNotFoundException))
	list, err = f.ListPullTimeUpdateExclusions(ctx, &ecr.ListPullTimeUpdateExclusionsInput{})
	require.NoError(t, err)
	assert.Empty(t, list.PullTimeUpdateExclusions)
}
