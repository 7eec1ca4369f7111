package ecrapi_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

func scanRule(frequency, filters string) string {
	return `{"scanFrequency":"` + frequency + `","repositoryFilters":[` + filters + `]}`
}

func scanFilter(filter string) string { return `{"filter":"` + filter + `","filterType":"WILDCARD"}` }

func TestTheScanningConfigurationOfTheRegistry(t *testing.T) {
	c := start(t, &ecrapi.API{})
	none := `{"registryId":"123456789012","scanningConfiguration":{"scanType":"BASIC","rules":[]}}`
	c.ok(t, "GetRegistryScanningConfiguration", `{}`, none)
	full := `{"scanType":"ENHANCED","rules":[` + scanRule("CONTINUOUS_SCAN", scanFilter("prod*")) + `,` + scanRule("SCAN_ON_PUSH", scanFilter("*")) + `]}`
	c.ok(t, "PutRegistryScanningConfiguration", full, `{"registryScanningConfiguration":`+full+`}`)
	c.ok(t, "GetRegistryScanningConfiguration", `{}`, `{"registryId":"123456789012","scanningConfiguration":`+full+`}`)
	for request, want := range map[string]string{
		`{"scanType":"DEEP"}`:                                              constraint("scanType", "Member must satisfy enum value set: [BASIC, ENHANCED]"),
		`{"rules":[{},{},{}]}`:                                             constraint("rules", tooLong+"2"),
		`{"rules":[{"repositoryFilters":[]}]}`:                             constraint("rules.1.member.scanFrequency", mustNotBeNull),
		`{"rules":[{"scanFrequency":"MANUAL"}]}`:                           constraint("rules.1.member.repositoryFilters", mustNotBeNull),
		`{"rules":[` + scanRule("MANUAL", scanFilter("A")) + `]}`:          constraint("rules.1.member.repositoryFilters.1.member.filter", `Member must satisfy regular expression pattern: ^[a-z0-9*](?:[._\-/a-z0-9*]?[a-z0-9*]+)*$`),
		`{"rules":[` + scanRule("MANUAL", `{"filter":"a"}`) + `]}`:         constraint("rules.1.member.repositoryFilters.1.member.filterType", mustNotBeNull),
		`{"rules":[` + scanRule("CONTINUOUS_SCAN", "") + `]}`:              constraint("rules.1.member.scanFrequency", "The scan frequency CONTINUOUS_SCAN does not go with the scan type"),
		`{"scanType":"ENHANCED","rules":[` + scanRule("MANUAL", "") + `]}`: constraint("rules.1.member.scanFrequency", "The scan frequency MANUAL does not go with the scan type"),
	} {
		c.fails(t, "PutRegistryScanningConfiguration", request, "InvalidParameterException", want)
	}
	c.ok(t, "PutRegistryScanningConfiguration", `{"scanType":"BASIC","rules":[]}`, `{"registryScanningConfiguration":{"scanType":"BASIC","rules":[]}}`)
	c.ok(t, "GetRegistryScanningConfiguration", `{}`, none)
}

// How the registry's rules, and the repositories' own settings, apply.
func TestTheScanningConfigurationOfRepositories(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	for _, name := range []string{"hub/a", "prod/team/app", "own"} {
		resp, body := r.send(t, target+"CreateRepository", object("repositoryName", name))
		require.Equal(t, 200, resp.StatusCode, body)
	}
	r.ok(t, "PutImageScanningConfiguration", `{"repositoryName":"own","imageScanningConfiguration":{"scanOnPush":true}}`,
		`{"registryId":"123456789012","repositoryName":"own","imageScanningConfiguration":{"scanOnPush":true}}`)
	r.fails(t, "PutImageScanningConfiguration", `{"repositoryName":"own"}`, "InvalidParameterException", constraint("imageScanningConfiguration", mustNotBeNull))
	check := func(name, onPush, frequency, filters string) {
		t.Helper()
		r.ok(t, "BatchGetRepositoryScanningConfiguration", `{"repositoryNames":["`+name+`"]}`, `{"scanningConfigurations":[{"repositoryArn":"`+arn(name)+`","repositoryName":"`+name+`",
			"scanOnPush":`+onPush+`,"scanFrequency":"`+frequency+`","appliedScanFilters":[`+filters+`]}],"failures":[]}`)
	}
	check("hub/a", "false", "MANUAL", "")
	check("own", "true", "SCAN_ON_PUSH", "")
	put := func(config string) {
		t.Helper()
		r.ok(t, "PutRegistryScanningConfiguration", config, `{"registryScanningConfiguration":`+config+`}`)
	}
	put(`{"scanType":"BASIC","rules":[` + scanRule("SCAN_ON_PUSH", scanFilter("team")+`,`+scanFilter("*x")+`,`+scanFilter("prod*")) + `]}`)
	check("prod/team/app", "true", "SCAN_ON_PUSH", scanFilter("team")+`,`+scanFilter("prod*"))
	check("hub/a", "false", "MANUAL", "")
	put(`{"scanType":"ENHANCED","rules":[` + scanRule("SCAN_ON_PUSH", scanFilter("*")) + `,` + scanRule("CONTINUOUS_SCAN", scanFilter("prod/*")) + `]}`)
	check("prod/team/app", "false", "CONTINUOUS_SCAN", scanFilter("prod/*"))
	check("hub/a", "true", "SCAN_ON_PUSH", scanFilter("*"))
	put(`{"scanType":"ENHANCED","rules":[]}`)
	check("own", "false", "MANUAL", "")
	r.ok(t, "BatchGetRepositoryScanningConfiguration", `{"repositoryNames":["hub/none"]}`, `{"scanningConfigurations":[],"failures":[{"repositoryName":"hub/none",
		"failureCode":"REPOSITORY_NOT_FOUND","failureReason":"The repository with name 'hub/none' does not exist in the registry with id '123456789012'"}]}`)
	r.fails(t, "BatchGetRepositoryScanningConfiguration", `{}`, "InvalidParameterException", constraint("repositoryNames", mustNotBeNull))
	r.fails(t, "BatchGetRepositoryScanningConfiguration", `{"repositoryNames":[]}`, "InvalidParameterException", constraint("repositoryNames", "Member must have length greater than or equal to 1"))
}
