package ecrapi_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

// created are requests of Create, with the answers of Create, Describe and Delete
// but for the timestamps. What the caller left out stays out.
var created = map[string]struct{ request, create, describe, deleted string }{
	"the least": {
		`{"ecrRepositoryPrefix":"ecr-public","upstreamRegistryUrl":"public.ecr.aws"}`,
		`{"ecrRepositoryPrefix":"ecr-public","upstreamRegistryUrl":"public.ecr.aws","registryId":"123456789012","createdAt":946684800}`,
		`{"ecrRepositoryPrefix":"ecr-public","upstreamRegistryUrl":"public.ecr.aws","registryId":"123456789012","createdAt":946684800,"updatedAt":946684800}`,
		`{"ecrRepositoryPrefix":"ecr-public","upstreamRegistryUrl":"public.ecr.aws","registryId":"123456789012","createdAt":946684800}`,
	},
	"with a secret and the registry's name": {
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"registry-1.docker.io","upstreamRegistry":"docker-hub","credentialArn":"` + secret + `","registryId":"123456789012"}`,
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"registry-1.docker.io","upstreamRegistry":"docker-hub","credentialArn":"` + secret + `","registryId":"123456789012","createdAt":946684800}`,
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"registry-1.docker.io","upstreamRegistry":"docker-hub","credentialArn":"` + secret + `","registryId":"123456789012","createdAt":946684800,"updatedAt":946684800}`,
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"registry-1.docker.io","credentialArn":"` + secret + `","registryId":"123456789012","createdAt":946684800}`,
	},
	"ROOT as it was sent": {
		`{"ecrRepositoryPrefix":"ROOT","upstreamRegistryUrl":"quay.io","upstreamRepositoryPrefix":"ROOT"}`,
		`{"ecrRepositoryPrefix":"ROOT","upstreamRegistryUrl":"quay.io","upstreamRepositoryPrefix":"ROOT","registryId":"123456789012","createdAt":946684800}`,
		`{"ecrRepositoryPrefix":"ROOT","upstreamRegistryUrl":"quay.io","upstreamRepositoryPrefix":"ROOT","registryId":"123456789012","createdAt":946684800,"updatedAt":946684800}`,
		`{"ecrRepositoryPrefix":"ROOT","upstreamRegistryUrl":"quay.io","upstreamRepositoryPrefix":"ROOT","registryId":"123456789012","createdAt":946684800}`,
	},
	"ECR with a role, prefixes with slashes": {
		`{"ecrRepositoryPrefix":"team-a/","upstreamRegistryUrl":"111122223333.dkr.ecr.us-east-1.amazonaws.com","upstreamRepositoryPrefix":"up/","customRoleArn":"` + role + `"}`,
		`{"ecrRepositoryPrefix":"team-a/","upstreamRegistryUrl":"111122223333.dkr.ecr.us-east-1.amazonaws.com","upstreamRepositoryPrefix":"up/","customRoleArn":"` + role + `","registryId":"123456789012","createdAt":946684800}`,
		`{"ecrRepositoryPrefix":"team-a/","upstreamRegistryUrl":"111122223333.dkr.ecr.us-east-1.amazonaws.com","upstreamRepositoryPrefix":"up/","customRoleArn":"` + role + `","registryId":"123456789012","createdAt":946684800,"updatedAt":946684800}`,
		`{"ecrRepositoryPrefix":"team-a/","upstreamRegistryUrl":"111122223333.dkr.ecr.us-east-1.amazonaws.com","upstreamRepositoryPrefix":"up/","customRoleArn":"` + role + `","registryId":"123456789012","createdAt":946684800}`,
	},
	"ECR without an upstream prefix or a role": {
		`{"ecrRepositoryPrefix":"far","upstreamRegistryUrl":"111122223333.dkr.ecr.us-east-1.amazonaws.com","upstreamRegistry":"ecr"}`,
		`{"ecrRepositoryPrefix":"far","upstreamRegistryUrl":"111122223333.dkr.ecr.us-east-1.amazonaws.com","upstreamRegistry":"ecr","registryId":"123456789012","createdAt":946684800}`,
		`{"ecrRepositoryPrefix":"far","upstreamRegistryUrl":"111122223333.dkr.ecr.us-east-1.amazonaws.com","upstreamRegistry":"ecr","registryId":"123456789012","createdAt":946684800,"updatedAt":946684800}`,
		`{"ecrRepositoryPrefix":"far","upstreamRegistryUrl":"111122223333.dkr.ecr.us-east-1.amazonaws.com","registryId":"123456789012","createdAt":946684800}`,
	},
	"another registry's name on an open URL": {
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"quay.io","upstreamRegistry":"docker-hub"}`,
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"quay.io","upstreamRegistry":"docker-hub","registryId":"123456789012","createdAt":946684800}`,
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"quay.io","upstreamRegistry":"docker-hub","registryId":"123456789012","createdAt":946684800,"updatedAt":946684800}`,
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"quay.io","registryId":"123456789012","createdAt":946684800}`,
	},
}

