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

func TestAColdHerdSharesTheChallengeAndTheToken(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
	const n = 20
	for i := range n {
		w.Up.Push("a", fmt.Sprint("t", i), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i)}))
	}
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: fmt.Sprint("t", i)})
			assert.NoError(t, err)
		})
	}
	wg.Wait()
	assert.Equal(t, 1, w.Up.Count("* 401"))
	assert.Equal(t, 1, w.Up.Count("GET /token 200"))
	assert.Equal(t, n, w.Up.Count("GET /v2/a/manifests/* 200"))
}

func TestATokenIsFetchedAnewWhenItExpiresOrIsRefused(t *testing.T) {
	clock := new(testkit.HandClock)
	newClocked := func(t *testing.T) *testkit.World {
		w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, TokenTTL: 5 * time.Minute}, func(p *pullthrough.Proxy) {
			p.Now = clock.Now
		})
		for i := range 9 {
			w.Up.Push("a", fmt.Sprint(i), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i)}))
		}
		_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "0"})
		require.NoError(t, err)
		w.Up.Reset()
		return w
	}
	get := func(t *testing.T, w *testkit.World, ref string) error {
		_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: ref})
		return err
	}
	t.Run("kept", func(t *testing.T) {
		w := newClocked(t)
		clock.Pass(4 * time.Minute)
		require.NoError(t, get(t, w, "1"))
		assert.Equal(t, []string{"GET /v2/a/manifests/1 200"}, w.Up.Log())
	})
	t.Run("expired", func(t *testing.T) {
		w := newClocked(t)
		clock.Pass(4*time.Minute + 31*time.Second) // a little early, so that it does not die on the way
		require.NoError(t, get(t, w, "1"))
		assert.Equal(t, []string{"GET /token 200", "GET /v2/a/manifests/1 200"}, w.Up.Log())
	})
	t.Run("revoked", func(t *testing.T) {
		w := newClocked(t)
		w.Up.RevokeTokens()
		require.NoError(t, get(t, w, "1"))
		assert.Equal(t, []string{"GET /v2/a/manifests/1 401", "GET /token 200", "GET /v2/a/manifests/1 200"}, w.Up.Log())
	})
	for _, status := range []int{400, 403} { // ECR Public and ECR answer so to an expired token
		t.Run(fmt.Sprint("refused with ", status), func(t *testing.T) {
			w := newClocked(t)
			w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/*", Times: 1, Status: status})
			require.NoError(t, get(t, w, "1"))
			assert.Equal(t, []string{fmt.Sprint("GET /v2/a/manifests/1 ", status), "GET /token 200", "GET /v2/a/manifests/1 200"}, w.Up.Log())
		})
	}
	t.Run("refused for ever", func(t *testing.T) {
		w := newClocked(t)
		w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/*", Status: 401})
		assert.ErrorIs(t, get(t, w, "1"), pullthrough.ErrDenied)
		assert.Equal(t, []string{"GET /v2/a/manifests/1 401", "GET /token 200", "GET /v2/a/manifests/1 401"}, w.Up.Log())
	})
}

func TestTwentyRequestsWithARevokedTokenFetchOneNewOne(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
	for i := range 21 {
		w.Up.Push("a", fmt.Sprint(i), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i)}))
	}
	_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "20"})
	require.NoError(t, err)
	w.Up.RevokeTokens()
	w.Up.Reset()
	gate := make(chan struct{})
	w.Up.Fault(pullthroughtest.Fault{Match: "* 401", Stall: gate})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: fmt.Sprint(i)})
			assert.NoError(t, err)
		})
	}
	assert.NoError(t, w.Up.Wait(t.Context(), "GET /v2/a/manifests/*", 20))
	close(gate)
	wg.Wait()
	assert.Equal(t, 1, w.Up.Count("GET /token*"))
}

func TestAFailedTokenFetchIsForgotten(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("a", "1", img)
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /token*", Times: 2, Status: 403})
	for range 2 {
		_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
		require.ErrorIs(t, err, pullthrough.ErrDenied)
	}
	w.Pull(t, "a", "1", img)
	assert.Equal(t, 3, w.Up.Count("GET /token*"))
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

func TestTokenAnswers(t *testing.T) {
	const good = "TOKEN"
	for name, tc := range map[string]struct {
		body string
		ok   bool
	}{
		"token":                      {`{"token":"TOKEN"}`, true},
		"access_token":               {`{"access_token":"TOKEN"}`, true},
		"both, different":            {`{"token":"wrong","access_token":"TOKEN"}`, true},
		"null hides nothing":         {`{"token":null,"access_token":"TOKEN"}`, true},
		"empty hides nothing":        {`{"access_token":"","token":"TOKEN"}`, true},
		"a lifetime in quotes":       {`{"token":"TOKEN","expires_in":"300"}`, true},
		"a fraction":                 {`{"token":"TOKEN","expires_in":1.5}`, true},
		"a huge lifetime":            {`{"token":"TOKEN","expires_in":1e300}`, true},
		"a negative lifetime":        {`{"token":"TOKEN","expires_in":-5}`, true},
		"neither":                    {`{"expires_in":300}`, false},
		"both empty":                 {`{"token":"","access_token":null}`, false},
		"a page":                     {`<html>log in</html>`, false},
		"an array":                   {`[]`, false},
		"a token that is a number":   {`{"token":5}`, false},
		"a token with a line break":  {`{"token":"TOKEN\r\nX-Y: z"}`, false},
		"a token with a space":       {`{"token":"TOKEN x"}`, false},
		"a token that is too long":   {`{"token":"` + strings.Repeat("x", 17<<10) + `"}`, false},
		"an answer that is too long": {`{"token":"TOKEN","x":"` + strings.Repeat("x", 10<<20) + `"}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
			w.Up.Push("a", "1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))
			body := strings.ReplaceAll(tc.body, good, w.Up.IssueToken(time.Hour, "repository:a:pull"))
			w.Up.Fault(pullthroughtest.Fault{Match: "GET /token*", Status: 200, Body: []byte(body)})
			_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
			if tc.ok {
				assert.NoError(t, err)
				assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/1 200"))
				return
			}
			assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
			assert.Equal(t, 1, w.Up.Count("GET /token*"))
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
