package ecrapi_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

// templateRequest sets everything.
const templateRequest = `{"prefix":"eng/test","appliedFor":["REPLICATION","PULL_THROUGH_CACHE","CREATE_ON_PUSH"],"description":"Repos for testing images",
	"encryptionConfiguration":{"encryptionType":"KMS","kmsKey":"arn:aws:kms:us-east-1:123456789012:key/0a1b-2c"},
	"imageTagMutability":"IMMUTABLE_WITH_EXCLUSION","imageTagMutabilityExclusionFilters":[{"filterType":"WILDCARD","filter":"latest"},{"filterType":"WILDCARD","filter":"dev-*"}],
	"lifecyclePolicy":"{\"rules\":[]}","repositoryPolicy":"{\"Statement\":{\"Effect\":\"Deny\",\"Principal\":{\"AWS\":\"*\"},\"Action\":[\"ecr:*\"]}}","resourceTags":[{"Key":"environment","Value":"test"},{"Key":"empty","Value":""}],
	"customRoleArn":"arn:aws:iam::123456789012:role/create"}`

// with adds members to a JSON object.
func with(object, members string) string {
	return strings.TrimSuffix(object, "}") + "," + members + "}"
}

func TestATemplateFromCreateToDelete(t *testing.T) {
	least := `{"prefix":"least","appliedFor":["PULL_THROUGH_CACHE"],"imageTagMutability":"MUTABLE","encryptionConfiguration":{"encryptionType":"AES256"}}`
	for request, want := range map[string]string{
		`{"prefix":"least","appliedFor":["PULL_THROUGH_CACHE"]}`: least,
		`{"prefix":"least","appliedFor":["PULL_THROUGH_CACHE"],"description":null,"encryptionConfiguration":null,"resourceTags":null,"imageTagMutability":null,
			"imageTagMutabilityExclusionFilters":null,"repositoryPolicy":null,"lifecyclePolicy":null,"customRoleArn":null}`: least,
		templateRequest: templateRequest,
		`{"prefix":"ROOT","appliedFor":["REPLICATION","REPLICATION"],"encryptionConfiguration":{"encryptionType":"KMS_DSSE"},"imageTagMutability":"IMMUTABLE"}`: `{"prefix":"ROOT",
			"appliedFor":["REPLICATION","REPLICATION"],"encryptionConfiguration":{"encryptionType":"KMS_DSSE"},"imageTagMutability":"IMMUTABLE"}`,
		`{"prefix":"a/","appliedFor":[],"encryptionConfiguration":{"encryptionType":"AES256","kmsKey":""}}`: `{"prefix":"a/",
			"encryptionConfiguration":{"encryptionType":"AES256","kmsKey":""},"imageTagMutability":"MUTABLE"}`,
	} {
		c := start(t, &ecrapi.API{})
		prefix, _ := parse(t, request)["prefix"].(string)
		want = with(want, `"createdAt":946684800,"updatedAt":946684800`)
		one := `{"registryId":"123456789012","repositoryCreationTemplate":` + want + `}`
		all := `{"registryId":"123456789012","repositoryCreationTemplates":[` + want + `]}`
		c.ok(t, "CreateRepositoryCreationTemplate", request, one)
		c.now = epoch.Add(time.Hour)
		c.ok(t, "DescribeRepositoryCreationTemplates", "{}", all)
		c.ok(t, "DescribeRepositoryCreationTemplates", `{"prefixes":[]}`, all)
		c.ok(t, "DescribeRepositoryCreationTemplates", `{"prefixes":["`+prefix+`"]}`, all)
		c.ok(t, "DeleteRepositoryCreationTemplate", object("prefix", prefix), one)
		c.ok(t, "DescribeRepositoryCreationTemplates", "{}", `{"registryId":"123456789012","repositoryCreationTemplates":[]}`)
	}
}

func TestATemplateThatDoesNotExist(t *testing.T) {
	c := start(t, &ecrapi.API{})
	_, _ = c.send(t, target+"CreateRepositoryCreationTemplate", `{"prefix":"foo","appliedFor":[]}`)
	for _, prefix := range []string{"gone", "foo/bar", "fo", "ROOT"} {
		for _, op := range []string{"UpdateRepositoryCreationTemplate", "DeleteRepositoryCreationTemplate"} {
			c.fails(t, op, object("prefix", prefix), "TemplateNotFoundException",
				"The repository creation template with prefix '"+prefix+"' does not exist in the registry with id '123456789012'")
		}
	}
}

