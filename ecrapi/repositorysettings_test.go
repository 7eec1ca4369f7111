package ecrapi_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

// made is a repository as answers have it.
func made(name, more string) string {
	return `{"repositoryArn":"` + arn(name) + `","registryId":"123456789012","repositoryName":"` + name + `",
		"repositoryUri":"123456789012.dkr.ecr.us-east-1.amazonaws.com/` + name + `","createdAt":946684800,` + more + `}`
}

func arn(name string) string { return "arn:aws:ecr:us-east-1:123456789012:repository/" + name }

const (
	plain    = `"imageTagMutability":"MUTABLE","imageScanningConfiguration":{"scanOnPush":false},"encryptionConfiguration":{"encryptionType":"AES256"}`
	allKinds = `"imageTagMutability":"IMMUTABLE_WITH_EXCLUSION","imageTagMutabilityExclusionFilters":[{"filterType":"WILDCARD","filter":"late*"}],` +
		`"imageScanningConfiguration":{"scanOnPush":true},"encryptionConfiguration":{"encryptionType":"KMS","kmsKey":"alias/mine"}`
)

func TestARepositoryIsCreated(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	r.template(t, `"imageTagMutability":"IMMUTABLE","resourceTags":[{"Key":"of","Value":"the template"}]`)
	r.ok(t, "CreateRepository", `{"repositoryName":"hub/plain","registryId":"123456789012"}`, `{"repository":`+made("hub/plain", plain)+`}`)
	r.ok(t, "CreateRepository", `{`+hubA+`,"tags":[{"Key":"team","Value":"a"}],`+allKinds+`}`, `{"repository":`+made("hub/a", allKinds)+`}`)
	r.ok(t, "DescribeRepositories", `{}`, `{"repositories":[`+made("hub/a", allKinds)+`,`+made("hub/plain", plain)+`]}`)
	r.ok(t, "ListTagsForResource", object("resourceArn", arn("hub/a")), `{"tags":[{"Key":"team","Value":"a"}]}`)
	r.ok(t, "ListTagsForResource", object("resourceArn", arn("hub/plain")), `{"tags":[]}`)
	r.fails(t, "CreateRepository", `{`+hubA+`}`, "RepositoryAlreadyExistsException", "The repository with name 'hub/a' already exists in the registry with id '123456789012'")

	for _, op := range []string{"ListImages", "DescribeImages"} {
		resp, body := r.send(t, target+op, `{`+hubA+`}`)
		assert.Equal(t, http.StatusOK, resp.StatusCode, body)
	}
	r.up.Push("a", "v1", image(1))
	r.up.Push("a", "latest", image(1))
	r.pull(t, "a", "v1")
	r.pull(t, "a", "latest")
	r.up.Push("a", "v1", image(2))
	r.up.Push("a", "latest", image(2))
	r.wait(25 * 3600e9)
	r.pull(t, "a", "v1")
	r.pull(t, "a", "latest")
	assert.Equal(t, []string{image(1).Digest.String()}, r.tagged(t)["v1"], "it is immutable")
	assert.Equal(t, []string{image(2).Digest.String()}, r.tagged(t)["latest"])
}

func TestRepositoriesThatAreNotCreated(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	for members, want := range map[string][2]string{
		`"repositoryName":"A"`:                        {"InvalidParameterException", constraint("repositoryName", "Member must have length greater than or equal to 2")},
		`"registryId":"1"`:                            {"InvalidParameterException", constraint("registryId", "Member must satisfy regular expression pattern: [0-9]{12}")},
		hubA + `,"imageTagMutability":"mutable"`:      {"InvalidParameterException", constraint("imageTagMutability", mutabilities)},
		hubA + `,` + oneFilter:                        {"InvalidParameterException", constraint(filters, "ImageTagMutabilityExclusionFilters are not allowed when imageTagMutability is set to MUTABLE")},
		hubA + `,"encryptionConfiguration":{}`:        {"InvalidParameterException", constraint("encryptionConfiguration.encryptionType", mustNotBeNull)},
		hubA + `,"tags":[{"Key":"a"}]`:                {"InvalidParameterException", constraint("tags.1.member.value", mustNotBeNull)},
		hubA + `,"tags":[{"Key":"aws:a","Value":""}]`: {"InvalidTagParameterException", sayTag},
		hubA + `,"tags":[` + manyTags(51) + `]`:       {"TooManyTagsException", sayManyTags},
		hubA + `,"encryptionConfiguration":{"encryptionType":"KMS","kmsKey":"arn:aws:kms:eu-west-1:123456789012:key/a"}`: {"KmsException", "Invalid arn eu-west-1"},
	} {
		r.fails(t, "CreateRepository", `{`+members+`}`, want[0], want[1])
	}
	r.ok(t, "DescribeRepositories", `{}`, `{"repositories":[]}`)
}

