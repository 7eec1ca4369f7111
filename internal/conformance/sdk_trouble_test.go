package conformance_test

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecr/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// sdkSecretTroubles has secrets that exist and are of no use. fakeecr's are never.
func sdkSecretTroubles(t *testing.T, log *sdkLog) {
	var secretErr error
	up := pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Basic})
	h := hostECR(t, func(h *host) {
		h.api.Secrets = func(context.Context, string, string, string) (string, error) { return "plain text", secretErr }
		h.proxy.Endpoint = func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error) {
			return url.Parse(up.URL)
		}
	})
	c, prefix := log.client(h.url), str("docker-hub")
	create := func() error {
		_, err := c.CreatePullThroughCacheRule(t.Context(), &ecr.CreatePullThroughCacheRuleInput{EcrRepositoryPrefix: prefix, UpstreamRegistryUrl: str(hubURL), CredentialArn: str(hubARN)})
		return err
	}
	update := func() error {
		_, err := c.UpdatePullThroughCacheRule(t.Context(), &ecr.UpdatePullThroughCacheRuleInput{EcrRepositoryPrefix: prefix, CredentialArn: str(ghcrARN)})
		return err
	}
	const (
		noAccess  = "The secret is unable to be accessed. Verify the resource permissions for the secret and try again."
		noDecrypt = "The secret is accessible but is unable to be decrypted. Verify the resource permissions and try again."
	)
	secretErr = ecrapi.ErrSecretAccess
	assertException[*types.UnableToAccessSecretException](t, create(), noAccess)
	secretErr = ecrapi.ErrSecretDecrypt
	assertException[*types.UnableToDecryptSecretValueException](t, create(), noDecrypt)
	secretErr = nil
	require.NoError(t, create(), "what a secret says is not looked at")
	validate := func() *ecr.ValidatePullThroughCacheRuleOutput {
		t.Helper()
		out, err := c.ValidatePullThroughCacheRule(t.Context(), &ecr.ValidatePullThroughCacheRuleInput{EcrRepositoryPrefix: prefix})
		require.NoError(t, err)
		return out
	}
	want := &ecr.ValidatePullThroughCacheRuleOutput{EcrRepositoryPrefix: prefix, UpstreamRegistryUrl: str(hubURL), RegistryId: str(sdkAccount), CredentialArn: str(hubARN)}
	want.Failure = str("The secret must be a JSON object with the members username and accessToken.")
	assertAnswer(t, want, validate())
	_, err := c.BatchGetImage(t.Context(), &ecr.BatchGetImageInput{RepositoryName: str("docker-hub/library/alpine"), ImageIds: []types.ImageIdentifier{tagged("latest")}})
	assertException[*types.UnableToGetUpstreamImageException](t, err, "The credentials of the pull through cache rule could not be used. "+
		"Verify that the secret exists, can be read and decrypted, and consists of username and accessToken.")

	secretErr = ecrapi.ErrSecretAccess
	assertException[*types.UnableToAccessSecretException](t, update(), noAccess)
	want.Failure = str(noAccess)
	assertAnswer(t, want, validate())
	secretErr = ecrapi.ErrSecretDecrypt
	assertException[*types.UnableToDecryptSecretValueException](t, update(), noDecrypt)
	want.Failure = str(noDecrypt)
	assertAnswer(t, want, validate())
}

