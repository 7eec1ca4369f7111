package ecrapi_test

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var ecrImages = []trait{
	{"J01", "a repository that was never pulled from is not there: `RepositoryNotFoundException`, with the sentence of E01", "documented, `repo-after-404`", "the same, from all operations; `BatchGetImage` alone asks upstream before", TestARepositoryThatDoesNotExist},
	{"J02", "`DescribeRepositories` has those that were", "documented", "the same, with the URI by `Images.RegistryURL`; those asked for by name must all be there", TestDescribeRepositories},
	{"J03", "ARNs are in the partition of their Region", "documented", "the same", TestPartitions},
	{"J04", "`DescribeImages` has what is cached, never asks upstream, and knows no other tag: `ImageNotFoundException`", "inferred", "the same, with ECR's sentence", TestDescribeImagesByName},
	{"J05", "after a pull of an index of two images there are three, and only the index is tagged", "measured, `fill-mode`", "the same, once all of them were pulled or imported", TestAnIndexAndItsChildren},
	{"J06", "the size of an index is that of its largest image", "documented", "the same, of those that are stored", TestTheSizeOfAnIndexIsThatOfWhatIsStored},
	{"J07", "when a tag has moved, the old image stays without it; `imagePushedAt` is the time of the import", "inferred", "the same", TestATagThatMovedLeavesTheOldImageUntagged},
	{"J08", "artifacts have an `artifactMediaType`, signatures a `subjectManifestDigest`", "documented", "the same", TestAnArtifactAndItsSubject},
	{"J09", "lists are filtered by `tagStatus` and `imageStatus`", "documented, `archived-pull`", "the same; all images are active, since nothing is archived here", TestFilters},
	{"J10", "images and repositories come in pages", "documented", "the same, each once", TestPagesOfImages},
	{"J11", "images are those of one account in one Region", "documented", "the same", TestImagesOfAccountsAndRegionsAreApart},
	{"J12", "a repository whose name is outside the API model", "documented", "the same, in the words of A10", TestNamesOfRepositories},
	{"J13", "images are described after a restart as before", "inferred", "the same, with a `Catalog.File`", TestImagesAreDescribedAfterARestart},
	{"J14", "each operation has an IAM action of its own", "documented", "`Proxy.Authorize` is asked for it, or for what a pull needs where an operation pulls; `API.Identify`, which sees the request, can refuse it, too", testJ14},
	{"J15", "all of ECR has these operations", "documented", "those of an API without `Images` are `API.Next`'s", TestWithoutImagesTheOperationsAreNext},
}

var ecrBatch = []trait{
	{"B01", "`BatchGetImage` pulls through, as a GET of the manifest does", "documented", "the same, by tag and by digest; one that does not fit the other, or is malformed, is a failure of its own", TestBatchGetImage},
	{"B02", "1 to 100 images in a request", "documented", "the same, in the words of A10", TestBatchGetImageRequests},
	{"B03", "an image of a media type that is not among `acceptedMediaTypes`", "chosen, `accepted-media-types`", "`ImageNotFound`: nothing is converted", TestAcceptedMediaTypes},
	{"B04", "upstream answers 401 or 403: `UpstreamAccessDenied`", "inferred", "the same, for the one image", imageFails("UpstreamAccessDenied", 401, 403)},
	{"B05", "429: `UpstreamTooManyRequests`", "inferred", "the same", imageFails("UpstreamTooManyRequests", 429)},
	{"B06", "5xx, or nothing: `UpstreamUnavailable`", "inferred", "the same, without upstream's address", imageFails("UpstreamUnavailable", 500, 503, 504, down)},
	{"B07", "404: `ImageNotFound`, \"Requested image not found\"", "inferred", "the same, where the repository is there", imageFails("ImageNotFound", 404)},
	{"B08", "the rule's secret is missing, unreadable or malformed: `UnableToGetUpstreamImageException`", "chosen, `upstream-exception-texts`", "the same (inferred): the whole call fails, with a sentence of our own", TestBatchGetImageWithoutASecret},
	{"B09", "without a rule there is what is stored, and nothing else", "documented", "the same", TestBatchGetImageWithoutARule},
	{"B10", "a tag that is due is checked; when upstream fails, the old image is answered", "documented", "the same", testB10},
	{"B11", "a caller who may not pull: `AccessDeniedException`", "inferred", "the same, in the words of `Proxy.Authorize`", testB11},
	{"B12", "without `ecr:BatchImportUpstreamImage` a new image is `ImageNotFound`", "inferred", "the same, and upstream is not asked", testB12},
	{"B13", "without `ecr:CreateRepository` a new repository is `RepositoryNotFoundException`", "inferred", "the same, and upstream is not asked", testB13},
	{"B14", "a digest before its tag was pulled", "measured, `digest-first-pull`", "imported, as the documentation says; `ImageNotFound` with `Policy.DigestAfterTag`", testB14},
}

