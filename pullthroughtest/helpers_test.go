package pullthroughtest_test

import (
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// small is an image whose blobs are easily compared.
var small = pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1, Layers: 2})

// layerPath is the path of small's first layer in repository a/b.
var layerPath = "/v2/a/b/blobs/" + small.Layers[0].Digest.String()

func newUpstream(t *testing.T, c pullthroughtest.Config) *pullthroughtest.Upstream {
	t.Helper()
	up := pullthroughtest.New(t, c)
	up.Push("a/b", "latest", small)
	return up
}

func content(t *testing.T, blob *pullthroughtest.Blob) []byte {
	t.Helper()
	data, err := io.ReadAll(blob.Open())
	require.NoError(t, err)
	return data
}

// request makes a request from pairs of header names and values.
func request(t *testing.T, method, url string, header ...string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

// do sends the request and follows no redirects.
func do(t *testing.T, up *pullthroughtest.Upstream, r *http.Request) *http.Response {
	t.Helper()
	resp, err := up.Client().Transport.RoundTrip(r)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, resp.Body.Close()) })
	return resp
}

func get(t *testing.T, up *pullthroughtest.Upstream, path string, header ...string) *http.Response {
	t.Helper()
	return do(t, up, request(t, http.MethodGet, up.URL+path, header...))
}

func body(t *testing.T, resp *http.Response) []byte {
	t.Helper()
	data, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return data
}

func decode[T any](t *testing.T, resp *http.Response) T {
	t.Helper()
	var v T
	require.NoError(t, json.Unmarshal(body(t, resp), &v))
	return v
}

// soon fails the test instead of hanging it when ch is not closed.
func soon(t *testing.T, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(10 * time.Second):
		require.Fail(t, "still waiting after 10 s")
	}
}
