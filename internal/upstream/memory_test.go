package upstream_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// padded is a text as long as an upstream likes, that our own text is cut from.
func padded(text string) string { return text + strings.Repeat("p", 100<<10) }

// A registry that names another challenge to each target, in a header of 100 KiB, and
// whose tokens are as long as tokens may be.
func TestWhatIsRememberedOfRegistriesIsBounded(t *testing.T) {
	c := upstream.New(upstream.Config{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/token"):
			resp := answer(r, 200, nil)
			resp.Body = io.NopCloser(strings.NewReader(`{"token":"` + strings.Repeat("t", 15<<10) + `"}`))
			return resp, nil
		case r.Header.Get("Authorization") == "":
			challenge := fmt.Sprintf(`Bearer realm="https://r.example/token%s",service=s,scope=aws, Other pad=`, strings.TrimPrefix(r.URL.Path, "/v2/"))
			return answer(r, 401, http.Header{"Www-Authenticate": {padded(challenge)}}), nil
		}
		return answer(r, 404, nil), nil
	})})
	defer c.Close()
	base := mustParse(t, "https://r.example")
	var after [2]uint64
	before := testkit.InUse()
	for round := range after {
		for i := range 2100 { // more than there may be registries, and tokens
			id := fmt.Sprint(round, "-", i)
			_, err := c.Manifest(t.Context(), &upstream.Target{ID: id, Base: base, Name: "r" + id}, "1", upstream.Pull)
			if !errors.Is(err, upstream.ErrNotFound) {
				t.Fatalf("%#v", err)
			}
		}
		after[round] = testkit.InUse()
	}
	assert.Less(t, after[0], before+48<<20)
	assert.InDelta(t, float64(after[0]), float64(after[1]), 8<<20, "it is full")
	runtime.KeepAlive(c)
}

// A challenge or a redirect with a text that nobody needs to be that long is none.
func TestTextsThatAreTooLongAreRefused(t *testing.T) {
	base := mustParse(t, "https://r.example")
	for name, header := range map[string]http.Header{
		"realm":   {"Www-Authenticate": {padded(`Bearer realm="https://r.example/token`) + `"`}},
		"service": {"Www-Authenticate": {`Bearer realm="https://r.example/token",service="` + strings.Repeat("s", 5000) + `"`}},
		"host":    {"Location": {"https://" + padded("h") + "/"}},
	} {
		t.Run(name, func(t *testing.T) {
			var sent []string
			c := upstream.New(upstream.Config{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
				sent = append(sent, r.URL.Path)
				status := 401
				if header.Get("Location") != "" {
					status = 307
				}
				return answer(r, status, header), nil
			})})
			defer c.Close()
			_, err := c.Manifest(t.Context(), &upstream.Target{Base: base, Name: "a", Options: upstream.Options{Retries: -1}}, "1", upstream.Pull)
			assert.Error(t, err)
			assert.Equal(t, []string{"/v2/a/manifests/1"}, sent)
		})
	}
}

// However many hosts there are, they share a few pools, and each has few connections that
// nobody uses.
func TestPoolsOfConnectionsAreFew(t *testing.T) {
	c := upstream.New(upstream.Config{})
	defer c.Close()
	pools := map[*http.Transport]bool{}
	for i := range 100 {
		for _, host := range []string{"r%d.example", "127.0.0.%d", "10.0.0.%d"} {
			for _, o := range []upstream.Options{{}, {HTTP1: true}, {BlockPrivate: true}, {HTTP1: true, BlockPrivate: true}} {
				pool := c.HTTPTransport(&upstream.Target{ID: i, Base: mustParse(t, "https://"+fmt.Sprintf(host, i)), Options: o})
				pools[pool] = true
				assert.Equal(t, 256, pool.MaxIdleConns)
				assert.Equal(t, 64, pool.MaxIdleConnsPerHost)
				assert.Equal(t, 90*time.Second, pool.IdleConnTimeout)
				assert.EqualValues(t, 256<<10, pool.MaxResponseHeaderBytes)
			}
		}
	}
	assert.LessOrEqual(t, len(pools), 16)
}

// Bodies that nobody reads hold what a connection may send ahead, and no more.
func TestBodiesThatNobodyReadsHoldLittle(t *testing.T) {
	const bodies = 100
	for name, c := range map[string]pullthroughtest.Config{
		"HTTP/1.1": {}, "HTTP/1.1 with TLS": {TLS: true}, "HTTP/2": {TLS: true, HTTP2: true},
	} {
		t.Run(name, func(t *testing.T) {
			up := pullthroughtest.New(t, c)
			layer := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 8 << 20})
			up.Push("a", "1", layer)
			synctest.Test(t, func(t *testing.T) {
				own := upstream.New(upstream.Config{})
				defer own.Close()
				pool := own.HTTPTransport(&upstream.Target{Base: mustParse(t, up.URL)})
				pool.DialContext, pool.TLSClientConfig = up.DialPipe, &tls.Config{RootCAs: up.Roots()}
				before := testkit.InUse()
				ctx, leave := context.WithCancel(t.Context())
				for range bodies {
					req, err := http.NewRequestWithContext(ctx, http.MethodGet, up.URL+"/v2/a/blobs/"+layer.Layers[0].Digest.String(), nil)
					require.NoError(t, err)
					resp, err := pool.RoundTrip(req)
					require.NoError(t, err)
					require.Equal(t, http.StatusOK, resp.StatusCode)
					assert.Equal(t, c.HTTP2, resp.ProtoMajor == 2)
					defer func() { _ = resp.Body.Close() }()
				}
				synctest.Wait() // upstream sends nothing more
				held := testkit.InUse() - before
				t.Logf("%.1f MiB", float64(held)/(1<<20))
				assert.Less(t, held, uint64(64<<20))
				leave()
				synctest.Wait()
				pool.CloseIdleConnections()
			})
		})
	}
}

// Of secrets the beginnings are remembered, of those that were sent last.
func TestSecretsThatWereSentAreFew(t *testing.T) {
	all := []string{"password"}
	for i := range 300 {
		all = append(all, fmt.Sprint("short", i), "password")
	}
	kept := upstream.Secrets(all...)
	assert.Len(t, kept, 64)
	assert.Equal(t, []string{"short299", "password"}, kept[62:])

	long := strings.Repeat("t", 16<<10)
	assert.Equal(t, []string{"password", long[:64]}, upstream.Secrets("password", long, long+"x"))
}