var ecrLayers = []trait{
	{"Y01", "`GetDownloadUrlForLayer` gives the URL of upstream's storage while the layer is not imported, then of ECR's", "chosen, `layer-url`", "departs: the URL of the layer in this registry, where the download pulls it through; it wants no authorization", TestGetDownloadUrlForLayer},
	{"Y02", "the URL needs no authorization in a header", "documented", "`Images.LayerURL` signs one, or the registry lets everybody in", TestTheHostSignsLayerURLs},
	{"Y03", "a layer that is neither here nor upstream is `LayersNotFoundException`, trouble with upstream `UnableToGetUpstreamLayerException`", "documented, `upstream-exception-texts`", "the same, with sentences of our own", TestLayersThatAreNotThere},
	{"Y04", "whatever is wrong upstream, or with the secret, is that exception", "documented, `upstream-exception-texts`", "the same, without upstream's address", testY04},
	{"Y05", "without `ecr:BatchImportUpstreamImage` a layer that is not stored is `LayersNotFoundException`", "inferred", "the same, and upstream is not asked", testY05},
	{"Y06", "`BatchCheckLayerAvailability` knows what is stored: what only upstream has is `UNAVAILABLE`", "inferred", "the same, and upstream is not asked", TestBatchCheckLayerAvailability},
	{"Y07", "an authorization token is base64 of `AWS:` and a password, good for 12 hours, with the registry's address", "documented", "the same; `Images.Password` makes the password", TestGetAuthorizationToken},
	{"Y08", "passwords are not guessed", "inferred", "random ones, where the host makes none", TestPasswordsAreRandom},
}

var ecrReferrers = []trait{
	{"Q01", "`ListImageReferrers` answers upstream's list: digest, media type, artifact type, size", "measured", "the same; no other member unless upstream has annotations", TestOneReferrer},
	{"Q02", "20 referrers on a page, 50 at most, by up to 5 artifact types; a pull brings none", "documented", "the same", TestListImageReferrers},
	{"Q03", "a subject that nobody knows has none, and so has a repository that no rule covers: `{\"referrers\":[]}`", "measured", "the same, never `ImageNotFoundException`", TestSubjectsThatNothingRefersTo},
	{"Q04", "a list counts as fresh for 6 hours", "measured, `referrers-window`", "the same", TestAListOfReferrersIsKeptFor6Hours},
	{"Q05", "upstream fails: `UnableToListUpstreamImageReferrersException`", "documented, `referrers-stale`", "the same, unless a list is known: that is answered", TestAListOfReferrersWhenUpstreamFails},
	{"Q06", "whatever is wrong upstream, or with the secret, is that exception", "documented, `upstream-exception-texts`", "the same, without upstream's address", testQ06},
	{"Q07", "requests outside the API model", "documented", "refused in the words of A10", TestListImageReferrersRequests},
}

// due is a registry whose image hub/a:v1 is due for a check.
func due(t *testing.T) *registry {
	t.Helper()
	r := newRegistry(t, memstore.New(), nil)
	r.up.Push("a", "v1", image(1))
	r.pull(t, "a", "v1")
	r.up.Push("a", "v1", image(2))
	r.wait(25 * time.Hour)
	r.up.Reset()
	return r
}

const getV1 = `{` + hubA + `,"imageIds":[{"imageTag":"v1"}]}`