// validInputs are one for each operation.
func validInputs() map[string]any {
	repo, prefix, arn, ids := str(sdkRepo), str("quay"), str(roleARN), []types.ImageIdentifier{tagged("v1")}
	return map[string]any{
		"CreatePullThroughCacheRule":    &ecr.CreatePullThroughCacheRuleInput{EcrRepositoryPrefix: prefix, UpstreamRegistryUrl: str("quay.io")},
		"DescribePullThroughCacheRules": &ecr.DescribePullThroughCacheRulesInput{},
		"UpdatePullThroughCacheRule":    &ecr.UpdatePullThroughCacheRuleInput{EcrRepositoryPrefix: prefix},
		"DeletePullThroughCacheRule":    &ecr.DeletePullThroughCacheRuleInput{EcrRepositoryPrefix: prefix},
		"ValidatePullThroughCacheRule":  &ecr.ValidatePullThroughCacheRuleInput{EcrRepositoryPrefix: prefix},

		"CreateRepositoryCreationTemplate":    &ecr.CreateRepositoryCreationTemplateInput{Prefix: prefix, AppliedFor: forPulls},
		"DescribeRepositoryCreationTemplates": &ecr.DescribeRepositoryCreationTemplatesInput{},
		"UpdateRepositoryCreationTemplate":    &ecr.UpdateRepositoryCreationTemplateInput{Prefix: prefix},
		"DeleteRepositoryCreationTemplate":    &ecr.DeleteRepositoryCreationTemplateInput{Prefix: prefix},

		"RegisterPullTimeUpdateExclusion":   &ecr.RegisterPullTimeUpdateExclusionInput{PrincipalArn: arn},
		"DeregisterPullTimeUpdateExclusion": &ecr.DeregisterPullTimeUpdateExclusionInput{PrincipalArn: arn},
		"ListPullTimeUpdateExclusions":      &ecr.ListPullTimeUpdateExclusionsInput{},

		"GetAuthorizationToken":       &ecr.GetAuthorizationTokenInput{},
		"DescribeRepositories":        &ecr.DescribeRepositoriesInput{},
		"DescribeImages":              &ecr.DescribeImagesInput{RepositoryName: repo},
		"ListImages":                  &ecr.ListImagesInput{RepositoryName: repo},
		"BatchGetImage":               &ecr.BatchGetImageInput{RepositoryName: repo, ImageIds: ids},
		"GetDownloadUrlForLayer":      &ecr.GetDownloadUrlForLayerInput{RepositoryName: repo, LayerDigest: str(nowhere)},
		"BatchCheckLayerAvailability": &ecr.BatchCheckLayerAvailabilityInput{RepositoryName: repo, LayerDigests: []string{nowhere}},
		"BatchDeleteImage":            &ecr.BatchDeleteImageInput{RepositoryName: repo, ImageIds: ids},
		"DeleteRepository":            &ecr.DeleteRepositoryInput{RepositoryName: repo},

		"CreateRepository":                        &ecr.CreateRepositoryInput{RepositoryName: repo},
		"PutImageTagMutability":                   &ecr.PutImageTagMutabilityInput{RepositoryName: repo, ImageTagMutability: types.ImageTagMutabilityMutable},
		"PutImageScanningConfiguration":           &ecr.PutImageScanningConfigurationInput{RepositoryName: repo, ImageScanningConfiguration: &types.ImageScanningConfiguration{}},
		"BatchGetRepositoryScanningConfiguration": &ecr.BatchGetRepositoryScanningConfigurationInput{RepositoryNames: []string{sdkRepo}},
		"GetRepositoryPolicy":                     &ecr.GetRepositoryPolicyInput{RepositoryName: repo},
		"SetRepositoryPolicy":                     &ecr.SetRepositoryPolicyInput{RepositoryName: repo, PolicyText: &policyText},
		"DeleteRepositoryPolicy":                  &ecr.DeleteRepositoryPolicyInput{RepositoryName: repo},
		"GetLifecyclePolicy":                      &ecr.GetLifecyclePolicyInput{RepositoryName: repo},
		"PutLifecyclePolicy":                      &ecr.PutLifecyclePolicyInput{RepositoryName: repo, LifecyclePolicyText: &lifecycleText},
		"DeleteLifecyclePolicy":                   &ecr.DeleteLifecyclePolicyInput{RepositoryName: repo},
		"ListTagsForResource":                     &ecr.ListTagsForResourceInput{ResourceArn: str(sdkRepoARN)},
		"TagResource":                             &ecr.TagResourceInput{ResourceArn: str(sdkRepoARN), Tags: []types.Tag{}},
		"UntagResource":                           &ecr.UntagResourceInput{ResourceArn: str(sdkRepoARN), TagKeys: []string{}},

		"GetRegistryPolicy":                &ecr.GetRegistryPolicyInput{},
		"PutRegistryPolicy":                &ecr.PutRegistryPolicyInput{PolicyText: &registryPolicyText},
		"DeleteRegistryPolicy":             &ecr.DeleteRegistryPolicyInput{},
		"DescribeRegistry":                 &ecr.DescribeRegistryInput{},
		"GetAccountSetting":                &ecr.GetAccountSettingInput{Name: str("BLOB_MOUNTING")},
		"PutAccountSetting":                &ecr.PutAccountSettingInput{Name: str("BLOB_MOUNTING"), Value: str("ENABLED")},
		"GetRegistryScanningConfiguration": &ecr.GetRegistryScanningConfigurationInput{},
		"PutRegistryScanningConfiguration": &ecr.PutRegistryScanningConfigurationInput{},

		"ListImageReferrers": &ecr.ListImageReferrersInput{RepositoryName: repo, SubjectId: &types.SubjectIdentifier{ImageDigest: str(nowhere)}},
	}
}

// sdkServerExceptions has a host that fails: clients learn that, and not why.
func sdkServerExceptions(t *testing.T, log *sdkLog) {
	h := hostECR(t, func(h *host) {
		h.api.Identify = func(*http.Request) (pullthrough.Identity, error) {
			return pullthrough.Identity{}, errors.New("canary: the disk is full")
		}
	})
	for _, op := range operations() {
		_, err := op.do(t.Context(), log.client(h.url), validInputs()[op.name])
		e, ok := errors.AsType[*types.ServerException](err)
		require.True(t, ok, "%s: %v", op.name, err)
		assert.Equal(t, "Internal error.", e.ErrorMessage())
		assert.NotContains(t, err.Error(), "canary")
		answer, ok := errors.AsType[*awshttp.ResponseError](err)
		require.True(t, ok)
		assert.Equal(t, http.StatusInternalServerError, answer.HTTPStatusCode())
		assert.NotEmpty(t, answer.ServiceRequestID())
	}
}

