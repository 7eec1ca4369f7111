package jsonstate_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/examples/hosts/jsonstate"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// run is one life of the emulator in dir.
func run(t *testing.T, dir string, up *pullthroughtest.Upstream, live func(e *jsonstate.Emulator, url string)) {
	t.Helper()
	at, err := url.Parse(up.URL)
	require.NoError(t, err)
	e, err := jsonstate.Open(dir, func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error) { return at, nil })
	require.NoError(t, err)
	server := httptest.NewServer(e)
	live(e, server.URL)
	server.Close()
	require.NoError(t, e.Close(t.Context()))
}

func ask(t *testing.T, method, url, body, operation string) (status int, answer string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("X-Amz-Target", "AmazonEC2ContainerRegistry_V20150921."+operation)
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(content)
}

func TestARestartForgetsNothing(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	up.Push("org/app", "1", img)
	dir := t.TempDir()
	pull := func(e *jsonstate.Emulator, url string) {
		status, manifest := ask(t, http.MethodGet, url+"/v2/quay/org/app/manifests/1", "", "")
		assert.Equal(t, 200, status)
		assert.Equal(t, string(img.Content), manifest)
		for _, b := range img.Blobs() {
			status, _ := ask(t, http.MethodGet, url+"/v2/quay/org/app/blobs/"+b.Digest.String(), "", "")
			assert.Equal(t, 200, status)
		}
		require.NoError(t, e.Idle(t.Context()))
	}
	var rules, images string
	look := func(url string) (rules, images string) {
		_, rules = ask(t, http.MethodPost, url, `{}`, "DescribePullThroughCacheRules")
		_, images = ask(t, http.MethodPost, url, `{"repositoryName":"quay/org/app"}`, "DescribeImages")
		return rules, images
	}
	run(t, dir, up, func(e *jsonstate.Emulator, url string) {
		status, answer := ask(t, http.MethodPost, url, `{"ecrRepositoryPrefix":"quay","upstreamRegistryUrl":"quay.io"}`, "CreatePullThroughCacheRule")
		require.Equal(t, 200, status, answer)
		pull(e, url)
		rules, images = look(url)
		assert.Contains(t, rules, `"ecrRepositoryPrefix":"quay"`)
		assert.Contains(t, images, img.Digest.String())
	})
	assert.Equal(t, 1+len(img.Blobs()), len(up.Log()))
	up.Reset()
	run(t, dir, up, func(e *jsonstate.Emulator, url string) {
		rulesNow, imagesNow := look(url)
		assert.JSONEq(t, rules, rulesNow)
		assert.JSONEq(t, images, imagesNow, "with the times of the push and of the pull")
		pull(e, url)
		assert.Empty(t, up.Log())

		status, _ := ask(t, http.MethodPost, url, `{"ecrRepositoryPrefix":"quay"}`, "DeletePullThroughCacheRule")
		assert.Equal(t, 200, status)
	})
	run(t, dir, up, func(e *jsonstate.Emulator, url string) {
		pull(e, url) // the rule is gone, and the image stays
		assert.Empty(t, up.Log())
		_, missing := ask(t, http.MethodGet, url+"/v2/quay/org/app/manifests/2", "", "")
		assert.Contains(t, missing, "MANIFEST_UNKNOWN")
		_, missing = ask(t, http.MethodGet, url+"/v2/quay/org/other/manifests/1", "", "")
		assert.Contains(t, missing, "NAME_UNKNOWN")
	})
}
