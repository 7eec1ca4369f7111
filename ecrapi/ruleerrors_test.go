package ecrapi_test

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

const tooLong = "Member must have length less than or equal to "

// brokenConstraints are requests that break the model, by operation.
var brokenConstraints = map[string]map[string][2]string{ // member and constraint
	"CreatePullThroughCacheRule": {
		`{}`:                            {"ecrRepositoryPrefix", mustNotBeNull},
		`{"ecrRepositoryPrefix":"hub"}`: {"upstreamRegistryUrl", mustNotBeNull},
		`{"ecrRepositoryPrefix":null,"upstreamRegistryUrl":"quay.io"}`:                   {"ecrRepositoryPrefix", mustNotBeNull},
		`{"ecrRepositoryPrefix":"","upstreamRegistryUrl":"quay.io"}`:                     {"ecrRepositoryPrefix", "Member must have length greater than or equal to 2"},
		`{"ecrRepositoryPrefix":"Hub","upstreamRegistryUrl":"quay.io"}`:                  {"ecrRepositoryPrefix", prefixPattern},
		`{"ecrRepositoryPrefix":"1234567890123456789012345678901"}`:                      {"ecrRepositoryPrefix", tooLong + "30"},
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"quay.io","registryId":"1"}`: {"registryId", "Member must satisfy regular expression pattern: [0-9]{12}"},
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"quay.io","upstreamRepositoryPrefix":""}`: {
			"upstreamRepositoryPrefix", "Member must have length greater than or equal to 2",
		},
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"quay.io","upstreamRegistry":""}`: {
			"upstreamRegistry", "Member must satisfy enum value set: [ecr, ecr-public, quay, k8s, docker-hub, github-container-registry, " +
				"azure-container-registry, gitlab-container-registry, chainguard]",
		},
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"ghcr.io","credentialArn":""}`:                                  {"credentialArn", "Member must have length greater than or equal to 50"},
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"ghcr.io","customRoleArn":"` + strings.Repeat("r", 2049) + `"}`: {"customRoleArn", tooLong + "2048"},
	},
	"DescribePullThroughCacheRules": {
		`{"ecrRepositoryPrefixes":[]}`:                                           {"ecrRepositoryPrefixes", "Member must have length greater than or equal to 1"},
		`{"ecrRepositoryPrefixes":[` + strings.Repeat(`"hub",`, 100) + `"hub"]}`: {"ecrRepositoryPrefixes", tooLong + "100"},
		`{"ecrRepositoryPrefixes":["hub","H"]}`:                                  {"ecrRepositoryPrefixes", "Member must satisfy constraint: [Member must have length greater than or equal to 2]"},
		`{"ecrRepositoryPrefixes":[null]}`:                                       {"ecrRepositoryPrefixes", "Member must satisfy constraint: [Member must have length greater than or equal to 2]"},
		`{"registryId":"12345678901x"}`:                                          {"registryId", "Member must satisfy regular expression pattern: [0-9]{12}"},
		`{"maxResults":0}`:                                                       {"maxResults", "Member must have value greater than or equal to 1"},
		`{"maxResults":1001}`:                                                    {"maxResults", "Member must have value less than or equal to 1000"},
	},
	"UpdatePullThroughCacheRule": {
		`{}`:                            {"ecrRepositoryPrefix", mustNotBeNull},
		`{"ecrRepositoryPrefix":"Hub"}`: {"ecrRepositoryPrefix", prefixPattern},
		`{"ecrRepositoryPrefix":"hub","credentialArn":"arn"}`:                               {"credentialArn", "Member must have length greater than or equal to 50"},
		`{"ecrRepositoryPrefix":"hub","customRoleArn":"` + strings.Repeat("r", 2049) + `"}`: {"customRoleArn", tooLong + "2048"},
		`{"ecrRepositoryPrefix":"hub","registryId":""}`:                                     {"registryId", "Member must satisfy regular expression pattern: [0-9]{12}"},
	},
	"DeletePullThroughCacheRule": {
		`{}`:                          {"ecrRepositoryPrefix", mustNotBeNull},
		`{"ecrRepositoryPrefix":"a"}`: {"ecrRepositoryPrefix", "Member must have length greater than or equal to 2"},
		`{"ecrRepositoryPrefix":"hub","registryId":"0"}`: {"registryId", "Member must satisfy regular expression pattern: [0-9]{12}"},
	},
	"ValidatePullThroughCacheRule": {
		`{}`:                             {"ecrRepositoryPrefix", mustNotBeNull},
		`{"ecrRepositoryPrefix":"a..b"}`: {"ecrRepositoryPrefix", prefixPattern},
		`{"ecrRepositoryPrefix":"hub","registryId":"0"}`: {"registryId", "Member must satisfy regular expression pattern: [0-9]{12}"},
	},
}

func TestBrokenConstraints(t *testing.T) {
	api := start(t, &ecrapi.API{})
	for op, requests := range brokenConstraints {
		for body, want := range requests {
			api.fails(t, op, body, "InvalidParameterException", constraint(want[0], want[1]))
		}
	}
	rules, err := api.api.Rules(t.Context(), "", "")
	require.NoError(t, err)
	assert.Empty(t, rules)
}

// Each operation about rules answers the exceptions that the API model declares for it, and
// no other one, whatever it is sent.
func TestEachOperationHasItsExceptions(t *testing.T) {
	const invalid, notFound = "InvalidParameterException", "PullThroughCacheRuleNotFoundException"
	secrets := []string{"SecretNotFoundException", "UnableToAccessSecretException", "UnableToDecryptSecretValueException"}
	declared := map[string][]string{
		"CreatePullThroughCacheRule":    append([]string{invalid, "LimitExceededException", "PullThroughCacheRuleAlreadyExistsException", "UnsupportedUpstreamRegistryException"}, secrets...),
		"DescribePullThroughCacheRules": {invalid, notFound},
		"UpdatePullThroughCacheRule":    append([]string{invalid, notFound}, secrets...),
		"DeletePullThroughCacheRule":    {invalid, notFound},
		"ValidatePullThroughCacheRule":  {invalid, notFound},
	}
	v := &vault{content: goodSecret}
	c := start(t, &ecrapi.API{Secrets: v.secret})
	seen := map[string]map[string]bool{}
	send := func(op, body string) {
		resp, answer := c.send(t, target+op, body)
		if resp.StatusCode != http.StatusOK {
			if seen[op] == nil {
				seen[op] = map[string]bool{}
			}
			seen[op][parse(t, answer)["__type"].(string)] = true
		}
	}
	private := `{"ecrRepositoryPrefix":"private","upstreamRegistryUrl":"ghcr.io","credentialArn":"` + secret + `"}`
	send("CreatePullThroughCacheRule", private)
	c.create(t, "hub")
	for op, broken := range brokenConstraints {
		for body := range broken {
			send(op, body)
		}
		send(op, `{"ecrRepositoryPrefix":"gone","ecrRepositoryPrefixes":["gone"],"upstreamRegistryUrl":"docker.io","credentialArn":"`+secret+`"}`)
		for _, r := range refusals {
			for _, prefix := range []string{"hub", "private"} { // a URL is Create's alone
				send(op, strings.Replace(r.request, `"hub"`, `"`+prefix+`"`, 1))
			}
		}
		for _, e := range secretErrors {
			v.err = e.err
			send(op, strings.Replace(private, `"private"`, `"other"`, 1))
			if op != "DeletePullThroughCacheRule" {
				send(op, private)
			}
			v.err = nil
		}
		send("CreatePullThroughCacheRule", private)
	}
	for i := range 51 {
		send("CreatePullThroughCacheRule", object("ecrRepositoryPrefix", fmt.Sprint("more", i), "upstreamRegistryUrl", "quay.io"))
	}
	for op, want := range declared {
		assert.ElementsMatch(t, want, slices.Collect(maps.Keys(seen[op])), op)
	}
}

// refusals are requests that Create refuses, as Rule.Validate does, whose table is
// tested there: exception and message come through.
var refusals = map[string]struct{ request, code, message string }{
	"a URL that ECR does not know": {
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"registry.example.com"}`,
		"UnsupportedUpstreamRegistryException", "The upstream registry URL registry.example.com is invalid. Specify a valid upstream registry URL and try again",
	},
	"no URL": {
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":""}`,
		"UnsupportedUpstreamRegistryException", "The upstream registry URL  is invalid. Specify a valid upstream registry URL and try again",
	},
	"ECR in China": {
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"111122223333.dkr.ecr.cn-north-1.amazonaws.com.cn"}`,
		"UnsupportedUpstreamRegistryException", "The upstream registry URL 111122223333.dkr.ecr.cn-north-1.amazonaws.com.cn is invalid. Specify a valid upstream registry URL and try again",
	},
	"Docker Hub without a secret":      {`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"registry-1.docker.io"}`, "UnsupportedUpstreamRegistryException", sayNeedsSecret},
	"GHCR without a secret":            {`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"ghcr.io"}`, "UnsupportedUpstreamRegistryException", sayNeedsSecret},
	"an open registry with a secret":   {`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"quay.io","credentialArn":"` + secret + `"}`, "UnsupportedUpstreamRegistryException", "The specified upstream registry doesn't require authentication."},
	"an open registry with a role":     {`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"quay.io","customRoleArn":"` + role + `"}`, "InvalidParameterException", sayCredentialType},
	"a registry by secret with a role": {`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"ghcr.io","customRoleArn":"` + role + `"}`, "InvalidParameterException", sayCredentialType},
	"ECR with a secret": {
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"111122223333.dkr.ecr.us-east-1.amazonaws.com","credentialArn":"` + secret + `"}`, "InvalidParameterException", sayCredentialType,
	},
	"another registry's name": {
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"ghcr.io","upstreamRegistry":"docker-hub","credentialArn":"` + secret + `"}`,
		"InvalidParameterException", "Invalid input: Upstream registry URL and entered upstream registry do not match. Please verify input and try again.",
	},
	"this very registry": {
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"123456789012.dkr.ecr.us-east-1.amazonaws.com"}`,
		"InvalidParameterException", "Upstream registry URL cannot be the same as the cache registry.",
	},
	"ROOT with an upstream prefix": {
		`{"ecrRepositoryPrefix":"ROOT","upstreamRegistryUrl":"quay.io","upstreamRepositoryPrefix":"up"}`,
		"InvalidParameterException", "A pull through cache rule with the prefix ROOT takes no upstream repository prefix but ROOT.",
	},
	"a secret in another Region":  {`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"ghcr.io","credentialArn":"` + strings.Replace(secret, region, "eu-west-1", 1) + `"}`, "SecretNotFoundException", saySecretElsewhere},
	"a secret in another account": {`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"ghcr.io","credentialArn":"` + strings.Replace(secret, account, "111122223333", 1) + `"}`, "SecretNotFoundException", saySecretElsewhere},
}

