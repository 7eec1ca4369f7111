package ecrapi_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

// The URLs in answers lead to where the client has found the API.
func TestURLsAreTheRequests(t *testing.T) {
	r := newRegistry(t, memstore.New(), func(r *registry) {
		r.api.Images.RegistryURL = nil
		r.api.Identify = func(r *http.Request) (pullthrough.Identity, error) {
			return pullthrough.Identity{Account: r.Header.Get("X-Account"), Region: "eu-west-1"}, nil
		}
	})
	endpoint := func(headers ...string) string {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/", http.NoBody)
		require.NoError(t, err)
		req.Header.Set("X-Amz-Target", target+"GetAuthorizationToken")
		for i := 0; i < len(headers); i += 2 {
			if headers[i] == "Host" {
				req.Host = headers[i+1]
			}
			req.Header.Set(headers[i], headers[i+1])
		}
		resp, answer, err := do(req)
		require.NoError(t, err)
		require.Equal(t, 200, resp.StatusCode, answer)
		data, _ := parse(t, answer)["authorizationData"].([]any)
		require.Len(t, data, 1)
		return data[0].(map[string]any)["proxyEndpoint"].(string)
	}
	const other = "210987654321"
	for name, c := range map[string]struct {
		headers []string
		want    string
	}{
		"as it was reached":                   {nil, r.url},
		"by a name":                           {[]string{"Host", "emulator.test:4566"}, "http://emulator.test:4566"},
		"the API's own account":               {[]string{"Host", "emulator.test:4566", "X-Account", account}, "http://emulator.test:4566"},
		"another account, by a name":          {[]string{"Host", "emulator.test:4566", "X-Account", other}, "http://" + other + ".dkr.ecr.eu-west-1.emulator.test:4566"},
		"another account, by an address":      {[]string{"Host", "127.0.0.1:4566", "X-Account", other}, "http://127.0.0.1:4566"},
		"another account, by an IPv6 address": {[]string{"Host", "[::1]:4566", "X-Account", other}, "http://[::1]:4566"},
		"another account, at localhost":       {[]string{"Host", "localhost:4566", "X-Account", other}, "http://localhost:4566"},
		"by the name of a registry":           {[]string{"Host", "111111111111.dkr.ecr.us-east-1.emulator.test", "X-Account", other}, "http://" + other + ".dkr.ecr.eu-west-1.emulator.test"},
		"behind a proxy with TLS":             {[]string{"Host", "emulator.test", "X-Forwarded-Proto", "https"}, "https://emulator.test"},
		"behind a proxy that does not say so": {[]string{"Host", "emulator.test", "X-Forwarded-For", "192.0.2.1"}, "http://emulator.test"},
	} {
		assert.Equal(t, c.want, endpoint(c.headers...), name)
	}
	out, err := r.api.GetAuthorizationToken(t.Context(), pullthrough.Identity{}, ecrapi.GetAuthorizationTokenInput{})
	require.NoError(t, err)
	assert.Equal(t, "https://123456789012.dkr.ecr.us-east-1.localhost", out.AuthorizationData[0].ProxyEndpoint, "a call from Go")
	assert.Empty(t, r.up.Log())
}

