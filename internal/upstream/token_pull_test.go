package upstream_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const (
	manifestGets = "GET /v2/a/manifests/*"
	tokenCalls   = "* /token*"
)

// pushTags gives the repository a so many images, tagged 0, 1, 2 and so on.
func pushTags(up *pullthroughtest.Upstream, n int) (images []*pullthroughtest.Image) {
	for i := range n {
		img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i)})
		up.Push("a", fmt.Sprint(i), img)
		images = append(images, img)
	}
	return images
}

func testWholePullTakesOneChallengeAndOneToken(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, testkit.WithSecret(nil))
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 3})
	w.Up.Push("a", "1", img)
	w.Pull(t, "a", "1", img)
	want := []string{"GET /v2/a/manifests/1 401", "GET /token 200", "GET /v2/a/manifests/1 200"}
	for _, b := range img.Blobs() {
		want = append(want, "GET /v2/a/blobs/"+b.Digest.String()+" 200")
	}
	assert.Equal(t, want, w.Up.Log())
	assert.Equal(t, 1, unauthorized(w))
	for _, r := range w.Up.Requests() {
		_, password, _ := basicAuth(r)
		assert.Equal(t, r.Path == "/token", password == testkit.Canary, "the password is the token server's alone")
	}
}

func testRefusedTokenRequestIsForgotten(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, testkit.WithSecret(nil))
	images := pushTags(w.Up, 1)
	w.Up.Fault(pullthroughtest.Fault{Match: tokenCalls, Times: 2, Status: 403})
	for range 2 {
		_, err := w.Tagged(t, "0")
		require.ErrorIs(t, err, pullthrough.ErrDenied)
	}
	w.Pull(t, "a", "0", images[0])
	assert.Equal(t, 2, w.Up.Count(tokenCalls+" 403"))
	assert.Equal(t, 1, w.Up.Count(tokenCalls+" 200"))
	assert.Equal(t, 1, unauthorized(w))
}

// withToken is a world that holds a token for the repository a already.
func withToken(t *testing.T) *testkit.World {
	t.Helper()
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, testkit.WithSecret(nil))
	pushTags(w.Up, 2)
	_, err := w.Tagged(t, "0")
	require.NoError(t, err)
	w.Up.Reset()
	return w
}

func testRefusedTokenIsFetchedAnew(t *testing.T) {
	w := withToken(t)
	w.Up.RevokeTokens()
	_, err := w.Tagged(t, "1")
	require.NoError(t, err)
	assert.Equal(t, []string{"GET /v2/a/manifests/1 401", "GET /token 200", "GET /v2/a/manifests/1 200"}, w.Up.Log())
	assert.Zero(t, unauthorized(w))
}