// fromCreateToDelete is the test of one of created.
func fromCreateToDelete(name string) func(*testing.T) {
	return func(t *testing.T) {
		c, ok := created[name]
		require.True(t, ok)
		api := start(t, &ecrapi.API{})
		api.ok(t, "CreatePullThroughCacheRule", c.request, c.create)
		api.now = epoch.Add(time.Hour)
		api.ok(t, "DescribePullThroughCacheRules", `{}`, `{"pullThroughCacheRules":[`+c.describe+`]}`)
		prefix, _ := parse(t, c.request)["ecrRepositoryPrefix"].(string)
		api.ok(t, "DescribePullThroughCacheRules", `{"ecrRepositoryPrefixes":["`+prefix+`"]}`, `{"pullThroughCacheRules":[`+c.describe+`]}`)
		rules, err := api.api.Rules(t.Context(), "", "")
		require.NoError(t, err)
		require.Len(t, rules, 1)
		assert.Equal(t, epoch, rules[0].CreatedAt)
		api.ok(t, "DeletePullThroughCacheRule", object("ecrRepositoryPrefix", prefix), c.deleted)
		api.ok(t, "DescribePullThroughCacheRules", `{}`, `{"pullThroughCacheRules":[]}`)
		api.fails(t, "DescribePullThroughCacheRules", `{"ecrRepositoryPrefixes":["`+prefix+`"]}`, "PullThroughCacheRuleNotFoundException", noSuchRule(prefix))
		api.fails(t, "DeletePullThroughCacheRule", object("ecrRepositoryPrefix", prefix), "PullThroughCacheRuleNotFoundException", noSuchRule(prefix))
	}
}

func TestAProxyGetsTheRulesAsTheyWereSent(t *testing.T) {
	api := start(t, &ecrapi.API{})
	api.create(t, "hub")
	api.ok(t, "CreatePullThroughCacheRule", `{"ecrRepositoryPrefix":"ROOT","upstreamRegistryUrl":"quay.io","upstreamRepositoryPrefix":"ROOT","upstreamRegistry":"quay"}`,
		`{"ecrRepositoryPrefix":"ROOT","upstreamRegistryUrl":"quay.io","upstreamRepositoryPrefix":"ROOT","upstreamRegistry":"quay","registryId":"123456789012","createdAt":946684800}`)
	rules, err := api.api.Rules(t.Context(), account, region)
	require.NoError(t, err)
	assert.ElementsMatch(t, []pullthrough.Rule{
		{Prefix: "hub", UpstreamURL: "quay.io", CreatedAt: epoch, UpdatedAt: epoch},
		{Prefix: "ROOT", UpstreamURL: "quay.io", UpstreamPrefix: "ROOT", Upstream: "quay", CreatedAt: epoch, UpdatedAt: epoch},
	}, rules)
}

