package ecr_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
)

const (
	ruleAccount = "123456789012"
	ruleRegion  = "us-east-1"
	ruleSecret  = "arn:aws:secretsmanager:us-east-1:123456789012:secret:ecr-pullthroughcache/hub-AbCdEf"
	ruleRole    = "arn:aws:iam::123456789012:role/pull"
)

// upstreamRows are the rows of the truth table of CreatePullThroughCacheRule: URL,
// name of the upstream registry, and which credentials may stand in the rule.
var upstreamRows = map[string]struct {
	urls                   []string
	bare, secret, withRole bool // without a credential, with a secret, with a role
}{
	"ecr-public":                {[]string{"public.ecr.aws"}, true, false, false},
	"k8s":                       {[]string{"registry.k8s.io"}, true, false, false},
	"quay":                      {[]string{"quay.io"}, true, false, false},
	"docker-hub":                {[]string{"registry-1.docker.io"}, false, true, false},
	"github-container-registry": {[]string{"ghcr.io"}, false, true, false},
	"gitlab-container-registry": {[]string{"registry.gitlab.com"}, false, true, false},
	"chainguard":                {[]string{"cgr.dev"}, false, true, false},
	"azure-container-registry":  {[]string{"myregistry.azurecr.io", "a.azurecr.io", "my-registry.azurecr.io", "a.b.azurecr.io"}, false, true, false},
	"ecr": {[]string{
		"123456789012.dkr.ecr.eu-west-1.amazonaws.com", // the same account in another Region
		"111122223333.dkr.ecr.us-east-1.amazonaws.com", // cross-account-no-role: Create accepts
		"111122223333.dkr.ecr.us-gov-west-1.amazonaws.com",
	}, true, false, true},
}

func TestValidateUpstreams(t *testing.T) {
	for registry, row := range upstreamRows {
		t.Run(registry, func(t *testing.T) {
			for _, url := range row.urls {
				for name, c := range map[string]struct {
					secret, role string
					allowed      bool
				}{
					"without a credential":   {"", "", row.bare},
					"with a secret":          {ruleSecret, "", row.secret},
					"with a role":            {"", ruleRole, row.withRole},
					"with a secret and role": {ruleSecret, ruleRole, false},
				} {
					for _, declared := range []string{"", registry} {
						rule := pullthrough.Rule{Prefix: "hub", UpstreamURL: url, Upstream: declared, CredentialARN: c.secret, CustomRoleARN: c.role}
						assert.Equal(t, c.allowed, rule.Validate(ruleAccount, ruleRegion) == nil, "%s %s %q", url, name, declared)
					}
				}
			}
		})
	}
}

func TestValidateRefusesOtherSpellings(t *testing.T) {
	urls := []string{
		"", " ", "docker.io", "index.docker.io", "hub.docker.com", "mcr.microsoft.com", "gcr.io", "us-docker.pkg.dev", "nvcr.io",
		"docker.elastic.co", "reg.mini.dev", "harbor.example.com", "registry.example.com", "localhost:5000", "http://127.0.0.1:5000",
		".azurecr.io", "azurecr.io", "azurecr.io.example.com", "x.azurecr.io.", "x/y.azurecr.io", "X.azurecr.io", "x y.azurecr.io", "x.azurecr.io\n",
		"123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "12345678901.dkr.ecr.us-east-1.amazonaws.com", "1234567890123.dkr.ecr.us-east-1.amazonaws.com",
		"123456789012.dkr.ecr.us_east.amazonaws.com", "123456789012.dkr.ecr..amazonaws.com", "123456789012.dkr-ecr.us-east-1.amazonaws.com",
		"x123456789012.dkr.ecr.us-east-1.amazonaws.com", "123456789012xdkr.ecr.us-east-1.amazonaws.com",
	}
	for _, row := range upstreamRows {
		for _, url := range row.urls {
			urls = append(urls, "https://"+url, "http://"+url, url+"/", url+"/docker/library", url+":443", strings.ToUpper(url), " "+url, url+" ", url+".", "x"+strings.TrimLeft(url, "0123456789"))
		}
	}
	for _, url := range urls {
		if strings.HasPrefix(url, "x") && strings.HasSuffix(url, ".azurecr.io") && !strings.ContainsAny(url, "/ ") {
			continue // x before the name of one is another one
		}
		rule := pullthrough.Rule{Prefix: "hub", UpstreamURL: url, CredentialARN: ruleSecret}
		assertRefused(t, rule, "UnsupportedUpstreamRegistryException", "The upstream registry URL "+url+" is invalid. Specify a valid upstream registry URL and try again")
	}
}

