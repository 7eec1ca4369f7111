package ecrapi_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

const (
	mutabilities = "Member must satisfy enum value set: [MUTABLE, IMMUTABLE, IMMUTABLE_WITH_EXCLUSION, MUTABLE_WITH_EXCLUSION]"
	filters      = "imageTagMutabilityExclusionFilters"
	oneFilter    = `"imageTagMutabilityExclusionFilters":[{"filterType":"WILDCARD","filter":"x*"}]`
)

// brokenTemplates are members that neither Create nor Update takes.
var brokenTemplates = map[string]struct{ at, text string }{
	`"description":"` + strings.Repeat("d", 257) + `"`:        {"description", tooLong + "256"},
	`"repositoryPolicy":"` + strings.Repeat("p", 10241) + `"`: {"repositoryPolicy", tooLong + "10240"},
	`"lifecyclePolicy":"` + strings.Repeat("p", 30721) + `"`:  {"lifecyclePolicy", tooLong + "30720"},
	`"customRoleArn":"` + strings.Repeat("r", 2049) + `"`:     {"customRoleArn", tooLong + "2048"},
	`"imageTagMutability":"mutable"`:                          {"imageTagMutability", mutabilities},
	`"imageTagMutability":""`:                                 {"imageTagMutability", mutabilities},
	`"appliedFor":["PULL_THROUGH_CACHE","PULL"]`:              {"appliedFor", "Member must satisfy constraint: [Member must satisfy enum value set: [REPLICATION, PULL_THROUGH_CACHE, CREATE_ON_PUSH]]"},
	`"encryptionConfiguration":{}`:                            {"encryptionConfiguration.encryptionType", mustNotBeNull},
	`"encryptionConfiguration":{"encryptionType":"aes"}`:      {"encryptionConfiguration.encryptionType", "Member must satisfy enum value set: [AES256, KMS, KMS_DSSE]"},
	`"encryptionConfiguration":{"encryptionType":"KMS","kmsKey":"alias/a"}`: {
		"encryptionConfiguration.kmsKey", `Member must satisfy regular expression pattern: ^$|arn:aws[a-z0-9-]*:kms:[a-z0-9-]+:[0-9]{12}:key\/[a-z0-9-]+`,
	},
	`"encryptionConfiguration":{"encryptionType":"KMS","kmsKey":"` + strings.Repeat("k", 2049) + `"}`: {"encryptionConfiguration.kmsKey", tooLong + "2048"},
	`"encryptionConfiguration":{"encryptionType":"AES256","kmsKey":"arn:aws:kms:us-east-1:123456789012:key/a"}`: {
		"encryptionConfiguration", "Invalid encryption configuration: Encryption key should not be set for AES256 encryption.",
	},
	`"resourceTags":[{"Key":"a","Value":"b"},{"Value":"b"}]`:                            {"resourceTags.2.member.key", mustNotBeNull},
	`"resourceTags":[{"Key":"a"}]`:                                                      {"resourceTags.1.member.value", mustNotBeNull},
	`"resourceTags":[{"Key":"","Value":"b"}]`:                                           {"resourceTags.1.member.key", "Member must have length greater than or equal to 1"},
	`"resourceTags":[{"Key":"` + strings.Repeat("k", 129) + `","Value":""}]`:            {"resourceTags.1.member.key", tooLong + "128"},
	`"resourceTags":[{"Key":"k","Value":"` + strings.Repeat("v", 257) + `"}]`:           {"resourceTags.1.member.value", tooLong + "256"},
	`"resourceTags":[` + strings.Repeat(`{"Key":"k","Value":""},`, 50) + `{"Key":"k"}]`: {"resourceTags", tooLong + "50"},

	`"imageTagMutability":"IMMUTABLE_WITH_EXCLUSION","` + filters + `":[]`:                                         {filters, "Member must have length greater than or equal to 1"},
	`"imageTagMutability":"IMMUTABLE_WITH_EXCLUSION","` + filters + `":[` + strings.Repeat(`{},`, 5) + `{}]`:       {filters, tooLong + "5"},
	`"imageTagMutability":"IMMUTABLE_WITH_EXCLUSION","` + filters + `":[{"filter":"x"}]`:                           {filters + ".1.member.filterType", mustNotBeNull},
	`"imageTagMutability":"IMMUTABLE_WITH_EXCLUSION","` + filters + `":[{"filterType":"GLOB","filter":"x"}]`:       {filters + ".1.member.filterType", "Member must satisfy enum value set: [WILDCARD]"},
	`"imageTagMutability":"IMMUTABLE_WITH_EXCLUSION","` + filters + `":[{"filterType":"WILDCARD"}]`:                {filters + ".1.member.filter", mustNotBeNull},
	`"imageTagMutability":"IMMUTABLE_WITH_EXCLUSION","` + filters + `":[{"filterType":"WILDCARD","filter":"a b"}]`: {filters + ".1.member.filter", "Member must satisfy regular expression pattern: ^[0-9a-zA-Z._*-]{1,128}$"},
	`"imageTagMutability":"IMMUTABLE",` + oneFilter:                                                                {filters, "ImageTagMutabilityExclusionFilters are not allowed when imageTagMutability is set to IMMUTABLE"},
	`"imageTagMutability":"MUTABLE",` + oneFilter:                                                                  {filters, "ImageTagMutabilityExclusionFilters are not allowed when imageTagMutability is set to MUTABLE"},
	oneFilter: {filters, "ImageTagMutabilityExclusionFilters are not allowed when imageTagMutability is set to MUTABLE"},
	`"imageTagMutability":"IMMUTABLE_WITH_EXCLUSION","` + filters + `":[{"filterType":"WILDCARD","filter":"*a*b*"}]`: {filters + ".1.member.filter", "Member must have at most 2 wildcards"},
	`"repositoryPolicy":"{}"`:                         {"repositoryPolicy", "Invalid repository policy provided"},
	`"repositoryPolicy":"Allow"`:                      {"repositoryPolicy", "Invalid repository policy provided"},
	`"lifecyclePolicy":"{}"`:                          {"lifecyclePolicy", "Lifecycle policy validation failure: object has missing required properties ([\"rules\"])"},
	`"lifecyclePolicy":"[]"`:                          {"lifecyclePolicy", "Lifecycle policy validation failure: Could not map policyString into LifecyclePolicy."},
	`"imageTagMutability":"IMMUTABLE_WITH_EXCLUSION"`: {filters, "ImageTagMutabilityExclusionFilters can't be null when imageTagMutability is set to IMMUTABLE_WITH_EXCLUSION"},
	`"imageTagMutability":"MUTABLE_WITH_EXCLUSION"`:   {filters, "ImageTagMutabilityExclusionFilters can't be null when imageTagMutability is set to MUTABLE_WITH_EXCLUSION"},
}

