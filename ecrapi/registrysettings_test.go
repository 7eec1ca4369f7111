package ecrapi_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

func TestAccountSettings(t *testing.T) {
	c := start(t, &ecrapi.API{State: &ecrapi.MemState{}, Identify: byHeader})
	for name, value := range map[string]string{"BASIC_SCAN_TYPE_VERSION": "AWS_NATIVE", "REGISTRY_POLICY_SCOPE": "V2", "BLOB_MOUNTING": "DISABLED"} {
		c.ok(t, "GetAccountSetting", object("name", name), object("name", name, "value", value))
		c.ok(t, "PutAccountSetting", object("name", name, "value", value), object("name", name, "value", value))
		c.fails(t, "PutAccountSetting", object("name", name), "InvalidParameterException", constraint("value", mustNotBeNull))
	}
	c.ok(t, "PutAccountSetting", `{"name":"BLOB_MOUNTING","value":"ENABLED"}`, `{"name":"BLOB_MOUNTING","value":"ENABLED"}`)
	c.ok(t, "GetAccountSetting", `{"name":"BLOB_MOUNTING"}`, `{"name":"BLOB_MOUNTING","value":"ENABLED"}`)
	c.ok(t, "GetAccountSetting", `{"name":"BLOB_MOUNTING"}`, `{"name":"BLOB_MOUNTING","value":"DISABLED"}`, "X-Account", "111111111111")
	c.fails(t, "PutAccountSetting", `{"name":"REGISTRY_POLICY_SCOPE","value":"V1"}`, "InvalidParameterException", constraint("value", "Member must satisfy enum value set: [V2]"))
	c.fails(t, "PutAccountSetting", `{"name":"BASIC_SCAN_TYPE_VERSION","value":"CLAIR"}`, "InvalidParameterException", constraint("value", "Member must satisfy enum value set: [AWS_NATIVE]"))
	for _, op := range []string{"GetAccountSetting", "PutAccountSetting"} {
		c.fails(t, op, `{"name":"NONE","value":"V2"}`, "InvalidParameterException", constraint("name", "Member must be the name of an account setting"))
		c.fails(t, op, `{}`, "InvalidParameterException", constraint("name", mustNotBeNull))
	}
	settings, err := c.api.State.Load(t.Context(), account, region)
	require.NoError(t, err)
	assert.Len(t, settings.AccountSettings, 3, "each once")
}

// What hosts keep as JSON comes back as it was.
func TestRegistrySettingsAreKeptAsJSON(t *testing.T) {
	state := &ecrapi.MemState{}
	require.NoError(t, state.Update(t.Context(), account, region, func(s *ecrapi.Settings) error {
		s.RegistryPolicy, s.AccountSettings = aPolicy, []ecrapi.AccountSetting{{Name: "BLOB_MOUNTING", Value: "ENABLED"}}
		s.Scanning = &ecrapi.RegistryScanningConfiguration{ScanType: new("ENHANCED"), Rules: []ecrapi.ScanningRule{{
			ScanFrequency: new("SCAN_ON_PUSH"), RepositoryFilters: []ecrapi.ScanningFilter{{Filter: new("a"), FilterType: new("WILDCARD")}},
		}}}
		return nil
	}))
	settings, err := state.Load(t.Context(), account, region)
	require.NoError(t, err)
	content, err := json.Marshal(settings)
	require.NoError(t, err)
	var again ecrapi.Settings
	require.NoError(t, json.Unmarshal(content, &again))
	assert.Equal(t, settings, again)
}