func TestARefusedURLIsNotRepeatedWithItsPassword(t *testing.T) {
	err := pullthrough.Rule{Prefix: "hub", UpstreamURL: "https://user:canary@quay.io?token=canary"}.Validate(ruleAccount, ruleRegion)
	require.Error(t, err)
	_, _, message := pullthrough.AWS(err, "CreatePullThroughCacheRule")
	assert.NotContains(t, message+err.Error(), "canary")
	assert.Contains(t, message, "quay.io")
}

// messageRows are the rows of the table of Create's errors that a rule alone can cause.
var messageRows = map[string]struct {
	rule               pullthrough.Rule
	exception, message string
}{
	"URL unknown": {
		pullthrough.Rule{Prefix: "hub", UpstreamURL: "registry.example.com"}, "UnsupportedUpstreamRegistryException",
		"The upstream registry URL registry.example.com is invalid. Specify a valid upstream registry URL and try again",
	},
	"secret class without credentialArn": {
		pullthrough.Rule{Prefix: "hub", UpstreamURL: "registry-1.docker.io"}, "UnsupportedUpstreamRegistryException",
		"The specified upstream registry requires authentication. Specify a valid Secrets Manager ARN containing the upstream registry credentials and try again.",
	},
	"open class with credentialArn": {
		pullthrough.Rule{Prefix: "hub", UpstreamURL: "public.ecr.aws", CredentialARN: ruleSecret}, "UnsupportedUpstreamRegistryException",
		"The specified upstream registry doesn't require authentication.",
	},
	"upstreamRegistry differs from a secret-class URL": {
		pullthrough.Rule{Prefix: "hub", UpstreamURL: "ghcr.io", Upstream: "docker-hub", CredentialARN: ruleSecret}, "InvalidParameterException",
		"Invalid input: Upstream registry URL and entered upstream registry do not match. Please verify input and try again.",
	},
	"upstreamRegistry differs from an open URL": {rule: pullthrough.Rule{Prefix: "hub", UpstreamURL: "quay.io", Upstream: "docker-hub"}},
	"customRoleArn with a non-ECR URL": {
		pullthrough.Rule{Prefix: "hub", UpstreamURL: "ghcr.io", CustomRoleARN: ruleRole}, "InvalidParameterException",
		"Upstream registry URL and provided credential type do not match.",
	},
	"credentialArn with an ECR URL": {
		pullthrough.Rule{Prefix: "hub", UpstreamURL: "111122223333.dkr.ecr.us-east-1.amazonaws.com", CredentialARN: ruleSecret}, "InvalidParameterException",
		"Upstream registry URL and provided credential type do not match.",
	},
	"URL is this very registry": {
		pullthrough.Rule{Prefix: "hub", UpstreamURL: "123456789012.dkr.ecr.us-east-1.amazonaws.com"}, "InvalidParameterException",
		"Upstream registry URL cannot be the same as the cache registry.",
	},
	"secret in another Region": {
		pullthrough.Rule{Prefix: "hub", UpstreamURL: "ghcr.io", CredentialARN: strings.Replace(ruleSecret, "us-east-1", "eu-west-1", 1)}, "SecretNotFoundException",
		"The ARN of the secret specified in the pull through cache rule was not found. Please verify the secret exists in the same region and account that the pullthrough cache rule will be created in",
	},
	"secret in another account": {
		pullthrough.Rule{Prefix: "hub", UpstreamURL: "ghcr.io", CredentialARN: strings.Replace(ruleSecret, "123456789012", "111122223333", 1)}, "SecretNotFoundException",
		"The ARN of the secret specified in the pull through cache rule was not found. Please verify the secret exists in the same region and account that the pullthrough cache rule will be created in",
	},
	"ROOT with another upstream prefix": {
		pullthrough.Rule{Prefix: "ROOT", UpstreamURL: "quay.io", UpstreamPrefix: "team"}, "InvalidParameterException",
		"A pull through cache rule with the prefix ROOT takes no upstream repository prefix but ROOT.",
	},
	"constraint of upstreamRegistry": {
		pullthrough.Rule{Prefix: "hub", UpstreamURL: "quay.io", Upstream: "QUAY"}, "InvalidParameterException",
		"Invalid parameter at 'upstreamRegistry' failed to satisfy constraint: 'Member must satisfy enum value set: [ecr, ecr-public, quay, k8s, " +
			"docker-hub, github-container-registry, azure-container-registry, gitlab-container-registry, chainguard]'",
	},
	"constraint of customRoleArn": {
		pullthrough.Rule{Prefix: "hub", UpstreamURL: "quay.io", CustomRoleARN: strings.Repeat("r", 2049)}, "InvalidParameterException",
		"Invalid parameter at 'customRoleArn' failed to satisfy constraint: 'Member must have length less than or equal to 2048'",
	},
}

