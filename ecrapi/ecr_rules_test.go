package ecrapi_test

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var ecrCreate = []trait{
	{"N01", "each operation answers members of its own: `upstreamRegistry` in Create and Describe, `updatedAt` in Describe and Update, the URL in all but Update", "documented", "the same", fromCreateToDelete("with a secret and the registry's name")},
	{"N02", "`credentialArn`, `customRoleArn` and `upstreamRepositoryPrefix` that were left out are absent from answers", "measured", "the same: no `ROOT`, which Terraform would take for a change", fromCreateToDelete("the least")},
	{"N03", "an upstream prefix that was sent as `ROOT` is answered as `ROOT`", "measured", "the same", fromCreateToDelete("ROOT as it was sent")},
	{"N04", "an upstream prefix that was left out of a rule for ECR itself", "chosen, `ecr-upstream-prefix-echo`", "absent from answers, and means `ROOT`", fromCreateToDelete("ECR without an upstream prefix or a role")},
	{"N05", "`upstreamRegistry` in answers", "documented, `upstream-registry-echo`", "what the caller sent, also where it is the wrong one for an open URL, which is taken (measured); where the caller sent nothing, the name that goes with the URL if the registry needs a secret, and none for others", testN05},
	{"N06", "prefixes may end in a slash, and upstream prefixes too; ECR upstreams take a role", "documented", "the same, answered as sent", fromCreateToDelete("ECR with a role, prefixes with slashes")},
	{"N07", "`foo/` beside `foo`", "chosen, `slash-prefix`", "`PullThroughCacheRuleAlreadyExistsException`; each operation finds the one by the other", TestASlashAtTheEndIsTheSamePrefix},
	{"N08", "`docker/hub` beside `docker`", "chosen, `nested-prefixes`", "both are created", TestPrefixesMayNest},
	{"N09", "the prefix is taken: `PullThroughCacheRuleAlreadyExistsException`", "chosen, `rule-error-texts`", "the same exception (measured), with a sentence of our own", TestAPrefixThatIsTaken},
	{"N10", "50 rules in a registry, and no more: `LimitExceededException`", "chosen, `rule-error-texts`", "the same (documented), with a sentence of our own; a prefix that is taken is told first", TestThe51stRule},
	{"N11", "many create the last rules at once", "inferred", "as many succeed as there is room for, each prefix once", TestThe50thRuleIsCreatedOnce},
	{"N12", "`updatedAt` of a rule that was never updated", "chosen, `first-update-time`", "`createdAt`", testN12},
	{"N13", "pulls use the rule as it was sent", "inferred", "`API.Rules` is the `Proxy`'s source of rules", TestAProxyGetsTheRulesAsTheyWereSent},
	{"N14", "another account's ECR without a `customRoleArn`", "chosen, `cross-account-no-role`", "Create accepts; pulls are denied", TestAPullFromAnotherAccountWithoutARole},
	{"N15", "a Region without pull through cache: \"This feature is disabled\"", "chosen, `region-error`", "with `API.CheckRegion` these words (seen) in an `InvalidParameterException`, from all five operations; by default every Region has it", TestRegionsWithoutPullThroughCache},
	{"N16", "members have constraints: a `registryId` of 12 digits, a `customRoleArn` of 2,048 characters, `upstreamRegistry` one of nine names, 1 to 100 prefixes", "documented", "the same, in the words of A10, from all five operations", TestBrokenConstraints},
	{"N17", "each operation declares exceptions: all do `InvalidParameterException`; all but Create `PullThroughCacheRuleNotFoundException`; Create and Update those about secrets; Create alone the unsupported upstream, the prefix that is taken and the limit", "documented", "the same, and no other one", TestEachOperationHasItsExceptions},
}