const (
	sayNeedsSecret     = "The specified upstream registry requires authentication. Specify a valid Secrets Manager ARN containing the upstream registry credentials and try again."
	sayCredentialType  = "Upstream registry URL and provided credential type do not match."
	sayEmptyUpdate     = "Invalid input: Please set either credential arn or role arn to update the credentials"
	saySecretElsewhere = "The ARN of the secret specified in the pull through cache rule was not found. Please verify the secret exists in the same region and account that the pullthrough cache rule will be created in"
)

// refused is the test of some of refusals.
func refused(names ...string) func(*testing.T) {
	return func(t *testing.T) {
		api := start(t, &ecrapi.API{})
		for _, name := range names {
			c, ok := refusals[name]
			require.True(t, ok, name)
			api.fails(t, "CreatePullThroughCacheRule", c.request, c.code, c.message)
		}
		api.ok(t, "DescribePullThroughCacheRules", "{}", `{"pullThroughCacheRules":[]}`)
	}
}

func TestRulesThatDoNotExist(t *testing.T) {
	api := start(t, &ecrapi.API{})
	api.create(t, "hub")
	for _, op := range []string{"UpdatePullThroughCacheRule", "DeletePullThroughCacheRule", "ValidatePullThroughCacheRule"} {
		for _, prefix := range []string{"gone", "hub/x", "hu", "ROOT"} {
			api.fails(t, op, object("ecrRepositoryPrefix", prefix), "PullThroughCacheRuleNotFoundException", noSuchRule(prefix))
		}
	}
}