func testNoTokenIsTakenAtAll(t *testing.T) {
	t.Run("of old", func(t *testing.T) {
		w := withToken(t)
		w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/*", Status: 401})
		_, err := w.Tagged(t, "1")
		assert.ErrorIs(t, err, pullthrough.ErrDenied)
		assert.Equal(t, []string{"GET /v2/a/manifests/1 401", "GET /token 200", "GET /v2/a/manifests/1 401"}, w.Up.Log())
	})
	t.Run("from the beginning", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, testkit.WithSecret(nil))
		pushTags(w.Up, 1)
		w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/*", Status: 401})
		_, err := w.Tagged(t, "0")
		assert.ErrorIs(t, err, pullthrough.ErrDenied)
		assert.Equal(t, []string{"GET /v2/a/manifests/0 401", "GET /token 200", "GET /v2/a/manifests/0 401"}, w.Up.Log())
	})
}

func testExpiredTokenAnsweredOtherwiseThan401(t *testing.T) {
	for status, kind := range map[int]error{400: pullthrough.ErrUnavailable, 403: pullthrough.ErrDenied} {
		refused := fmt.Sprint("GET /v2/a/manifests/1 ", status)
		t.Run(fmt.Sprint(status, " once"), func(t *testing.T) {
			w := withToken(t)
			w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/*", Times: 1, Status: status})
			_, err := w.Tagged(t, "1")
			assert.NoError(t, err)
			assert.Equal(t, []string{refused, "GET /token 200", "GET /v2/a/manifests/1 200"}, w.Up.Log())
		})
		t.Run(fmt.Sprint(status, " for ever"), func(t *testing.T) {
			w := withToken(t)
			w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/*", Status: status})
			_, err := w.Tagged(t, "1")
			assert.ErrorIs(t, err, kind)
			assert.Equal(t, []string{refused, "GET /token 200", refused}, w.Up.Log())
		})
		t.Run(fmt.Sprint(status, " for a new token"), func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, testkit.WithSecret(nil))
			pushTags(w.Up, 2)
			w.Up.Fault(pullthroughtest.Fault{Match: manifestGets + " 200", Status: status})
			_, err := w.Tagged(t, "1")
			assert.ErrorIs(t, err, kind)
			assert.Equal(t, []string{"GET /v2/a/manifests/1 401", "GET /token 200", refused}, w.Up.Log())
		})
	}
}

func testTokenServerElsewhereNeedsTheRulesLeave(t *testing.T) {
	for name, allowed := range map[string][]string{"refused": nil, "another is allowed": {"auth.registry.test"}, "allowed": {"127.0.0.1"}} {
		t.Run(name, func(t *testing.T) {
			issuer := pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users})
			w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Issuer: issuer}, func(p *pullthrough.Proxy) {
				testkit.WithSecret(nil)(p)
				p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
					return pullthrough.Policy{RealmHosts: allowed}
				}
			})
			w.Rules = pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: "http://localhost:" + testkit.Port(w.Up)}}
			images := pushTags(w.Up, 1)
			if name == "allowed" {
				w.Pull(t, "a", "0", images[0])
				assert.Equal(t, []string{"GET /token 200"}, issuer.Log())
				assert.Equal(t, 1, unauthorized(w))
			} else {
				_, err := w.Tagged(t, "0")
				assert.ErrorIs(t, err, pullthrough.ErrDenied)
				assert.Empty(t, issuer.Log())
				assert.Equal(t, []string{"GET /v2/a/manifests/0 401"}, w.Up.Log())
			}
			assert.False(t, w.Up.Saw(testkit.Canary))
		})
	}
}

func testPullsInARowShareOneToken(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
	for i := range pushTags(w.Up, 3) {
		_, err := w.Tagged(t, fmt.Sprint(i))
		require.NoError(t, err)
	}
	assert.Equal(t, []string{
		"GET /v2/a/manifests/0 401", "GET /token 200", "GET /v2/a/manifests/0 200",
		"GET /v2/a/manifests/1 200", "GET /v2/a/manifests/2 200",
	}, w.Up.Log())
}

func testTwentyPullsShareOneToken(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, testkit.WithSecret(nil))
	var wg sync.WaitGroup
	for i, img := range pushTags(w.Up, 20) {
		wg.Go(func() {
			m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: fmt.Sprint(i)})
			if assert.NoError(t, err) {
				assert.Equal(t, img.Digest, m.Descriptor.Digest)
			}
			for _, b := range img.Blobs() {
				assert.NoError(t, w.Whole(t.Context(), b.Digest))
			}
		})
	}
	wg.Wait()
	assert.Equal(t, 1, w.Up.Count(tokenCalls))
	assert.Equal(t, 1, unauthorized(w))
	assert.Equal(t, 20, w.Up.Count(manifestGets+" 200"))
	assert.Equal(t, 40, w.Up.Count(testkit.Blobs+" 200"))
	assert.Equal(t, 62, w.Up.Count(""))
}

func testFirstOfTheWaitingLeaves(t *testing.T) {
	for name, tag := range map[string]string{"another tag": "1", "the same tag": "0"} {
		t.Run(name, func(t *testing.T) {
			testkit.InBubble(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(t *testing.T, w *testkit.World) {
				pushTags(w.Up, 2)
				g := testkit.NewGate(t)
				w.Up.Fault(pullthroughtest.Fault{Match: tokenCalls, Stall: g.C})
				first, leave := context.WithCancel(t.Context())
				left, got := make(chan error, 1), make(chan error, 1)
				pull := func(ctx context.Context, tag string, done chan<- error) {
					_, err := w.Manifest(ctx, pullthrough.Request{Repo: testkit.Repo("a"), Ref: tag})
					done <- err
				}
				go pull(first, "0", left)
				require.NoError(t, w.Up.Wait(t.Context(), tokenCalls, 1))
				go pull(t.Context(), tag, got)
				synctest.Wait() // both wait for the token
				leave()
				assert.ErrorIs(t, <-left, context.Canceled)
				synctest.Wait()
				assert.Empty(t, got, "nobody else notices")
				g.Open()
				assert.NoError(t, <-got)
				_, err := w.Tagged(t, "0")
				assert.NoError(t, err, "nor do those who come later")
				assert.Equal(t, 1, w.Up.Count(tokenCalls))
				assert.Equal(t, 1, unauthorized(w))
			})
		})
	}
}

func testOldTokensLiveTheirWholeLife(t *testing.T) {
	var now atomic.Int64
	now.Store(1_700_000_000)
	clock := func() time.Time { return time.Unix(now.Load(), 0) }
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Now: clock}, func(p *pullthrough.Proxy) { p.Now = clock })
	pushTags(w.Up, 4)
	answer := func() {
		body, err := json.Marshal(map[string]any{
			"token":      w.Up.IssueToken(5*time.Minute, "repository:a:pull"),
			"expires_in": 300,
			"issued_at":  clock().Add(-10 * time.Minute).UTC().Format(time.RFC3339),
		})
		require.NoError(t, err)
		w.Up.Fault(pullthroughtest.Fault{Match: tokenCalls, Times: 1, Status: 200, Body: body})
	}
	answer()
	for tag, at := range []struct{ second, tokens int }{{0, 1}, {100, 1}, {200, 1}, {301, 2}} {
		now.Store(1_700_000_000 + int64(at.second))
		if at.second == 301 {
			answer()
		}
		_, err := w.Tagged(t, fmt.Sprint(tag))
		require.NoError(t, err)
		assert.Equal(t, at.tokens, w.Up.Count(tokenCalls), "after %d s", at.second)
	}
	assert.Equal(t, 1, w.Up.Count("* 401"), "no token is used beyond its time")
}

func testLoginPageInPlaceOfAToken(t *testing.T) {
	const form = "canary-form" // far from the beginning of the page
	page := "<!DOCTYPE html>\n<title>Sign in</title> " + strings.Repeat("x", 4096) + " " + form
	issuer := pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users})
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Issuer: issuer}, testkit.WithSecret(nil))
	images := pushTags(w.Up, 1)
	heal := issuer.Fault(htmlFault(tokenCalls, page))
	e := refusesManifest(t, w, "0", pullthrough.ErrUnavailable)
	assert.Equal(t, []string{"GET /v2/a/manifests/0 401"}, w.Up.Log())
	assert.Equal(t, []string{"GET /token 200"}, issuer.Log())
	assert.Equal(t, issuer.Host(), e.Host)
	for _, part := range []string{issuer.Host(), "text/html", "<!DOCTYPE html>", "Sign in"} {
		assert.Contains(t, e.Error(), part)
	}
	for _, part := range []string{testkit.Canary, form, "\n"} {
		assert.NotContains(t, e.Error(), part)
	}
	status, _, message := pullthrough.OCI(e)
	assert.Equal(t, 502, status)
	assert.NotContains(t, message, "Sign in")
	heal()
	w.Pull(t, "a", "0", images[0])
}