func TestValidateMessages(t *testing.T) {
	for name, row := range messageRows {
		t.Run(name, func(t *testing.T) {
			if row.exception == "" {
				assert.NoError(t, row.rule.Validate(ruleAccount, ruleRegion))
				return
			}
			assertRefused(t, row.rule, row.exception, row.message)
		})
	}
}

func assertRefused(t *testing.T, rule pullthrough.Rule, exception, message string) {
	t.Helper()
	err := rule.Validate(ruleAccount, ruleRegion)
	if !assert.ErrorIs(t, err, pullthrough.ErrInvalid, "%+v", rule) {
		return
	}
	gotException, failure, gotMessage := pullthrough.AWS(err, "CreatePullThroughCacheRule")
	assert.Equal(t, exception, gotException)
	assert.Equal(t, message, gotMessage)
	assert.Empty(t, failure)
	var typed *pullthrough.Error
	if assert.ErrorAs(t, err, &typed) {
		assert.Equal(t, message, typed.Message)
	}
}

const sayPrefixPattern = `Member must satisfy regular expression pattern: ` +
	`^([a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*\/?|ROOT)$`

func TestValidatePrefixes(t *testing.T) {
	prefixes := map[string]string{ // "": it is one
		"docker.io": "", "k8s-io": "", "cache/docker-hub": "", "a__b/c--d.e": "", "ab": "", "a/": "", "foo/": "", "ROOT": "",
		"tf-test/1234567890123456789012": "", strings.Repeat("a", 29) + "/": "",
		"a": "Member must have length greater than or equal to 2", strings.Repeat("a", 31): "Member must have length less than or equal to 30",
		strings.Repeat("a", 30) + "/": "Member must have length less than or equal to 30",
		"Docker":                      sayPrefixPattern, "ROOT/": sayPrefixPattern, "root!": sayPrefixPattern, "a//b": sayPrefixPattern, "/ab": sayPrefixPattern,
		"a..b": sayPrefixPattern, "a___b": sayPrefixPattern, "ab-": sayPrefixPattern, "ab\n": sayPrefixPattern, "ab//": sayPrefixPattern, "ä€": sayPrefixPattern,
	}
	for _, prefix := range slices.Sorted(maps.Keys(prefixes)) {
		want := prefixes[prefix]
		asPrefix := pullthrough.Rule{Prefix: prefix, UpstreamURL: "quay.io"}
		asUpstream := pullthrough.Rule{Prefix: "hub", UpstreamURL: "quay.io", UpstreamPrefix: prefix}
		if want == "" {
			assert.NoError(t, asPrefix.Validate(ruleAccount, ruleRegion), "%q", prefix)
			assert.NoError(t, asUpstream.Validate(ruleAccount, ruleRegion), "%q", prefix)
			continue
		}
		assertRefused(t, asPrefix, "InvalidParameterException", "Invalid parameter at 'ecrRepositoryPrefix' failed to satisfy constraint: '"+want+"'")
		assertRefused(t, asUpstream, "InvalidParameterException", "Invalid parameter at 'upstreamRepositoryPrefix' failed to satisfy constraint: '"+want+"'")
	}
	assertRefused(t, pullthrough.Rule{UpstreamURL: "quay.io"}, "InvalidParameterException",
		"Invalid parameter at 'ecrRepositoryPrefix' failed to satisfy constraint: 'Member must have length greater than or equal to 2'")
	assert.NoError(t, pullthrough.Rule{Prefix: "ROOT", UpstreamURL: "quay.io", UpstreamPrefix: "ROOT"}.Validate(ruleAccount, ruleRegion))
	assert.NoError(t, pullthrough.Rule{Prefix: "ROOT", UpstreamURL: "quay.io"}.Validate(ruleAccount, ruleRegion))
}

