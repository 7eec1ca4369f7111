package pullthrough_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func basicAuth(r pullthroughtest.Request) (user, password string, ok bool) {
	return (&http.Request{Header: r.Header}).BasicAuth()
}

func testS04(t *testing.T) { redirectedTo(t, "127.0.0.1") }

func testS05(t *testing.T) { redirectedTo(t, "localhost") }

// redirectedTo pulls an image whose every object is on another registry, which
// is called host, on another port than the one that asks for credentials.
func redirectedTo(t *testing.T, host string) {
	const cookie = "canary-cookie"
	for name, auth := range map[string]pullthroughtest.Auth{"password": pullthroughtest.Basic, "token": pullthroughtest.Bearer} {
		t.Run(name, func(t *testing.T) {
			elsewhere := pullthroughtest.New(t, pullthroughtest.Config{})
			w := newWorld(t, pullthroughtest.Config{Auth: auth, Users: users}, withSecret(nil))
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 2})
			w.up.Push("a", "1", img)
			elsewhere.Push("a", "1", img)
			w.up.Fault(pullthroughtest.Fault{
				Match:    "GET /v2/* 200",
				Redirect: "http://" + host + ":" + port(elsewhere) + "{path}",
				Header:   http.Header{"Set-Cookie": {"session=" + cookie + "; Path=/"}},
			})
			w.pull(t, "a", "1", img)
			assert.Equal(t, 1, w.unauthorized())
			assert.Equal(t, 4, w.up.Count("GET /v2/* 307"))
			assert.Equal(t, 4, elsewhere.Count("GET /v2/* 200"))
			assert.Equal(t, 4, elsewhere.Count(""))
			assert.False(t, elsewhere.Saw(canary))
			assert.False(t, elsewhere.Saw(cookie))
			for _, r := range w.up.Requests() {
				if secret := r.Header.Get("Authorization"); secret != "" {
					assert.False(t, elsewhere.Saw(secret))
				}
			}
			for _, r := range elsewhere.Requests() {
				for _, h := range []string{"Authorization", "Cookie", "Proxy-Authorization", "Referer"} {
					assert.Empty(t, r.Header.Values(h), h)
				}
			}
		})
	}
}

// mostCircles is how many requests a redirect loop may cost in all.
const mostCircles = 10

func testS21(t *testing.T) {
	for name, match := range map[string]string{"manifests": manifestGets, "blobs": blobs, "tokens": tokenCalls} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
			layer := w.layer(1000)
			w.up.Fault(pullthroughtest.Fault{Match: match, Redirect: "{path}"})
			var err error
			if match == blobs {
				_, err = w.open(t.Context(), layer.Digest)
			} else {
				_, err = w.tagged(t, "1")
			}
			assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
			assert.Positive(t, w.up.Count("* 307"))
			assert.LessOrEqual(t, w.up.Count(""), mostCircles)
		})
	}
	t.Run("between two registries", func(t *testing.T) {
		elsewhere := pullthroughtest.New(t, pullthroughtest.Config{})
		w := newWorld(t, pullthroughtest.Config{}, nil)
		elsewhere.Fault(pullthroughtest.Fault{Redirect: w.up.URL() + "{path}"})
		w.up.Fault(pullthroughtest.Fault{Redirect: elsewhere.URL() + "{path}"})
		_, err := w.tagged(t, "1")
		assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
		assert.Positive(t, elsewhere.Count(""))
		assert.LessOrEqual(t, w.up.Count("")+elsewhere.Count(""), mostCircles)
	})
	t.Run("in the middle of a blob", func(t *testing.T) {
		inBubble(t, pullthroughtest.Config{}, circlesInABlob)
	})
	t.Run("when a stored tag is checked", circlesInACheck)
}

func circlesInABlob(t *testing.T, w *world) {
	layer := w.layer(3 << 20)
	w.up.Fault(pullthroughtest.Fault{Match: blobs, Times: 1, CutAfter: new(int64(2 << 20))})
	w.up.Fault(pullthroughtest.Fault{Match: blobs, Redirect: "{path}"})
	_ = w.failsBlob(t, layer, pullthrough.ErrUnavailable)
	assert.Equal(t, 1, w.up.Count(blobs+" 200"))
	assert.Positive(t, w.up.Count(blobs+" 307"))
	assert.LessOrEqual(t, w.up.Count(""), mostCircles)
}

func circlesInACheck(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{}, everyPull)
	images := pushTags(w.up, 1)
	w.pull(t, "a", "0", images[0])
	w.up.Reset()
	w.up.Fault(pullthroughtest.Fault{Redirect: "{path}"})
	m, err := w.tagged(t, "0")
	require.NoError(t, err)
	assert.Equal(t, pullthrough.SourceStale, m.Source)
	assert.Positive(t, w.up.Count("HEAD * 307"))
	assert.LessOrEqual(t, w.up.Count(""), mostCircles)
}
