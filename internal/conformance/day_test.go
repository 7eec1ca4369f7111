package conformance_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// What happens to a rule and an image from one morning to the end of the next day.
func TestADayInTheLife(t *testing.T) {
	t.Parallel()
	d := startDay(t)
	old, moved := newDayImage(1), newDayImage(10)
	d.up.Push("library/app", "latest", old.index)

	// 9:00. A rule whose secret is not there; then one that pulls.
	rule := `{"ecrRepositoryPrefix":"docker-hub","upstreamRegistryUrl":"registry-1.docker.io","credentialArn":"` + daySecret + `"}`
	status, out := d.call("CreatePullThroughCacheRule", strings.Replace(rule, "hub-a1B2c3", "bub-a1B2c3", 1))
	assert.Equal(t, 400, status)
	assert.Equal(t, "SecretNotFoundException", out["__type"])
	d.refused(dayRepo, "latest", "NAME_UNKNOWN", "The repository with name '"+dayRepo+"' does not exist in the registry with id '123456789012'")
	d.asked()
	d.does("CreatePullThroughCacheRule", rule)
	d.does("CreateRepositoryCreationTemplate", `{"prefix":"docker-hub","appliedFor":["PULL_THROUGH_CACHE"],"imageTagMutability":"IMMUTABLE_WITH_EXCLUSION",
		"imageTagMutabilityExclusionFilters":[{"filterType":"WILDCARD","filter":"latest*"}],
		"resourceTags":[{"Key":"team","Value":"ops"}],"customRoleArn":"`+dayRole+`"}`)
	assert.Equal(t, true, d.does("ValidatePullThroughCacheRule", `{"ecrRepositoryPrefix":"docker-hub"}`)["isValid"])
	d.asked("GET /v2/ 401", "GET /token 200", "GET /v2/ 200")
	assert.Empty(t, d.does("DescribeRepositories", `{}`)["repositories"])

	// 9:00. The first pull, for one platform, brings in both.
	assert.Equal(t, old.index.Digest, d.pull("latest"))
	d.fetched(1 + len(old.parts()))
	d.asked(append(old.parts(), "GET /v2/library/app/manifests/latest 401", "GET /token 200", "GET /v2/library/app/manifests/latest 200")...)
	assert.Equal(t, []string{"SUCCESS " + dayRepo + ":latest "}, d.tells())
	d.sees(old)

	// 9:10. The tag moves; within its 24 hours nobody notices.
	d.up.Push("library/app", "latest", moved.index)
	d.up.Push("library/app", "v1", old.index)
	d.pass(23*time.Hour + 59*time.Minute)
	assert.Equal(t, old.index.Digest, d.pull("latest"))
	d.asked()
	assert.Equal(t, map[string]digest.Digest{"latest": old.index.Digest}, d.tags())
	assert.EqualValues(t, d.now().Unix(), d.images()[old.index.Digest]["lastRecordedPullTime"])

	// 9:00, a day later. One check, and the tag is another image.
	d.pass(time.Minute)
	assert.Equal(t, moved.index.Digest, d.pull("latest"))
	d.fetched(1 + len(moved.parts()))
	d.asked(append(moved.parts(), "GET /token 200", "HEAD /v2/library/app/manifests/latest 200",
		"GET /v2/library/app/manifests/"+moved.index.Digest.String()+" 200")...)
	assert.Equal(t, map[string]digest.Digest{"latest": moved.index.Digest}, d.tags())
	assert.Len(t, d.images(), 6, "the old image has lost its tag, not its place")
	assert.NotContains(t, d.images()[old.index.Digest], "imageTags")
	assert.Equal(t, []string{"SUCCESS " + dayRepo + ":latest "}, d.tells())

	d.evening(old, moved)
}

// sees asserts what the API tells after the first pull.
func (d *day) sees(img dayImage) {
	t := d.t
	t.Helper()
	repositories := d.does("DescribeRepositories", `{}`)["repositories"].([]any)
	require.Len(t, repositories, 1)
	assert.Equal(t, map[string]any{
		"repositoryArn": "arn:aws:ecr:eu-west-1:123456789012:repository/" + dayRepo, "registryId": "123456789012",
		"repositoryName": dayRepo, "repositoryUri": strings.TrimPrefix(d.url, "http://") + "/" + dayRepo,
		"createdAt": float64(d.now().Unix()), "imageTagMutability": "IMMUTABLE_WITH_EXCLUSION",
		"imageTagMutabilityExclusionFilters": []any{map[string]any{"filterType": "WILDCARD", "filter": "latest*"}},
		"imageScanningConfiguration":         map[string]any{"scanOnPush": false},
		"encryptionConfiguration":            map[string]any{"encryptionType": "AES256"},
	}, repositories[0])
	assert.Equal(t, map[string]digest.Digest{"latest": img.index.Digest}, d.tags())
	images := d.images()
	require.Len(t, images, 3)
	for i, child := range img.children {
		assert.Equal(t, img.size(i), images[child.Digest]["imageSizeInBytes"])
		assert.NotContains(t, images[child.Digest], "imageTags")
	}
	index := images[img.index.Digest]
	assert.Equal(t, img.size(1), index["imageSizeInBytes"], "of the larger platform")
	assert.Equal(t, []any{"latest"}, index["imageTags"])
	assert.EqualValues(t, d.now().Unix(), index["imagePushedAt"])
	assert.EqualValues(t, d.now().Unix(), index["lastRecordedPullTime"])
	d.asked()
}

