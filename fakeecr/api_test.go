package fakeecr_test

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/fakeecr"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const (
	hubName = "ecr-pullthroughcache/docker-hub"
	hubARN  = "arn:aws:secretsmanager:us-east-1:123456789012:secret:" + hubName + "-a1B2c3"
	hubRule = `{"ecrRepositoryPrefix":"docker-hub","upstreamRegistryUrl":"registry-1.docker.io","credentialArn":"` + hubARN + `"}`
)

// object is a JSON object.
type object = map[string]any

// call sends a request of ECR's API; host, if not "", is what the client calls us.
func (i *instance) call(t *testing.T, host, op, body string) (int, object) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, i.url+"/", strings.NewReader(body))
	require.NoError(t, err)
	r.Host = host
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	r.Header.Set("X-Amz-Target", "AmazonEC2ContainerRegistry_V20150921."+op)
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	assert.Equal(t, "application/x-amz-json-1.1", resp.Header.Get("Content-Type"))
	content, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	var out object
	require.NoError(t, json.Unmarshal(content, &out), string(content))
	return resp.StatusCode, out
}

// ok sends a request that must go well.
func (i *instance) ok(t *testing.T, op, body string) object {
	t.Helper()
	status, out := i.call(t, "", op, body)
	require.Equal(t, http.StatusOK, status, "%s: %v", op, out)
	return out
}

// refuses sends a request that must be answered with the exception.
func (i *instance) refuses(t *testing.T, op, body, exception string) {
	t.Helper()
	status, out := i.call(t, "", op, body)
	assert.Equal(t, http.StatusBadRequest, status, "%s: %v", op, out)
	assert.Equal(t, exception, out["__type"], "%s: %v", op, out)
}

// list is what the operation tells of each: the member of the objects in the list.
func (i *instance) list(t *testing.T, op, body, name, member string) []any {
	t.Helper()
	items, ok := i.ok(t, op, body)[name].([]any)
	require.True(t, ok, name)
	values := []any{}
	for _, item := range items {
		values = append(values, item.(object)[member])
	}
	return values
}

func (i *instance) rules(t *testing.T) []any {
	t.Helper()
	return i.list(t, "DescribePullThroughCacheRules", "{}", "pullThroughCacheRules", "ecrRepositoryPrefix")
}

func (i *instance) repositories(t *testing.T) []any {
	t.Helper()
	return i.list(t, "DescribeRepositories", "{}", "repositories", "repositoryName")
}

// A rule is made by the API, with a secret of the Config, and pulls.
func TestARuleOfTheAPI(t *testing.T) {
	up, img := newUpstream(t), newImage()
	up.Push("library/alpine", "3.22", img)
	i := start(t, fakeecr.Config{Secrets: map[string]pullthrough.Credential{hubName: me}, Endpoints: endpoints(t, "registry-1.docker.io", up.URL)})
	made := i.ok(t, "CreatePullThroughCacheRule", hubRule)
	assert.Equal(t, "123456789012", made["registryId"])
	assert.Equal(t, []any{"docker-hub"}, i.rules(t))
	assert.Empty(t, i.repositories(t))
	valid := i.ok(t, "ValidatePullThroughCacheRule", `{"ecrRepositoryPrefix":"docker-hub"}`)
	assert.Equal(t, true, valid["isValid"], valid)
	assert.Equal(t, []string{"GET /v2/ 401", "GET /token 200", "GET /v2/ 200"}, up.Log())
	up.Reset()

	i.pull(t, "docker-hub/library/alpine", "3.22", img)
	assert.Equal(t, coldPull("library/alpine", "3.22", img), up.Log())
	const alpine = `{"repositoryName":"docker-hub/library/alpine"}`
	assert.Equal(t, []any{"docker-hub/library/alpine"}, i.repositories(t))
	assert.Equal(t, []any{"3.22"}, i.list(t, "ListImages", alpine, "imageIds", "imageTag"))
	var size float64
	for _, b := range img.Blobs() {
		size += float64(b.Size)
	}
	assert.Equal(t, []any{size}, i.list(t, "DescribeImages", alpine, "imageDetails", "imageSizeInBytes"))
	assert.NotEqual(t, []any{nil}, i.list(t, "DescribeImages", alpine, "imageDetails", "lastRecordedPullTime"))

	// What was pulled is there without the rule; nothing else is.
	i.ok(t, "DeletePullThroughCacheRule", `{"ecrRepositoryPrefix":"docker-hub"}`)
	assert.Empty(t, i.rules(t))
	up.Reset()
	i.pull(t, "docker-hub/library/alpine", "3.22", img)
	resp, body := i.get(t, "/v2/docker-hub/library/alpine/manifests/3.21")
	assert.Equal(t, 404, resp.StatusCode)
	assert.Contains(t, string(body), "MANIFEST_UNKNOWN")
	assert.Empty(t, up.Log())
	i.stop()
	assert.NotContains(t, i.log.String(), secret)
}

func TestAValidationThatFails(t *testing.T) {
	up := newUpstream(t)
	i := start(t, fakeecr.Config{
		Secrets:   map[string]pullthrough.Credential{hubName: {Username: "me", AccessToken: "wrong"}},
		Endpoints: endpoints(t, "registry-1.docker.io", up.URL),
	})
	i.ok(t, "CreatePullThroughCacheRule", hubRule)
	out := i.ok(t, "ValidatePullThroughCacheRule", `{"ecrRepositoryPrefix":"docker-hub"}`)
	assert.Equal(t, false, out["isValid"])
	assert.Equal(t, "The upstream registry refused the credentials. Verify that they are correct.", out["failure"])
	assert.Equal(t, 1, up.Count("GET /token 401"))
}