// region-error: the check is off by default.
func TestRegionsWithoutPullThroughCache(t *testing.T) {
	for _, where := range []string{"cn-north-1", "cn-northwest-1", "us-gov-east-1", "us-gov-west-1"} {
		start(t, &ecrapi.API{Region: where}).create(t, "hub")
		api := start(t, &ecrapi.API{Region: where, CheckRegion: true})
		for _, op := range allOperations[:5] {
			api.fails(t, op, object("ecrRepositoryPrefix", "hub", "upstreamRegistryUrl", "quay.io"), "InvalidParameterException", "This feature is disabled")
		}
	}
	start(t, &ecrapi.API{CheckRegion: true}).create(t, "hub")
}

// updates are requests of Update, an hour after Create, with what they answer.
var updates = map[string]struct{ request, answer string }{
	"another secret": {
		`{"ecrRepositoryPrefix":"hub","credentialArn":"` + secret2 + `"}`,
		`{"ecrRepositoryPrefix":"hub","registryId":"123456789012","updatedAt":946688400,"credentialArn":"` + secret2 + `","upstreamRepositoryPrefix":"up"}`,
	},
	"what is fixed": {
		`{"ecrRepositoryPrefix":"hub","credentialArn":"` + secret2 + `","upstreamRegistryUrl":"cgr.dev","upstreamRegistry":"chainguard","upstreamRepositoryPrefix":"else"}`,
		`{"ecrRepositoryPrefix":"hub","registryId":"123456789012","updatedAt":946688400,"credentialArn":"` + secret2 + `","upstreamRepositoryPrefix":"up"}`,
	},
	"a role":  {`{"ecrRepositoryPrefix":"near","customRoleArn":"` + role + `"}`, `{"ecrRepositoryPrefix":"near","registryId":"123456789012","updatedAt":946688400,"customRoleArn":"` + role + `"}`},
	"no role": {`{"ecrRepositoryPrefix":"far","customRoleArn":""}`, `{"ecrRepositoryPrefix":"far","registryId":"123456789012","updatedAt":946688400}`},
}