// evening is when things go wrong.
func (d *day) evening(old, moved dayImage) {
	t := d.t
	t.Helper()
	// A second tag, of an image that is here, costs its manifest and no more; it is
	// one that must not move.
	assert.Equal(t, old.index.Digest, d.pull("v1"))
	d.fetched(1)
	d.asked("GET /v2/library/app/manifests/v1 200")
	d.up.Push("library/app", "v1", moved.index)
	assert.Equal(t, []string{"SUCCESS " + dayRepo + ":v1 "}, d.tells())

	// Upstream breaks, and a day goes by: what is stored is served.
	heal := d.up.Fault(pullthroughtest.Fault{Match: "* /v2/*", Status: 500})
	d.pass(24 * time.Hour)
	assert.Equal(t, moved.index.Digest, d.pull("latest"))
	d.fetched(1)
	d.asked("GET /token 200", "HEAD /v2/library/app/manifests/latest 500")
	heal()

	// Upstream is well again: the tag that must not move is asked for, and stays.
	d.pass(time.Hour)
	assert.Equal(t, old.index.Digest, d.pull("v1"))
	d.fetched(1)
	d.asked("GET /token 200", "HEAD /v2/library/app/manifests/v1 200", "GET /v2/library/app/manifests/"+moved.index.Digest.String()+" 200")
	assert.Equal(t, map[string]digest.Digest{"latest": moved.index.Digest, "v1": old.index.Digest}, d.tags())

	// Without the rule there is what is stored, whatever its age, and nothing else.
	d.does("DeletePullThroughCacheRule", `{"ecrRepositoryPrefix":"docker-hub"}`)
	d.pass(48 * time.Hour)
	assert.Equal(t, moved.index.Digest, d.pull("latest"))
	assert.Equal(t, old.index.Digest, d.pull("v1"))
	d.refused(dayRepo, "v2", "MANIFEST_UNKNOWN", "Requested image not found")
	d.refused("docker-hub/library/other", "latest", "NAME_UNKNOWN",
		"The repository with name 'docker-hub/library/other' does not exist in the registry with id '123456789012'")
	status, out := d.call("DescribePullThroughCacheRules", `{"ecrRepositoryPrefixes":["docker-hub"]}`)
	assert.Equal(t, 400, status)
	assert.Equal(t, "PullThroughCacheRuleNotFoundException", out["__type"])
	d.fetched(0)
	d.asked()
	assert.Len(t, d.images(), 6)
}

// images is what DescribeImages tells of each image of the repository, by digest.
func (d *day) images() map[digest.Digest]map[string]any {
	d.t.Helper()
	all := map[digest.Digest]map[string]any{}
	for _, detail := range d.does("DescribeImages", `{"repositoryName":"`+dayRepo+`"}`)["imageDetails"].([]any) {
		detail := detail.(map[string]any)
		all[digest.Digest(detail["imageDigest"].(string))] = detail
	}
	return all
}

// tags are the digests of the repository's tags.
func (d *day) tags() map[string]digest.Digest {
	d.t.Helper()
	all := map[string]digest.Digest{}
	for _, id := range d.does("ListImages", `{"repositoryName":"`+dayRepo+`","filter":{"tagStatus":"TAGGED"}}`)["imageIds"].([]any) {
		id := id.(map[string]any)
		all[id["imageTag"].(string)] = digest.Digest(id["imageDigest"].(string))
	}
	return all
}

// dayImage is for two platforms.
type dayImage struct {
	index    *pullthroughtest.Image
	children []*pullthroughtest.Image
}

func newDayImage(seed int64) dayImage {
	var img dayImage
	for i, arch := range []string{"amd64", "arm64"} {
		img.children = append(img.children, pullthroughtest.NewImage(pullthroughtest.ImageOptions{
			Seed: seed + int64(i), Layers: 2 + i, LayerSize: 2 << 20, Platform: ocispec.Platform{OS: "linux", Architecture: arch},
		}))
	}
	img.index = pullthroughtest.NewIndex(img.children...)
	return img
}

// parts are the requests for all but the index.
func (img dayImage) parts() (lines []string) {
	for _, child := range img.children {
		lines = append(lines, line(http.MethodGet, "/v2/library/app/manifests/"+child.Digest.String(), 200))
		for _, b := range child.Blobs() {
			lines = append(lines, line(http.MethodGet, "/v2/library/app/blobs/"+b.Digest.String(), 200))
		}
	}
	return lines
}

// size is what ECR calls the size of an image.
func (img dayImage) size(child int) (size float64) {
	for _, b := range img.children[child].Blobs() {
		size += float64(b.Size)
	}
	return size
}
