package ecrapi_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const nowhere = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func noImage(digest, tag string) string {
	return "The image with imageId {imageDigest:'" + digest + "', imageTag:'" + tag + "'} does not exist within the repository with name 'hub/a' in the registry with id '123456789012'"
}

// Upstream has more images than are described: nobody has pulled them.
func TestDescribeImagesByName(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	one, two := image(1), image(2)
	r.up.Push("a", "v1", one)
	r.up.Push("a", "latest", one)
	r.up.Push("a", "v2", two)
	r.pull(t, "a", "v1")
	r.pull(t, "a", "latest")
	before := len(r.up.Log())

	ids := func(ids string) string { return `{` + hubA + `,"imageIds":[` + ids + `]}` }
	digest := one.Digest.String()
	want := `{"imageDetails":[` + detail(one, `,"imageTags":["latest","v1"],"imagePushedAt":946684800,"lastRecordedPullTime":946684800`) + `]}`
	r.ok(t, "DescribeImages", ids(`{"imageTag":"v1"}`), want)
	r.ok(t, "DescribeImages", ids(`{"imageDigest":"`+digest+`"}`), want)
	r.ok(t, "DescribeImages", ids(`{"imageDigest":"`+digest+`","imageTag":"latest"}`), want)
	r.ok(t, "DescribeImages", ids(`{"imageTag":"v1"},{"imageTag":"latest"},{"imageDigest":"`+digest+`"}`), want)
	r.ok(t, "DescribeImages", `{`+hubA+`,"imageIds":[{"imageTag":"v1"}],"filter":{"tagStatus":"UNTAGGED"}}`, `{"imageDetails":[]}`)

	r.fails(t, "DescribeImages", ids(`{"imageTag":"v2"}`), "ImageNotFoundException", noImage("null", "v2"))
	r.fails(t, "DescribeImages", ids(`{"imageTag":"v1"},{"imageDigest":"`+nowhere+`"}`), "ImageNotFoundException", noImage(nowhere, "null"))
	r.fails(t, "DescribeImages", ids(`{"imageDigest":"`+nowhere+`","imageTag":"v1"}`), "ImageNotFoundException", noImage(nowhere, "v1"))
	r.fails(t, "DescribeImages", ids(`{"imageTag":"v1"},{}`), "InvalidParameterException", constraint("imageIds.2.member", "Member must have an imageDigest or an imageTag"))
	r.fails(t, "DescribeImages", ids(`{"imageTag":""}`), "InvalidParameterException", constraint("imageIds.1.member.imageTag", "Member must have length greater than or equal to 1"))
	r.fails(t, "DescribeImages", ids(``), "InvalidParameterException", constraint("imageIds", "Member must have length greater than or equal to 1"))
	for _, page := range []string{`"maxResults":5`, `"nextToken":"RGVzY3JpYmVJbWFnZXMgYQ"`} {
		r.fails(t, "DescribeImages", `{`+hubA+`,"imageIds":[{"imageTag":"v1"}],`+page+`}`, "InvalidParameterException",
			"The parameters 'nextToken' and 'maxResults' cannot be used together with 'imageIds'")
	}
	assert.Len(t, r.up.Log(), before, "upstream is never asked")
}

// Clients read the size of every image, as it is never absent on AWS.
func TestTheSizeOfAListOfWhichNoImageIsStored(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	index := pullthroughtest.NewIndex(image(1))
	r.up.Push("a", "v1", index)
	r.pull(t, "a", "v1")
	r.ok(t, "DescribeImages", `{`+hubA+`}`, `{"imageDetails":[{"registryId":"123456789012",`+hubA+`,"imageDigest":"`+index.Digest.String()+
		`","imageTags":["v1"],"imageSizeInBytes":0,"imagePushedAt":946684800,"lastRecordedPullTime":946684800,"imageManifestMediaType":"`+index.MediaType+`","imageStatus":"ACTIVE"}]}`)
}

func TestFilters(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	child := image(1)
	index := pullthroughtest.NewIndex(child)
	r.up.Push("a", "v1", index)
	r.bring(t, "a", "v1")
	tagged, untagged := `{"imageDigest":"`+index.Digest.String()+`","imageTag":"v1"}`, `{"imageDigest":"`+child.Digest.String()+`"}`
	both := tagged + "," + untagged
	if child.Digest < index.Digest {
		both = untagged + "," + tagged
	}
	for filter, want := range map[string]string{
		`{}`:                       both,
		`{"tagStatus":"ANY"}`:      both,
		`{"tagStatus":"TAGGED"}`:   tagged,
		`{"tagStatus":"UNTAGGED"}`: untagged,
		`{"imageStatus":"ACTIVE"}`: both,
		`{"imageStatus":"ANY","tagStatus":"TAGGED"}`:   tagged,
		`{"imageStatus":"ARCHIVED"}`:                   ``,
		`{"imageStatus":"ACTIVATING"}`:                 ``,
		`{"imageStatus":"ARCHIVED","tagStatus":"ANY"}`: ``,
	} {
		r.ok(t, "ListImages", `{`+hubA+`,"filter":`+filter+`}`, `{"imageIds":[`+want+`]}`)
		_, body := r.send(t, target+"DescribeImages", `{`+hubA+`,"filter":`+filter+`}`)
		assert.Equal(t, strings.Count(want, "imageDigest"), strings.Count(body, "imageDigest"), filter)
	}
	for _, op := range []string{"ListImages", "DescribeImages"} {
		r.fails(t, op, `{`+hubA+`,"filter":{"tagStatus":"tagged"}}`, "InvalidParameterException", constraint("filter.tagStatus", "Member must satisfy enum value set: [TAGGED, UNTAGGED, ANY]"))
		r.fails(t, op, `{`+hubA+`,"filter":{"imageStatus":""}}`, "InvalidParameterException", constraint("filter.imageStatus", "Member must satisfy enum value set: [ACTIVE, ARCHIVED, ACTIVATING, ANY]"))
	}
}