// The API creates what ECR would, whatever the Config may have.
func TestTheAPIObeysECR(t *testing.T) {
	i := start(t, fakeecr.Config{Rules: []pullthrough.Rule{ruleTo("any", "http://127.0.0.1:1")}, Secrets: map[string]pullthrough.Credential{hubName: me}})
	for exception, body := range map[string]string{
		"UnsupportedUpstreamRegistryException":       `{"ecrRepositoryPrefix":"pp","upstreamRegistryUrl":"http://127.0.0.1:1"}`,
		"SecretNotFoundException":                    strings.Replace(hubRule, hubName, hubName+"-2", 1),
		"PullThroughCacheRuleAlreadyExistsException": `{"ecrRepositoryPrefix":"any","upstreamRegistryUrl":"quay.io"}`,
		"AccessDeniedException":                      `{"ecrRepositoryPrefix":"pp","upstreamRegistryUrl":"quay.io","registryId":"210987654321"}`,
	} {
		i.refuses(t, "CreatePullThroughCacheRule", body, exception)
	}
	i.ok(t, "CreatePullThroughCacheRule", strings.Replace(hubRule, "-a1B2c3", "", 1)) // the secret's name alone
	assert.Equal(t, []any{"any", "docker-hub"}, i.rules(t))
	i.refuses(t, "PutImage", `{}`, "UnknownOperationException")
	i.refuses(t, "", `{}`, "UnknownOperationException")
}

// Clients are sent to where they came from: docker's host.docker.internal, say.
func TestURLsLeadToTheClientsOwnHost(t *testing.T) {
	up, img := pullthroughtest.New(t, pullthroughtest.Config{}), newImage()
	up.Push("app", "v1", img)
	i := start(t, fakeecr.Config{Rules: []pullthrough.Rule{ruleTo("p", up.URL)}})
	i.pull(t, "p/app", "v1", img)
	layer := img.Layers[0].Digest.String()
	for host, base := range map[string]string{"": i.url, "ecr.test:4510": "http://ecr.test:4510", "me@ecr.test": i.url} {
		_, out := i.call(t, host, "GetDownloadUrlForLayer", `{"repositoryName":"p/app","layerDigest":"`+layer+`"}`)
		assert.Equal(t, base+"/v2/p/app/blobs/"+layer, out["downloadUrl"])
		_, out = i.call(t, host, "GetAuthorizationToken", `{}`)
		data := out["authorizationData"].([]any)[0].(object)
		assert.Equal(t, base, data["proxyEndpoint"])
		token, err := base64.StdEncoding.DecodeString(data["authorizationToken"].(string))
		require.NoError(t, err)
		assert.Regexp(t, `^AWS:.+`, string(token))
		_, out = i.call(t, host, "DescribeRepositories", `{}`)
		uri := strings.TrimPrefix(base, "http://") + "/p/app"
		assert.Equal(t, uri, out["repositories"].([]any)[0].(object)["repositoryUri"])
	}
}

// A client without a name for us, on no connection, is sent somewhere all the same.
func TestURLsWithoutAHost(t *testing.T) {
	i := start(t, fakeecr.Config{})
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{}"))
	r.Host = ""
	r.Header.Set("X-Amz-Target", "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken")
	w := httptest.NewRecorder()
	i.ecr.ServeHTTP(w, r)
	assert.Contains(t, w.Body.String(), `"proxyEndpoint":"http://localhost"`)
}

// A rule of the Config takes a secret that the API gives it.
func TestARuleOfTheConfigIsUpdated(t *testing.T) {
	up, img := newUpstream(t), newImage()
	up.Push("app", "v1", img)
	i := start(t, fakeecr.Config{Rules: []pullthrough.Rule{ruleTo("pp", up.URL)}, Secrets: map[string]pullthrough.Credential{hubName: me}})
	resp, _ := i.get(t, "/v2/pp/app/manifests/v1")
	assert.Equal(t, 403, resp.StatusCode)
	i.ok(t, "UpdatePullThroughCacheRule", `{"ecrRepositoryPrefix":"pp","credentialArn":"`+hubARN+`"}`)
	i.pull(t, "pp/app", "v1", img)
}

// EventBridge is the log, at debug level.
func TestDebugLogHasEvents(t *testing.T) {
	up, img := pullthroughtest.New(t, pullthroughtest.Config{}), newImage()
	up.Push("app", "v1", img)
	i := start(t, fakeecr.Config{Rules: []pullthrough.Rule{ruleTo("p", up.URL)}})
	i.get(t, "/v2/p/app/manifests/v1")
	i.idle(t)
	i.get(t, "/v2/p/app/manifests/v1")
	i.get(t, "/v2/p/app/manifests/v2")
	i.stop()
	var told []object
	for text := range strings.Lines(i.log.String()) {
		var l struct {
			Msg, Level string
			Event      struct {
				Source string
				Time   time.Time
				Detail object
			}
		}
		require.NoError(t, json.Unmarshal([]byte(text), &l), text)
		if l.Msg == "ECR Pull Through Cache Action" {
			assert.Equal(t, "DEBUG", l.Level)
			assert.Equal(t, "aws.ecr", l.Event.Source)
			assert.False(t, l.Event.Time.IsZero())
			told = append(told, l.Event.Detail)
		}
	}
	require.Len(t, told, 2, i.log.String())
	if told[0]["sync-status"] == "FAILURE" { // the other is told when the image is stored
		slices.Reverse(told)
	}
	assert.Equal(t, object{
		"rule-version": "1", "sync-status": "SUCCESS", "ecr-repository-prefix": "p", "repository-name": "p/app",
		"upstream-registry-url": up.URL, "image-tag": "v1", "image-digest": img.Digest.String(),
	}, told[0])
	assert.Equal(t, "FAILURE", told[1]["sync-status"])
}