// updated is the test of some of updates.
func updated(names ...string) func(*testing.T) {
	return func(t *testing.T) {
		for _, name := range names {
			c, ok := updates[name]
			require.True(t, ok, name)
			api := start(t, &ecrapi.API{})
			api.create(t, "open")
			for _, request := range []string{
				object("ecrRepositoryPrefix", "hub", "upstreamRegistryUrl", "ghcr.io", "upstreamRepositoryPrefix", "up", "credentialArn", secret),
				object("ecrRepositoryPrefix", "near", "upstreamRegistryUrl", "111122223333.dkr.ecr.us-east-1.amazonaws.com"),
				object("ecrRepositoryPrefix", "far", "upstreamRegistryUrl", "111122223333.dkr.ecr.us-east-1.amazonaws.com", "customRoleArn", role),
			} {
				resp, body := api.send(t, target+"CreatePullThroughCacheRule", request)
				require.Equal(t, 200, resp.StatusCode, body)
			}
			prefix := parse(t, c.answer)["ecrRepositoryPrefix"].(string)
			before := api.described(t, prefix)
			api.now = epoch.Add(time.Hour)
			api.ok(t, "UpdatePullThroughCacheRule", c.request, c.answer)
			for _, member := range []string{"credentialArn", "customRoleArn", "updatedAt"} { // no other changes
				delete(before, member)
				if v, there := parse(t, c.answer)[member]; there {
					before[member] = v
				}
			}
			assert.Equal(t, before, api.described(t, prefix))
		}
	}
}

