package fakeecr_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/fakeecr"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const secret = "s3cret:with:colons"

// me is the user that newUpstream knows.
var me = pullthrough.Credential{Username: "me", AccessToken: secret}

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

// ruleTo is a rule to a registry of the test.
func ruleTo(prefix, upstream string) pullthrough.Rule {
	return pullthrough.Rule{Prefix: prefix, UpstreamURL: upstream}
}

// instance is a Server at work.
type instance struct {
	url  string
	log  buffer
	ecr  *fakeecr.Server
	stop func()
}

// start serves until the end of the test, or until stop is called.
func start(t *testing.T, config fakeecr.Config) *instance {
	t.Helper()
	i := &instance{}
	if config.Logger == nil {
		config.Logger = slog.New(slog.NewJSONHandler(&i.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	ecr, err := fakeecr.New(config)
	require.NoError(t, err)
	server := httptest.NewServer(ecr)
	i.url, i.ecr = server.URL, ecr
	i.stop = sync.OnceFunc(func() {
		server.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		assert.NoError(t, ecr.Shutdown(ctx))
	})
	t.Cleanup(func() {
		i.stop()
		if t.Failed() {
			t.Log(i.log.String())
		}
	})
	return i
}

// get returns an answer, its body read to the end.
func (i *instance) get(t *testing.T, path string) (*http.Response, []byte) {
	t.Helper()
	resp, err := http.Get(i.url + path)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return resp, body
}

// pull gets the image's manifest by tag, then all its blobs, and compares each
// with what was pushed. It returns when all is stored.
func (i *instance) pull(t *testing.T, repo, tag string, img *pullthroughtest.Image) {
	t.Helper()
	resp, body := i.get(t, "/v2/"+repo+"/manifests/"+tag)
	require.Equal(t, 200, resp.StatusCode, string(body))
	assert.Equal(t, img.Content, body)
	assert.Equal(t, img.Descriptor().Digest.String(), resp.Header.Get("Docker-Content-Digest"))
	for _, blob := range img.Blobs() {
		resp, body := i.get(t, "/v2/"+repo+"/blobs/"+blob.Digest.String())
		require.Equal(t, 200, resp.StatusCode, string(body))
		assert.Equal(t, blob.Digest, blob.Digest.Algorithm().FromBytes(body))
	}
	i.idle(t)
}

// idle waits until all that was pulled is stored.
func (i *instance) idle(t *testing.T) {
	t.Helper()
	require.NoError(t, i.ecr.Idle(t.Context()))
}

// coldPull is what a pull costs an upstream that wants a token.
func coldPull(repo, tag string, img *pullthroughtest.Image) []string {
	manifest := fmt.Sprintf("GET /v2/%s/manifests/%s ", repo, tag)
	lines := []string{manifest + "401", "GET /token 200", manifest + "200"}
	for _, blob := range img.Blobs() {
		lines = append(lines, fmt.Sprintf("GET /v2/%s/blobs/%s 200", repo, blob.Digest))
	}
	return lines
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// What was pulled is there again in the next Server.
func TestDataOutlivesTheServer(t *testing.T) {
	up, img := newUpstream(t), newImage()
	up.Push("app", "v1", img)
	config := fakeecr.Config{
		Data:  filepath.Join(t.TempDir(), "images"),
		Rules: []pullthrough.Rule{ruleTo("p", up.URL)}, Credentials: map[string]pullthrough.Credential{"p": me},
	}
	i := start(t, config)
	i.pull(t, "p/app", "v1", img)
	i.stop()
	assert.Equal(t, coldPull("app", "v1", img), up.Log())
	up.Close()
	start(t, config).pull(t, "p/app", "v1", img)
}

// Shutdown gives the directory back, once.
func TestShutdownReleasesTheDirectory(t *testing.T) {
	dir := t.TempDir()
	i := start(t, fakeecr.Config{Data: dir})
	i.stop()
	assert.NoError(t, i.ecr.Shutdown(t.Context()), "once more does no harm")
	start(t, fakeecr.Config{Data: dir})
}

// MaxBytes limits memory and directories.
func TestMaxBytes(t *testing.T) {
	for name, dir := range map[string]string{"memory": "", "directory": t.TempDir()} {
		t.Run(name, func(t *testing.T) {
			up := pullthroughtest.New(t, pullthroughtest.Config{})
			one, two := newImage(), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2, Layers: 3, LayerSize: 2 << 20})
			up.Push("one", "v1", one)
			up.Push("two", "v1", two)
			i := start(t, fakeecr.Config{
				Data: dir, MaxBytes: 8 << 20, Rules: []pullthrough.Rule{ruleTo("p", up.URL)},
			})
			i.pull(t, "p/one", "v1", one)
			i.pull(t, "p/two", "v1", two)
			if dir != "" { // a directory is swept behind the pull
				freed := regexp.MustCompile(`"freed":[1-9]`)
				swept := func() bool { return freed.MatchString(i.log.String()) }
				require.Eventually(t, swept, 10*time.Second, time.Millisecond)
			}
			assert.Empty(t, i.list(t, "ListImages", `{"repositoryName":"p/one"}`, "imageIds", "imageTag"))
			assert.Equal(t, []any{"v1"}, i.list(t, "ListImages", `{"repositoryName":"p/two"}`, "imageIds", "imageTag"))
			up.Reset()
			i.pull(t, "p/two", "v1", two)
			assert.Empty(t, up.Log())
			i.pull(t, "p/one", "v1", one)
			assert.Contains(t, up.Log(), "GET /v2/one/manifests/v1 200")
		})
	}
}

// VerifyBlobs finds damage that no size shows.
func TestVerifyBlobs(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 100 << 10})
	up.Push("one", "v1", img)
	dir := t.TempDir()
	config := fakeecr.Config{Data: dir, Rules: []pullthrough.Rule{ruleTo("p", up.URL)}}
	i := start(t, config)
	i.pull(t, "p/one", "v1", img)
	i.stop()
	d := img.Layers[0].Digest
	file := filepath.Join(dir, "docker/registry/v2/blobs/sha256", d.Encoded()[:2], d.Encoded(), "data")
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	content[0] ^= 1
	require.NoError(t, os.WriteFile(file, content, 0o644))
	up.Reset()
	config.VerifyBlobs = true
	start(t, config).pull(t, "p/one", "v1", img)
	assert.Equal(t, []string{"GET /v2/one/blobs/" + d.String() + " 200"}, up.Log())
}

