package ecrapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// told are the details of ECR's events since the last call, as JSON.
func (r *registry) told(t *testing.T) (all []string) {
	t.Helper()
	for _, e := range r.events.take() {
		event, ok, err := r.api.PullThroughCacheEvent(t.Context(), e)
		require.NoError(t, err)
		if ok {
			b, err := json.Marshal(event.Detail)
			require.NoError(t, err)
			all = append(all, string(b))
		}
	}
	return all
}

// about is the detail of a success or failure.
func (r *registry) about(status, more string) string {
	return `{"rule-version":"1","sync-status":"` + status + `","ecr-repository-prefix":"hub","repository-name":"hub/a","upstream-registry-url":"` + r.up.URL + `",` + more + `}`
}

// assertTold waits for the events: a fetch may end after its clients have their answer.
func (r *registry) assertTold(t *testing.T, want ...string) {
	t.Helper()
	r.idle(t)
	got := r.told(t)
	if assert.Len(t, got, len(want), "%s", got) {
		for i := range want {
			assert.JSONEq(t, want[i], got[i])
		}
	}
}

func TestTheWholeEvent(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	img := image(1)
	r.up.Push("a", "3.17.2", img)
	r.pull(t, "a", "3.17.2")
	r.wait(30 * time.Minute)
	var events []string
	for _, e := range r.events.take() {
		event, ok, err := r.api.PullThroughCacheEvent(t.Context(), e)
		require.NoError(t, err)
		if ok {
			b, err := json.Marshal(event)
			require.NoError(t, err)
			assert.Regexp(t, regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`), event.ID)
			events = append(events, strings.Replace(string(b), event.ID, "ID", 1))
		}
	}
	require.Len(t, events, 1)
	assert.JSONEq(t, `{"version":"0","id":"ID","detail-type":"ECR Pull Through Cache Action","source":"aws.ecr","account":"123456789012","time":"2000-01-01T00:30:00Z","region":"us-east-1",
		"resources":["arn:aws:ecr:us-east-1:123456789012:repository/hub/a"],"detail":`+r.about("SUCCESS", `"image-tag":"3.17.2","image-digest":"`+img.Digest.String()+`"`)+`}`, events[0])
}

// event-granularity: whatever else comes along, what was asked for is told once.
func TestOneEventForWhatWasAskedFor(t *testing.T) {
	for _, fill := range []pullthrough.FillMode{pullthrough.FillLazy, pullthrough.FillBackground, pullthrough.FillEager} {
		r := newRegistry(t, memstore.New(), func(r *registry) { r.proxy.Fill = fill })
		child, alone := image(1), image(2)
		index := pullthroughtest.NewIndex(child, image(3))
		r.up.Push("a", "v1", index)
		r.up.Push("a", "v2", alone)
		r.bring(t, "a", "v1")
		r.assertTold(t, r.about("SUCCESS", `"image-tag":"v1","image-digest":"`+index.Digest.String()+`"`))
		r.pull(t, "a", child.Digest.String())
		require.Equal(t, 200, r.request(http.MethodGet, "/v2/hub/a/blobs/"+child.Config.Digest.String()))
		_, err := r.proxy.Referrers(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: child.Digest.String()}, "")
		require.NoError(t, err)
		r.assertTold(t)
		r.pull(t, "a", alone.Digest.String())
		r.assertTold(t, r.about("SUCCESS", `"image-digest":"`+alone.Digest.String()+`"`))
		r.pull(t, "a", "v1")
		r.assertTold(t)
	}
}

// event-granularity: a digest that many wait for in vain is told once, too.
func TestOneEventForAHerdThatFails(t *testing.T) {
	r := newRegistry(t, memstore.New(), func(r *registry) {
		r.proxy.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{Retries: -1} // what is not there is remembered
		}
	})
	stall := make(chan struct{})
	r.up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/*", Status: 404, Stall: stall})
	var herd sync.WaitGroup
	for range 8 {
		herd.Go(func() {
			_, err := r.proxy.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: nowhere})
			assert.ErrorIs(t, err, pullthrough.ErrNotFound)
		})
	}
	close(stall)
	herd.Wait()
	assert.Equal(t, 1, r.up.Count("GET /v2/a/manifests/*"), "who comes later is answered from memory")
	r.assertTold(t, r.about("FAILURE", `"image-digest":"`+nowhere+`","failure-reason":"Requested image not found"`))
}

func TestChecksAreTold(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	img := image(1)
	r.up.Push("a", "v1", img)
	r.pull(t, "a", "v1")
	r.told(t)
	success := r.about("SUCCESS", `"image-tag":"v1","image-digest":"`+img.Digest.String()+`"`)
	r.wait(25 * time.Hour)
	r.pull(t, "a", "v1")
	r.assertTold(t, success)
	r.up.Fault(pullthroughtest.Fault{Match: "* /v2/a/manifests/*", Status: 500})
	r.wait(25 * time.Hour)
	r.pull(t, "a", "v1")
	r.assertTold(t, r.about("FAILURE", `"image-tag":"v1","failure-code":"UpstreamUnavailable","failure-reason":"The upstream registry could not be reached or gave no usable answer."`))
}

// failureIsTold is the test of an upstream that answers so.
func failureIsTold(want string, statuses ...int) func(*testing.T) {
	return func(t *testing.T) {
		for _, status := range statuses {
			for ref, name := range map[string]string{"v1": `"image-tag":"v1"`, nowhere: `"image-digest":"` + nowhere + `"`} {
				r := newRegistry(t, memstore.New(), nil)
				r.up.Push("a", "v0", image(1))
				r.pull(t, "a", "v0")
				r.told(t)
				r.up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/*", Status: status})
				_, err := r.proxy.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: ref})
				require.Error(t, err)
				r.assertTold(t, r.about("FAILURE", name+","+want))
			}
		}
	}
}

// What never got as far as upstream is no action of the cache's.
func TestRefusalsAreNotTold(t *testing.T) {
	r := newRegistry(t, memstore.New(), func(r *registry) {
		r.proxy.Authorize = func(_ context.Context, a pullthrough.Action, r pullthrough.Request) error {
			if a == pullthrough.ActionImport && r.Caller == "nobody" {
				return errors.New("not allowed to import")
			}
			return nil
		}
	})
	r.up.Push("a", "v1", image(1))
	for _, path := range []string{"/v2/hub/a/manifests/a%20b", "/v2/hub/a/manifests/sha256:1", "/v2/else/a/manifests/v1", "/v2/else/a/manifests/" + nowhere, "/v2/hub/a/blobs/" + nowhere} {
		assert.GreaterOrEqual(t, r.request(http.MethodGet, path), 400, path)
	}
	for _, ref := range []string{"v1", image(1).Digest.String()} {
		_, err := r.proxy.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: ref, Caller: "nobody"})
		assert.ErrorIs(t, err, pullthrough.ErrNotFound)
	}
	assert.Empty(t, r.up.Log())
	r.assertTold(t)
}

func TestAPullWhoseRuleWasDeletedIsNotTold(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	r.up.Push("a", "v1", image(1))
	r.pull(t, "a", "v1")
	resp, _ := r.send(t, target+"DeletePullThroughCacheRule", `{"ecrRepositoryPrefix":"hub"}`)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	r.assertTold(t)
}

// template-role-missing: the pull fails, and that is told.
func TestARepositoryThatCannotBeMadeIsTold(t *testing.T) {
	for _, ref := range []string{"v1", image(1).Digest.String()} {
		r := newRegistry(t, memstore.New(), nil)
		r.template(t, `"resourceTags":[{"Key":"team","Value":"a"}]`)
		r.up.Push("a", "v1", image(1))
		require.Equal(t, 404, r.request(http.MethodGet, "/v2/hub/a/manifests/"+ref))
		told := r.told(t)
		require.Len(t, told, 1)
		assert.Contains(t, told[0], `"sync-status":"FAILURE"`)
		assert.Contains(t, told[0], `"failure-reason":"`+noRepository("hub/a")+`"`)
		assert.NotContains(t, told[0], "failure-code")
	}
}

func TestASecretThatIsOfNoUseIsTold(t *testing.T) {
	r := newRegistry(t, memstore.New(), func(r *registry) { r.proxy.Credentials = r.api.Credentials })
	r.up.Fault(pullthroughtest.Fault{Match: "GET /v2/secret/*", Status: 401, Header: http.Header{"Www-Authenticate": {`Basic realm="x"`}}})
	r.rule(t, pullthrough.Rule{Prefix: "private", UpstreamURL: r.up.URL, CredentialARN: secret})
	require.Equal(t, 403, r.request(http.MethodGet, "/v2/private/secret/manifests/v1"))
	told := r.told(t)
	require.Len(t, told, 1)
	assert.Contains(t, told[0], `"failure-code":"UpstreamAccessDenied"`)
	assert.Contains(t, told[0], `"ecr-repository-prefix":"private"`)
}

func TestTheStateFailsWithAnEvent(t *testing.T) {
	api := &ecrapi.API{State: brokenState{}}
	_, ok, err := api.PullThroughCacheEvent(t.Context(), pullthrough.Event{
		Kind: pullthrough.EventFetch, Object: pullthrough.EventManifest, Request: pullthrough.Request{Repo: repo("a"), Ref: "v1"},
	})
	assert.False(t, ok)
	assert.Error(t, err)
}