func TestBatchGetImage(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	one, two := image(1), image(2)
	r.up.Push("a", "v1", one)
	r.up.Push("a", "v2", two)
	answer := func(img *pullthroughtest.Image, tag string) string {
		return `{"registryId":"123456789012",` + hubA + `,"imageId":{"imageDigest":"` + img.Digest.String() + `"` + tag + `},"imageManifest":` + quoted(img.Content) + `,"imageManifestMediaType":"` + img.MediaType + `"}`
	}
	failure := func(id, code, reason string) string {
		return `{"imageId":{` + id + `},"failureCode":"` + code + `","failureReason":"` + reason + `"}`
	}
	get := func(ids, images, failures string) {
		t.Helper()
		r.ok(t, "BatchGetImage", `{`+hubA+`,"imageIds":[`+ids+`]}`, `{"images":[`+images+`],"failures":[`+failures+`]}`)
	}
	get(`{"imageTag":"v1"}`, answer(one, `,"imageTag":"v1"`), ``)
	assert.Equal(t, []string{"GET /v2/a/manifests/v1 200"}, r.up.Log())
	get(`{"imageTag":"v1"}`, answer(one, `,"imageTag":"v1"`), ``)
	assert.Len(t, r.up.Log(), 1, "it is stored")
	get(`{"imageDigest":"`+two.Digest.String()+`"}`, answer(two, ``), ``)
	assert.Equal(t, 1, r.up.Count("GET /v2/a/manifests/sha256:* 200"))

	oneID, badDigest := `"imageDigest":"`+one.Digest.String()+`"`, "Invalid request parameters: image digest should satisfy the regex '[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+'"
	get(`{`+oneID+`,"imageTag":"v1"},{`+oneID+`,"imageTag":"v2"},{},{"imageTag":"v3"},{"imageDigest":"`+nowhere+`"},{"imageDigest":"sha256:1"},{"imageDigest":""},{"imageTag":"a b"}`,
		answer(one, `,"imageTag":"v1"`),
		failure(oneID+`,"imageTag":"v2"`, "ImageTagDoesNotMatchDigest", "Requested image tag does not match the requested image digest")+","+
			failure(``, "MissingDigestAndTag", "Invalid request parameters: both tag and digest cannot be null")+","+
			failure(`"imageTag":"v3"`, "ImageNotFound", "Requested image not found")+","+
			failure(`"imageDigest":"`+nowhere+`"`, "ImageNotFound", "Requested image not found")+","+
			failure(`"imageDigest":"sha256:1"`, "InvalidImageDigest", badDigest)+","+
			failure(`"imageDigest":""`, "InvalidImageDigest", badDigest)+","+
			failure(`"imageTag":"a b"`, "InvalidImageTag", "Invalid request parameters: image tag should satisfy the regex '[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}'"))
}

// accepted-media-types: nothing is converted.
func TestAcceptedMediaTypes(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	r.up.Push("a", "v1", image(1))
	r.ok(t, "BatchGetImage", `{`+hubA+`,"imageIds":[{"imageTag":"v1"}],"acceptedMediaTypes":["x/y"]}`,
		`{"images":[],"failures":[{"imageId":{"imageTag":"v1"},"failureCode":"ImageNotFound","failureReason":"Requested image not found"}]}`)
	resp, body := r.send(t, target+"BatchGetImage", `{`+hubA+`,"imageIds":[{"imageTag":"v1"}],"acceptedMediaTypes":["x/y","`+image(1).MediaType+`"]}`)
	assert.Equal(t, http.StatusOK, resp.StatusCode)
	assert.Contains(t, body, `"failures":[]`)
}

