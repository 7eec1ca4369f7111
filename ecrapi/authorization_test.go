package ecrapi_test

import (
	"context"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

func TestGetAuthorizationToken(t *testing.T) {
	r := newRegistry(t, memstore.New(), func(r *registry) {
		r.api.Images.Password = func(_ context.Context, id pullthrough.Identity) (string, error) {
			if id.Account == "000000000000" {
				return "", pullthrough.ErrUnauthorized
			}
			return "for " + id.Account, nil
		}
		r.api.Identify = byHeader
	})
	of := func(password, account, region string) string {
		return `{"authorizationToken":"` + base64.StdEncoding.EncodeToString([]byte("AWS:"+password)) + `","expiresAt":946728000,"proxyEndpoint":"https://` + account + `.dkr.ecr.` + region + `.amazonaws.com"}`
	}
	r.ok(t, "GetAuthorizationToken", `{}`, `{"authorizationData":[`+of("for ", "123456789012", "us-east-1")+`]}`)
	r.ok(t, "GetAuthorizationToken", ``, `{"authorizationData":[`+of("for 111111111111", "111111111111", "eu-west-1")+`]}`, "X-Account", "111111111111", "X-Region", "eu-west-1")
	r.ok(t, "GetAuthorizationToken", `{"registryIds":["222222222222","333333333333"]}`, `{"authorizationData":[`+of("for ", "222222222222", "us-east-1")+`,`+of("for ", "333333333333", "us-east-1")+`]}`)
	r.fails(t, "GetAuthorizationToken", `{"registryIds":[]}`, "InvalidParameterException", constraint("registryIds", "Member must have length greater than or equal to 1"))
	resp, body := r.send(t, target+"GetAuthorizationToken", `{"registryIds":["1"]}`)
	assertException(t, resp, body, "InvalidParameterException")
	resp, body = r.send(t, target+"GetAuthorizationToken", `{}`, "X-Account", "000000000000")
	assertException(t, resp, body, "UnrecognizedClientException")
}

func TestPasswordsAreRandom(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	seen := map[string]bool{}
	for range 10 {
		out, err := r.api.GetAuthorizationToken(t.Context(), pullthrough.Identity{}, ecrapi.GetAuthorizationTokenInput{})
		require.NoError(t, err)
		token, err := base64.StdEncoding.DecodeString(out.AuthorizationData[0].AuthorizationToken)
		require.NoError(t, err)
		password, ok := strings.CutPrefix(string(token), "AWS:")
		assert.True(t, ok)
		assert.GreaterOrEqual(t, len(password), 20)
		seen[password] = true
	}
	assert.Len(t, seen, 10)
}