func gotten(img *pullthroughtest.Image) string {
	return `{"images":[{"registryId":"123456789012",` + hubA + `,"imageId":{"imageDigest":"` + img.Digest.String() + `","imageTag":"v1"},"imageManifest":` + quoted(img.Content) +
		`,"imageManifestMediaType":"` + img.MediaType + `"}],"failures":[]}`
}

func testB10(t *testing.T) {
	r := due(t)
	r.ok(t, "BatchGetImage", getV1, gotten(image(2)))
	assert.Equal(t, []string{"HEAD /v2/a/manifests/v1 200", "GET /v2/a/manifests/" + image(2).Digest.String() + " 200"}, r.up.Log())

	r = due(t)
	r.up.Fault(pullthroughtest.Fault{Match: "* /v2/a/manifests/*", Status: http.StatusInternalServerError})
	r.ok(t, "BatchGetImage", getV1, gotten(image(1)))
	assert.Equal(t, []string{"HEAD /v2/a/manifests/v1 500"}, r.up.Log())
}

// forbidden is a registry whose callers lack one permission.
func forbidden(t *testing.T, what pullthrough.Action) *registry {
	t.Helper()
	r := newRegistry(t, memstore.New(), func(r *registry) {
		r.proxy.Authorize = func(_ context.Context, a pullthrough.Action, _ pullthrough.Request) error {
			if a == what {
				return errors.New("User: you is not authorized to perform: that")
			}
			return nil
		}
	})
	r.up.Push("a", "v1", image(1))
	return r
}

func testB11(t *testing.T) {
	r := forbidden(t, pullthrough.ActionPull)
	r.fails(t, "BatchGetImage", getV1, "AccessDeniedException", "User: you is not authorized to perform: that")
	assert.Empty(t, r.up.Log())
}

func testB12(t *testing.T) {
	r := forbidden(t, pullthrough.ActionImport)
	require.NoError(t, r.proxy.Store.PutManifest(t.Context(), repo("a"), manifestOf(image(2), "v2")))
	r.ok(t, "BatchGetImage", getV1, `{"images":[],"failures":[{"imageId":{"imageTag":"v1"},"failureCode":"ImageNotFound","failureReason":"Requested image not found"}]}`)
	assert.Empty(t, r.up.Log())
}

func testB13(t *testing.T) {
	r := forbidden(t, pullthrough.ActionCreate)
	r.fails(t, "BatchGetImage", getV1, "RepositoryNotFoundException", noRepository("hub/a"))
	assert.Empty(t, r.up.Log())
	r.ok(t, "DescribeRepositories", `{}`, `{"repositories":[]}`)
}

func testB14(t *testing.T) {
	request := `{` + hubA + `,"imageIds":[{"imageDigest":"` + image(1).Digest.String() + `"}]}`
	r := newRegistry(t, memstore.New(), nil)
	r.up.Push("a", "v1", image(1))
	_, body := r.send(t, target+"BatchGetImage", request)
	assert.Contains(t, body, `"failures":[]`)
	assert.Equal(t, map[string][]string{"": {image(1).Digest.String()}}, r.tagged(t))

	r = newRegistry(t, memstore.New(), func(r *registry) {
		r.proxy.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{DigestAfterTag: true}
		}
	})
	r.up.Push("a", "v1", image(1))
	r.up.Push("a", "v2", image(2))
	r.pull(t, "a", "v2")
	r.up.Reset()
	_, body = r.send(t, target+"BatchGetImage", request)
	assert.Contains(t, body, `"failureCode":"ImageNotFound","failureReason":"Requested image not found"`)
	assert.Empty(t, r.up.Log())
}

