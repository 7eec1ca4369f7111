package ecrapi_test

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var ecrEvents = []trait{
	{"Z01", "EventBridge gets an `ECR Pull Through Cache Action`", "documented", "`API.PullThroughCacheEvent` makes it of the `Proxy`'s event, member by member; the host sends it", TestTheWholeEvent},
	{"Z13", "its detail has `sync-status`, `ecr-repository-prefix`, `repository-name` and `upstream-registry-url`, and may have `image-tag`, `image-digest`, `failure-code` and `failure-reason`", "documented", "the same, and the `rule-version` of AWS's example", testZ13},
	{"Z02", "one for the tag or digest that was asked for, not for what comes with it", "chosen, `event-granularity`", "the same, however much is filled; none for what is cached", TestOneEventForWhatWasAskedFor},
	{"Z03", "a check of a tag that is due", "chosen, `event-granularity`", "is told like a first pull, also when it fails and the old image is served", TestChecksAreTold},
	{"Z04", "`sync-status` of a failure", "chosen, `event-failure-status`", "`FAILURE`; without a `failure-code` when upstream does not have the image", failureIsTold(`"failure-reason":"Requested image not found"`, 404)},
	{"Z05", "`failure-code` of an upstream that refuses", "chosen, `event-failure-codes`", "`UpstreamAccessDenied`, as `BatchGetImage` has it", failureIsTold(`"failure-code":"UpstreamAccessDenied","failure-reason":"The authentication to the upstream registry failed. Verify that the credentials provided in the pull through cache rule are correct, and try again."`, 401, 403)},
	{"Z06", "that limits the rate", "chosen, `event-failure-codes`", "`UpstreamTooManyRequests`", failureIsTold(`"failure-code":"UpstreamTooManyRequests","failure-reason":"The upstream registry limits the rate of requests. Try again later."`, 429)},
	{"Z07", "that is down", "chosen, `event-failure-codes`", "`UpstreamUnavailable`", failureIsTold(`"failure-code":"UpstreamUnavailable","failure-reason":"The upstream registry could not be reached or gave no usable answer."`, 500, 503)},
	{"Z08", "a secret that is of no use", "chosen, `event-failure-codes`", "`UpstreamAccessDenied`", TestASecretThatIsOfNoUseIsTold},
	{"Z09", "a repository that cannot be made, since its template lacks a role", "chosen, `template-role-missing`, `event-failure-codes`", "a failure without a code; the reason is the sentence that clients read", TestARepositoryThatCannotBeMadeIsTold},
	{"Z10", "what never got as far as upstream: a bad name, a missing permission, no rule", "chosen, `untold-refusals`", "no action of the cache's, and no event", TestRefusalsAreNotTold},
	{"Z11", "the rule was deleted before the pull ended", "chosen, `untold-refusals`", "no event, since it could not name the rule", TestAPullWhoseRuleWasDeletedIsNotTold},
	{"Z12", "many pull at once what is not there", "chosen, `event-granularity`", "one event", TestOneEventForAHerdThatFails},
}

var ecrSurprises = []trait{
	{"W09", "a template with tags or a KMS key and without a role: it can be created, but repositories cannot, and every first pull fails", "documented, `template-role-missing`", "the same: `NAME_UNKNOWN` for clients, `RepositoryNotFoundException` by the API, and no repository", TestATemplateThatCannotBeApplied},
	{"W11", "Docker Hub and GHCR cannot be cached without a secret, although their images are public", "measured", "the same, by the API; a rule of the host's own needs none", testW11},
}

func testW11(t *testing.T) {
	refused("Docker Hub without a secret", "GHCR without a secret")(t)
	r := newRegistry(t, memstore.New(), func(r *registry) {
		r.proxy.Credentials = r.api.Credentials
		r.proxy.Endpoint = func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error) {
			return url.Parse(r.up.URL)
		}
	})
	r.rule(t, pullthrough.Rule{Prefix: "docker-hub", UpstreamURL: "registry-1.docker.io"})
	r.up.Push("library/alpine", "v1", image(1))
	require.Equal(t, 200, r.request(http.MethodGet, "/v2/docker-hub/library/alpine/manifests/v1"))
	assert.Equal(t, []string{"GET /v2/library/alpine/manifests/v1 200"}, r.up.Log())
}

func testZ13(t *testing.T) {
	required := []string{"ecr-repository-prefix", "repository-name", "rule-version", "sync-status", "upstream-registry-url"}
	img := image(1)
	for name, c := range map[string]struct {
		ref  string
		more []string
		with int // upstream's status, if not 0
	}{
		"a tag":             {"v1", []string{"image-digest", "image-tag"}, 0},
		"a digest":          {img.Digest.String(), []string{"image-digest"}, 0},
		"a missing tag":     {"gone", []string{"failure-reason", "image-tag"}, 0},
		"a refused tag":     {"v1", []string{"failure-code", "failure-reason", "image-tag"}, 401},
		"a digest too many": {img.Digest.String(), []string{"failure-code", "failure-reason", "image-digest"}, 429},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t, memstore.New(), nil)
			r.up.Push("a", "v1", img)
			if c.with != 0 {
				r.up.Fault(pullthroughtest.Fault{Match: "* /v2/a/*", Status: c.with})
			}
			_ = r.request(http.MethodGet, "/v2/hub/a/manifests/"+c.ref)
			r.idle(t)
			details := r.told(t)
			require.Len(t, details, 1)
			assert.ElementsMatch(t, append(c.more, required...), slices.Collect(maps.Keys(parse(t, details[0]))))
			assert.NotEmpty(t, r.up.Log())
		})
	}
}
