package ecrapi_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

var imageOperations = []string{
	"DescribeRepositories", "DescribeImages", "ListImages", "BatchGetImage", "ListImageReferrers", "GetDownloadUrlForLayer",
	"BatchCheckLayerAvailability", "GetAuthorizationToken", "BatchDeleteImage", "DeleteRepository",
}

// Requests that are right but for the repository, which does not exist.
var inRepository = map[string]string{
	"DescribeImages":              `"maxResults":5`,
	"ListImages":                  `"maxResults":5`,
	"BatchDeleteImage":            `"imageIds":[{"imageTag":"v1"}]`,
	"DeleteRepository":            `"force":true`,
	"BatchGetImage":               `"imageIds":[{"imageTag":"v1"}]`,
	"ListImageReferrers":          `"subjectId":{"imageDigest":"sha256:` + strings.Repeat("a", 64) + `"}`,
	"GetDownloadUrlForLayer":      `"layerDigest":"sha256:` + strings.Repeat("a", 64) + `"`,
	"BatchCheckLayerAvailability": `"layerDigests":["sha256:` + strings.Repeat("a", 64) + `"]`,
}

// A host that has operations of its own keeps them.
func TestWithoutImagesTheOperationsAreNext(t *testing.T) {
	c := start(t, &ecrapi.API{Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusTeapot) })})
	for _, op := range imageOperations {
		resp, _ := c.send(t, target+op, `{}`)
		assert.Equal(t, http.StatusTeapot, resp.StatusCode, op)
	}
	_, err := c.api.ListImages(t.Context(), pullthrough.Identity{}, ecrapi.ListImagesInput{RepositoryName: new("hub/a")})
	assert.ErrorIs(t, err, &ecrapi.Error{Code: "UnknownOperationException"})
}

func TestARepositoryThatDoesNotExist(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	for op, rest := range inRepository {
		for _, name := range []string{"hub/none", "else/none"} {
			r.fails(t, op, `{"repositoryName":"`+name+`",`+rest+`}`, "RepositoryNotFoundException", noRepository(name))
		}
	}
	r.fails(t, "DescribeRepositories", `{"repositoryNames":["hub/none"]}`, "RepositoryNotFoundException", noRepository("hub/none"))
	r.ok(t, "DescribeRepositories", `{}`, `{"repositories":[]}`)
	assert.Equal(t, 1, len(r.up.Log()), "the image alone is asked for upstream: %s", r.up.Log())
}

func TestNamesOfRepositories(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	for op, rest := range inRepository {
		r.fails(t, op, `{`+rest+`}`, "InvalidParameterException", constraint("repositoryName", mustNotBeNull))
		for name, why := range map[string]string{
			"":                       "Member must have length greater than or equal to 2",
			"a":                      "Member must have length greater than or equal to 2",
			strings.Repeat("a", 257): "Member must have length less than or equal to 256",
			"A/b":                    `Member must satisfy regular expression pattern: [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`,
			"a//b":                   `Member must satisfy regular expression pattern: [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`,
		} {
			r.fails(t, op, `{"repositoryName":"`+name+`",`+rest+`}`, "InvalidParameterException", constraint("repositoryName", why))
		}
		r.fails(t, op, `{`+hubA+`,"registryId":"1",`+rest+`}`, "InvalidParameterException", constraint("registryId", "Member must satisfy regular expression pattern: [0-9]{12}"))
	}
	assert.Empty(t, r.up.Log())
}

func TestDescribeRepositories(t *testing.T) {
	r := newRegistry(t, memstore.New(), func(r *registry) {
		r.api.Images.RegistryURL = func(_ *http.Request, account, region string) string {
			return "http://" + account + "." + region + ".registry.test:5000"
		}
	})
	for _, name := range []string{"b", "a", "c"} {
		r.up.Push(name, "v1", image(1))
		r.pull(t, name, "v1")
	}
	of := func(names ...string) string {
		var all []string
		for _, name := range names {
			all = append(all, `{"repositoryArn":"arn:aws:ecr:us-east-1:123456789012:repository/hub/`+name+`","registryId":"123456789012","repositoryName":"hub/`+name+
				`","repositoryUri":"123456789012.us-east-1.registry.test:5000/hub/`+name+`","createdAt":946684800,"imageTagMutability":"MUTABLE","imageScanningConfiguration":{"scanOnPush":false},"encryptionConfiguration":{"encryptionType":"AES256"}}`)
		}
		return `{"repositories":[` + strings.Join(all, ",") + `]}`
	}
	r.ok(t, "DescribeRepositories", `{}`, of("a", "b", "c"))
	r.ok(t, "DescribeRepositories", `{"repositoryNames":["hub/c","hub/a","hub/c"]}`, of("a", "c"))
	r.fails(t, "DescribeRepositories", `{"repositoryNames":["hub/c","hub/d"]}`, "RepositoryNotFoundException", noRepository("hub/d"))
	for _, page := range []string{`"maxResults":5`, `"nextToken":"RGVzY3JpYmVSZXBvc2l0b3JpZXMgYQ"`} {
		r.fails(t, "DescribeRepositories", `{"repositoryNames":["hub/c"],`+page+`}`, "InvalidParameterException",
			"The parameters 'nextToken' and 'maxResults' cannot be used together with 'repositoryNames'")
	}
	r.fails(t, "DescribeRepositories", `{"repositoryNames":[]}`, "InvalidParameterException", constraint("repositoryNames", "Member must have length greater than or equal to 1"))
}

