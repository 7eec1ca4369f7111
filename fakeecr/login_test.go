package fakeecr_test

import (
	"encoding/base64"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/fakeecr"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// answer is what a client reads at a path, with a login.
func (i *instance) answer(t *testing.T, path, user, password string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, i.url+path, http.NoBody)
	require.NoError(t, err)
	if user != "" {
		r.SetBasicAuth(user, password)
	}
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp, string(content)
}

func TestRequireLogin(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	img := newImage()
	up.Push("a", "1", img)
	up.Reset()
	var passed atomic.Int64
	began := time.Now()
	i := start(t, fakeecr.Config{
		Rules: []pullthrough.Rule{ruleTo("hub", up.URL)}, RequireLogin: true,
		Now: func() time.Time { return began.Add(time.Duration(passed.Load())) },
	})
	login := func() string {
		data := i.ok(t, "GetAuthorizationToken", `{}`)["authorizationData"].([]any)[0].(object)
		assert.Equal(t, i.url, data["proxyEndpoint"])
		decoded, err := base64.StdEncoding.DecodeString(data["authorizationToken"].(string))
		require.NoError(t, err)
		user, password, _ := strings.Cut(string(decoded), ":")
		require.Equal(t, "AWS", user)
		return password
	}
	password := login()
	other := start(t, fakeecr.Config{RequireLogin: true})
	theirs := other.ok(t, "GetAuthorizationToken", `{}`)["authorizationData"].([]any)[0].(object)["authorizationToken"].(string)
	foreign, err := base64.StdEncoding.DecodeString(theirs)
	require.NoError(t, err)

	const manifest = "/v2/hub/a/manifests/1"
	for name, c := range map[string][2]string{
		"nobody":                      {},
		"another user":                {"me", password},
		"no password":                 {"AWS", ""},
		"another password":            {"AWS", password[1:] + "x"},
		"a password of another ECR":   {"AWS", strings.TrimPrefix(string(foreign), "AWS:")},
		"a password that is too long": {"AWS", password + "AAAA"},
	} {
		for _, path := range []string{"/v2/", manifest, "/v2/hub/a/tags/list", "/v2/_catalog"} {
			resp, said := i.answer(t, path, c[0], c[1])
			assert.Equal(t, 401, resp.StatusCode, "%s: %s", name, path)
			assert.Contains(t, said, "Not Authorized")
			assert.Equal(t, `Basic realm="https://`+strings.TrimPrefix(i.url, "http://")+`/",service="ecr.amazonaws.com"`, resp.Header.Get("WWW-Authenticate"))
		}
	}
	assert.Empty(t, up.Log())

	resp, _ := i.answer(t, "/v2/", "AWS", password)
	assert.Equal(t, 200, resp.StatusCode)
	resp, _ = i.answer(t, manifest, "AWS", password)
	assert.Equal(t, 200, resp.StatusCode)
	layer := img.Layers[0].Digest.String()
	url, _ := i.ok(t, "GetDownloadUrlForLayer", `{"repositoryName":"hub/a","layerDigest":"`+layer+`"}`)["downloadUrl"].(string)
	path, query, _ := strings.Cut(strings.TrimPrefix(url, i.url), "?")
	resp, _ = i.answer(t, path+"?"+query, "", "")
	assert.Equal(t, 200, resp.StatusCode, "the URL of a layer needs no login")
	resp, _ = i.answer(t, strings.Replace(path, layer, img.Layers[1].Digest.String(), 1)+"?"+query, "", "")
	assert.Equal(t, 401, resp.StatusCode, "but is for that layer")
	_, token, _ := strings.Cut(query, "=")
	resp, _ = i.answer(t, manifest, "AWS", token)
	assert.Equal(t, 401, resp.StatusCode, "and its token is no password")

	passed.Store(int64(12*time.Hour - time.Second))
	resp, _ = i.answer(t, manifest, "AWS", password)
	assert.Equal(t, 200, resp.StatusCode)
	passed.Store(int64(12*time.Hour + time.Second))
	for _, path := range []string{"/v2/", manifest} {
		resp, said := i.answer(t, path, "AWS", password)
		assert.Equal(t, 401, resp.StatusCode)
		assert.Contains(t, said, "Your authorization token has expired. Reauthenticate and try again.")
	}
	resp, _ = i.answer(t, path+"?"+query, "", "")
	assert.Equal(t, 401, resp.StatusCode)
	resp, _ = i.answer(t, manifest, "AWS", login())
	assert.Equal(t, 200, resp.StatusCode)
	require.NoError(t, i.ecr.Idle(t.Context()))
	assert.Equal(t, 1, up.Count("GET /v2/a/manifests/1 200"))
	assert.Equal(t, 1, up.Count("GET /v2/a/blobs/"+layer+" 200"))
}

func TestAnyUpstream(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	up.Push("a", "1", newImage())
	up.Reset()
	rule := `{"ecrRepositoryPrefix":"local","upstreamRegistryUrl":"` + up.URL + `"}`
	start(t, fakeecr.Config{}).refuses(t, "CreatePullThroughCacheRule", rule, "UnsupportedUpstreamRegistryException")
	i := start(t, fakeecr.Config{AnyUpstream: true})
	i.ok(t, "CreatePullThroughCacheRule", rule)
	resp, _ := i.answer(t, "/v2/local/a/manifests/1", "", "")
	assert.Equal(t, 200, resp.StatusCode)
	assert.Equal(t, true, i.ok(t, "ValidatePullThroughCacheRule", `{"ecrRepositoryPrefix":"local"}`)["isValid"])
	require.NoError(t, i.ecr.Idle(t.Context()))
	assert.Equal(t, 1, up.Count("GET /v2/a/manifests/1 200"))
}
