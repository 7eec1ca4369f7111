package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
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
	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// hiding is a registry that challenges at /v2/ only. What is sent without authorization
// is answered with status, and a wrong password, too.
func hiding(auth pullthroughtest.Auth, status int) pullthroughtest.Config {
	return pullthroughtest.Config{Auth: auth, Users: users, Handler: func(w http.ResponseWriter, r *http.Request) bool {
		user, password, basic := r.BasicAuth()
		good := !basic || users[user] == password
		if strings.Contains(r.URL.Path, "/manifests/") && (r.Header.Get("Authorization") == "" || !good) {
			w.WriteHeader(status)
			return true
		}
		return false
	}}
}

var hidden = map[string]struct {
	auth   pullthroughtest.Auth
	status int
}{
	"Basic, 401": {pullthroughtest.Basic, 401}, "Basic, 403": {pullthroughtest.Basic, 403}, "Basic, 404": {pullthroughtest.Basic, 404},
	"Bearer, 401": {pullthroughtest.Bearer, 401}, "Bearer, 403": {pullthroughtest.Bearer, 403}, "Bearer, 404": {pullthroughtest.Bearer, 404},
}

// pings is how often /v2/ was asked.
func pings(up *pullthroughtest.Upstream) int { return up.Count("GET /v2/ *") }

func testLoginAtV2Only(t *testing.T) {
	for name, c := range hidden {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, hiding(c.auth, c.status))
			w.target.Credential = give(upstream.Credential{Username: "me", AccessToken: canary})
			img := w.push(pullthroughtest.ImageOptions{})
			var trace upstream.Trace
			m, err := w.Manifest(trace.Attach(t.Context()), w.target, "1", upstream.Pull)
			require.NoError(t, err)
			assert.Equal(t, img.Digest, m.Descriptor.Digest)
			assert.Equal(t, len(w.up.Log()), trace.Facts().Requests, "each request is told of")
			want := []string{fmt.Sprintf("GET /v2/a/manifests/1 %d", c.status), "GET /v2/ 401", "GET /token 200", "GET /v2/a/manifests/1 200"}
			if c.auth == pullthroughtest.Basic {
				want = append(want[:2:2], want[3])
			}
			assert.Equal(t, want, paths(w.up))
			for range 3 {
				_, err = w.Manifest(t.Context(), w.target, "1", upstream.Pull)
				require.NoError(t, err)
			}
			assert.Equal(t, 1, pings(w.up))
			assert.Len(t, w.up.Log(), len(want)+3, "what was learnt is used")
			missing := w.repository("b")
			missing.Credential = w.target.Credential
			_, err = w.Manifest(t.Context(), missing, "1", upstream.Pull)
			assert.ErrorIs(t, err, upstream.ErrNotFound, "what is missing stays so")
		})
	}
	t.Run("many at once", testManyLogInTogether)
	t.Run("anonymous", testNobodyLogsInWithoutCredentials)
	t.Run("a wrong password", testARefusedLoginIsForgotten)
	t.Run("a new password", testALoginWithANewPassword)
	t.Run("/v2/ is open", testOpenV2IsRemembered)
	t.Run("/v2/ does not answer", testV2WithoutAnAnswer)
	t.Run("by way of the proxy", testLoginOfAProxy)
}

func testManyLogInTogether(t *testing.T) {
	w := newWorld(t, hiding(pullthroughtest.Bearer, 404))
	w.target.Credential = give(upstream.Credential{Username: "me", AccessToken: canary})
	w.push(pullthroughtest.ImageOptions{})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			_, err := w.Manifest(t.Context(), w.target, "1", upstream.Pull)
			assert.NoError(t, err)
		})
	}
	wg.Wait()
	assert.Equal(t, 1, pings(w.up))
	assert.Equal(t, 1, w.up.Count("GET /token*"))
}

func testNobodyLogsInWithoutCredentials(t *testing.T) {
	for name, credential := range map[string]func(context.Context) (upstream.Credential, error){"no callback": nil, "no secret": give(upstream.Credential{})} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, hiding(pullthroughtest.Bearer, 404))
			w.target.Credential = credential
			for range 3 {
				_, err := w.Manifest(t.Context(), w.target, "1", upstream.Pull)
				assert.ErrorIs(t, err, upstream.ErrNotFound)
			}
			assert.Equal(t, []string{"GET /v2/a/manifests/1 404", "GET /v2/a/manifests/1 404", "GET /v2/a/manifests/1 404"}, w.up.Log())
		})
	}
}

