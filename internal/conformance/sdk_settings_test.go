package conformance_test

import (
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecr/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Policies that ECR takes.
var (
	policyText         = `{"Version":"2012-10-17","Statement":[{"Sid":"pull","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":["ecr:BatchGetImage"]}]}`
	registryPolicyText = strings.Replace(policyText, `"Action"`, `"Resource":["arn:aws:ecr:us-east-1:123456789012:repository/*"],"Action"`, 1)
	lifecycleText      = `{"rules":[{"rulePriority":1,"description":"old ones","selection":{"tagStatus":"untagged","countType":"sinceImagePushed","countUnit":"days","countNumber":14},"action":{"type":"expire"}}]}`
)

const sdkRepoARN = "arn:aws:ecr:us-east-1:123456789012:repository/" + sdkRepo

// spoilSettings is spoil for the operations on settings.
func spoilSettings(in any) (message string) {
	bad := str("no policy")
	switch in := in.(type) {
	case *ecr.CreateRepositoryInput:
		in.ImageTagMutability, message = "x", constraint("imageTagMutability", "Member must satisfy enum value set: [MUTABLE, IMMUTABLE, IMMUTABLE_WITH_EXCLUSION, MUTABLE_WITH_EXCLUSION]")
	case *ecr.PutImageTagMutabilityInput:
		in.ImageTagMutability = types.ImageTagMutabilityImmutableWithExclusion
		message = constraint("imageTagMutabilityExclusionFilters", "ImageTagMutabilityExclusionFilters can't be null when imageTagMutability is set to IMMUTABLE_WITH_EXCLUSION")
	case *ecr.PutImageScanningConfigurationInput:
		in.RepositoryName, message = str("a"), constraint("repositoryName", tooShort+"2")
	case *ecr.BatchGetRepositoryScanningConfigurationInput:
		in.RepositoryNames, message = make([]string, 26), constraint("repositoryNames", tooLong+"25")
	case *ecr.GetRepositoryPolicyInput:
		in.RepositoryName, message = str("a"), constraint("repositoryName", tooShort+"2")
	case *ecr.SetRepositoryPolicyInput:
		in.PolicyText, message = bad, constraint("PolicyText", "Invalid repository policy provided")
	case *ecr.DeleteRepositoryPolicyInput:
		in.RepositoryName, message = str("a"), constraint("repositoryName", tooShort+"2")
	case *ecr.GetLifecyclePolicyInput:
		in.RepositoryName, message = str("a"), constraint("repositoryName", tooShort+"2")
	case *ecr.PutLifecyclePolicyInput:
		in.LifecyclePolicyText, message = bad, constraint("lifecyclePolicyText", tooShort+"100")
	case *ecr.DeleteLifecyclePolicyInput:
		in.RepositoryName, message = str("a"), constraint("repositoryName", tooShort+"2")
	case *ecr.ListTagsForResourceInput:
		in.ResourceArn, message = bad, constraint("resourceArn", "Invalid ARN")
	case *ecr.TagResourceInput:
		in.ResourceArn, message = bad, constraint("resourceArn", "Invalid ARN")
	case *ecr.UntagResourceInput:
		in.ResourceArn, message = bad, constraint("resourceArn", "Invalid ARN")
	case *ecr.PutRegistryPolicyInput:
		in.PolicyText, message = bad, constraint("PolicyText", "Invalid registry policy provided")
	case *ecr.GetAccountSettingInput:
		in.Name, message = bad, constraint("name", "Member must be the name of an account setting")
	case *ecr.PutAccountSettingInput:
		in.Value, message = bad, constraint("value", "Member must satisfy enum value set: [DISABLED, ENABLED]")
	case *ecr.PutRegistryScanningConfigurationInput:
		in.ScanType, message = "x", constraint("scanType", "Member must satisfy enum value set: [BASIC, ENHANCED]")
	}
	return message
}

// sdkSettings goes through the settings of a repository and of the registry.
func sdkSettings(t *testing.T, log *sdkLog) {
	f := startAWS(t, log)
	ctx, repo, arn := t.Context(), str(sdkRepo), str(sdkRepoARN)
	made := f.repository(sdkRepo)
	made.ImageTagMutability, made.ImageTagMutabilityExclusionFilters = types.ImageTagMutabilityImmutableWithExclusion, wildcard
	made.ImageScanningConfiguration, made.EncryptionConfiguration = &types.ImageScanningConfiguration{ScanOnPush: true}, &types.EncryptionConfiguration{EncryptionType: types.EncryptionTypeKms, KmsKey: &kmsKey}
	in := &ecr.CreateRepositoryInput{
		RepositoryName: repo, RegistryId: str(sdkAccount), ImageTagMutability: made.ImageTagMutability, ImageTagMutabilityExclusionFilters: wildcard,
		ImageScanningConfiguration: made.ImageScanningConfiguration, EncryptionConfiguration: made.EncryptionConfiguration, Tags: []types.Tag{{Key: str("team"), Value: str("a")}},
	}
	out, err := f.CreateRepository(ctx, in)
	require.NoError(t, err)
	assertAnswer(t, &ecr.CreateRepositoryOutput{Repository: &made}, out)
	_, err = f.CreateRepository(ctx, in)
	assertException[*types.RepositoryAlreadyExistsException](t, err, "The repository with name '"+sdkRepo+"' already exists in the registry with id '123456789012'")
	_, err = f.CreateRepository(ctx, &ecr.CreateRepositoryInput{RepositoryName: str("other"), EncryptionConfiguration: &types.EncryptionConfiguration{
		EncryptionType: types.EncryptionTypeKms, KmsKey: str("arn:aws:kms:eu-west-1:123456789012:key/a"),
	}})
	assertException[*types.KmsException](t, err, "Invalid arn eu-west-1")

	mutability, err := f.PutImageTagMutability(ctx, &ecr.PutImageTagMutabilityInput{RepositoryName: repo, ImageTagMutability: types.ImageTagMutabilityMutableWithExclusion, ImageTagMutabilityExclusionFilters: wildcard})
	require.NoError(t, err)
	assertAnswer(t, &ecr.PutImageTagMutabilityOutput{RegistryId: str(sdkAccount), RepositoryName: repo, ImageTagMutability: types.ImageTagMutabilityMutableWithExclusion, ImageTagMutabilityExclusionFilters: wildcard}, mutability)
	sdkTags(t, f, arn)
	sdkPolicies(t, f, repo)
	sdkScanning(t, f, repo)

	registry, err := f.DescribeRegistry(ctx, nil)
	require.NoError(t, err)
	assertAnswer(t, &ecr.DescribeRegistryOutput{RegistryId: str(sdkAccount), ReplicationConfiguration: &types.ReplicationConfiguration{Rules: []types.ReplicationRule{}}}, registry)
	set, err := f.PutAccountSetting(ctx, &ecr.PutAccountSettingInput{Name: str("BLOB_MOUNTING"), Value: str("ENABLED")})
	require.NoError(t, err)
	assertAnswer(t, &ecr.PutAccountSettingOutput{Name: str("BLOB_MOUNTING"), Value: str("ENABLED")}, set)
	setting, err := f.GetAccountSetting(ctx, &ecr.GetAccountSettingInput{Name: str("BLOB_MOUNTING")})
	require.NoError(t, err)
	assertAnswer(t, &ecr.GetAccountSettingOutput{Name: str("BLOB_MOUNTING"), Value: str("ENABLED")}, setting)

	for _, op := range operations() { // of a repository that is not there
		in := validInputs()[op.name]
		switch in := in.(type) {
		case *ecr.PutImageTagMutabilityInput:
			in.RepositoryName = str("quay/none")
		case *ecr.PutImageScanningConfigurationInput:
			in.RepositoryName = str("quay/none")
		case *ecr.GetRepositoryPolicyInput:
			in.RepositoryName = str("quay/none")
		case *ecr.SetRepositoryPolicyInput:
			in.RepositoryName = str("quay/none")
		case *ecr.DeleteRepositoryPolicyInput:
			in.RepositoryName = str("quay/none")
		case *ecr.GetLifecyclePolicyInput:
			in.RepositoryName = str("quay/none")
		case *ecr.PutLifecyclePolicyInput:
			in.RepositoryName = str("quay/none")
		case *ecr.DeleteLifecyclePolicyInput:
			in.RepositoryName = str("quay/none")
		case *ecr.ListTagsForResourceInput:
			in.ResourceArn = str(strings.Replace(sdkRepoARN, sdkRepo, "quay/none", 1))
		case *ecr.TagResourceInput:
			in.ResourceArn = str(strings.Replace(sdkRepoARN, sdkRepo, "quay/none", 1))
		case *ecr.UntagResourceInput:
			in.ResourceArn = str(strings.Replace(sdkRepoARN, sdkRepo, "quay/none", 1))
		default:
			continue
		}
		_, err := op.do(ctx, f.Client, in)
		assertException[*types.RepositoryNotFoundException](t, err, noRepository("quay/none"))
	}
}

func sdkTags(t *testing.T, f *fakeAWS, arn *string) {
	const sayTag = "An invalid parameter has been specified. Tag keys can have a maximum character length of 128 characters, and tag values can have a maximum length of 256 characters."
	const sayMany = "The list of tags on the repository is over the limit. The maximum number of tags that can be applied to a repository is 50."
	ctx := t.Context()
	_, err := f.TagResource(ctx, &ecr.TagResourceInput{ResourceArn: arn, Tags: []types.Tag{{Key: str("cost"), Value: str("")}}})
	require.NoError(t, err)
	_, err = f.UntagResource(ctx, &ecr.UntagResourceInput{ResourceArn: arn, TagKeys: []string{"team"}})
	require.NoError(t, err)
	tags, err := f.ListTagsForResource(ctx, &ecr.ListTagsForResourceInput{ResourceArn: arn})
	require.NoError(t, err)
	assertAnswer(t, &ecr.ListTagsForResourceOutput{Tags: []types.Tag{{Key: str("cost"), Value: str("")}}}, tags)
	bad := []types.Tag{{Key: str("aws:x"), Value: str("")}}
	_, err = f.TagResource(ctx, &ecr.TagResourceInput{ResourceArn: arn, Tags: bad})
	assertException[*types.InvalidTagParameterException](t, err, sayTag)
	_, err = f.UntagResource(ctx, &ecr.UntagResourceInput{ResourceArn: arn, TagKeys: []string{""}})
	assertException[*types.InvalidTagParameterException](t, err, sayTag)
	_, err = f.CreateRepository(ctx, &ecr.CreateRepositoryInput{RepositoryName: str("other"), Tags: bad})
	assertException[*types.InvalidTagParameterException](t, err, sayTag)
	var many []types.Tag
	for i := range 51 {
		many = append(many, types.Tag{Key: str(strings.Repeat("k", i+1)), Value: str("")})
	}
	_, err = f.TagResource(ctx, &ecr.TagResourceInput{ResourceArn: arn, Tags: many})
	assertException[*types.TooManyTagsException](t, err, sayMany)
	_, err = f.CreateRepository(ctx, &ecr.CreateRepositoryInput{RepositoryName: str("other"), Tags: many})
	assertException[*types.TooManyTagsException](t, err, sayMany)
}

func sdkPolicies(t *testing.T, f *fakeAWS, repo *string) {
	ctx := t.Context()
	none := "does not exist for the repository with name '" + *repo + "' in the registry with id '123456789012'"
	_, err := f.GetRepositoryPolicy(ctx, &ecr.GetRepositoryPolicyInput{RepositoryName: repo})
	assertException[*types.RepositoryPolicyNotFoundException](t, err, "Repository policy "+none)
	_, err = f.DeleteRepositoryPolicy(ctx, &ecr.DeleteRepositoryPolicyInput{RepositoryName: repo})
	assertException[*types.RepositoryPolicyNotFoundException](t, err, "Repository policy "+none)
	set, err := f.SetRepositoryPolicy(ctx, &ecr.SetRepositoryPolicyInput{RepositoryName: repo, PolicyText: &policyText, Force: true})
	require.NoError(t, err)
	assertAnswer(t, &ecr.SetRepositoryPolicyOutput{RegistryId: str(sdkAccount), RepositoryName: repo, PolicyText: &policyText}, set)
	got, err := f.GetRepositoryPolicy(ctx, &ecr.GetRepositoryPolicyInput{RepositoryName: repo})
	require.NoError(t, err)
	assertAnswer(t, &ecr.GetRepositoryPolicyOutput{RegistryId: str(sdkAccount), RepositoryName: repo, PolicyText: &policyText}, got)
	deleted, err := f.DeleteRepositoryPolicy(ctx, &ecr.DeleteRepositoryPolicyInput{RepositoryName: repo})
	require.NoError(t, err)
	assertAnswer(t, &ecr.DeleteRepositoryPolicyOutput{RegistryId: str(sdkAccount), RepositoryName: repo, PolicyText: &policyText}, deleted)

	_, err = f.GetLifecyclePolicy(ctx, &ecr.GetLifecyclePolicyInput{RepositoryName: repo})
	assertException[*types.LifecyclePolicyNotFoundException](t, err, "Lifecycle policy "+none)
	_, err = f.DeleteLifecyclePolicy(ctx, &ecr.DeleteLifecyclePolicyInput{RepositoryName: repo})
	assertException[*types.LifecyclePolicyNotFoundException](t, err, "Lifecycle policy "+none)
	put, err := f.PutLifecyclePolicy(ctx, &ecr.PutLifecyclePolicyInput{RepositoryName: repo, LifecyclePolicyText: &lifecycleText})
	require.NoError(t, err)
	assertAnswer(t, &ecr.PutLifecyclePolicyOutput{RegistryId: str(sdkAccount), RepositoryName: repo, LifecyclePolicyText: &lifecycleText}, put)
	lifecycle, err := f.GetLifecyclePolicy(ctx, &ecr.GetLifecyclePolicyInput{RepositoryName: repo})
	require.NoError(t, err)
	assert.Equal(t, lifecycleText, *lifecycle.LifecyclePolicyText)
	assert.Zero(t, lifecycle.LastEvaluatedAt.Unix())
	_, err = f.DeleteLifecyclePolicy(ctx, &ecr.DeleteLifecyclePolicyInput{RepositoryName: repo})
	require.NoError(t, err)

	const noPolicy = "Registry policy does not exist in the registry with id '123456789012'"
	_, err = f.GetRegistryPolicy(ctx, nil)
	assertException[*types.RegistryPolicyNotFoundException](t, err, noPolicy)
	_, err = f.DeleteRegistryPolicy(ctx, nil)
	assertException[*types.RegistryPolicyNotFoundException](t, err, noPolicy)
	_, err = f.PutRegistryPolicy(ctx, &ecr.PutRegistryPolicyInput{PolicyText: &registryPolicyText})
	require.NoError(t, err)
	registry, err := f.GetRegistryPolicy(ctx, nil)
	require.NoError(t, err)
	assertAnswer(t, &ecr.GetRegistryPolicyOutput{RegistryId: str(sdkAccount), PolicyText: &registryPolicyText}, registry)
	_, err = f.DeleteRegistryPolicy(ctx, nil)
	require.NoError(t, err)
}

func sdkScanning(t *testing.T, f *fakeAWS, repo *string) {
	ctx := t.Context()
	image, err := f.PutImageScanningConfiguration(ctx, &ecr.PutImageScanningConfigurationInput{RepositoryName: repo, ImageScanningConfiguration: &types.ImageScanningConfiguration{}})
	require.NoError(t, err)
	assertAnswer(t, &ecr.PutImageScanningConfigurationOutput{RegistryId: str(sdkAccount), RepositoryName: repo, ImageScanningConfiguration: &types.ImageScanningConfiguration{}}, image)
	filters := []types.ScanningRepositoryFilter{{Filter: str("*"), FilterType: types.ScanningRepositoryFilterTypeWildcard}}
	config := &types.RegistryScanningConfiguration{ScanType: types.ScanTypeEnhanced, Rules: []types.RegistryScanningRule{{ScanFrequency: types.ScanFrequencyContinuousScan, RepositoryFilters: filters}}}
	put, err := f.PutRegistryScanningConfiguration(ctx, &ecr.PutRegistryScanningConfigurationInput{ScanType: config.ScanType, Rules: config.Rules})
	require.NoError(t, err)
	assertAnswer(t, &ecr.PutRegistryScanningConfigurationOutput{RegistryScanningConfiguration: config}, put)
	got, err := f.GetRegistryScanningConfiguration(ctx, nil)
	require.NoError(t, err)
	assertAnswer(t, &ecr.GetRegistryScanningConfigurationOutput{RegistryId: str(sdkAccount), ScanningConfiguration: config}, got)
	each, err := f.BatchGetRepositoryScanningConfiguration(ctx, &ecr.BatchGetRepositoryScanningConfigurationInput{RepositoryNames: []string{*repo, "quay/none"}})
	require.NoError(t, err)
	assertAnswer(t, &ecr.BatchGetRepositoryScanningConfigurationOutput{
		ScanningConfigurations: []types.RepositoryScanningConfiguration{{
			RepositoryArn: str(sdkRepoARN), RepositoryName: repo, ScanFrequency: types.ScanFrequencyContinuousScan, AppliedScanFilters: filters,
		}},
		Failures: []types.RepositoryScanningConfigurationFailure{{
			RepositoryName: str("quay/none"), FailureCode: types.ScanningConfigurationFailureCodeRepositoryNotFound, FailureReason: aws.String(noRepository("quay/none")),
		}},
	}, each)
}
