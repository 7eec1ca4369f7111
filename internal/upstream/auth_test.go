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
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestABasicUpstreamIsAskedOnceWithoutAndThenWithCredentials(t *testing.T) {
	var asked atomic.Int32
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: testkit.Users}, testkit.WithSecret(&asked))
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 2})
	w.Up.Push("a", "1", img)
	w.Pull(t, "a", "1", img)
	assert.Equal(t, 1, w.Up.Count("* 401"), "after the challenge the credentials go along at once")
	assert.Equal(t, 4, w.Up.Count("* 200"))
	assert.EqualValues(t, 1, asked.Load(), "the host is asked once, not for each request")
}

func TestABearerUpstreamGetsTheCredentialsAtItsTokenServerOnly(t *testing.T) {
	var asked atomic.Int32
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, testkit.WithSecret(&asked))
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 3})
	w.Up.Push("a", "1", img)
	w.Pull(t, "a", "1", img)
	assert.Equal(t, 1, w.Up.Count("GET /token 200"))
	assert.EqualValues(t, 1, asked.Load())
	for _, r := range w.Up.Requests() {
		user, _, basic := (&http.Request{Header: r.Header}).BasicAuth()
		assert.Equal(t, r.Path == "/token", basic)
		if basic {
			assert.Equal(t, "me", user)
			assert.Equal(t, "scope=repository%3Aa%3Apull&service=registry.test", r.Query)
		}
	}
}

func TestAnotherRepositoryCostsOneTokenAndNoChallenge(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
	for i := range 10 {
		img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i)})
		name := fmt.Sprintf("a%d", i)
		w.Up.Push(name, "1", img)
		w.Pull(t, name, "1", img)
	}
	assert.Equal(t, 1, w.Up.Count("* 401"), "realm and service are learnt once per upstream")
	assert.Equal(t, 10, w.Up.Count("GET /token 200"))
}

func TestTheChallengeIsFoundAmongOthers(t *testing.T) {
	for name, lines := range map[string][]string{
		"Basic before Bearer in one line":  {`Basic realm="x", Bearer realm="URL/token",service="registry.test"`},
		"Basic before Bearer in two lines": {`Basic realm="x"`, `Bearer realm="URL/token",service="registry.test"`},
		"a scheme nobody knows":            {`Negotiate abc==, BEARER REALM="URL/token" , Service="registry.test"`},
		"a comma and a scope in quotes":    {`Bearer realm="URL/token",service="registry.test",scope="repository:a:pull,push"`},
		"a bad challenge first":            {`Bearer realm=URL/token`, `Bearer realm="URL/token",service="registry.test"`},
		"a realm that cannot be used":      {`Bearer realm="ftp://x/"`, `Bearer realm="URL/token",service="registry.test"`},
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
			for i := range lines {
				lines[i] = strings.ReplaceAll(lines[i], "URL", w.Up.URL())
			}
			w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/*", Times: 1, Status: 401, Header: http.Header{"Www-Authenticate": lines}})
			w.Up.Push("a", "1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))
			_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
			assert.NoError(t, err)
			assert.Equal(t, []string{"GET /v2/a/manifests/1 401", "GET /token 200", "GET /v2/a/manifests/1 200"}, w.Up.Log())
		})
	}
}

func TestASecretThatCannotBeReadRefusesThePull(t *testing.T) {
	gone := errors.New("the secret is gone")
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, func(p *pullthrough.Proxy) {
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			return pullthrough.Credential{}, gone
		}
	})
	w.Up.Push("a", "1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))
	_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
	assert.ErrorIs(t, err, pullthrough.ErrDenied)
	assert.ErrorIs(t, err, gone)
	assert.Zero(t, w.Up.Count("GET /token*"))
}

func TestACredentialThatExpiresIsAskedForAgain(t *testing.T) {
	clock := new(testkit.HandClock)
	asked := 0
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: testkit.Users}, func(p *pullthrough.Proxy) {
		p.Now = clock.Now
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			asked++
			return pullthrough.Credential{Username: "me", AccessToken: testkit.Canary, ExpiresAt: clock.Now().Add(time.Hour)}, nil
		}
	})
	for i := range 3 {
		w.Up.Push("a", fmt.Sprint(i), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i)}))
		_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: fmt.Sprint(i)})
		require.NoError(t, err)
		clock.Pass(40 * time.Minute)
	}
	assert.Equal(t, 2, asked)
	assert.Equal(t, 1, w.Up.Count("* 401"))
}

func TestWrongCredentialsAreTriedOnce(t *testing.T) {
	for name, auth := range map[string]pullthroughtest.Auth{"basic": pullthroughtest.Basic, "bearer": pullthroughtest.Bearer} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{Auth: auth, Users: map[string]string{"me": "another"}}, testkit.WithSecret(nil))
			w.Up.Push("a", "1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))
			_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
			assert.ErrorIs(t, err, pullthrough.ErrDenied)
			assert.NotContains(t, err.Error(), testkit.Canary)
			assert.Len(t, w.Up.Log(), 2, "a second guess could lock the account")
		})
	}
}

func TestCredentialsDoNotPrint(t *testing.T) {
	c := pullthrough.Credential{Username: "me", AccessToken: testkit.Canary}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		assert.NotContains(t, fmt.Sprintf(verb, c), testkit.Canary)
		assert.NotContains(t, fmt.Sprintf(verb, []any{c, &c}), testkit.Canary)
	}
	assert.NotContains(t, c.LogValue().String(), testkit.Canary)
}

func TestConcurrentPullsAskForBasicCredentialsOnce(t *testing.T) {
	var asked atomic.Int32
	gate := make(chan struct{})
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: testkit.Users}, func(p *pullthrough.Proxy) {
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			asked.Add(1)
			<-gate
			return pullthrough.Credential{Username: "me", AccessToken: testkit.Canary}, nil
		}
	})
	var wg sync.WaitGroup
	for i := range 50 {
		w.Up.Push("a", fmt.Sprint(i), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i)}))
		wg.Go(func() {
			_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: fmt.Sprint(i)})
			assert.NoError(t, err)
		})
	}
	require.Eventually(t, func() bool { return asked.Load() == 1 }, 10*time.Second, time.Millisecond)
	close(gate)
	wg.Wait()
	assert.EqualValues(t, 1, asked.Load())
	assert.Equal(t, 1, w.Up.Count("* 401"))
}

// Those who come while a challenge is on its way wait for it, for as long as they like.
func TestACallerThatWaitsForAnothersChallengeMayLeave(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(t *testing.T, w *testkit.World) {
		pushEach(w, "a", "1", "2")
		g := make(chan struct{})
		w.Up.Fault(pullthroughtest.Fault{Match: "* 401", Stall: g})
		first, second := make(chan error, 1), make(chan error, 1)
		go func() { first <- pullTag(t, w, "a", "1") }()
		synctest.Wait()
		ctx, leave := context.WithCancel(t.Context())
		go func() {
			_, err := w.Manifest(ctx, pullthrough.Request{Repo: testkit.Repo("a"), Ref: "2"})
			second <- err
		}()
		synctest.Wait()
		leave()
		assert.ErrorIs(t, <-second, context.Canceled)
		close(g)
		assert.NoError(t, <-first)
		w.Settled(t)
		assert.Equal(t, []string{"GET /v2/a/manifests/1 401", "GET /token 200", "GET /v2/a/manifests/1 200"}, w.Up.Log())
	})
}