// sdkInvalidParameters breaks a constraint of the model in each operation.
func sdkInvalidParameters(t *testing.T, log *sdkLog) {
	f := startAWS(t, log)
	for _, op := range operations() {
		t.Run(op.name, func(t *testing.T) {
			in := validInputs()[op.name]
			if op.in.NumField() == 0 {
				return // nothing can be wrong with it
			}
			message := spoil(in)
			require.NotEmpty(t, message)
			_, err := op.do(t.Context(), f.Client, in)
			assertException[*types.InvalidParameterException](t, err, message)
		})
	}
}

const tooMuch = "Member must have value less than or equal to "

// spoil breaks a constraint of one member, and returns ECR's sentence for it.
func spoil(in any) (message string) {
	const arnPattern = `Member must satisfy regular expression pattern: ^arn:aws(-[a-z]+)*:iam::[0-9]{12}:(role|user)/[\w+=,.@-]+(/[\w+=,.@-]+)*$`
	upper, thousand := str("Quay"), aws.Int32(1001)
	switch in := in.(type) {
	case *ecr.CreatePullThroughCacheRuleInput:
		in.EcrRepositoryPrefix, message = str(strings.Repeat("a", 31)), constraint("ecrRepositoryPrefix", tooLong+"30")
	case *ecr.DescribePullThroughCacheRulesInput:
		in.EcrRepositoryPrefixes, message = []string{}, constraint("ecrRepositoryPrefixes", tooShort+"1")
	case *ecr.UpdatePullThroughCacheRuleInput:
		in.EcrRepositoryPrefix, message = upper, constraint("ecrRepositoryPrefix", rulePattern)
	case *ecr.DeletePullThroughCacheRuleInput:
		in.EcrRepositoryPrefix, message = str("a"), constraint("ecrRepositoryPrefix", tooShort+"2")
	case *ecr.ValidatePullThroughCacheRuleInput:
		in.RegistryId, message = str("1"), constraint("registryId", "Member must satisfy regular expression pattern: [0-9]{12}")
	case *ecr.CreateRepositoryCreationTemplateInput:
		in.Description, message = str(strings.Repeat("é", 257)), constraint("description", tooLong+"256")
	case *ecr.DescribeRepositoryCreationTemplatesInput:
		in.MaxResults, message = thousand, constraint("maxResults", tooMuch+"1000")
	case *ecr.UpdateRepositoryCreationTemplateInput:
		in.Prefix, message = upper, constraint("prefix", rulePattern)
	case *ecr.DeleteRepositoryCreationTemplateInput:
		in.Prefix, message = str(""), constraint("prefix", tooShort+"1")
	case *ecr.RegisterPullTimeUpdateExclusionInput:
		in.PrincipalArn, message = str("*"), constraint("principalArn", arnPattern)
	case *ecr.DeregisterPullTimeUpdateExclusionInput:
		in.PrincipalArn, message = str(strings.Repeat("a", 201)), constraint("principalArn", tooLong+"200")
	case *ecr.ListPullTimeUpdateExclusionsInput:
		in.NextToken, message = str("x"), constraint("nextToken", "Member must be a token that this operation has returned")
	default:
		return spoilImages(in)
	}
	return message
}

// spoilImages is spoil for the operations on images.
func spoilImages(in any) (message string) {
	const repoPattern = `Member must satisfy regular expression pattern: [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`
	switch in := in.(type) {
	case *ecr.GetAuthorizationTokenInput:
		forRegistries(in, make([]string, 11))
		message = constraint("registryIds", tooLong+"10")
	case *ecr.DescribeRepositoriesInput:
		in.RepositoryNames, in.MaxResults = []string{"ab"}, aws.Int32(1)
		message = "The parameters 'nextToken' and 'maxResults' cannot be used together with 'repositoryNames'"
	case *ecr.DescribeImagesInput:
		in.ImageIds, message = []types.ImageIdentifier{{}}, constraint("imageIds.1.member", "Member must have an imageDigest or an imageTag")
	case *ecr.ListImagesInput:
		in.Filter, message = &types.ListImagesFilter{TagStatus: "NONE"}, constraint("filter.tagStatus", "Member must satisfy enum value set: [TAGGED, UNTAGGED, ANY]")
	case *ecr.BatchGetImageInput:
		in.RepositoryName, message = str("Quay"), constraint("repositoryName", repoPattern)
	case *ecr.GetDownloadUrlForLayerInput:
		in.LayerDigest, message = str("x"), constraint("layerDigest", "Member must satisfy regular expression pattern: [a-zA-Z0-9-_+.]+:[a-fA-F0-9]+")
	case *ecr.BatchCheckLayerAvailabilityInput:
		in.LayerDigests, message = make([]string, 101), constraint("layerDigests", tooLong+"100")
	case *ecr.BatchDeleteImageInput:
		in.ImageIds, message = make([]types.ImageIdentifier, 101), constraint("imageIds", tooLong+"100")
	case *ecr.DeleteRepositoryInput:
		in.RepositoryName, message = str("a"), constraint("repositoryName", tooShort+"2")
	case *ecr.ListImageReferrersInput:
		in.MaxResults, message = aws.Int32(51), constraint("maxResults", tooMuch+"50")
	default:
		return spoilSettings(in)
	}
	return message
}