func TestPartitions(t *testing.T) {
	for region, partition := range map[string]string{"eu-west-1": "aws", "cn-north-1": "aws-cn", "us-gov-west-1": "aws-us-gov"} {
		catalog := &ecrapi.Catalog{}
		api := &ecrapi.API{Region: region, Images: &ecrapi.Images{Catalog: catalog}}
		require.NoError(t, catalog.Around(memstore.New()).PutManifest(t.Context(), repo("a"), manifestOf(image(1), "")))
		out, err := api.DescribeRepositories(t.Context(), pullthrough.Identity{}, ecrapi.DescribeRepositoriesInput{})
		require.NoError(t, err)
		assert.Equal(t, "arn:"+partition+":ecr:"+region+":123456789012:repository/hub/a", out.Repositories[0].RepositoryArn)
	}
}

// What is one account's is not another's.
func TestImagesOfAccountsAndRegionsAreApart(t *testing.T) {
	r := newRegistry(t, memstore.New(), func(r *registry) { r.api.Identify, r.proxy.Identify = byHeader, byHeader })
	store := r.proxy.Store
	for i, at := range []pullthrough.Repo{{Account: "111111111111", Region: "us-east-1"}, {Account: "111111111111", Region: "eu-west-1"}, {Account: "222222222222", Region: "us-east-1"}, {}} {
		at.Name = "hub/a"
		require.NoError(t, store.PutManifest(t.Context(), at, manifestOf(image(int64(i)), "v1")))
	}
	for i, at := range [][]string{{"X-Account", "111111111111", "X-Region", "us-east-1"}, {"X-Account", "111111111111", "X-Region", "eu-west-1"}, {"X-Account", "222222222222", "X-Region", "us-east-1"}, {}} {
		want := `{"imageIds":[{"imageDigest":"` + image(int64(i)).Digest.String() + `","imageTag":"v1"}]}`
		r.ok(t, "ListImages", `{`+hubA+`}`, want, at...)
		if len(at) > 0 {
			r.ok(t, "ListImages", `{`+hubA+`,"registryId":"`+at[1]+`"}`, want, at...)
			for op, rest := range inRepository {
				r.fails(t, op, `{`+hubA+`,"registryId":"333333333333",`+rest+`}`, "AccessDeniedException", "The registry with id '333333333333' belongs to another account", at...)
			}
		}
	}
	r.ok(t, "ListImages", `{`+hubA+`,"registryId":"123456789012"}`, `{"imageIds":[{"imageDigest":"`+image(3).Digest.String()+`","imageTag":"v1"}]}`)
	r.fails(t, "ListImages", `{`+hubA+`}`, "RepositoryNotFoundException",
		"The repository with name 'hub/a' does not exist in the registry with id '444444444444'", "X-Account", "444444444444", "X-Region", "us-east-1")
	require.NoError(t, store.PutManifest(t.Context(), pullthrough.Repo{Account: "555555555555", Name: "hub/a"}, manifestOf(image(9), "v1")))
	r.ok(t, "ListImages", `{`+hubA+`,"registryId":"555555555555"}`, `{"imageIds":[{"imageDigest":"`+image(9).Digest.String()+`","imageTag":"v1"}]}`)
}

// Pages are of any size, and all of them together are the list.
func TestPagesOfImages(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	for i := range 11 {
		r.up.Push(fmt.Sprint("r", i), "v1", image(int64(i)))
		r.up.Push("a", fmt.Sprint("v", i), image(int64(i/2)))
		r.pull(t, fmt.Sprint("r", i), "v1")
		r.pull(t, "a", fmt.Sprint("v", i))
	}
	for op, want := range map[string]struct {
		request, items, key string
		n                   int
	}{
		"DescribeRepositories": {`"x":1`, "repositories", "repositoryName", 12},
		"DescribeImages":       {hubA, "imageDetails", "imageDigest", 6},
		"ListImages":           {hubA, "imageIds", "imageTag", 11},
	} {
		for _, size := range []int{1, 2, 3, 5, 6, 11, 12, 100} {
			seen, token, pages := map[any]bool{}, "", 0
			for more := true; more; pages++ {
				request := fmt.Sprintf(`{%s,"maxResults":%d`, want.request, size)
				if token != "" {
					request += `,"nextToken":"` + token + `"`
				}
				_, body := r.send(t, target+op, request+`}`)
				members := parse(t, body)
				items, ok := members[want.items].([]any)
				require.True(t, ok, body)
				require.NotEmpty(t, items)
				require.LessOrEqual(t, len(items), size)
				for _, item := range items {
					seen[item.(map[string]any)[want.key]] = true
				}
				token, more = members["nextToken"].(string)
			}
			assert.Len(t, seen, want.n, "%s by %d", op, size)
			assert.Equal(t, (want.n+size-1)/size, pages, "%s by %d", op, size)
		}
		for _, bad := range []string{`"maxResults":0`, `"maxResults":1001`, `"nextToken":"x"`, `"nextToken":"TGlzdEFsbA"`} {
			resp, body := r.send(t, target+op, `{`+want.request+`,`+bad+`}`)
			assertException(t, resp, body, "InvalidParameterException")
		}
	}
}
