package ecrapi_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

func identity(account string) pullthrough.Identity { return pullthrough.Identity{Account: account} }

// byHeader identifies callers by what they say of themselves.
func byHeader(r *http.Request) (pullthrough.Identity, error) {
	if r.Header.Get("X-Account") == "nobody" {
		return pullthrough.Identity{}, errors.Join(errors.New("canary"), pullthrough.ErrUnauthorized)
	}
	return pullthrough.Identity{Account: r.Header.Get("X-Account"), Region: r.Header.Get("X-Region")}, nil
}

// An account in a Region is a world of its own.
func TestAccountsAndRegionsAreApart(t *testing.T) {
	c := start(t, &ecrapi.API{Identify: byHeader})
	places := [][]string{
		{"X-Account", "111111111111", "X-Region", "us-east-1"}, {"X-Account", "111111111111", "X-Region", "eu-west-1"},
		{"X-Account", "222222222222", "X-Region", "us-east-1"}, {},
	}
	for i, at := range places {
		id := "123456789012"
		if len(at) > 0 {
			id = at[1]
		}
		for _, l := range lists {
			resp, body := c.send(t, target+l.create, `{"`+l.member+`":"`+l.name(i)+`",`+l.rest+`}`, at...)
			require.Equal(t, http.StatusOK, resp.StatusCode, body)
			resp, body = c.send(t, target+l.create, `{"`+l.member+`":"`+l.name(99)+`",`+l.rest+`}`, at...)
			require.Equal(t, http.StatusOK, resp.StatusCode, "taken elsewhere is not taken: %s", body)
			if registryID, there := parse(t, body)["registryId"]; there {
				assert.Equal(t, id, registryID)
			}
		}
	}
	for i, at := range places {
		for _, l := range lists {
			_, body := c.send(t, target+l.op, "{}", at...)
			for j := range places {
				assert.Equal(t, i == j, strings.Contains(body, l.name(j)+`"`), "%s of %v: %s", l.op, at, body)
			}
			resp, _ := c.send(t, target+l.remove, object(l.member, l.name((i+1)%len(places))), at...)
			assert.Equal(t, http.StatusBadRequest, resp.StatusCode, "what is elsewhere cannot be removed")
		}
	}
	rules, err := c.api.Rules(t.Context(), "111111111111", "eu-west-1")
	require.NoError(t, err)
	assert.Len(t, rules, 2)
	rules, err = c.api.Rules(t.Context(), "333333333333", "eu-west-1")
	require.NoError(t, err)
	assert.Empty(t, rules)
}

func TestTheRegistryThatARequestNames(t *testing.T) {
	c := start(t, &ecrapi.API{Identify: byHeader})
	request := object("ecrRepositoryPrefix", "hub", "upstreamRegistryUrl", "quay.io", "registryId", "111111111111")
	c.ok(t, "CreatePullThroughCacheRule", request, `{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"quay.io","createdAt":946684800,"registryId":"111111111111"}`)
	resp, body := c.send(t, target+"CreatePullThroughCacheRule", request, "X-Account", "111111111111")
	assertException(t, resp, body, "PullThroughCacheRuleAlreadyExistsException")
	c.ok(t, "DescribePullThroughCacheRules", "{}", `{"pullThroughCacheRules":[]}`)
	for _, op := range allOperations[:5] {
		c.fails(t, op, request, "AccessDeniedException", "The registry with id '111111111111' belongs to another account", "X-Account", "222222222222")
	}
	resp, body = c.send(t, target+"DescribePullThroughCacheRules", "{}", "X-Account", "nobody")
	assertException(t, resp, body, "UnrecognizedClientException")
	assert.NotContains(t, body, "canary")
}

func TestAccountAndRegionOfTheAPI(t *testing.T) {
	c := start(t, &ecrapi.API{Account: "999999999999", Region: "eu-west-1"})
	c.ok(t, "CreatePullThroughCacheRule", object("ecrRepositoryPrefix", "hub", "upstreamRegistryUrl", "quay.io"),
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"quay.io","createdAt":946684800,"registryId":"999999999999"}`)
	c.fails(t, "CreatePullThroughCacheRule", object("ecrRepositoryPrefix", "own", "upstreamRegistryUrl", "999999999999.dkr.ecr.eu-west-1.amazonaws.com"),
		"InvalidParameterException", "Upstream registry URL cannot be the same as the cache registry.")
	for _, place := range [][2]string{{"", ""}, {"999999999999", ""}, {"", "eu-west-1"}, {"999999999999", "eu-west-1"}} {
		rules, err := c.api.Rules(t.Context(), place[0], place[1])
		require.NoError(t, err)
		assert.Len(t, rules, 1)
	}
}