// template-unknown-prefix: left out.
func TestDescribeLeavesOutTemplatesThatDoNotExist(t *testing.T) {
	c := start(t, &ecrapi.API{})
	_, _ = c.send(t, target+"CreateRepositoryCreationTemplate", `{"prefix":"foo","appliedFor":[]}`)
	c.ok(t, "DescribeRepositoryCreationTemplates", `{"prefixes":["gone"]}`, `{"registryId":"123456789012","repositoryCreationTemplates":[]}`)
	c.ok(t, "DescribeRepositoryCreationTemplates", `{"prefixes":["gone","foo/","ROOT"]}`, `{"registryId":"123456789012","repositoryCreationTemplates":[{"prefix":"foo",
		"encryptionConfiguration":{"encryptionType":"AES256"},"imageTagMutability":"MUTABLE","createdAt":946684800,"updatedAt":946684800}]}`)
}

func TestATemplateThatExists(t *testing.T) {
	c := start(t, &ecrapi.API{})
	for _, prefix := range []string{"foo", "ROOT", "bar/"} {
		_, _ = c.send(t, target+"CreateRepositoryCreationTemplate", `{"prefix":"`+prefix+`","appliedFor":[]}`)
	}
	for _, prefix := range []string{"foo", "foo/", "ROOT", "bar", "bar/"} {
		c.fails(t, "CreateRepositoryCreationTemplate", `{"prefix":"`+prefix+`","appliedFor":[]}`, "TemplateAlreadyExistsException",
			"The repository creation template with prefix '"+prefix+"' already exists in the registry with id '123456789012'")
	}
}

func TestThe101stTemplate(t *testing.T) {
	c := start(t, &ecrapi.API{})
	for i := range 100 {
		resp, body := c.send(t, target+"CreateRepositoryCreationTemplate", fmt.Sprintf(`{"prefix":"a%d","appliedFor":[]}`, i))
		require.Equal(t, 200, resp.StatusCode, body)
	}
	c.fails(t, "CreateRepositoryCreationTemplate", `{"prefix":"more","appliedFor":[]}`, "LimitExceededException",
		"The registry with id '123456789012' has 100 repository creation templates already, which is as many as there may be")
}

// templateUpdates are requests of Update, and what they change of templateRequest.
var templateUpdates = map[string]struct {
	request string
	change  func(members map[string]any)
}{
	"nothing":     {`{}`, func(map[string]any) {}},
	"description": {`{"description":"new"}`, func(m map[string]any) { m["description"] = "new" }},
	"cleared": {`{"description":"","repositoryPolicy":"","lifecyclePolicy":"","customRoleArn":"","resourceTags":[]}`, func(m map[string]any) {
		for _, name := range []string{"description", "repositoryPolicy", "lifecyclePolicy", "customRoleArn", "resourceTags"} {
			delete(m, name)
		}
	}},
	"applied for": {`{"appliedFor":["REPLICATION"]}`, func(m map[string]any) { m["appliedFor"] = []any{"REPLICATION"} }},
	"tags":        {`{"resourceTags":[{"Key":"a","Value":"b"}]}`, func(m map[string]any) { m["resourceTags"] = []any{map[string]any{"Key": "a", "Value": "b"}} }},
	"encryption":  {`{"encryptionConfiguration":{"encryptionType":"AES256"}}`, func(m map[string]any) { m["encryptionConfiguration"] = map[string]any{"encryptionType": "AES256"} }},
	"mutability, and the filters go": {`{"imageTagMutability":"MUTABLE"}`, func(m map[string]any) {
		m["imageTagMutability"] = "MUTABLE"
		delete(m, "imageTagMutabilityExclusionFilters")
	}},
	"filters alone": {`{"imageTagMutabilityExclusionFilters":[{"filterType":"WILDCARD","filter":"x*"}]}`, func(m map[string]any) {
		m["imageTagMutabilityExclusionFilters"] = []any{map[string]any{"filterType": "WILDCARD", "filter": "x*"}}
	}},
	"policies": {`{"repositoryPolicy":` + quote(aPolicy) + `,"lifecyclePolicy":` + quote(aLifecycle) + `}`, func(m map[string]any) { m["repositoryPolicy"], m["lifecyclePolicy"] = aPolicy, aLifecycle }},
}

// templateUpdated is the test of some of templateUpdates. What was not sent is kept.
func templateUpdated(names ...string) func(*testing.T) {
	return func(t *testing.T) {
		for _, name := range names {
			c, ok := templateUpdates[name]
			require.True(t, ok, name)
			api := start(t, &ecrapi.API{})
			_, _ = api.send(t, target+"CreateRepositoryCreationTemplate", templateRequest)
			api.now = epoch.Add(time.Hour)
			want := parse(t, templateRequest)
			want["createdAt"], want["updatedAt"] = 946684800, 946688400
			c.change(want)
			answer, err := json.Marshal(map[string]any{"registryId": account, "repositoryCreationTemplate": want})
			require.NoError(t, err)
			request := parse(t, c.request)
			request["prefix"] = "eng/test/"
			body, err := json.Marshal(request)
			require.NoError(t, err)
			api.ok(t, "UpdateRepositoryCreationTemplate", string(body), string(answer))
			api.ok(t, "DeleteRepositoryCreationTemplate", `{"prefix":"eng/test"}`, string(answer))
		}
	}
}

