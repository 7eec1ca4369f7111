package ecrapi_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestAnIndexAndItsChildren(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	small := image(1)
	large := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2, Layers: 3})
	index := pullthroughtest.NewIndex(small, large)
	r.up.Push("a", "v1", index)
	r.bring(t, "a", "v1")

	of := func(size int64) string {
		return `{"imageDetails":[{"registryId":"123456789012",` + hubA + `,"imageDigest":"` + index.Digest.String() + `","imageTags":["v1"],"imageSizeInBytes":` + fmt.Sprint(size) +
			`,"imagePushedAt":946684800,"imageManifestMediaType":"application/vnd.oci.image.index.v1+json","imageStatus":"ACTIVE"}]}`
	}
	r.ok(t, "DescribeImages", `{`+hubA+`,"imageIds":[{"imageTag":"v1"}]}`, of(sizeOf(large)))
	r.ok(t, "DescribeImages", `{`+hubA+`,"imageIds":[{"imageDigest":"`+small.Digest.String()+`"}]}`, `{"imageDetails":[`+detail(small, `,"imagePushedAt":946684800`)+`]}`)
	tags := r.tagged(t)
	assert.Equal(t, []string{index.Digest.String()}, tags["v1"])
	assert.ElementsMatch(t, []string{small.Digest.String(), large.Digest.String()}, tags[""], "only the index is tagged")
	assert.Equal(t, 1, r.up.Count("GET /v2/a/manifests/v1 200"))
	assert.Equal(t, 3, r.up.Count("GET /v2/a/manifests/* 200"))
}

func TestTheSizeOfAnIndexIsThatOfWhatIsStored(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	small := image(1)
	large := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2, Layers: 3})
	index := pullthroughtest.NewIndex(small, large)
	r.up.Push("a", "v1", index)
	r.pull(t, "a", "v1")
	size := func() int64 {
		out, err := r.api.DescribeImages(t.Context(), pullthrough.Identity{}, ecrapi.DescribeImagesInput{RepositoryName: new("hub/a"), ImageIds: []ecrapi.ImageIdentifier{{ImageTag: new("v1")}}})
		require.NoError(t, err)
		return out.ImageDetails[0].ImageSizeInBytes
	}
	assert.Zero(t, size())
	r.pull(t, "a", small.Digest.String())
	assert.Equal(t, sizeOf(small), size())
	r.pull(t, "a", large.Digest.String())
	assert.Equal(t, sizeOf(large), size())
	assert.Len(t, r.up.Log(), 3)
}

// Indexes that refer to each other in every way have 40^8 paths, and a chain of them is as
// long as somebody cares to push.
func TestTheSizeOfIndexesInIndexes(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	stored := func(tag string, img *pullthroughtest.Image) {
		m := manifestOf(img, tag)
		m.CheckedAt = r.time()
		require.NoError(t, r.proxy.Store.PutManifest(t.Context(), repo("a"), m))
	}
	put := func(tag string, children ...*pullthroughtest.Image) *pullthroughtest.Image {
		index := pullthroughtest.NewIndex(children...)
		index.Content = bytes.Replace(index.Content, []byte("{"), []byte(`{"annotations":{"tag":"`+tag+`"},`), 1)
		index.Digest = digest.FromBytes(index.Content)
		stored(tag, index)
		return index
	}
	img := image(1)
	stored("image", img)
	layer := []*pullthroughtest.Image{img}
	for i := range 8 {
		next := make([]*pullthroughtest.Image, 40)
		for j := range next {
			next[j] = put(fmt.Sprintf("wide-%d-%d", i, j), layer...)
		}
		layer = next
	}
	deep := put("deep-0", img)
	for i := range 300 {
		deep = put(fmt.Sprintf("deep-%d", i+1), deep)
	}
	hit := make(chan error)
	go func() {
		for range 100 {
			if _, err := r.proxy.Manifest(context.Background(), pullthrough.Request{Repo: repo("a"), Ref: "image"}); err != nil {
				hit <- err
				return
			}
		}
		hit <- nil
	}()
	var next *string
	images := 0
	for {
		out, err := r.api.DescribeImages(t.Context(), pullthrough.Identity{}, ecrapi.DescribeImagesInput{RepositoryName: new("hub/a"), MaxResults: new(int64(1000)), NextToken: next})
		require.NoError(t, err)
		for _, detail := range out.ImageDetails {
			assert.Equal(t, sizeOf(img), detail.ImageSizeInBytes, detail.ImageTags)
		}
		images += len(out.ImageDetails)
		if out.NextToken == "" {
			break
		}
		next = &out.NextToken
	}
	assert.Equal(t, 1+8*40+301, images)
	assert.NoError(t, <-hit)
	assert.Empty(t, r.up.Log())
}

func TestATagThatMovedLeavesTheOldImageUntagged(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	one, two := image(1), image(2)
	r.up.Push("a", "v1", one)
	r.pull(t, "a", "v1")
	r.up.Push("a", "v1", two)
	r.wait(25 * time.Hour)
	r.pull(t, "a", "v1")
	assert.Equal(t, map[string][]string{"v1": {two.Digest.String()}, "": {one.Digest.String()}}, r.tagged(t))
	r.ok(t, "DescribeImages", `{`+hubA+`,"filter":{"tagStatus":"UNTAGGED"}}`,
		`{"imageDetails":[`+detail(one, `,"imagePushedAt":946684800,"lastRecordedPullTime":946684800`)+`]}`)
	r.ok(t, "DescribeImages", `{`+hubA+`,"filter":{"tagStatus":"TAGGED"}}`,
		`{"imageDetails":[`+detail(two, `,"imageTags":["v1"],"imagePushedAt":946774800,"lastRecordedPullTime":946774800`)+`]}`)
	r.wait(25 * time.Hour)
	r.pull(t, "a", "v1")
	r.ok(t, "DescribeImages", `{`+hubA+`,"filter":{"tagStatus":"TAGGED"}}`,
		`{"imageDetails":[`+detail(two, `,"imageTags":["v1"],"imagePushedAt":946774800,"lastRecordedPullTime":946864800`)+`]}`)
}