// The truth table itself is Rule.Validate's: R20 and following.
var ecrRefusals = []trait{
	{"N30", "a URL that ECR does not know, or spells otherwise: `UnsupportedUpstreamRegistryException`", "measured", "the same sentence, see R20 and R21", refused("a URL that ECR does not know", "no URL")},
	{"N31", "ECR in China, `….amazonaws.com.cn`", "chosen, `china-suffix`", "such a URL, as there is no pull through cache", refused("ECR in China")},
	{"N32", "a registry that wants a secret, without one: `UnsupportedUpstreamRegistryException`", "measured", "the same sentence", refused("Docker Hub without a secret", "GHCR without a secret")},
	{"N33", "an open registry with a secret: \"The specified upstream registry doesn't require authentication\"", "chosen, `create-error-types`, `create-error-tails`", "the beginning was seen; `UnsupportedUpstreamRegistryException`, and a full stop", refused("an open registry with a secret")},
	{"N34", "`upstreamRegistry` is not the URL's, where that wants a secret: \"Invalid input: Upstream registry URL and entered upstream registry do not match. …\"", "chosen, `create-error-types`", "the sentence was seen; `InvalidParameterException`", refused("another registry's name")},
	{"N35", "a role for another registry than ECR: \"Upstream registry URL and provided credential type do not match\"", "chosen, `create-error-types`, `create-error-tails`", "the beginning was seen; `InvalidParameterException`, and a full stop", refused("an open registry with a role", "a registry by secret with a role")},
	{"N36", "a secret for ECR", "inferred", "refused as the line before", refused("ECR with a secret")},
	{"N37", "the upstream is this very registry: \"Upstream registry URL cannot be the same as the cache registry\"", "chosen, `create-error-types`, `create-error-tails`", "the beginning was seen; `InvalidParameterException`, and a full stop", refused("this very registry")},
	{"N38", "the secret is in another Region or account: \"The ARN of the secret specified in the pull through cache rule was not found\", \"Please verify the secret exists in the same region and account …\"", "chosen, `create-error-types`, `create-error-tails`", "both parts were seen, not together; `SecretNotFoundException`, with a full stop between them", refused("a secret in another Region", "a secret in another account")},
	{"N39", "the prefix `ROOT` with an upstream prefix of its own", "chosen, `root-upstream-prefix`", "refused (documented), by `InvalidParameterException` with a sentence of our own", refused("ROOT with an upstream prefix")},
}

var ecrRules = []trait{
	{"G01", "registries without rules have an empty list", "inferred", "the same: `{\"pullThroughCacheRules\":[]}`", testG01},
	{"G02", "rules are described by prefix, and one that does not exist is `PullThroughCacheRuleNotFoundException`", "measured", "the same; one page, each rule once, in the order of prefixes", TestDescribeByPrefix},
	{"G03", "no rule with that prefix: `PullThroughCacheRuleNotFoundException` from Update, Delete and Validate", "chosen, `rule-error-texts`", "the same (documented), with a sentence of our own; nothing else than the whole prefix matches", TestRulesThatDoNotExist},
	{"U01", "Update changes the secret", "documented", "the same", updated("another secret")},
	{"U02", "and the role, in place", "measured", "the same", updated("a role")},
	{"U03", "but neither URL nor upstream prefix", "documented", "such members are ignored, as all that Update does not have", updated("what is fixed")},
	{"U04", "Update with neither secret nor role: \"Invalid input: Please set either credential arn or role arn to update the credentials\"", "measured", "the same, `InvalidParameterException`; a rule that does not exist is told first", TestUpdateRefuses},
	{"U05", "Update with a role of no characters", "chosen, `empty-role`", "the rule has none from then on", updated("no role")},
	{"U06", "Update refuses what Create would, by exceptions of its own", "chosen, `create-error-types`", "the same sentences; `InvalidParameterException` in place of `UnsupportedUpstreamRegistryException`, which Update does not declare. Nothing changes, not even a time", TestUpdateRefuses},
	{"U07", "Update of a rule that Create would have refused", "chosen", "such rules are the host's (`fakeecr -rule`); their secret can be updated", TestUpdateOfARuleThatCreateWouldRefuse},
	{"U08", "after Delete what is cached is served on, and nothing new is pulled", "documented", "the same; before, a rule works as soon as it was created, with its secret", TestARulePulls},
	{"U09", "Update leaves cached tags as fresh as they were", "chosen, `update-resets-window`", "the same, and so they are after Delete and Create (F08)", testU09},
	{"V01", "Validate tells that a rule works: `isValid`, and no `failure`", "inferred", "the same", TestAValidRule},
	{"V02", "Validate reaches the upstream registry and authenticates", "documented", "the same, with `Proxy.ValidateRule` as `API.Validate`", testV02},
	{"V03", "it always does", "documented", "departs where `API.Validate` is nil: then the secret is all that is looked at, and without `API.Secrets` not even that", validatedAlone("hub", "near")},
	{"V04", "open registries can be validated", "documented", "the same; they are asked for no secret", validatedAlone("open")},
	{"V05", "what is wrong upstream stands in the answer", "chosen, `validate-failure-text`", "`isValid` false with a sentence of our own for each class: refused, rate limited, not reached", TestValidationOfARuleWithoutUpstream},
	{"V06", "and so does what is wrong with the secret", "chosen, `validate-failure-text`", "the sentences of S01 to S03, and one of our own for a malformed one; upstream is then not reached", TestValidationOfARuleWithoutASecret},
	{"V07", "another account's ECR without a role", "chosen, `cross-account-no-role`", "`isValid` false, and that is what `failure` says", validatedAlone("far")},
	{"V08", "Validate cannot tell", "inferred", "`ServerException`, not a rule that is called invalid", TestValidationThatFails},
}