func TestOnlyV2IsServed(t *testing.T) {
	i := start(t, fakeecr.Config{Account: "000000000000"})
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
	assert.Equal(t, "fakeecr: there is nothing here but /v2/, /health, /debug/pullthrough (see -debug-page) and, for POST, /\n", string(body))
	resp, err := http.Post(i.url+"/api", "application/x-amz-json-1.1", strings.NewReader("{}"))
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	assert.Equal(t, 404, resp.StatusCode)
	_, body = i.get(t, "/v2/no/rule/manifests/v1")
	assert.Contains(t, string(body), "The repository with name 'no/rule' does not exist in the registry with id '000000000000'")
}

// Shutdown waits for what runs. When its context ends, what runs is cut off.
func TestShutdownWaitsForDownloads(t *testing.T) {
	up, img := pullthroughtest.New(t, pullthroughtest.Config{}), newImage()
	up.Push("app", "v1", img)
	stall := make(chan struct{})
	up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/*", Stall: stall, StallAfter: new(int64(1 << 20))})
	ecr, err := fakeecr.New(fakeecr.Config{
		Data: t.TempDir(), Rules: []pullthrough.Rule{ruleTo("p", up.URL)},
		Policy: pullthrough.Policy{BlobsFirst: true},
	})
	require.NoError(t, err)
	server := httptest.NewServer(ecr)
	layer := img.Layers[0]
	resp, err := http.Get(server.URL + "/v2/p/app/blobs/" + layer.Digest.String())
	require.NoError(t, err)
	running := ecr.Proxy.Downloads()
	require.Len(t, running, 1)
	assert.Equal(t, layer.Digest, running[0].Digest)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	assert.ErrorIs(t, ecr.Shutdown(ctx), context.Canceled)
	close(stall)
	_, err = io.Copy(io.Discard, resp.Body)
	assert.Error(t, err)
	require.NoError(t, resp.Body.Close())
	server.Close()
	assert.Empty(t, ecr.Proxy.Downloads())
	assert.NoError(t, ecr.Shutdown(t.Context()))
}

// TestAPullGoesOnAfterARestart: what came of a layer before is not fetched again, though the
// rules are made anew at each start.
func TestAPullGoesOnAfterARestart(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 8 << 20})
	up.Push("app", "1", img)
	layer := img.Layers[0]
	config := fakeecr.Config{
		Data: t.TempDir(), Rules: []pullthrough.Rule{ruleTo("p", up.URL)},
		Policy: pullthrough.Policy{Orphans: -1, BlobsFirst: true},
	}
	request := pullthrough.Request{Repo: pullthrough.Repo{Account: "123456789012", Region: "us-east-1", Name: "p/app"}, Ref: layer.Digest.String()}

	heal := up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/* 2*", Stall: make(chan struct{}), StallAfter: new(int64(6 << 20))})
	first := start(t, config)
	b, err := first.ecr.Proxy.Blob(t.Context(), request)
	require.NoError(t, err)
	testkit.RequireRead(t, b.Body, 6<<20)
	require.NoError(t, b.Body.Close()) // nobody waits for the rest
	require.NoError(t, first.ecr.Idle(t.Context()))
	first.stop()
	heal()

	b, err = start(t, config).ecr.Proxy.Blob(t.Context(), request)
	require.NoError(t, err)
	testkit.AssertBody(t, layer.Digest, b)
	var asked []string
	for _, r := range up.Requests() {
		if strings.Contains(r.Path, "/blobs/") {
			asked = append(asked, r.Range)
		}
	}
	assert.Equal(t, []string{"", fmt.Sprintf("bytes=%d-%d", 6<<20, layer.Size-1)}, asked)
}
