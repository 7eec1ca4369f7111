package ecrapi_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

func TestThePolicyOfARepository(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	resp, body := r.send(t, target+"CreateRepository", `{`+hubA+`}`)
	require.Equal(t, 200, resp.StatusCode, body)
	none := "Repository policy does not exist for the repository with name 'hub/a' in the registry with id '123456789012'"
	r.fails(t, "GetRepositoryPolicy", `{`+hubA+`}`, "RepositoryPolicyNotFoundException", none)
	r.fails(t, "DeleteRepositoryPolicy", `{`+hubA+`}`, "RepositoryPolicyNotFoundException", none)
	text := " " + aPolicy + "\n"
	answer := `{"registryId":"123456789012",` + hubA + `,"policyText":` + quote(text) + `}`
	r.ok(t, "SetRepositoryPolicy", `{`+hubA+`,"force":true,"policyText":`+quote(text)+`}`, answer)
	for _, broken := range []string{"", "x", "{}", strings.Replace(aPolicy, `"Action"`, `"Resource":"*","Action"`, 1)} {
		r.fails(t, "SetRepositoryPolicy", `{`+hubA+`,"policyText":`+quote(broken)+`}`, "InvalidParameterException", constraint("PolicyText", "Invalid repository policy provided"))
	}
	r.fails(t, "SetRepositoryPolicy", `{`+hubA+`}`, "InvalidParameterException", constraint("policyText", mustNotBeNull))
	r.fails(t, "SetRepositoryPolicy", `{`+hubA+`,"policyText":"`+strings.Repeat("p", 10241)+`"}`, "InvalidParameterException", constraint("policyText", tooLong+"10240"))
	r.ok(t, "GetRepositoryPolicy", `{`+hubA+`}`, answer)
	r.ok(t, "DeleteRepositoryPolicy", `{`+hubA+`}`, answer)
	r.fails(t, "GetRepositoryPolicy", `{`+hubA+`}`, "RepositoryPolicyNotFoundException", none)
}

func TestTheLifecyclePolicyOfARepository(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	resp, body := r.send(t, target+"CreateRepository", `{`+hubA+`}`)
	require.Equal(t, 200, resp.StatusCode, body)
	none := "Lifecycle policy does not exist for the repository with name 'hub/a' in the registry with id '123456789012'"
	for _, op := range []string{"GetLifecyclePolicy", "DeleteLifecyclePolicy"} {
		r.fails(t, op, `{`+hubA+`}`, "LifecyclePolicyNotFoundException", none)
	}
	kept := `{"registryId":"123456789012",` + hubA + `,"lifecyclePolicyText":` + quote(aLifecycle)
	r.ok(t, "PutLifecyclePolicy", `{`+hubA+`,"lifecyclePolicyText":`+quote(aLifecycle)+`}`, kept+`}`)
	for text, why := range map[string]string{
		strings.Repeat(" ", 100):                             "Could not map policyString into LifecyclePolicy.",
		strings.Replace(aLifecycle, `"expire"`, `"keep"`, 1): `instance value ("keep") not found in enum (possible values: ["expire","transition"])`,
	} {
		r.fails(t, "PutLifecyclePolicy", `{`+hubA+`,"lifecyclePolicyText":`+quote(text)+`}`, "InvalidParameterException", constraint("LifecyclePolicyText", "Lifecycle policy validation failure: "+why))
	}
	r.fails(t, "PutLifecyclePolicy", `{`+hubA+`,"lifecyclePolicyText":"{}"}`, "InvalidParameterException", constraint("lifecyclePolicyText", "Member must have length greater than or equal to 100"))
	r.ok(t, "GetLifecyclePolicy", `{`+hubA+`}`, kept+`,"lastEvaluatedAt":0}`)
	r.ok(t, "DeleteLifecyclePolicy", `{`+hubA+`}`, kept+`,"lastEvaluatedAt":0}`)
	r.fails(t, "GetLifecyclePolicy", `{`+hubA+`}`, "LifecyclePolicyNotFoundException", none)
}

func TestThePolicyOfTheRegistry(t *testing.T) {
	state := &ecrapi.MemState{}
	c := start(t, &ecrapi.API{State: state, Identify: byHeader})
	none := "Registry policy does not exist in the registry with id '123456789012'"
	c.fails(t, "GetRegistryPolicy", `{}`, "RegistryPolicyNotFoundException", none)
	c.fails(t, "DeleteRegistryPolicy", `{}`, "RegistryPolicyNotFoundException", none)
	text := strings.Replace(aPolicy, `"Action"`, `"Resource":"*","Action"`, 1)
	answer := `{"registryId":"123456789012","policyText":` + quote(text) + `}`
	c.ok(t, "PutRegistryPolicy", object("policyText", text), answer)
	for _, broken := range []string{"", "null", "[]", aPolicy} {
		c.fails(t, "PutRegistryPolicy", object("policyText", broken), "InvalidParameterException", constraint("PolicyText", "Invalid registry policy provided"))
	}
	c.fails(t, "PutRegistryPolicy", `{}`, "InvalidParameterException", constraint("policyText", mustNotBeNull))
	c.ok(t, "GetRegistryPolicy", `{}`, answer)
	c.fails(t, "GetRegistryPolicy", `{}`, "RegistryPolicyNotFoundException", none, "X-Region", "eu-west-1")
	settings, err := state.Load(t.Context(), account, region)
	require.NoError(t, err)
	assert.Equal(t, text, settings.RegistryPolicy)
	c.ok(t, "DeleteRegistryPolicy", `{}`, answer)
	c.fails(t, "DeleteRegistryPolicy", `{}`, "RegistryPolicyNotFoundException", none)
}