func TestValidateSecretARNs(t *testing.T) {
	const pattern = `Member must satisfy regular expression pattern: ^arn:aws(-\w+)*:secretsmanager:[a-zA-Z0-9-:]+:secret:ecr\-pullthroughcache\/[a-zA-Z0-9\/_+=.@-]+$`
	for arn, want := range map[string]string{ // "": it is one
		"arn:aws:secretsmanager:us-east-1:123456789012:secret:ecr-pullthroughcache/hub-AbCdEf":        "",
		"arn:aws:secretsmanager:us-east-1:123456789012:secret:ecr-pullthroughcache/hub":               "", // without the suffix
		"arn:aws-us-gov:secretsmanager:us-east-1:123456789012:secret:ecr-pullthroughcache/a/b_+=.@-9": "",
		"arn:aws:secretsmanager:us-east-1:123456789012:secret:hub-AbCdEf-and-some-more-letters":       pattern,
		"arn:aws:secretsmanager:us-east-1:123456789012:secret:ecr-pullthroughcache/hub hub":           pattern,
		"arn:aws:secretsmanager:us-east-1:123456789012:secret:ecr-pullthroughcache/hub\n":             pattern,
		"arn:aws:ssm:us-east-1:123456789012:secret:ecr-pullthroughcache/hub-AbCdEf":                   pattern,
		"arn:aws:secretsmanager:x:secret:ecr-pullthroughcache/hub-AbCdEf":                             "elsewhere",
		"arn:aws:secretsmanager:x:y": "Member must have length greater than or equal to 50",
		"arn:aws:secretsmanager:us-east-1:123456789012:secret:ecr-pullthroughcache/" + strings.Repeat("h", 612): "Member must have length less than or equal to 612",
	} {
		rule := pullthrough.Rule{Prefix: "hub", UpstreamURL: "ghcr.io", CredentialARN: arn}
		switch want {
		case "":
			assert.NoError(t, rule.Validate(ruleAccount, ruleRegion), arn)
		case "elsewhere":
			exception, _, _ := pullthrough.AWS(rule.Validate(ruleAccount, ruleRegion), "CreatePullThroughCacheRule")
			assert.Equal(t, "SecretNotFoundException", exception)
		default:
			assertRefused(t, rule, "InvalidParameterException", "Invalid parameter at 'credentialArn' failed to satisfy constraint: '"+want+"'")
		}
	}
}

func TestValidateKnowsNoPlaceThatItIsNotTold(t *testing.T) {
	elsewhere := pullthrough.Rule{Prefix: "hub", UpstreamURL: "ghcr.io", CredentialARN: strings.NewReplacer("us-east-1", "eu-west-1", ruleAccount, "111122223333").Replace(ruleSecret)}
	assert.NoError(t, elsewhere.Validate("", ""))
	assert.Error(t, elsewhere.Validate("", ruleRegion))
	assert.Error(t, elsewhere.Validate(ruleAccount, ""))
	assert.NoError(t, pullthrough.Rule{Prefix: "hub", UpstreamURL: "123456789012.dkr.ecr.us-east-1.amazonaws.com"}.Validate("", ""))
	assert.NoError(t, pullthrough.Rule{Prefix: "hub", UpstreamURL: "quay.io"}.Validate("", ""))
}

// What Create refuses, Update may refuse as well, but only by exceptions that it has.
func TestUpdateHasNoUnsupportedUpstream(t *testing.T) {
	for name, row := range messageRows {
		if row.exception == "" {
			continue
		}
		exception, _, message := pullthrough.AWS(row.rule.Validate(ruleAccount, ruleRegion), "UpdatePullThroughCacheRule")
		assert.Equal(t, strings.Replace(row.exception, "UnsupportedUpstreamRegistry", "InvalidParameter", 1), exception, name)
		assert.Equal(t, row.message, message, name)
	}
}