func TestBatchGetImageRequests(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	r.up.Push("a", "v1", image(1))
	many := strings.Repeat(`{"imageTag":"v1"},`, 101)
	for request, want := range map[string]string{
		``:                 constraint("imageIds", mustNotBeNull),
		`,"imageIds":[]`:   constraint("imageIds", "Member must have length greater than or equal to 1"),
		`,"imageIds":null`: constraint("imageIds", mustNotBeNull),
		`,"imageIds":[` + strings.TrimSuffix(many, ",") + `]`:                                                                   constraint("imageIds", "Member must have length less than or equal to 100"),
		`,"imageIds":[{"imageTag":"` + strings.Repeat("a", 301) + `"}]`:                                                         constraint("imageIds.1.member.imageTag", "Member must have length less than or equal to 300"),
		`,"imageIds":[{"imageTag":"v1"}],"acceptedMediaTypes":[]`:                                                               constraint("acceptedMediaTypes", "Member must have length greater than or equal to 1"),
		`,"imageIds":[{"imageTag":"v1"}],"acceptedMediaTypes":[` + strings.TrimSuffix(strings.Repeat(`"x/y",`, 101), ",") + `]`: constraint("acceptedMediaTypes", "Member must have length less than or equal to 100"),
	} {
		r.fails(t, "BatchGetImage", `{`+hubA+request+`}`, "InvalidParameterException", want)
	}
	r.ok(t, "BatchGetImage", `{`+hubA+`,"imageIds":[{"imageTag":"`+strings.Repeat("a", 129)+`"}]}`,
		`{"images":[],"failures":[{"imageId":{"imageTag":"`+strings.Repeat("a", 129)+`"},"failureCode":"InvalidImageTag","failureReason":"Invalid request parameters: image tag should satisfy the regex '[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}'"}]}`)
}

// down is an upstream that cannot be reached.
const down = 0

// imageFails is the test of an upstream that answers so: its trouble is a failure of
// the one image, and the repository is there.
func imageFails(failureCode string, statuses ...int) func(*testing.T) {
	return func(t *testing.T) {
		for _, status := range statuses {
			r := newRegistry(t, memstore.New(), nil)
			r.up.Push("a", "v1", image(1))
			r.pull(t, "a", "v1")
			if status == down {
				r.up.Close()
			} else {
				r.up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/*", Status: status})
			}
			_, body := r.send(t, target+"BatchGetImage", `{`+hubA+`,"imageIds":[{"imageTag":"v2"},{"imageTag":"v1"}]}`)
			assert.Contains(t, body, `"failures":[{"imageId":{"imageTag":"v2"},"failureCode":"`+failureCode+`","failureReason":"`, "%d", status)
			assert.Contains(t, body, `"imageTag":"v1"`, "what is stored comes along")
			assert.NotContains(t, body, r.up.Host())
		}
	}
}

// withoutSecret is a registry whose rule "private" has a secret that v keeps, before an
// upstream that wants one.
func withoutSecret(t *testing.T, v *vault) *registry {
	t.Helper()
	r := newRegistry(t, memstore.New(), func(r *registry) { r.api.Secrets, r.proxy.Credentials = v.secret, r.api.Credentials })
	r.up.Fault(pullthroughtest.Fault{Match: "GET /v2/secret/*", Status: 401, Header: http.Header{"Www-Authenticate": {`Basic realm="x"`}}})
	r.rule(t, pullthrough.Rule{Prefix: "private", UpstreamURL: r.up.URL, CredentialARN: secret})
	return r
}

// A secret that is of no use is nobody's image: the whole call fails.
func TestBatchGetImageWithoutASecret(t *testing.T) {
	vaults := []*vault{{content: badSecrets["plain text"]}, {content: badSecrets["other case"]}}
	for _, e := range secretErrors {
		vaults = append(vaults, &vault{err: e.err})
	}
	for _, v := range vaults {
		r := withoutSecret(t, v)
		resp, body := r.send(t, target+"BatchGetImage", `{"repositoryName":"private/secret","imageIds":[{"imageTag":"v1"}]}`)
		assertException(t, resp, body, "UnableToGetUpstreamImageException")
		assert.NotContains(t, body, "canary")
		assert.NotContains(t, body, r.up.Host())
		assert.NotEmpty(t, v.asked)
	}
}

func TestBatchGetImageWithoutARule(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	r.up.Push("a", "v1", image(1))
	r.pull(t, "a", "v1")
	resp, body := r.send(t, target+"DeletePullThroughCacheRule", `{"ecrRepositoryPrefix":"hub"}`)
	assert.Equal(t, http.StatusOK, resp.StatusCode, body)
	before := len(r.up.Log())
	_, body = r.send(t, target+"BatchGetImage", `{`+hubA+`,"imageIds":[{"imageTag":"v1"},{"imageTag":"v2"}]}`)
	assert.Contains(t, body, `"images":[{`, "it has what it has")
	assert.Contains(t, body, `"failures":[{"imageId":{"imageTag":"v2"},"failureCode":"ImageNotFound","failureReason":"Requested image not found"}]`)
	r.fails(t, "BatchGetImage", `{"repositoryName":"hub/b","imageIds":[{"imageTag":"v1"}]}`, "RepositoryNotFoundException", noRepository("hub/b"))
	assert.Len(t, r.up.Log(), before)
}
