package pullthroughtest_test

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "anything", true},
		{"*", "", true},
		{"a", "a", true},
		{"a", "ab", false},
		{"a*", "abc", true},
		{"*c", "abc", true},
		{"*b", "abc", false},
		{"a*c", "ac", true},
		{"a*c", "a", false},
		{"a*a", "a", false},
		{"GET /v2/*/blobs/*", "GET /v2/a/b/blobs/sha256:1", true},
		{"GET /v2/*/blobs/*", "HEAD /v2/a/b/blobs/sha256:1", false},
		{"*a*b*", "xxaxxbxx", true},
		{"*a*b*", "xxbxxaxx", false},
		{"*ab*ab", "abab", true},
		{"*ab*ab", "ab", false},
		{"a?[", "a?[", true},
	} {
		assert.Equal(t, c.want, pullthroughtest.MatchPattern(c.pattern, c.s), "%q %q", c.pattern, c.s)
	}
}

func TestCountMatchesWithAndWithoutStatus(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{})
	get(t, up, layerPath)
	get(t, up, "/v2/a/b/manifests/nope")
	do(t, up, request(t, http.MethodHead, up.URL+layerPath))
	for pattern, want := range map[string]int{
		"": 3, "*": 3, "GET *": 2, "GET /v2/*/blobs/*": 1, "* /v2/*/blobs/*": 2, "* 404": 1, "GET " + layerPath: 1,
		"GET " + layerPath + " 200": 1, "GET " + layerPath + " 404": 0, "GET /v2/*/manifests/nope": 1, "POST *": 0,
	} {
		assert.Equal(t, want, up.Count(pattern), pattern)
	}
	up.Reset()
	assert.Zero(t, up.Count(""))
	assert.Empty(t, up.Log())
	assert.Empty(t, up.Requests())
}

func TestRequestsAreRecorded(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{})
	get(t, up, "/v2/a%2Fb/blobs/x?ns=docker.io&a=%20", "Range", "bytes=1-", "X-Test", "yes")
	requests := up.Requests()
	require.Len(t, requests, 1)
	r := requests[0]
	assert.Equal(t, "GET", r.Method)
	assert.Equal(t, up.Host(), r.Host)
	assert.Equal(t, "/v2/a%2Fb/blobs/x", r.Path)
	assert.Equal(t, "ns=docker.io&a=%20", r.Query)
	assert.Equal(t, "bytes=1-", r.Range)
	assert.Equal(t, "yes", r.Header.Get("X-Test"))
	assert.Equal(t, 404, r.Status)
	assert.Positive(t, r.Bytes)
	r.Header.Set("X-Test", "no")
	assert.Equal(t, "yes", up.Requests()[0].Header.Get("X-Test"), "a caller has changed the log")
}

func TestHeadHasNoBytes(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{})
	do(t, up, request(t, http.MethodHead, up.URL+"/v2/"))
	do(t, up, request(t, http.MethodHead, up.URL+layerPath))
	for _, r := range up.Requests() {
		assert.Zero(t, r.Bytes, r.String())
	}
}

func TestSawSecrets(t *testing.T) {
	const secret = "canary/1 +x"
	form := url.Values{"password": {secret}}.Encode()
	for _, c := range []struct {
		name string
		send func(r *http.Request)
		want bool
	}{
		{"nowhere", func(*http.Request) {}, false},
		{"header", func(r *http.Request) { r.Header.Set("X-Any", "a "+secret) }, true},
		{"basic password", func(r *http.Request) { r.SetBasicAuth("ann", secret) }, true},
		{"basic user", func(r *http.Request) { r.SetBasicAuth(secret, "") }, true},
		{"query", func(r *http.Request) { r.URL.RawQuery = form }, true},
		{"path", func(r *http.Request) { r.URL.Path = "/v2/" + secret }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			up := newUpstream(t, pullthroughtest.Config{})
			r := request(t, http.MethodGet, up.URL+"/v2/")
			c.send(r)
			do(t, up, r)
			assert.Equal(t, c.want, up.Saw(secret))
		})
	}
	t.Run("body, of which the beginning is kept and all is read", func(t *testing.T) {
		up := newUpstream(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, IdentityTokens: []string{"refresh"}})
		text := "grant_type=refresh_token&" + form + "&x=" + strings.Repeat("x", 100<<10) + "&refresh_token=refresh"
		resp, err := up.Client().Post(up.URL+"/token", "application/x-www-form-urlencoded", strings.NewReader(text))
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		assert.Equal(t, 200, resp.StatusCode)
		assert.True(t, up.Saw(secret))
		assert.False(t, up.Saw("refresh_token=refresh"))
		assert.Len(t, up.Requests()[0].Body, 64<<10)
		up.Reset()
		assert.False(t, up.Saw(secret))
	})
}

func TestWaitSeesStalledRequests(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{})
	stall := make(chan struct{})
	up.Fault(pullthroughtest.Fault{Match: "* /v2/*/blobs/*", Stall: stall})
	done := make(chan struct{})
	go func() {
		defer close(done)
		resp, err := up.Client().Get(up.URL + layerPath)
		if assert.NoError(t, err) {
			assert.NoError(t, resp.Body.Close())
		}
	}()
	require.NoError(t, up.Wait(t.Context(), "GET /v2/*/blobs/*", 1))
	assert.Equal(t, 1, up.Count("GET "+layerPath))
	assert.Zero(t, up.Count("* 200"))
	assert.Empty(t, up.Log(), "not answered yet")
	assert.Equal(t, 200, get(t, up, "/v2/").StatusCode)
	close(stall)
	soon(t, done)
	assert.Equal(t, []string{"GET " + layerPath + " 200", "GET /v2/ 200"}, up.Log(), "in order of arrival")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	assert.ErrorIs(t, up.Wait(ctx, "GET /never", 1), context.Canceled)
	assert.NoError(t, up.Wait(ctx, "", 2), "what is there already needs no time")
}

// TestWhoComesAfterWait does not meet the fault that is another's.
func TestWhoComesAfterWait(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{})
	for range 200 {
		up.Reset()
		stall := make(chan struct{})
		heal := up.Fault(pullthroughtest.Fault{Times: 1, Stall: stall})
		stalled := asked(t, up)
		require.NoError(t, up.Wait(t.Context(), "GET /v2/", 1))
		soon(t, asked(t, up))
		close(stall)
		soon(t, stalled)
		heal()
	}
}

// TestWaitSeesWhatAHandlerHolds, although it will meet no fault before the handler lets it go.
func TestWaitSeesWhatAHandlerHolds(t *testing.T) {
	hold := make(chan struct{})
	up := newUpstream(t, pullthroughtest.Config{Handler: func(_ http.ResponseWriter, r *http.Request) bool {
		<-hold
		return r.URL.Path != "/v2/"
	}})
	held := asked(t, up)
	require.NoError(t, up.Wait(t.Context(), "GET /v2/", 1))
	close(hold)
	soon(t, held)
	assert.NoError(t, up.Wait(t.Context(), "GET /v2/ 200", 1))
}

// asked asks for /v2/; the channel is closed when the answer is there.
func asked(t *testing.T, up *pullthroughtest.Upstream) <-chan struct{} {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		resp, err := up.Client().Get(up.URL + "/v2/")
		if assert.NoError(t, err) {
			assert.NoError(t, resp.Body.Close())
		}
	}()
	return done
}