func TestTimestampsHaveMilliseconds(t *testing.T) {
	api := start(t, &ecrapi.API{})
	api.now = epoch.Add(1_234_567 * time.Microsecond)
	api.create(t, "hub")
	_, body := api.send(t, target+"DescribePullThroughCacheRules", "{}")
	assert.Contains(t, body, `"createdAt":946684801.234`)
	var out ecrapi.DescribePullThroughCacheRulesOutput
	require.NoError(t, json.Unmarshal([]byte(body), &out))
	assert.Equal(t, epoch.Add(1234*time.Millisecond), out.PullThroughCacheRules[0].CreatedAt.Time)
	var null ecrapi.DescribePullThroughCacheRulesOutput
	require.NoError(t, json.Unmarshal([]byte(`{"pullThroughCacheRules":[{"createdAt":null}]}`), &null))
	assert.True(t, null.PullThroughCacheRules[0].CreatedAt.IsZero())
	assert.Error(t, json.Unmarshal([]byte(`{"pullThroughCacheRules":[{"createdAt":"2000-01-01"}]}`), &null))
}

// slash-prefix: they collide, and each is answered as it was created.
func TestASlashAtTheEndIsTheSamePrefix(t *testing.T) {
	for _, pair := range [][2]string{{"foo", "foo/"}, {"foo/", "foo"}, {"a/b", "a/b/"}} {
		api := start(t, &ecrapi.API{})
		api.create(t, pair[0])
		api.fails(t, "CreatePullThroughCacheRule", object("ecrRepositoryPrefix", pair[1], "upstreamRegistryUrl", "quay.io"),
			"PullThroughCacheRuleAlreadyExistsException",
			"The pull through cache rule with repository prefix '"+pair[1]+"' already exists in the registry with id '123456789012'")
		_, body := api.send(t, target+"DescribePullThroughCacheRules", `{"ecrRepositoryPrefixes":["`+pair[1]+`"]}`)
		assert.Contains(t, body, `"ecrRepositoryPrefix":"`+pair[0]+`"`)
		resp, body := api.send(t, target+"DeletePullThroughCacheRule", object("ecrRepositoryPrefix", pair[1]))
		assert.Equal(t, http.StatusOK, resp.StatusCode)
		assert.Equal(t, pair[0], parse(t, body)["ecrRepositoryPrefix"])
	}
}

// nested-prefixes: allowed.
func TestPrefixesMayNest(t *testing.T) {
	api := start(t, &ecrapi.API{})
	api.create(t, "docker", "docker/hub", "ROOT", "docker-hub", "docker/hub/library")
}

func TestAPrefixThatIsTaken(t *testing.T) {
	api := start(t, &ecrapi.API{})
	api.create(t, "hub", "ROOT")
	for _, prefix := range []string{"hub", "ROOT"} {
		api.fails(t, "CreatePullThroughCacheRule", object("ecrRepositoryPrefix", prefix, "upstreamRegistryUrl", "public.ecr.aws"),
			"PullThroughCacheRuleAlreadyExistsException",
			"The pull through cache rule with repository prefix '"+prefix+"' already exists in the registry with id '123456789012'")
	}
	rules, err := api.api.Rules(t.Context(), "", "")
	require.NoError(t, err)
	assert.Len(t, rules, 2)
	assert.Equal(t, "quay.io", rules[0].UpstreamURL)
}

const sayTooManyRules = "The registry with id '123456789012' has 50 pull through cache rules already, which is as many as there may be"

func TestThe51stRule(t *testing.T) {
	api := start(t, &ecrapi.API{})
	for i := range 50 {
		api.create(t, fmt.Sprintf("hub%d", i))
	}
	api.fails(t, "CreatePullThroughCacheRule", object("ecrRepositoryPrefix", "one-more", "upstreamRegistryUrl", "quay.io"), "LimitExceededException", sayTooManyRules)
	resp, body := api.send(t, target+"CreatePullThroughCacheRule", object("ecrRepositoryPrefix", "hub7", "upstreamRegistryUrl", "quay.io"))
	assertException(t, resp, body, "PullThroughCacheRuleAlreadyExistsException")
	resp, _ = api.send(t, target+"DeletePullThroughCacheRule", object("ecrRepositoryPrefix", "hub7"))
	assert.Equal(t, http.StatusOK, resp.StatusCode)
	api.create(t, "one-more")
	api.fails(t, "CreatePullThroughCacheRule", object("ecrRepositoryPrefix", "hub7", "upstreamRegistryUrl", "quay.io"), "LimitExceededException", sayTooManyRules)
}

