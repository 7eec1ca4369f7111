package pullthroughtest_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/fakeecr"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// pulled returns the answer's status and body.
func pulled(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(body)
}

func TestAWholeECRInFiveLines(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1})
	ecr := pullthroughtest.NewECR(t, nil, fakeecr.Config{})
	ecr.Upstream.Push("library/alpine", "3.22", img)
	for range 2 {
		status, body := pulled(t, ecr.URL+"/v2/docker-hub/library/alpine/manifests/3.22")
		assert.Equal(t, 200, status)
		assert.Equal(t, string(img.Content), body)
		ecr.Idle()
	}
	assert.Equal(t, []string{"GET /v2/library/alpine/manifests/3.22 200"}, ecr.Upstream.Log())
}

// A rule that the test makes by the API pulls from the same registry, also one that needs
// a credential, which the registry is told.
func TestAnECRWhoseRulesComeByTheAPI(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{
		Auth: pullthroughtest.Bearer, Users: map[string]string{"me": "s3cret"}, TLS: true,
	})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1})
	up.Push("team/app", "v1", img)
	ecr := pullthroughtest.NewECR(t, up, fakeecr.Config{
		Secrets: map[string]pullthrough.Credential{"ecr-pullthroughcache/hub": {Username: "me", AccessToken: "s3cret"}},
	})
	assert.Same(t, up, ecr.Upstream)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, ecr.URL+"/", strings.NewReader(`{"ecrRepositoryPrefix":"hub",
		"upstreamRegistryUrl":"registry-1.docker.io","credentialArn":"arn:aws:secretsmanager:us-east-1:123456789012:secret:ecr-pullthroughcache/hub"}`))
	require.NoError(t, err)
	r.Header.Set("X-Amz-Target", "AmazonEC2ContainerRegistry_V20150921.CreatePullThroughCacheRule")
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, 200, resp.StatusCode)

	status, body := pulled(t, ecr.URL+"/v2/hub/team/app/manifests/v1")
	assert.Equal(t, 200, status, body)
	assert.Equal(t, 1, up.Count("GET /v2/team/app/manifests/v1 200"))
}

// A rule that names a registry by URL pulls from there.
func TestAnECRWithTwoUpstreams(t *testing.T) {
	other, img := pullthroughtest.New(t, pullthroughtest.Config{}), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1})
	other.Push("app", "v1", img)
	ecr := pullthroughtest.NewECR(t, nil, fakeecr.Config{Rules: []pullthrough.Rule{
		{Prefix: "quay", UpstreamURL: "quay.io"}, {Prefix: "other", UpstreamURL: other.URL},
	}})
	ecr.Upstream.Push("app", "v1", img)
	for _, repo := range []string{"quay/app", "other/app"} {
		status, _ := pulled(t, ecr.URL+"/v2/"+repo+"/manifests/v1")
		assert.Equal(t, 200, status, repo)
	}
	status, _ := pulled(t, ecr.URL+"/v2/docker-hub/app/manifests/v1")
	assert.Equal(t, 404, status, "the rule is there only if there is no other")
	assert.Equal(t, []string{"GET /v2/app/manifests/v1 200"}, other.Log())
	assert.Equal(t, []string{"GET /v2/app/manifests/v1 200"}, ecr.Upstream.Log())
}

// A test ends although its client and its upstream do not.
func TestAnECREndsWithItsTest(t *testing.T) {
	var url string
	t.Run("a test that leaves a pull behind", func(t *testing.T) {
		up, img := pullthroughtest.New(t, pullthroughtest.Config{}), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 1, LayerSize: 1 << 20})
		up.Push("app", "v1", img)
		up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/*", Stall: make(chan struct{}), StallAfter: new(int64(1000))})
		ecr := pullthroughtest.NewECR(t, up, fakeecr.Config{})
		url = ecr.URL
		status, _ := pulled(t, url+"/v2/docker-hub/app/manifests/v1")
		require.Equal(t, 200, status)
		resp, err := http.Get(url + "/v2/docker-hub/app/blobs/" + img.Layers[0].Digest.String())
		require.NoError(t, err)
		require.Equal(t, 200, resp.StatusCode)
		require.Len(t, ecr.Proxy.Downloads(), 1)
		assert.Equal(t, 1, up.Count("GET /v2/app/blobs/*"))
		t.Cleanup(func() { assert.NoError(t, resp.Body.Close()) })
	})
	_, err := http.Get(url)
	assert.Error(t, err, "nobody listens any more")
}

// sayer is a test that keeps what ends it.
type sayer struct {
	testing.TB
	said string
}

func (s *sayer) Helper() {}
func (s *sayer) Fatalf(format string, args ...any) {
	s.said = format
	panic(s)
}

func TestAnECRThatCannotBe(t *testing.T) {
	s := &sayer{TB: t}
	assert.Panics(t, func() { pullthroughtest.NewECR(s, nil, fakeecr.Config{Account: "1"}) })
	assert.NotEmpty(t, s.said)
}

// loud is a test whose output is looked at.
type loud struct {
	testing.TB
	bytes.Buffer
}

func (l *loud) Output() io.Writer { return &l.Buffer }

func TestTheLogOfAnECRIsTheTestsOutput(t *testing.T) {
	out := &loud{TB: t}
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	up.Fault(pullthroughtest.Fault{Match: "GET /v2/app/*", Status: http.StatusForbidden})
	ecr := pullthroughtest.NewECR(out, up, fakeecr.Config{})
	resp, err := http.Get(ecr.URL + "/v2/docker-hub/app/manifests/1")
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	ecr.Idle()
	assert.Contains(t, out.String(), "upstream refuses access")
}