func testN05(t *testing.T) {
	fromCreateToDelete("another registry's name on an open URL")(t)
	for url, name := range map[string]string{
		"registry-1.docker.io": "docker-hub", "ghcr.io": "github-container-registry", "registry.gitlab.com": "gitlab-container-registry",
		"cgr.dev": "chainguard", "mine.azurecr.io": "azure-container-registry",
	} {
		c := start(t, &ecrapi.API{})
		resp, body := c.send(t, target+"CreatePullThroughCacheRule", object("ecrRepositoryPrefix", "hub", "upstreamRegistryUrl", url, "credentialArn", secret))
		require.Equal(t, http.StatusOK, resp.StatusCode, body)
		assert.Equal(t, name, parse(t, body)["upstreamRegistry"])
		assert.Equal(t, name, c.described(t, "hub")["upstreamRegistry"])
	}
	c := start(t, &ecrapi.API{})
	for i, url := range []string{"quay.io", "public.ecr.aws", "registry.k8s.io", "111122223333.dkr.ecr.us-east-1.amazonaws.com"} {
		prefix := "open" + strconv.Itoa(i)
		_, _ = c.send(t, target+"CreatePullThroughCacheRule", object("ecrRepositoryPrefix", prefix, "upstreamRegistryUrl", url))
		assert.NotContains(t, c.described(t, prefix), "upstreamRegistry")
	}
}

func testN12(t *testing.T) {
	c := start(t, &ecrapi.API{})
	c.create(t, "hub")
	c.now = epoch.Add(time.Hour)
	rule := c.described(t, "hub")
	assert.Equal(t, []any{946684800.0, 946684800.0}, []any{rule["createdAt"], rule["updatedAt"]})
	_, _ = c.send(t, target+"UpdatePullThroughCacheRule", object("ecrRepositoryPrefix", "hub", "customRoleArn", ""))
	rule = c.described(t, "hub")
	assert.Equal(t, []any{946684800.0, 946688400.0}, []any{rule["createdAt"], rule["updatedAt"]})
}

func testU09(t *testing.T) {
	r := newRegistry(t, memstore.New(), func(r *registry) {
		r.proxy.Endpoint = func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error) {
			return url.Parse(r.up.URL)
		}
	})
	r.create(t, "quay")
	r.up.Push("a", "v1", image(1))
	pull := func() {
		t.Helper()
		require.Equal(t, http.StatusOK, r.request(http.MethodGet, "/v2/quay/a/manifests/v1"))
		r.idle(t)
	}
	pull()
	r.wait(23 * time.Hour)
	r.ok(t, "UpdatePullThroughCacheRule", `{"ecrRepositoryPrefix":"quay","customRoleArn":""}`, `{"ecrRepositoryPrefix":"quay","registryId":"123456789012","updatedAt":946767600}`)
	pull()
	resp, body := r.send(t, target+"DeletePullThroughCacheRule", `{"ecrRepositoryPrefix":"quay"}`)
	require.Equal(t, http.StatusOK, resp.StatusCode, body)
	r.create(t, "quay")
	pull()
	assert.Equal(t, []string{"GET /v2/a/manifests/v1 200"}, r.up.Log())
	r.wait(2 * time.Hour)
	pull()
	assert.Equal(t, []string{"GET /v2/a/manifests/v1 200", "HEAD /v2/a/manifests/v1 200"}, r.up.Log())
}

func testV02(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: map[string]string{"canary-robot": "canary-token"}})
	v := &vault{content: goodSecret}
	api := &ecrapi.API{Secrets: v.secret}
	proxy := &pullthrough.Proxy{
		Store: memstore.New(), Rules: api, Credentials: api.Credentials,
		Endpoint: func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error) {
			return url.Parse(up.URL)
		},
		Policy: func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{Retries: -1}
		},
	}
	t.Cleanup(func() { assert.NoError(t, proxy.Shutdown(context.Background())) })
	api.Validate = proxy.ValidateRule
	c := start(t, api)
	resp, body := c.send(t, target+"CreatePullThroughCacheRule", object("ecrRepositoryPrefix", "hub", "upstreamRegistryUrl", "ghcr.io", "upstreamRepositoryPrefix", "up", "credentialArn", secret))
	require.Equal(t, http.StatusOK, resp.StatusCode, body)
	assert.Empty(t, up.Log(), "Create does not")
	c.ok(t, "ValidatePullThroughCacheRule", validateHub, valid)
	assert.Equal(t, []string{"GET /v2/ 401", "GET /token 200", "GET /v2/ 200"}, up.Log())
	v.content = `{"username":"canary-robot","accessToken":"canary-tokem"}`
	c.ok(t, "ValidatePullThroughCacheRule", validateHub, invalid("The upstream registry refused the credentials. Verify that they are correct."))
	up.Close()
	c.ok(t, "ValidatePullThroughCacheRule", validateHub, invalid("The upstream registry could not be reached."))
}

func testG01(t *testing.T) {
	c := start(t, &ecrapi.API{})
	c.ok(t, "DescribePullThroughCacheRules", "{}", `{"pullThroughCacheRules":[]}`)
	c.ok(t, "DescribePullThroughCacheRules", `{"maxResults":1}`, `{"pullThroughCacheRules":[]}`)
}