// A secret that has expired must not take away what is there for everybody.
func testARefusedLoginIsForgotten(t *testing.T) {
	for name, auth := range map[string]pullthroughtest.Auth{"Basic": pullthroughtest.Basic, "Bearer": pullthroughtest.Bearer} {
		t.Run(name, func(t *testing.T) {
			c := hiding(auth, 401)
			closed := c.Handler
			open := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
			c.Handler = func(w http.ResponseWriter, r *http.Request) bool {
				if strings.HasPrefix(r.URL.Path, "/v2/open/") && r.Header.Get("Authorization") == "" {
					w.Header().Set("Content-Type", open.MediaType)
					_, _ = w.Write(open.Content)
					return true
				}
				return closed(w, r)
			}
			w := newWorld(t, c)
			asked := 0
			w.target.Credential = func(context.Context) (upstream.Credential, error) {
				asked++
				return upstream.Credential{Username: "me", AccessToken: "expired"}, nil
			}
			public := w.repository("open")
			public.Credential = w.target.Credential
			for range 3 {
				_, err := w.Manifest(t.Context(), w.target, "1", upstream.Pull)
				assert.ErrorIs(t, err, upstream.ErrDenied)
				_, err = w.Manifest(t.Context(), public, "1", upstream.Pull)
				assert.NoError(t, err)
			}
			assert.Equal(t, 1, pings(w.up), "once a credential")
			assert.Equal(t, 3, w.up.Count("GET /v2/open/manifests/1 200"))
			assert.LessOrEqual(t, asked, 4)
			w.push(pullthroughtest.ImageOptions{})
			w.target.Credential = give(upstream.Credential{Username: "me", AccessToken: canary})
			_, err := w.Manifest(t.Context(), w.target, "1", upstream.Pull)
			assert.NoError(t, err, "with another credential it is tried again")
			assert.Equal(t, 2, pings(w.up))
		})
	}
}

// The registry does not say that it no longer takes the password: nothing is there.
func testALoginWithANewPassword(t *testing.T) {
	passwords := map[string]string{"me": "old"}
	var mu sync.Mutex
	c := hiding(pullthroughtest.Basic, 404)
	c.Users = nil
	c.Handler = func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		user, password, _ := r.BasicAuth()
		switch {
		case r.URL.Path == "/v2/" && user == "":
			w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
			w.WriteHeader(401)
		case passwords[user] != password || user == "":
			w.WriteHeader(404)
		default:
			r.Header.Del("Authorization")
			return false
		}
		return true
	}
	c.Auth = pullthroughtest.Open
	w := newWorld(t, c)
	w.push(pullthroughtest.ImageOptions{})
	w.target.Credential = give(upstream.Credential{Username: "me", AccessToken: "old"})
	_, err := w.Manifest(t.Context(), w.target, "1", upstream.Pull)
	require.NoError(t, err)
	mu.Lock()
	passwords["me"] = "new"
	mu.Unlock()
	_, err = w.Manifest(t.Context(), w.target, "1", upstream.Pull)
	assert.ErrorIs(t, err, upstream.ErrNotFound, "that credential is no good any more")
	w.target.Credential = give(upstream.Credential{Username: "me", AccessToken: "new"})
	_, err = w.Manifest(t.Context(), w.target, "1", upstream.Pull)
	assert.NoError(t, err)
	assert.Equal(t, 1, pings(w.up))
}

func testOpenV2IsRemembered(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{})
	w.target.Credential = give(upstream.Credential{Username: "me", AccessToken: canary})
	for range 3 {
		_, err := w.Manifest(t.Context(), w.target, "1", upstream.Pull)
		assert.ErrorIs(t, err, upstream.ErrNotFound)
	}
	assert.Equal(t, []string{"GET /v2/a/manifests/1 404", "GET /v2/ 200", "GET /v2/a/manifests/1 404", "GET /v2/a/manifests/1 404"}, w.up.Log())
	assert.False(t, w.up.Saw(canary))
}

func testV2WithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent atomic.Int64
		c := upstream.New(upstream.Config{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			sent.Add(1)
			if r.URL.Path == "/v2/" {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return answer(r, 404, nil), nil
		})})
		target := &upstream.Target{Base: mustParse(t, "http://r.example"), Name: "a", Credential: give(upstream.Credential{Username: "me", AccessToken: canary})}
		begin := time.Now()
		_, err := c.Manifest(t.Context(), target, "1", upstream.Pull)
		assert.ErrorIs(t, err, upstream.ErrNotFound, "the answer that there was")
		assert.Equal(t, 10*time.Second, time.Since(begin))
		_, err = c.Manifest(t.Context(), target, "1", upstream.Pull)
		assert.ErrorIs(t, err, upstream.ErrNotFound)
		assert.EqualValues(t, 3, sent.Load(), "nobody waits for that twice")
		time.Sleep(11 * time.Second)
		ctx, cancel := context.WithCancelCause(t.Context())
		left := errors.New("the client has left")
		time.AfterFunc(time.Second, func() { cancel(left) })
		_, err = c.Manifest(ctx, target, "1", upstream.Pull)
		assert.ErrorIs(t, err, left)
		assert.EqualValues(t, 5, sent.Load())
	})
}

func testLoginOfAProxy(t *testing.T) {
	w := testkit.NewWorld(t, hiding(pullthroughtest.Bearer, 404), func(p *pullthrough.Proxy) {
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			return pullthrough.Credential{Username: "me", AccessToken: canary}, nil
		}
	})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("a", "1", img)
	w.Pull(t, "a", "1", img)
	assert.Equal(t, 1, pings(w.Up))
}
