package main

import (
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const secret = "s3cret:with:colons" // "user:…" in -credential

func newImage() *pullthroughtest.Image {
	return pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 3, LayerSize: 2 << 20})
}

// newUpstream wants tokens, and "me" with the secret to give one.
func newUpstream(t *testing.T) *pullthroughtest.Upstream {
	return pullthroughtest.New(t, pullthroughtest.Config{
		Auth:  pullthroughtest.Bearer,
		Users: map[string]string{"me": secret},
	})
}

func TestPullIsColdOnce(t *testing.T) {
	up, img := newUpstream(t), newImage()
	up.Push("library/alpine", "3.22", img)
	i := start(t,
		"-rule", "docker-hub=registry-1.docker.io",
		"-credential", "docker-hub=me:"+secret,
		"-endpoint", "registry-1.docker.io="+up.URL())

	i.pull(t, "docker-hub/library/alpine", "3.22", img)
	assert.Equal(t, coldPull("library/alpine", "3.22", img), up.Log())
	up.Reset()
	i.pull(t, "docker-hub/library/alpine", "3.22", img)
	i.pull(t, "docker-hub/library/alpine", img.Descriptor().Digest.String(), img)
	assert.Empty(t, up.Log())

	i.stop(t)
	assert.NotContains(t, i.stderr.String(), secret)
}

// The rules' prefixes and hosts in the spellings that users type.
func TestRulesFindTheirUpstream(t *testing.T) {
	up, img := newUpstream(t), newImage()
	up.Push("team/app", "v1", img)
	at := up.URL()
	for _, c := range []struct {
		name   string
		prefix string // -credential is for this one
		flags  []string
		repo   string
	}{
		{"URL", "p", []string{"-rule", "p=" + at}, "p/team/app"},
		{"URL with a slash", "p", []string{"-rule", "p=" + at + "/"}, "p/team/app"},
		{"prefix with a slash", "p", []string{"-rule", "p/=" + at}, "p/team/app"},
		{"credential with a slash", "p/", []string{"-rule", "p=" + at}, "p/team/app"},
		{"longer prefix", "p/q", []string{"-rule", "p=" + at, "-rule", "p/q=" + at + "/team"}, "p/q/app"},
		{"upstream prefix", "p", []string{"-rule", "p=" + at + "/team"}, "p/app"},
		{"upstream prefix with a slash", "p", []string{"-rule", "p=" + at + "/team/"}, "p/app"},
		{"root", "ROOT", []string{"-rule", "ROOT=" + at}, "team/app"},
		{"host and upstream prefix", "p", []string{"-rule", "p=quay.io/team", "-endpoint", "quay.io=" + at}, "p/app"},
		{"another of a host's names", "p", []string{"-endpoint", "registry-1.docker.io=" + at + "/", "-rule", "p=docker.io"}, "p/team/app"},
	} {
		t.Run(c.name, func(t *testing.T) {
			up.Reset()
			i := start(t, append(c.flags, "-credential", c.prefix+"=me:"+secret)...)
			i.pull(t, c.repo, "v1", img)
			assert.Equal(t, coldPull("team/app", "v1", img), up.Log())
		})
	}
}

// A token server on a host of its own gets the credential if -realm names it.
func TestRealm(t *testing.T) {
	issuer := pullthroughtest.New(t, pullthroughtest.Config{Users: map[string]string{"me": secret}})
	up := pullthroughtest.New(t, pullthroughtest.Config{
		Auth:   pullthroughtest.Bearer,
		Issuer: issuer,
		Realm:  strings.Replace(issuer.URL(), "127.0.0.1", "localhost", 1) + "/token",
	})
	img := newImage()
	up.Push("app", "v1", img)
	flags := []string{"-rule", "p=" + up.URL(), "-credential", "p=me:" + secret}

	resp, body := start(t, flags...).get(t, "/v2/p/app/manifests/v1")
	assert.Equal(t, 403, resp.StatusCode, string(body))
	assert.Empty(t, issuer.Log())

	start(t, append(flags, "-realm", "p=localhost")...).pull(t, "p/app", "v1", img)
	assert.Equal(t, []string{"GET /token 200"}, issuer.Log())
	assert.True(t, issuer.Saw(secret))
	assert.False(t, up.Saw(secret))
}