func TestScopeIdentity(t *testing.T) {
	const header = "AWS4-HMAC-SHA256 Credential=%/20260102/eu-west-1/ecr/aws4_request, SignedHeaders=host;x-amz-date, Signature=00"
	for name, c := range map[string]struct {
		authorization, query string
		want                 pullthrough.Identity
	}{
		"an access key":             {authorization: strings.Replace(header, "%", "AKIDEXAMPLE", 1), want: pullthrough.Identity{Region: "eu-west-1", Caller: "AKIDEXAMPLE"}},
		"the number of an account":  {query: "X-Amz-Credential=000000000000%2F20260102%2Fus-east-1%2Fecr%2Faws4_request", want: pullthrough.Identity{Account: "000000000000", Region: "us-east-1", Caller: "000000000000"}},
		"none":                      {},
		"a login":                   {authorization: "Basic QVdTOng="},
		"a scope that is too short": {authorization: "AWS4-HMAC-SHA256 Credential=AKID/20260102/eu-west-1/aws4_request, SignedHeaders=host"},
		"something else":            {authorization: "AWS4-HMAC-SHA256 Credential=a/b/c/d/e"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://localhost/?"+c.query, http.NoBody)
		require.NoError(t, err)
		r.Header.Set("Authorization", c.authorization)
		id, err := ecrapi.ScopeIdentity(r)
		assert.NoError(t, err)
		assert.Equal(t, c.want, id, name)
	}
}

// With AllowUpstream a rule can lead to a registry of the test. The rest of it is checked.
func TestAllowUpstream(t *testing.T) {
	var asked []string
	c := start(t, &ecrapi.API{AllowUpstream: func(url string) bool {
		asked = append(asked, url)
		return url != "registry.test"
	}})
	create := func(members ...string) (string, string) {
		resp, body := c.send(t, target+"CreatePullThroughCacheRule", object(members...))
		if resp.StatusCode == 200 {
			return "", body
		}
		code, _ := parse(t, body)["__type"].(string)
		return code, messageOf(t, body)
	}
	for _, members := range [][]string{
		{"ecrRepositoryPrefix", "local", "upstreamRegistryUrl", "http://127.0.0.1:5001"},
		{"ecrRepositoryPrefix", "secret", "upstreamRegistryUrl", "harbor.test", "credentialArn", secret},
		{"ecrRepositoryPrefix", "named", "upstreamRegistryUrl", "https://harbor.test/base", "upstreamRegistry", "docker-hub", "upstreamRepositoryPrefix", "library"},
	} {
		code, said := create(members...)
		assert.Empty(t, code, said)
	}
	rules, err := c.api.Rules(t.Context(), "", "")
	require.NoError(t, err)
	assert.Len(t, rules, 3)
	assert.Equal(t, "http://127.0.0.1:5001", rules[0].UpstreamURL)
	for want, members := range map[string][]string{
		"UnsupportedUpstreamRegistryException":       {"ecrRepositoryPrefix", "hub", "upstreamRegistryUrl", "registry-1.docker.io"},
		"PullThroughCacheRuleAlreadyExistsException": {"ecrRepositoryPrefix", "local", "upstreamRegistryUrl", "http://127.0.0.1:5002"},
		"SecretNotFoundException": {"ecrRepositoryPrefix", "far", "upstreamRegistryUrl", "harbor.test",
			"credentialArn", "arn:aws:secretsmanager:eu-west-1:123456789012:secret:ecr-pullthroughcache/hub-AbCdEf"},
	} {
		code, said := create(members...)
		assert.Equal(t, want, code, said)
	}
	for _, url := range []string{"ftp://harbor.test", "https://user:word@harbor.test", "https://harbor.test?x=1", "https://harbor.test/v2/", "a b"} {
		code, said := create("ecrRepositoryPrefix", "bad", "upstreamRegistryUrl", url)
		assert.Equal(t, "InvalidParameterException", code, url)
		assert.NotContains(t, said, "word")
	}
	code, said := create("ecrRepositoryPrefix", "ROOT", "upstreamRegistryUrl", "harbor.test", "upstreamRepositoryPrefix", "a1")
	assert.Equal(t, "InvalidParameterException", code, said)
	code, said = create("ecrRepositoryPrefix", "other", "upstreamRegistryUrl", "registry.test")
	assert.Equal(t, "UnsupportedUpstreamRegistryException", code, said)
	assert.NotContains(t, asked, "registry-1.docker.io", "Amazon ECR's own are checked as ever")

	c.ok(t, "DeletePullThroughCacheRule", `{"ecrRepositoryPrefix":"local"}`, `{"ecrRepositoryPrefix":"local","upstreamRegistryUrl":"http://127.0.0.1:5001","createdAt":946684800,"registryId":"123456789012"}`)
}