func TestTheMutabilityOfARepository(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	r.up.Push("a", "v1", image(1))
	r.pull(t, "a", "v1")
	r.ok(t, "PutImageTagMutability", `{`+hubA+`,"imageTagMutability":"MUTABLE_WITH_EXCLUSION",`+oneFilter+`}`,
		`{"registryId":"123456789012",`+hubA+`,"imageTagMutability":"MUTABLE_WITH_EXCLUSION",`+oneFilter+`}`)
	r.ok(t, "PutImageTagMutability", `{`+hubA+`,"imageTagMutability":"IMMUTABLE"}`, `{"registryId":"123456789012",`+hubA+`,"imageTagMutability":"IMMUTABLE"}`)
	r.up.Push("a", "v1", image(2))
	r.wait(25 * 3600e9)
	r.pull(t, "a", "v1")
	assert.Equal(t, []string{image(1).Digest.String()}, r.tagged(t)["v1"])
	for members, want := range map[string]string{
		`"imageTagMutability":"no"`:                       constraint("imageTagMutability", mutabilities),
		`"registryId":"123456789012"`:                     constraint("imageTagMutability", mustNotBeNull),
		`"imageTagMutability":"IMMUTABLE",` + oneFilter:   constraint(filters, "ImageTagMutabilityExclusionFilters are not allowed when imageTagMutability is set to IMMUTABLE"),
		`"imageTagMutability":"IMMUTABLE_WITH_EXCLUSION"`: constraint(filters, "ImageTagMutabilityExclusionFilters can't be null when imageTagMutability is set to IMMUTABLE_WITH_EXCLUSION"),
		`"imageTagMutability":"IMMUTABLE","` + filters + `":[{"filterType":"WILDCARD","filter":"***"}]`: constraint(filters+".1.member.filter", "Member must have at most 2 wildcards"),
	} {
		r.fails(t, "PutImageTagMutability", `{`+hubA+`,`+members+`}`, "InvalidParameterException", want)
	}
}

func TestRepositoriesAreLimited(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	for i := range 100_000 {
		_, err := r.api.CreateRepository(t.Context(), pullthrough.Identity{}, ecrapi.CreateRepositoryInput{RepositoryName: new(fmt.Sprintf("r%05d", i))})
		require.NoError(t, err)
	}
	r.fails(t, "CreateRepository", `{"repositoryName":"more","registryId":"111111111111"}`, "LimitExceededException", "There are 100000 repositories already, which is as many as there may be")
	resp, body := r.send(t, target+"CreateRepository", `{"repositoryName":"r00007"}`)
	assertException(t, resp, body, "RepositoryAlreadyExistsException")
	r.up.Push("a", "v1", image(1))
	r.pull(t, "a", "v1")
}

// aboutRepositories are requests about a repository, with what they need beside its name.
var aboutRepositories = map[string]string{
	"PutImageTagMutability": `"imageTagMutability":"MUTABLE"`, "PutImageScanningConfiguration": `"imageScanningConfiguration":{"scanOnPush":true}`,
	"GetRepositoryPolicy": `"x":0`, "SetRepositoryPolicy": `"policyText":` + quote(aPolicy), "DeleteRepositoryPolicy": `"x":0`,
	"GetLifecyclePolicy": `"x":0`, "PutLifecyclePolicy": `"lifecyclePolicyText":` + quote(aLifecycle), "DeleteLifecyclePolicy": `"x":0`,
	"ListTagsForResource": `"resourceArn":"` + arn("hub/a") + `"`, "TagResource": `"resourceArn":"` + arn("hub/a") + `","tags":[]`,
	"UntagResource": `"resourceArn":"` + arn("hub/a") + `","tagKeys":[]`,
}

func TestSettingsOfARepositoryThatDoesNotExist(t *testing.T) {
	var asked []string
	var refused error
	r := newRegistry(t, memstore.New(), func(r *registry) {
		r.proxy.Authorize = func(_ context.Context, a pullthrough.Action, q pullthrough.Request) error {
			asked = append(asked, string(a)+" "+q.Repo.Name)
			return refused
		}
	})
	for op, members := range aboutRepositories {
		asked, refused = nil, nil
		r.fails(t, op, `{`+hubA+`,`+members+`}`, "RepositoryNotFoundException", "The repository with name 'hub/a' does not exist in the registry with id '123456789012'")
		assert.Equal(t, []string{op + " hub/a"}, asked)
		refused = errors.New("you may not")
		r.fails(t, op, `{`+hubA+`,`+members+`}`, "AccessDeniedException", "you may not")
	}
	r.fails(t, "CreateRepository", `{`+hubA+`}`, "AccessDeniedException", "you may not")
	r.ok(t, "DescribeRegistry", `{}`, `{"registryId":"123456789012","replicationConfiguration":{"rules":[]}}`)
	assert.Empty(t, r.up.Log())
}

// What was set is there after a restart.
func TestSettingsOfARepositoryAreKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "catalog.json")
	store := memstore.New()
	before := newRegistry(t, store, func(r *registry) { r.catalog.File = file })
	before.ok(t, "CreateRepository", `{`+hubA+`,`+allKinds+`}`, `{"repository":`+made("hub/a", allKinds)+`}`)
	for _, op := range []string{"SetRepositoryPolicy", "PutLifecyclePolicy"} {
		resp, body := before.send(t, target+op, `{`+hubA+`,`+aboutRepositories[op]+`}`)
		require.Equal(t, http.StatusOK, resp.StatusCode, body)
	}
	before.ok(t, "TagResource", `{"resourceArn":"`+arn("hub/a")+`","tags":[{"Key":"a","Value":"b"}]}`, `{}`)
	require.NoError(t, before.catalog.Save())

	after := newRegistry(t, store, func(r *registry) {
		r.catalog.File = file
		require.NoError(t, r.catalog.Load())
	})
	after.ok(t, "DescribeRepositories", `{}`, `{"repositories":[`+made("hub/a", allKinds)+`]}`)
	after.ok(t, "GetRepositoryPolicy", `{`+hubA+`}`, `{"registryId":"123456789012",`+hubA+`,"policyText":`+quote(aPolicy)+`}`)
	after.ok(t, "GetLifecyclePolicy", `{`+hubA+`}`, `{"registryId":"123456789012",`+hubA+`,"lifecyclePolicyText":`+quote(aLifecycle)+`,"lastEvaluatedAt":0}`)
	after.ok(t, "ListTagsForResource", object("resourceArn", arn("hub/a")), `{"tags":[{"Key":"a","Value":"b"}]}`)
}