// Of many who create the last rules at once, as many succeed as there is room for.
func TestThe50thRuleIsCreatedOnce(t *testing.T) {
	api := start(t, &ecrapi.API{})
	for i := range 45 {
		api.create(t, fmt.Sprintf("hub%d", i))
	}
	var all sync.WaitGroup
	answers := make([]string, 40) // two for each prefix
	for i := range answers {
		all.Go(func() {
			_, body, err := api.post(t.Context(), target+"CreatePullThroughCacheRule", object("ecrRepositoryPrefix", fmt.Sprintf("late%d", i/2), "upstreamRegistryUrl", "quay.io"))
			assert.NoError(t, err)
			answers[i] = body
		})
	}
	all.Wait()
	good := 0
	for _, body := range answers {
		switch exception := parse(t, body)["__type"]; exception {
		case nil:
			good++
		default:
			assert.Contains(t, []string{"LimitExceededException", "PullThroughCacheRuleAlreadyExistsException"}, exception)
		}
	}
	assert.Equal(t, 5, good)
	rules, err := api.api.Rules(t.Context(), "", "")
	require.NoError(t, err)
	assert.Len(t, rules, 50)
	seen := map[string]bool{}
	for _, rule := range rules {
		assert.False(t, seen[rule.Prefix], rule.Prefix)
		seen[rule.Prefix] = true
	}
}

// What was handed out before a change stays as it was.
func TestRulesThatWereHandedOutDoNotChange(t *testing.T) {
	api := start(t, &ecrapi.API{})
	api.create(t, "one", "two", "three")
	before, err := api.api.Rules(t.Context(), "", "")
	require.NoError(t, err)
	kept := fmt.Sprint(before)
	api.create(t, "four")
	_, _ = api.send(t, target+"DeletePullThroughCacheRule", object("ecrRepositoryPrefix", "one"))
	api.create(t, "five")
	api.now = epoch.Add(time.Minute)
	_, _ = api.send(t, target+"UpdatePullThroughCacheRule", object("ecrRepositoryPrefix", "two"))
	assert.Equal(t, kept, fmt.Sprint(before))
	after, err := api.api.Rules(t.Context(), "", "")
	require.NoError(t, err)
	assert.Len(t, after, 4)
}

func TestDescribeByPrefix(t *testing.T) {
	api := start(t, &ecrapi.API{})
	api.create(t, "ccc", "aaa", "bbb", "ROOT")
	prefixes := func(filter string) string {
		_, body := api.send(t, target+"DescribePullThroughCacheRules", `{"ecrRepositoryPrefixes":`+filter+`,"maxResults":1}`)
		var out ecrapi.DescribePullThroughCacheRulesOutput
		require.NoError(t, json.Unmarshal([]byte(body), &out), body)
		assert.Empty(t, out.NextToken, "one page, whatever its size")
		names := make([]string, len(out.PullThroughCacheRules))
		for i, rule := range out.PullThroughCacheRules {
			names[i] = rule.EcrRepositoryPrefix
		}
		return strings.Join(names, " ")
	}
	assert.Equal(t, "ccc", prefixes(`["ccc"]`))
	assert.Equal(t, "ROOT aaa ccc", prefixes(`["ccc","ROOT","aaa"]`))
	assert.Equal(t, "aaa", prefixes(`["aaa","aaa/","aaa"]`))
	api.fails(t, "DescribePullThroughCacheRules", `{"ecrRepositoryPrefixes":["aaa","gone"]}`, "PullThroughCacheRuleNotFoundException", noSuchRule("gone"))
}
