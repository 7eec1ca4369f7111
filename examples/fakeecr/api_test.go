package main

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

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

// A rule is made by the API, with a secret of the command line, and pulls.
func TestARuleOfTheAPI(t *testing.T) {
	up, img := newUpstream(t), newImage()
	up.Push("library/alpine", "3.22", img)
	i := start(t, "-secret", hubName+"=me:"+secret, "-endpoint", "registry-1.docker.io="+up.URL(), "-debug")
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
	i.stop(t)
	assert.NotContains(t, i.stderr.String(), secret)
}

func TestAValidationThatFails(t *testing.T) {
	up := newUpstream(t)
	i := start(t, "-secret", hubName+"=me:wrong", "-endpoint", "registry-1.docker.io="+up.URL())
	i.ok(t, "CreatePullThroughCacheRule", hubRule)
	out := i.ok(t, "ValidatePullThroughCacheRule", `{"ecrRepositoryPrefix":"docker-hub"}`)
	assert.Equal(t, false, out["isValid"])
	assert.Equal(t, "The upstream registry refused the credentials. Verify that they are correct.", out["failure"])
	assert.Equal(t, 1, up.Count("GET /token 401"))
}

// The API creates what ECR would, whatever the command line may have.
func TestTheAPIObeysECR(t *testing.T) {
	i := start(t, "-rule", "any=http://127.0.0.1:1", "-secret", hubName+"=me:"+secret)
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
	i := start(t, "-rule", "p="+up.URL())
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

// The command line's credential is for its own rule: one that the API has put in its
// place for another registry does not get it.
func TestACredentialStaysWithItsRule(t *testing.T) {
	up, img := newUpstream(t), newImage()
	up.Push("app", "v1", img)
	quay := newUpstream(t)
	quay.Push("app", "v1", img)
	i := start(t, "-rule", "pp="+up.URL(), "-credential", "pp=me:"+secret, "-secret", hubName+"=me:"+secret,
		"-endpoint", "quay.io="+quay.URL())
	i.pull(t, "pp/app", "v1", img)
	i.ok(t, "DeletePullThroughCacheRule", `{"ecrRepositoryPrefix":"pp"}`)
	i.ok(t, "CreatePullThroughCacheRule", `{"ecrRepositoryPrefix":"pp","upstreamRegistryUrl":"quay.io"}`)
	assert.Equal(t, []any{"quay.io"}, i.list(t, "DescribePullThroughCacheRules", "{}", "pullThroughCacheRules", "upstreamRegistryUrl"))
	resp, _ := i.get(t, "/v2/pp/app/manifests/v2")
	assert.Equal(t, 403, resp.StatusCode)
	assert.Equal(t, []string{"GET /v2/app/manifests/v2 401", "GET /token 401"}, quay.Log())
	assert.False(t, quay.Saw(secret))
}

// A rule of the command line takes a secret that the API gives it.
func TestARuleOfTheCommandLineIsUpdated(t *testing.T) {
	up, img := newUpstream(t), newImage()
	up.Push("app", "v1", img)
	i := start(t, "-rule", "pp="+up.URL(), "-secret", hubName+"=me:"+secret)
	resp, _ := i.get(t, "/v2/pp/app/manifests/v1")
	assert.Equal(t, 403, resp.StatusCode)
	i.ok(t, "UpdatePullThroughCacheRule", `{"ecrRepositoryPrefix":"pp","credentialArn":"`+hubARN+`"}`)
	i.pull(t, "pp/app", "v1", img)
}

// EventBridge is the log, if it is asked for.
func TestDebugLogHasEvents(t *testing.T) {
	up, img := pullthroughtest.New(t, pullthroughtest.Config{}), newImage()
	up.Push("app", "v1", img)
	i := start(t, "-rule", "p="+up.URL(), "-debug", "-log", "json")
	i.get(t, "/v2/p/app/manifests/v1")
	i.get(t, "/v2/p/app/manifests/v1")
	i.get(t, "/v2/p/app/manifests/v2")
	i.stop(t)
	var told []object
	for text := range strings.Lines(i.stderr.String()) {
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
	require.Len(t, told, 2, i.stderr.String())
	assert.Equal(t, object{
		"rule-version": "1", "sync-status": "SUCCESS", "ecr-repository-prefix": "p", "repository-name": "p/app",
		"upstream-registry-url": up.URL(), "image-tag": "v1", "image-digest": img.Digest.String(),
	}, told[0])
	assert.Equal(t, "FAILURE", told[1]["sync-status"])
}
