package controlplane_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/examples/hosts/controlplane"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const account, region = "111122223333", "us-east-1"

// start is an emulator with the state that another one saved, for which every
// upstream registry is up.
func start(t *testing.T, up *pullthroughtest.Upstream, saved []byte) (*controlplane.Emulator, string) {
	t.Helper()
	at, err := url.Parse(up.URL)
	require.NoError(t, err)
	endpoint := func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error) { return at, nil }
	e, err := controlplane.New(account, region, saved, endpoint)
	require.NoError(t, err)
	s := httptest.NewServer(e)
	t.Cleanup(func() {
		s.Close()
		assert.NoError(t, e.Shutdown(context.Background()))
	})
	return e, s.URL
}

// answer is what a client got.
type answer struct {
	status int
	header http.Header
	body   string
}

func ask(t *testing.T, method, url, body string, header ...string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return answer{resp.StatusCode, resp.Header, string(b)}
}

// call is a request to the JSON API.
func call(t *testing.T, url, op, body string) answer {
	t.Helper()
	return ask(t, http.MethodPost, url+"/", body, "X-Amz-Target", "AmazonEC2ContainerRegistry_V20150921."+op)
}

// pull pulls manifest and blobs as clients do.
func pull(t *testing.T, e *controlplane.Emulator, url string, img *pullthroughtest.Image) {
	t.Helper()
	got := ask(t, http.MethodGet, url+"/v2/quay/org/a/manifests/1", "")
	assert.Equal(t, 200, got.status)
	assert.Equal(t, string(img.Content), got.body)
	for _, b := range img.Blobs() {
		got := ask(t, http.MethodGet, url+"/v2/quay/org/a/blobs/"+b.Digest.String(), "")
		assert.Equal(t, b.Digest, digest.FromString(got.body))
	}
	require.NoError(t, e.Idle(t.Context()))
}

func blobLines(img *pullthroughtest.Image) (lines []string) {
	for _, b := range img.Blobs() {
		lines = append(lines, "GET /v2/org/a/blobs/"+b.Digest.String()+" 200")
	}
	return lines
}

func TestARuleOfTheJSONAPIPullsThrough(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	up.Push("org/a", "1", img)
	e, url := start(t, up, nil)

	got := ask(t, http.MethodGet, url+"/v2/quay/org/a/manifests/1", "")
	assert.Equal(t, 404, got.status)
	assert.Contains(t, got.body, "The repository with name 'quay/org/a' does not exist in the registry with id '111122223333'")

	got = call(t, url, "CreatePullThroughCacheRule", `{"ecrRepositoryPrefix":"quay","upstreamRegistryUrl":"quay.io"}`)
	assert.Equal(t, 200, got.status)
	pull(t, e, url, img)
	assert.Equal(t, append([]string{"GET /v2/org/a/manifests/1 200"}, blobLines(img)...), up.Log())
	up.Reset()
	pull(t, e, url, img)
	assert.Empty(t, up.Log())

	got = call(t, url, "BatchGetImage", `{"repositoryName":"quay/org/a","imageIds":[{"imageTag":"1"}]}`)
	assert.Contains(t, got.body, `"imageDigest":"`+img.Digest.String()+`"`, "the JSON API knows it")

	e, url = start(t, up, e.Saved())
	pull(t, e, url, img)
	assert.Equal(t, blobLines(img), up.Log(), "the manifest was saved, the layers were not")
}

func TestRulesThatECRWouldRefuseAreRefused(t *testing.T) {
	_, url := start(t, pullthroughtest.New(t, pullthroughtest.Config{}), nil)
	got := call(t, url, "CreatePullThroughCacheRule", `{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"registry-1.docker.io"}`)
	assert.Equal(t, 400, got.status)
	assert.Contains(t, got.body, "Exception", "Docker Hub needs a credential")
}

func TestOtherServicesKeepTheirPaths(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	_, url := start(t, up, nil)
	call(t, url, "CreatePullThroughCacheRule", `{"ecrRepositoryPrefix":"ROOT","upstreamRegistryUrl":"quay.io"}`)
	for path, service := range map[string]string{
		"/v2/apis":          "API Gateway",
		"/v2/apis/":         "API Gateway",
		"/v2/apis/abc":      "API Gateway",
		"/v2/tags/arn:x":    "API Gateway",
		"/v2/email/ids":     "SES",
		"/v2-bucket/a/b":    "S3",
		"/bucket/v2/x":      "S3",
		"/bucket/blobs/key": "S3",
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			got := ask(t, method, url+path, "")
			assert.Equal(t, 200, got.status, path)
			assert.Equal(t, service, got.header.Get("X-Service"), path)
		}
	}
	assert.Equal(t, 404, ask(t, http.MethodGet, url+"/v2/elsewhere", "").status)
	assert.Empty(t, up.Log())
	for _, path := range []string{"/v2", "/v2/"} {
		got := ask(t, http.MethodGet, url+path, "")
		assert.Equal(t, 200, got.status, path)
		assert.Equal(t, "registry/2.0", got.header.Get("Docker-Distribution-Api-Version"), path)
	}
}

// The proxy checks what a Store returns: JSON strings lose bytes that are no UTF-8.
func TestAManifestThatJSONCannotKeepIsFetchedAgain(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	odd := *img
	odd.Content = []byte(strings.Replace(string(img.Content), "{", "{\"annotations\":{\"a\":\"\xff\"},", 1))
	require.False(t, utf8.Valid(odd.Content))
	odd.Digest = digest.FromBytes(odd.Content)
	up.Push("org/a", "1", &odd)
	e, url := start(t, up, nil)
	call(t, url, "CreatePullThroughCacheRule", `{"ecrRepositoryPrefix":"quay","upstreamRegistryUrl":"quay.io"}`)
	pull(t, e, url, &odd)
	up.Reset()
	e, url = start(t, up, e.Saved())
	pull(t, e, url, &odd)
	assert.Equal(t, 1, up.Count("GET /v2/org/a/manifests/1 200"))
}

// TestItTakes120Lines: of code, those that are new in emulator.go included.
func TestItTakes120Lines(t *testing.T) {
	isNew := func(line string) bool { return strings.Contains(line, "// new") }
	lines := testkit.CodeLines(t, "pullthrough.go", nil) + testkit.CodeLines(t, "emulator.go", isNew)
	assert.Greater(t, lines, 80, "this counts something else")
	assert.LessOrEqual(t, lines, 120)
}