func TestTemplateForARepository(t *testing.T) {
	c := start(t, &ecrapi.API{})
	for prefix, applied := range map[string]string{
		"ROOT": "PULL_THROUGH_CACHE", "hub": "PULL_THROUGH_CACHE", "hub/library": `PULL_THROUGH_CACHE","REPLICATION`, "slash/": "PULL_THROUGH_CACHE",
	} {
		_, _ = c.send(t, target+"CreateRepositoryCreationTemplate", `{"prefix":"`+prefix+`","appliedFor":["`+applied+`"]}`)
	}
	for name, want := range map[string]string{
		"hub/library/a": "hub/library", "hub/library": "hub", "hub/libraryx/a": "hub", "hub": "ROOT", "hubx/a": "ROOT",
		"slash/a": "slash/", "mine": "ROOT", "a/b": "ROOT",
	} {
		template, ok, err := c.api.Template(t.Context(), pullthrough.Repo{Account: account, Region: region, Name: name})
		require.NoError(t, err)
		assert.True(t, ok, name)
		assert.Equal(t, want, template.Prefix, name)
	}
	_, _ = c.send(t, target+"DeleteRepositoryCreationTemplate", `{"prefix":"ROOT"}`)
	_, ok, err := c.api.Template(t.Context(), pullthrough.Repo{Name: "mine"})
	require.NoError(t, err)
	assert.False(t, ok)
	_, ok, err = c.api.Template(t.Context(), pullthrough.Repo{Account: "111111111111", Name: "hub/a"})
	require.NoError(t, err)
	assert.False(t, ok, "another account's")
}

// template-shadowing: a longer template for another occasion does not count.
func TestTemplatesForOtherOccasions(t *testing.T) {
	c := start(t, &ecrapi.API{})
	for prefix, applied := range map[string]string{"hub": "PULL_THROUGH_CACHE", "hub/library/alpine": "REPLICATION", "hub/other": "CREATE_ON_PUSH", "ROOT": "REPLICATION"} {
		_, _ = c.send(t, target+"CreateRepositoryCreationTemplate", `{"prefix":"`+prefix+`","appliedFor":["`+applied+`"]}`)
	}
	for name, want := range map[string]bool{"hub/library/alpine/x": true, "hub/other/a": true, "else/a": false} {
		template, ok, err := c.api.Template(t.Context(), pullthrough.Repo{Account: account, Region: region, Name: name})
		require.NoError(t, err)
		assert.Equal(t, want, ok, name)
		assert.Equal(t, want, template.Prefix == "hub", name)
	}
}

// template-role-missing: clients read that the repository does not exist.
func TestTemplatesThatNeedARole(t *testing.T) {
	for members, needed := range map[string]bool{
		`"resourceTags":[{"Key":"a","Value":"b"}]`:                                          true,
		`"encryptionConfiguration":{"encryptionType":"KMS"}`:                                true,
		`"encryptionConfiguration":{"encryptionType":"AES256"}`:                             false,
		`"repositoryPolicy":` + quote(aPolicy) + `,"imageTagMutability":"IMMUTABLE"`:        false,
		`"resourceTags":[{"Key":"a","Value":"b"}],"customRoleArn":"` + role + `"`:           false,
		`"encryptionConfiguration":{"encryptionType":"KMS"},"customRoleArn":"` + role + `"`: false,
	} {
		c := start(t, &ecrapi.API{})
		resp, body := c.send(t, target+"CreateRepositoryCreationTemplate", `{"prefix":"hub","appliedFor":["PULL_THROUGH_CACHE"],`+members+`}`)
		require.Equal(t, 200, resp.StatusCode, "it can be created: %s", body)
		template, ok, err := c.api.Template(t.Context(), pullthrough.Repo{Account: account, Name: "hub/a"})
		assert.True(t, ok)
		assert.Equal(t, "hub", template.Prefix)
		if !needed {
			assert.NoError(t, err, members)
			continue
		}
		require.ErrorIs(t, err, pullthrough.ErrNoRule, members)
		status, code, message := pullthrough.OCI(err)
		assert.Equal(t, 404, status)
		assert.Equal(t, "NAME_UNKNOWN", code)
		assert.Equal(t, "The repository with name 'hub/a' does not exist in the registry with id '123456789012'", message)
		assert.ErrorContains(t, err, "customRoleArn", "the log says why")
	}
}
