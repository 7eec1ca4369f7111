package ecrapi_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

// The names of members match exactly, at every depth: one that is spelled otherwise is not
// known, and ignored.
func TestNamesOfMembersMatchExactly(t *testing.T) {
	c := start(t, &ecrapi.API{})
	for _, body := range []string{`{"EcrRepositoryPrefix":"hub","upstreamRegistryUrl":"quay.io"}`, `{"ecrrepositoryprefix":"hub","upstreamRegistryUrl":"quay.io"}`} {
		c.fails(t, "CreatePullThroughCacheRule", body, "InvalidParameterException", constraint("ecrRepositoryPrefix", mustNotBeNull))
	}
	c.fails(t, "CreatePullThroughCacheRule", `{"ecrRepositoryPrefix":"hub","upstreamRegistryURL":"quay.io"}`, "InvalidParameterException", constraint("upstreamRegistryUrl", mustNotBeNull))
	c.ok(t, "CreatePullThroughCacheRule", `{"ECRREPOSITORYPREFIX":1,"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"quay.io","Ecrrepositoryprefix":"other"}`,
		`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"quay.io","createdAt":946684800,"registryId":"123456789012"}`)
	for members, at := range map[string]string{
		`"encryptionConfiguration":{"EncryptionType":"KMS"}`: "encryptionConfiguration.encryptionType",
		`"resourceTags":[{"key":"a","Value":"b"}]`:           "resourceTags.1.member.key",
		`"resourceTags":[{"Key":"a","value":"b"}]`:           "resourceTags.1.member.value",
	} {
		c.fails(t, "CreateRepositoryCreationTemplate", `{"prefix":"hub","appliedFor":[],`+members+`}`, "InvalidParameterException", constraint(at, mustNotBeNull))
	}
}

func TestTheMemberThatHasTheWrongTypeIsNamed(t *testing.T) {
	c := start(t, &ecrapi.API{})
	for body, at := range map[string]string{
		`{"prefix":{}}`: "prefix",
		`{"encryptionConfiguration":{"kmsKey":7}}`:              "encryptionConfiguration.kmsKey",
		`{"resourceTags":{}}`:                                   "resourceTags",
		`{"resourceTags":[{"Key":"a","Value":"b"},"x"]}`:        "resourceTags",
		`{"resourceTags":[{"Key":"a"},{"Key":["b"]}]}`:          "resourceTags.Key",
		`{"appliedFor":["REPLICATION",false]}`:                  "appliedFor",
		`{"imageTagMutabilityExclusionFilters":[{"filter":0}]}`: "imageTagMutabilityExclusionFilters.filter",
	} {
		resp, answer := c.send(t, target+"CreateRepositoryCreationTemplate", body)
		assert.Equal(t, http.StatusBadRequest, resp.StatusCode)
		assert.JSONEq(t, object("__type", "SerializationException", "message", "The member '"+at+"' has the wrong type."), answer)
	}
}
