package pullthroughtest_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// outcome is what a client sees of one answer, in short.
func outcome(up *pullthroughtest.Upstream, r *http.Request) string {
	resp, err := up.Client().Transport.RoundTrip(r)
	if err != nil {
		return "no answer"
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	whole := "whole"
	if err != nil {
		whole = "broken"
	}
	return fmt.Sprintf("%d %d %s", resp.StatusCode, len(body), whole)
}

func TestAScriptIsMetStepByStep(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{})
	up.Script(t, "GET /v2/a/b/blobs/*", "2 times status 503, retry-after 2, body busy; ok; after 100 cut; after 200 reset; truncate 24; no-length; status 404, body gone")
	var got []string
	for range 10 {
		got = append(got, outcome(up, request(t, http.MethodGet, up.URL+layerPath)))
	}
	assert.Equal(t, []string{
		"503 4 whole", "503 4 whole", "200 1024 whole", "200 100 broken", "200 200 broken", "200 1000 broken", "200 1024 whole", "404 4 whole",
		"200 1024 whole", "200 1024 whole",
	}, got)
	assert.Equal(t, 200, get(t, up, "/v2/a/b/manifests/latest").StatusCode, "other requests meet nothing")
	assert.Equal(t, 11, up.Count("GET *"))
}

func TestScriptsSayWhatAnswersSay(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{})
	up.Script(t, "GET *", "status 429, retry-after 7; type text/html; digest wrong; header X-Any: a: b; type; redirect http://127.0.0.1:1/{path}")
	path := "/v2/a/b/manifests/latest"
	assert.Equal(t, "7", get(t, up, path).Header.Get("Retry-After"))
	assert.Equal(t, "text/html", get(t, up, path).Header.Get("Content-Type"))
	wrong := digest.Digest(get(t, up, path).Header.Get("Docker-Content-Digest"))
	assert.NoError(t, wrong.Validate())
	assert.NotEqual(t, small.Digest, wrong)
	assert.Equal(t, "a: b", get(t, up, path).Header.Get("X-Any"))
	assert.Empty(t, get(t, up, path).Header.Values("Content-Type"))
	resp := get(t, up, path)
	assert.Equal(t, 307, resp.StatusCode)
	assert.True(t, strings.HasPrefix(resp.Header.Get("Location"), "http://127.0.0.1:1/"))
}

func TestScriptsFlipBits(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{})
	heal := up.Script(t, "GET /v2/a/b/blobs/*", "100 times flip -1, trickle 1000000")
	body := func() []byte {
		b, err := io.ReadAll(get(t, up, layerPath).Body)
		require.NoError(t, err)
		return b
	}
	want := layer(t)
	got := body()
	assert.Equal(t, want[:len(want)-1], got[:len(got)-1])
	assert.Equal(t, want[len(want)-1]^1, got[len(got)-1])
	heal()
	assert.Equal(t, want, body())
}

func TestScriptsStallAndSayGoAway(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{TLS: true, HTTP2: true})
	up.Script(t, "GET /v2/a/b/blobs/*", "after 300 stall; goaway; ok")
	ctx, leave := context.WithCancel(t.Context())
	resp, err := up.Client().Transport.RoundTrip(request(t, http.MethodGet, up.URL+layerPath).WithContext(ctx))
	require.NoError(t, err)
	_, err = io.CopyN(io.Discard, resp.Body, 300)
	assert.NoError(t, err)
	leave()
	_, err = io.ReadAll(resp.Body)
	assert.ErrorIs(t, err, context.Canceled)
	assert.NoError(t, resp.Body.Close())
	for range 2 {
		assert.Equal(t, "200 1024 whole", outcome(up, request(t, http.MethodGet, up.URL+layerPath)))
	}
}

// failing is a test that a script has made fail.
type failing struct {
	testing.TB
	said string
}

func (f *failing) Helper() {}
func (f *failing) Fatalf(format string, args ...any) {
	f.said = fmt.Sprintf(format, args...)
}

func TestAScriptThatCannotBeReadFailsTheTest(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{})
	for script, says := range map[string]string{
		"":                         `step 1: "": there is no part ""`,
		"ok; explode":              `step 2: "explode": there is no part "explode"`,
		"status":                   "status wants a number",
		"status 99":                "99 is out of range",
		"after x cut":              `after wants a number of bytes, not "x"`,
		"after -1 cut":             "-1 is out of range",
		"after 5 status":           `there is no part "status"`,
		"ok 5":                     `there is no part "ok" with "5" behind it`,
		"0 times ok":               "want a number before times",
		"header x":                 "want NAME: VALUE",
		"trickle 0":                "0 is out of range",
		"flip 9223372036854775808": "flip wants a number",
	} {
		f := &failing{TB: t}
		up.Script(f, "*", script)
		assert.Contains(t, f.said, says, script)
	}
	assert.Equal(t, 200, get(t, up, "/v2/").StatusCode, "nothing of them was installed")
}

func ExampleUpstream_Script() {
	t := new(testing.T) // in a test it is the test's own
	up, err := pullthroughtest.Start(pullthroughtest.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer up.Close()
	up.Push("app", "1", small)
	up.Script(t, "GET /v2/app/manifests/*", "status 503, retry-after 1; after 10 cut; ok")
	for range 4 {
		r, _ := http.NewRequest(http.MethodGet, up.URL+"/v2/app/manifests/1", nil)
		fmt.Println(outcome(up, r)[:3])
	}
	// Output:
	// 503
	// 200
	// 200
	// 200
}
