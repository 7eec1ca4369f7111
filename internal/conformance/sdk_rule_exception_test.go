package conformance_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecr/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	hubURL         = "registry-1.docker.io"
	rulePattern    = `Member must satisfy regular expression pattern: ^([a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*\/?|ROOT)$`
	tooShort       = "Member must have length greater than or equal to "
	tooLong        = "Member must have length less than or equal to "
	secretNotFound = "The ARN of the secret specified in the pull through cache rule was not found. Update the pull through cache rule with a valid secret ARN and try again."
)

// sdkRuleExceptions asks for rules that Create refuses, in ECR's words where they
// are known.
func sdkRuleExceptions(t *testing.T, log *sdkLog) {
	f := startAWS(t, log)
	create := func(url string, change func(*ecr.CreatePullThroughCacheRuleInput)) error {
		in := &ecr.CreatePullThroughCacheRuleInput{EcrRepositoryPrefix: str("some"), UpstreamRegistryUrl: &url}
		if change != nil {
			change(in)
		}
		_, err := f.CreatePullThroughCacheRule(t.Context(), in)
		return err
	}
	withSecret := func(arn string) func(*ecr.CreatePullThroughCacheRuleInput) {
		return func(in *ecr.CreatePullThroughCacheRuleInput) { in.CredentialArn = &arn }
	}
	for _, url := range []string{"registry.example.com", "docker.io", "https://public.ecr.aws", "Quay.io", "mcr.microsoft.com", "000000000000.dkr.ecr.us-east-1.amazonaws.com.cn"} {
		assertException[*types.UnsupportedUpstreamRegistryException](t, create(url, nil),
			"The upstream registry URL "+url+" is invalid. Specify a valid upstream registry URL and try again")
	}
	for _, url := range []string{hubURL, "ghcr.io", "registry.gitlab.com", "cgr.dev", "some.azurecr.io"} {
		assertException[*types.UnsupportedUpstreamRegistryException](t, create(url, nil),
			"The specified upstream registry requires authentication. Specify a valid Secrets Manager ARN containing the upstream registry credentials and try again.")
	}
	for _, url := range []string{"quay.io", "public.ecr.aws", "registry.k8s.io"} {
		assertException[*types.UnsupportedUpstreamRegistryException](t, create(url, withSecret(hubARN)),
			"The specified upstream registry doesn't require authentication.")
	}
	assertException[*types.InvalidParameterException](t, create("ghcr.io", func(in *ecr.CreatePullThroughCacheRuleInput) {
		in.UpstreamRegistry, in.CredentialArn = types.UpstreamRegistryDockerHub, str(hubARN)
	}), "Invalid input: Upstream registry URL and entered upstream registry do not match. Please verify input and try again.")
	assertException[*types.InvalidParameterException](t, create("quay.io", func(in *ecr.CreatePullThroughCacheRuleInput) { in.CustomRoleArn = str(roleARN) }),
		"Upstream registry URL and provided credential type do not match.")
	assertException[*types.InvalidParameterException](t, create(sdkAccount+".dkr.ecr."+sdkRegion+".amazonaws.com", nil),
		"Upstream registry URL cannot be the same as the cache registry.")
	assertException[*types.SecretNotFoundException](t, create(hubURL, withSecret(strings.Replace(hubARN, sdkRegion, "eu-west-1", 1))),
		"The ARN of the secret specified in the pull through cache rule was not found. Please verify the secret exists in the same region and account that the pullthrough cache rule will be created in")
	assertException[*types.SecretNotFoundException](t, create(hubURL, withSecret(secretARNs+"ecr-pullthroughcache/nothing")), secretNotFound)
	assertException[*types.InvalidParameterException](t, create(hubURL, withSecret(secretARNs+"other/secret-with-a-name")),
		constraint("credentialArn", `Member must satisfy regular expression pattern: ^arn:aws(-\w+)*:secretsmanager:[a-zA-Z0-9-:]+:secret:ecr\-pullthroughcache\/[a-zA-Z0-9\/_+=.@-]+$`))
	described(t, f, nil, []types.PullThroughCacheRule{}...)
}

// sdkRuleLimits fills a registry with rules.
func sdkRuleLimits(t *testing.T, log *sdkLog) {
	f := startAWS(t, log)
	const quota = 50
	for i := range quota {
		createQuay(t, f, fmt.Sprintf("rule-%02d", i))
	}
	_, err := f.CreatePullThroughCacheRule(t.Context(), &ecr.CreatePullThroughCacheRuleInput{EcrRepositoryPrefix: str("more"), UpstreamRegistryUrl: str("quay.io")})
	assertException[*types.LimitExceededException](t, err, "The registry with id '123456789012' has 50 pull through cache rules already, which is as many as there may be")
	for _, taken := range []string{"rule-07", "rule-07/"} {
		_, err = f.CreatePullThroughCacheRule(t.Context(), &ecr.CreatePullThroughCacheRuleInput{EcrRepositoryPrefix: &taken, UpstreamRegistryUrl: str("quay.io")})
		assertException[*types.PullThroughCacheRuleAlreadyExistsException](t, err,
			"The pull through cache rule with repository prefix '"+taken+"' already exists in the registry with id '123456789012'")
	}
	out, err := f.DescribePullThroughCacheRules(t.Context(), nil)
	require.NoError(t, err)
	assert.Len(t, out.PullThroughCacheRules, quota)
}

// sdkMissingRules asks each operation for a rule that is not there.
func sdkMissingRules(t *testing.T, log *sdkLog) {
	f, none := startAWS(t, log), str("none")
	createQuay(t, f, "quay")
	_, err := f.DescribePullThroughCacheRules(t.Context(), &ecr.DescribePullThroughCacheRulesInput{EcrRepositoryPrefixes: []string{"quay", "none"}})
	assertException[*types.PullThroughCacheRuleNotFoundException](t, err, noSuchRule("none"))
	_, err = f.UpdatePullThroughCacheRule(t.Context(), &ecr.UpdatePullThroughCacheRuleInput{EcrRepositoryPrefix: none, CredentialArn: str(hubARN)})
	assertException[*types.PullThroughCacheRuleNotFoundException](t, err, noSuchRule("none"))
	_, err = f.DeletePullThroughCacheRule(t.Context(), &ecr.DeletePullThroughCacheRuleInput{EcrRepositoryPrefix: none})
	assertException[*types.PullThroughCacheRuleNotFoundException](t, err, noSuchRule("none"))
	_, err = f.ValidatePullThroughCacheRule(t.Context(), &ecr.ValidatePullThroughCacheRuleInput{EcrRepositoryPrefix: none})
	assertException[*types.PullThroughCacheRuleNotFoundException](t, err, noSuchRule("none"))

	_, err = f.UpdatePullThroughCacheRule(t.Context(), &ecr.UpdatePullThroughCacheRuleInput{EcrRepositoryPrefix: str("quay"), CredentialArn: str(hubARN)})
	assertException[*types.InvalidParameterException](t, err, "The specified upstream registry doesn't require authentication.")
	_, err = f.CreatePullThroughCacheRule(t.Context(), &ecr.CreatePullThroughCacheRuleInput{EcrRepositoryPrefix: str("hub"), UpstreamRegistryUrl: str(hubURL), CredentialArn: str(hubARN)})
	require.NoError(t, err)
	_, err = f.UpdatePullThroughCacheRule(t.Context(), &ecr.UpdatePullThroughCacheRuleInput{EcrRepositoryPrefix: str("hub"), CredentialArn: str(secretARNs + "ecr-pullthroughcache/nothing")})
	assertException[*types.SecretNotFoundException](t, err, secretNotFound)
}