// brokenTemplate is the test of those of brokenTemplates whose text begins so.
func brokenTemplate(text string) func(*testing.T) {
	return func(t *testing.T) {
		c := start(t, &ecrapi.API{})
		_, before := c.send(t, target+"CreateRepositoryCreationTemplate", `{"prefix":"there","appliedFor":["REPLICATION"]}`)
		n := 0
		for members, want := range brokenTemplates {
			if !strings.HasPrefix(want.text, text) {
				continue
			}
			n++
			c.fails(t, "UpdateRepositoryCreationTemplate", `{"prefix":"there",`+members+`}`, "InvalidParameterException", constraint(want.at, want.text))
			request := `{"prefix":"hub",` + members + `}`
			if !strings.Contains(members, "appliedFor") {
				request = with(request, `"appliedFor":["REPLICATION"]`)
			}
			c.fails(t, "CreateRepositoryCreationTemplate", request, "InvalidParameterException", constraint(want.at, want.text))
		}
		assert.NotZero(t, n)
		_, after := c.send(t, target+"DeleteRepositoryCreationTemplate", `{"prefix":"there"}`)
		assert.JSONEq(t, before, after, "nothing has changed")
		c.ok(t, "DescribeRepositoryCreationTemplates", "{}", `{"registryId":"123456789012","repositoryCreationTemplates":[]}`)
	}
}

func TestBrokenTemplatePrefixes(t *testing.T) {
	c := start(t, &ecrapi.API{})
	for _, op := range []string{"CreateRepositoryCreationTemplate", "UpdateRepositoryCreationTemplate", "DeleteRepositoryCreationTemplate"} {
		c.fails(t, op, `{"appliedFor":[]}`, "InvalidParameterException", constraint("prefix", mustNotBeNull))
		c.fails(t, op, `{"prefix":"","appliedFor":[]}`, "InvalidParameterException", constraint("prefix", "Member must have length greater than or equal to 1"))
		c.fails(t, op, `{"prefix":"A","appliedFor":[]}`, "InvalidParameterException", constraint("prefix", prefixPattern))
		c.fails(t, op, object("prefix", strings.Repeat("a", 257)), "InvalidParameterException", constraint("prefix", tooLong+"256"))
	}
	c.fails(t, "CreateRepositoryCreationTemplate", `{"prefix":"hub"}`, "InvalidParameterException", constraint("appliedFor", mustNotBeNull))
	c.fails(t, "DescribeRepositoryCreationTemplates", `{"prefixes":["hub","A"]}`, "InvalidParameterException", constraint("prefixes", "Member must satisfy constraint: ["+prefixPattern+"]"))
	resp, body := c.send(t, target+"CreateRepositoryCreationTemplate", `{"prefix":"a","appliedFor":[]}`)
	require.Equal(t, 200, resp.StatusCode, "a template's prefix is of another type than a rule's: %s", body)
}

func TestAKeyOfAnotherRegion(t *testing.T) {
	c := start(t, &ecrapi.API{})
	_, _ = c.send(t, target+"CreateRepositoryCreationTemplate", `{"prefix":"hub","appliedFor":[]}`)
	for _, op := range []string{"CreateRepositoryCreationTemplate", "UpdateRepositoryCreationTemplate"} {
		c.fails(t, op, `{"prefix":"hub","appliedFor":[],"encryptionConfiguration":{"encryptionType":"KMS","kmsKey":"arn:aws:kms:eu-west-1:123456789012:key/a"}}`,
			"KmsException", "Invalid arn eu-west-1")
	}
}