func TestTagTTL(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	old, moved := newImage(), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	for ttl, checks := range map[string][]string{
		"0":   {"HEAD /v2/app/manifests/v1 200", "GET /v2/app/manifests/" + moved.Descriptor().Digest.String() + " 200"},
		"24h": nil,
		"-1":  nil,
	} {
		t.Run(ttl, func(t *testing.T) {
			up.Push("app", "v1", old)
			i := start(t, "-rule", "p="+up.URL(), "-tag-ttl", ttl)
			i.pull(t, "p/app", "v1", old)
			up.Push("app", "v1", moved)
			up.Reset()
			_, body := i.get(t, "/v2/p/app/manifests/v1")
			if checks == nil {
				assert.Equal(t, old.Content, body)
				assert.Empty(t, up.Log())
				return
			}
			assert.Equal(t, moved.Content, body)
			assert.Equal(t, checks, up.Log())
		})
	}
}

// What was pulled is there again after a restart.
func TestDataOutlivesTheProgram(t *testing.T) {
	up, img, dir := newUpstream(t), newImage(), filepath.Join(t.TempDir(), "images")
	up.Push("app", "v1", img)
	flags := []string{"-rule", "p=" + up.URL(), "-credential", "p=me:" + secret, "-data", dir}
	i := start(t, flags...)
	i.pull(t, "p/app", "v1", img)
	i.stop(t)
	assert.Equal(t, coldPull("app", "v1", img), up.Log())
	up.Close()
	start(t, flags...).pull(t, "p/app", "v1", img)
}

func TestFillBackground(t *testing.T) {
	up, img := pullthroughtest.New(t, pullthroughtest.Config{}), newImage()
	up.Push("app", "v1", img)
	i := start(t, "-rule", "p="+up.URL(), "-fill", "background")
	resp, _ := i.get(t, "/v2/p/app/manifests/v1")
	require.Equal(t, 200, resp.StatusCode)
	require.NoError(t, up.Wait(t.Context(), "GET /v2/app/blobs/*", len(img.Blobs())))
	i.stop(t) // waits for the downloads
	assert.Equal(t, 1+len(img.Blobs()), up.Count("GET * 200"))
}

func TestOnlyV2IsServed(t *testing.T) {
	i := start(t, "-account", "000000000000")
	for path, status := range map[string]int{
		"/v2/":                                  200,
		"/v2":                                   200,
		"/":                                     404,
		"/v2x":                                  404,
		"/v1/_ping":                             404,
		"/v2/no/rule/manifests/v1":              404,
		"/v2/no/rule/manifests/v1?ns=docker.io": 404,
		"/api":                                  404,
	} {
		resp, body := i.get(t, path)
		assert.Equal(t, status, resp.StatusCode, "%s: %s", path, body)
	}
	_, body := i.get(t, "/")
	assert.Equal(t, "fakeecr: there is nothing here but /v2/, /debug/pullthrough (see -debug-page) and, for POST, /\n", string(body))
	resp, err := http.Post(i.url+"/api", "application/x-amz-json-1.1", strings.NewReader("{}"))
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	assert.Equal(t, 404, resp.StatusCode)
	_, body = i.get(t, "/v2/no/rule/manifests/v1")
	assert.Contains(t, string(body), "The repository with name 'no/rule' does not exist in the registry with id '000000000000'")
}

// A client that is in the middle of a layer when the signal comes gets the rest.
func TestShutdownFinishesPulls(t *testing.T) {
	up, img := pullthroughtest.New(t, pullthroughtest.Config{}), newImage()
	up.Push("app", "v1", img)
	stall := make(chan struct{})
	up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/*", Stall: stall, StallAfter: new(int64(1 << 20))})
	i := start(t, "-rule", "p="+up.URL())

	layer := img.Layers[0]
	resp, err := http.Get(i.url + "/v2/p/app/blobs/" + layer.Digest.String())
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, layer.Size, resp.ContentLength)
	i.end()
	close(stall)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	assert.Equal(t, layer.Digest, layer.Digest.Algorithm().FromBytes(body))
	i.stop(t)
	assert.NotContains(t, i.stderr.String(), "cut off")
}

func TestUnusedEndpointIsWarnedOf(t *testing.T) {
	i := start(t, "-rule", "p=quay.io",
		"-endpoint", "ghcr.io=http://127.0.0.1:1", // the API may make a rule for it
		"-endpoint", "my.azurecr.io=http://127.0.0.1:1",
		"-endpoint", "docker.io=http://127.0.0.1:1",
		"-endpoint", "ghrc.io=http://127.0.0.1:1")
	i.stop(t)
	assert.Contains(t, i.stderr.String(), "ghrc.io=http://127.0.0.1:1")
	assert.Equal(t, 1, strings.Count(i.stderr.String(), "\n"), "one warning and nothing else")
}