func TestAnArtifactAndItsSubject(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	subject := image(1)
	signature := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2, ArtifactType: "application/vnd.example.sig", Subject: subject})
	chart := &pullthroughtest.Image{MediaType: "application/vnd.docker.distribution.manifest.v2+json", Content: []byte(`{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"sha256:` +
		strings.Repeat("a", 64) + `","size":7},"layers":[{"mediaType":"x/y","digest":"sha256:` + strings.Repeat("b", 64) + `","size":5},{"mediaType":"x/y","digest":"sha256:` + strings.Repeat("b", 64) + `","size":5}]}`)}
	r.up.Push("a", "sig", signature)
	r.up.Push("a", "chart", chart)
	r.pull(t, "a", "sig")
	r.pull(t, "a", "chart")
	out, err := r.api.DescribeImages(t.Context(), pullthrough.Identity{}, ecrapi.DescribeImagesInput{RepositoryName: new("hub/a")})
	require.NoError(t, err)
	require.Len(t, out.ImageDetails, 2)
	for _, d := range out.ImageDetails {
		if d.ImageTags[0] == "sig" {
			assert.Equal(t, "application/vnd.example.sig", d.ArtifactMediaType)
			assert.Equal(t, subject.Digest.String(), d.SubjectManifestDigest)
			continue
		}
		assert.Equal(t, "application/vnd.cncf.helm.config.v1+json", d.ArtifactMediaType)
		assert.Equal(t, int64(12), d.ImageSizeInBytes, "a blob is stored once")
		assert.Empty(t, d.SubjectManifestDigest)
	}
}

func TestTheTimeOfAPull(t *testing.T) {
	r := newRegistry(t, memstore.New(), func(r *registry) {
		r.proxy.Identify = func(req *http.Request) (pullthrough.Identity, error) {
			return pullthrough.Identity{Caller: req.URL.Query().Get("as")}, nil
		}
	})
	img := image(1)
	r.up.Push("a", "v1", img)
	at := func() int64 { return r.clock.Load() }
	require.Equal(t, 200, r.request(http.MethodGet, "/v2/hub/a/manifests/v1"))
	first := at()
	assert.Equal(t, first, r.pulledAt(t, img))
	r.wait(time.Minute)
	require.Equal(t, 404, r.request(http.MethodGet, "/v2/hub/a/manifests/v2"))
	require.Equal(t, 200, r.request(http.MethodGet, "/v2/hub/a/blobs/"+img.Config.Digest.String()))
	assert.Equal(t, first, r.pulledAt(t, img), "none of these is a pull of the image")

	_, err := r.api.BatchGetImage(t.Context(), pullthrough.Identity{}, ecrapi.BatchGetImageInput{RepositoryName: new("hub/a"), ImageIds: []ecrapi.ImageIdentifier{{ImageTag: new("v1")}}})
	require.NoError(t, err)
	assert.Equal(t, at(), r.pulledAt(t, img), "BatchGetImage counts")
}

// head-counts-pull: it does not.
func TestAHeadIsNoPull(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	img := image(1)
	r.up.Push("a", "v1", img)
	require.Equal(t, 200, r.request(http.MethodHead, "/v2/hub/a/manifests/v1"))
	assert.Zero(t, r.pulledAt(t, img))
	r.pull(t, "a", "v1")
	pulled := r.clock.Load()
	r.wait(time.Minute)
	require.Equal(t, 200, r.request(http.MethodHead, "/v2/hub/a/manifests/v1"))
	assert.Equal(t, pulled, r.pulledAt(t, img))
}

func TestExcludedPrincipals(t *testing.T) {
	const scanner = "arn:aws:iam::123456789012:role/team/scanner"
	r := newRegistry(t, memstore.New(), nil)
	img := image(1)
	r.up.Push("a", "v1", img)
	r.ok(t, "RegisterPullTimeUpdateExclusion", object("principalArn", scanner), `{"principalArn":"`+scanner+`","createdAt":946684800}`)
	for caller, counts := range map[string]bool{
		scanner: false,
		"arn:aws:sts::123456789012:assumed-role/scanner/session": false,
		"": true,
		"arn:aws:sts::123456789012:assumed-role/scan/session":    true,
		"arn:aws:sts::111122223333:assumed-role/scanner/session": true,
		"arn:aws:sts::123456789012:assumed-role/scanner":         true,
		"arn:aws:iam::123456789012:role/scanner":                 true,
		"arn:aws:iam::123456789012:user/scanner":                 true,
	} {
		r.wait(time.Minute)
		_, err := r.proxy.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: "v1", Caller: caller})
		require.NoError(t, err)
		assert.Equal(t, counts, r.pulledAt(t, img) == r.clock.Load(), caller)
	}
}

func TestAPullWhoseExclusionIsNotKnownIsNotRecorded(t *testing.T) {
	r := newRegistry(t, memstore.New(), func(r *registry) {
		r.catalog.Excluded = func(context.Context, string, string, string) (bool, error) { return false, assert.AnError }
	})
	img := image(1)
	r.up.Push("a", "v1", img)
	_, err := r.proxy.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: "v1", Caller: "x"})
	require.NoError(t, err)
	assert.Zero(t, r.pulledAt(t, img))
}