// troubles are what can be wrong upstream of a repository.
func troubles(t *testing.T) (all []*registry) {
	t.Helper()
	for _, status := range []int{401, 403, 429, 500, 503, down} {
		r := newRegistry(t, memstore.New(), nil)
		require.NoError(t, r.proxy.Store.PutManifest(t.Context(), repo("a"), manifestOf(image(1), "v1")))
		if status == down {
			r.up.Close()
		} else {
			challenge := http.Header{"Www-Authenticate": {`Basic realm="r"`}} // a refusal without one may mean that there is no such API
			r.up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/*", Status: status, Header: challenge})
		}
		all = append(all, r)
	}
	r := withoutSecret(t, &vault{err: assert.AnError})
	require.NoError(t, r.proxy.Store.PutManifest(t.Context(), pullthrough.Repo{Name: "private/secret"}, manifestOf(image(1), "v1")))
	return append(all, r)
}

// inTrouble asks each for what only upstream can tell.
func inTrouble(t *testing.T, op, request, exception string) {
	t.Helper()
	for _, r := range troubles(t) {
		for _, name := range []string{"hub/a", "private/secret"} {
			if _, err := r.catalog.Repository(t.Context(), pullthrough.Repo{Name: name}); err != nil {
				continue
			}
			resp, body := r.send(t, target+op, `{"repositoryName":"`+name+`",`+request+`}`)
			assertException(t, resp, body, exception)
			assert.NotContains(t, body, r.up.Host())
		}
	}
}

func testY04(t *testing.T) {
	inTrouble(t, "GetDownloadUrlForLayer", `"layerDigest":"`+nowhere+`"`, "UnableToGetUpstreamLayerException")
}

func testQ06(t *testing.T) {
	inTrouble(t, "ListImageReferrers", `"subjectId":{"imageDigest":"`+nowhere+`"}`, "UnableToListUpstreamImageReferrersException")
}

func testY05(t *testing.T) {
	r := forbidden(t, pullthrough.ActionImport)
	img := image(1)
	require.NoError(t, r.proxy.Store.PutManifest(t.Context(), repo("a"), manifestOf(img, "v1")))
	resp, body := r.send(t, target+"GetDownloadUrlForLayer", `{`+hubA+`,"layerDigest":"`+img.Config.Digest.String()+`"}`)
	assertException(t, resp, body, "LayersNotFoundException")
	assert.Empty(t, r.up.Log())
}

func testJ14(t *testing.T) {
	var allowed pullthrough.Action
	r := newRegistry(t, memstore.New(), func(r *registry) {
		r.proxy.Authorize = func(_ context.Context, a pullthrough.Action, r pullthrough.Request) error {
			if a == allowed {
				return nil
			}
			return errors.New("no " + string(a) + " in " + cmp.Or(r.Repo.Name, "the registry"))
		}
		r.api.Identify = func(req *http.Request) (pullthrough.Identity, error) {
			if req.Header.Get("X-Amz-Target") == target+"GetAuthorizationToken" {
				return pullthrough.Identity{}, &ecrapi.Error{Code: "AccessDeniedException", Message: "not this"}
			}
			return pullthrough.Identity{}, nil
		}
	})
	require.NoError(t, r.proxy.Store.PutManifest(t.Context(), repo("a"), manifestOf(image(1), "v1")))
	r.fails(t, "GetAuthorizationToken", `{}`, "AccessDeniedException", "not this")
	r.fails(t, "BatchGetImage", getV1, "AccessDeniedException", "no BatchGetImage in hub/a")
	r.fails(t, "DescribeRepositories", `{}`, "AccessDeniedException", "no DescribeRepositories in the registry")
	r.fails(t, "DescribeRepositories", `{"repositoryNames":["hub/b"]}`, "AccessDeniedException", "no DescribeRepositories in hub/b")
	for op, body := range map[string]string{
		"DescribeImages": `{` + hubA + `}`, "ListImages": `{` + hubA + `}`,
		"BatchCheckLayerAvailability": `{` + hubA + `,"layerDigests":["` + image(1).Digest.String() + `"]}`,
		"ListImageReferrers":          `{` + hubA + `,"subjectId":{"imageDigest":"` + image(1).Digest.String() + `"}}`,
	} {
		r.fails(t, op, body, "AccessDeniedException", "no "+op+" in hub/a")
		r.fails(t, op, strings.Replace(body, "hub/a", "hub/b", 1), "AccessDeniedException", "no "+op+" in hub/b")
	}
	allowed = "ListImages"
	r.ok(t, "ListImages", `{`+hubA+`}`, `{"imageIds":[{"imageDigest":"`+image(1).Digest.String()+`","imageTag":"v1"}]}`)
	assert.Empty(t, r.up.Log())
}