// described is a rule as Describe has it.
func (c *client) described(t *testing.T, prefix string) map[string]any {
	t.Helper()
	_, body := c.send(t, target+"DescribePullThroughCacheRules", `{"ecrRepositoryPrefixes":["`+prefix+`"]}`)
	rules, _ := parse(t, body)["pullThroughCacheRules"].([]any)
	require.Len(t, rules, 1, body)
	return rules[0].(map[string]any)
}

func TestUpdateRefuses(t *testing.T) {
	api := start(t, &ecrapi.API{})
	_, _ = api.send(t, target+"CreatePullThroughCacheRule", object("ecrRepositoryPrefix", "hub", "upstreamRegistryUrl", "ghcr.io", "credentialArn", secret))
	api.create(t, "open")
	before, err := api.api.Rules(t.Context(), "", "")
	require.NoError(t, err)
	api.now = epoch.Add(time.Hour)
	for body, want := range map[string][2]string{
		`{"ecrRepositoryPrefix":"hub","customRoleArn":"` + role + `"}`:                                   {"InvalidParameterException", "Upstream registry URL and provided credential type do not match."},
		`{"ecrRepositoryPrefix":"open","customRoleArn":"` + role + `"}`:                                  {"InvalidParameterException", "Upstream registry URL and provided credential type do not match."},
		`{"ecrRepositoryPrefix":"open","credentialArn":"` + secret + `"}`:                                {"InvalidParameterException", "The specified upstream registry doesn't require authentication."},
		`{"ecrRepositoryPrefix":"hub"}`:                                                                  {"InvalidParameterException", sayEmptyUpdate},
		`{"ecrRepositoryPrefix":"open","upstreamRegistryUrl":"quay.io"}`:                                 {"InvalidParameterException", sayEmptyUpdate},
		`{"ecrRepositoryPrefix":"hub","credentialarn":"` + secret2 + `","CustomRoleArn":"` + role + `"}`: {"InvalidParameterException", sayEmptyUpdate},
		`{"ecrRepositoryPrefix":"hub","credentialArn":"` + strings.Replace(secret, account, "111122223333", 1) + `"}`: {
			"SecretNotFoundException", saySecretElsewhere,
		},
	} {
		api.fails(t, "UpdatePullThroughCacheRule", body, want[0], want[1])
	}
	after, err := api.api.Rules(t.Context(), "", "")
	require.NoError(t, err)
	assert.Equal(t, before, after, "nothing has changed, not even a time")
}

// A rule that the host made may name any upstream, and its credential can be updated.
func TestUpdateOfARuleThatCreateWouldRefuse(t *testing.T) {
	state := &ecrapi.MemState{}
	require.NoError(t, state.Update(t.Context(), account, region, func(s *ecrapi.Settings) error {
		s.Rules = []pullthrough.Rule{{Prefix: "mine", UpstreamURL: "http://127.0.0.1:5000"}}
		return nil
	}))
	api := start(t, &ecrapi.API{State: state})
	api.ok(t, "UpdatePullThroughCacheRule", object("ecrRepositoryPrefix", "mine", "credentialArn", secret),
		`{"ecrRepositoryPrefix":"mine","registryId":"123456789012","updatedAt":946684800,"credentialArn":"`+secret+`"}`)
	api.ok(t, "DescribePullThroughCacheRules", `{}`, `{"pullThroughCacheRules":[{"ecrRepositoryPrefix":"mine","upstreamRegistryUrl":"http://127.0.0.1:5000",
		"registryId":"123456789012","updatedAt":946684800,"credentialArn":"`+secret+`"}]}`)
}
