package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
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

// testAnonymousFallback: upstream is public, and the rule's password has expired.
func testAnonymousFallback(t *testing.T) {
	const tokens = "GET /token*"
	for name, tc := range map[string]struct {
		status    int // of the refusal
		fallback  bool
		anonymous bool // upstream has public images
		tokens    []string
	}{
		"by default, 401":                    {401, false, true, []string{"Basic", "Basic"}},
		"by default, 403":                    {403, false, true, []string{"Basic", "Basic"}},
		"with the fallback, 401":             {401, true, true, []string{"Basic", ""}},
		"with the fallback, 403":             {403, true, true, []string{"Basic", ""}},
		"with the fallback, 500":             {500, true, true, []string{"Basic", "Basic"}},
		"with the fallback, nothing public":  {401, true, false, []string{"Basic", "", "Basic", ""}},
		"with the fallback, private, by 403": {403, true, false, []string{"Basic", "", "Basic", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			all := new(testkit.Events)
			w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: map[string]string{"me": "another"}, Anonymous: tc.anonymous}, func(p *pullthrough.Proxy) {
				testkit.WithSecret(nil)(p)
				p.OnEvent = all.On
				p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
					return pullthrough.Policy{AnonymousFallback: tc.fallback, Retries: -1}
				}
			})
			pushEach(w, "a", "1")
			w.Up.Fault(pullthroughtest.Fault{Match: "GET /token 401", Status: tc.status})
			works := tc.fallback && tc.anonymous && tc.status != 500
			err := pullTag(t, w, "a", "1")
			if works {
				require.NoError(t, err)
			} else {
				kind := pullthrough.ErrDenied
				if tc.status == 500 {
					kind = pullthrough.ErrUnavailable
				}
				require.ErrorIs(t, err, kind)
				require.ErrorIs(t, pullTag(t, w, "a", "1"), kind, "the next pull asks again")
			}
			var sent []string
			for _, r := range tokenRequests(w.Up) {
				scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
				sent = append(sent, scheme)
			}
			assert.Equal(t, tc.tokens, sent)
			w.Settled(t)
			assert.Equal(t, works, withoutCredentials(all) == 1)
			assert.Equal(t, len(tc.tokens), w.Up.Count(tokens))
		})
	}
}

// withoutCredentials is how many fetches went without the rule's credentials.
func withoutCredentials(e *testkit.Events) (n int) {
	for _, event := range e.All() {
		if event.Anonymous {
			n++
		}
	}
	return n
}

// testBasicCredentials: blobs are at a store that takes no credentials but those in its URLs.
func testBasicCredentials(t *testing.T) {
	s3 := pullthroughtest.New(t, pullthroughtest.Config{Handler: func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header["Authorization"] == nil {
			return false
		}
		w.WriteHeader(http.StatusBadRequest)
		return true
	}})
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: testkit.Users}, testkit.WithSecret(nil))
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("a", "1", img)
	s3.Push("a", "1", img)
	w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 200", Redirect: s3.URL + "{path}"})
	w.Pull(t, "a", "1", img)
	sent := authorizations(w.Up, "GET ")
	require.Len(t, sent, 4)
	assert.Empty(t, sent[0], "nobody has asked yet")
	for _, header := range sent[1:] {
		assert.Equal(t, sent[1], header)
		assert.True(t, strings.HasPrefix(header, "Basic "))
	}
	assert.Equal(t, 1, w.Up.Count("* 401"))
	assert.Equal(t, 2, s3.Count("GET /v2/a/blobs/* 200"))
	assert.Equal(t, 2, s3.Count(""))
	assert.False(t, s3.Saw(testkit.Canary))
}

func testCredentialsAreAskedForOncePerToken(t *testing.T) {
	t.Run("100 pulls", testCredentialsOfManyPulls)
	t.Run("Basic ones that expire", testCredentialsThatExpire)
	t.Run("Basic ones that are refused", func(t *testing.T) {
		var asked atomic.Int32
		w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: testkit.Users}, testkit.WithSecret(&asked))
		pushEach(w, "a", "1", "2", "3")
		require.NoError(t, pullTag(t, w, "a", "1"))
		w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/2 200", Times: 1, Status: 401})
		require.NoError(t, pullTag(t, w, "a", "2"))
		require.NoError(t, pullTag(t, w, "a", "3"))
		assert.EqualValues(t, 2, asked.Load())
		assert.Equal(t, 2, w.Up.Count("* 401"))
	})
	for name, obeys := range map[string]bool{"a host that is slow": true, "a host that hangs": false} {
		t.Run(name, func(t *testing.T) { testCredentialsThatBlock(t, obeys) })
	}
	gone := errors.New("the secret is gone")
	for name, fail := range map[string]func() error{
		"a host that fails":  func() error { return gone },
		"a host that panics": func() error { panic(gone) },
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, nil)
			times := 0
			w.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
				times++
				if times == 1 {
					return pullthrough.Credential{}, fail()
				}
				return pullthrough.Credential{Username: "me", AccessToken: testkit.Canary}, nil
			}
			pushEach(w, "a", "1")
			assert.ErrorContains(t, pullTag(t, w, "a", "1"), gone.Error())
			assert.Zero(t, w.Up.Count("* /token*"))
			assert.NoError(t, pullTag(t, w, "a", "1"))
			assert.Equal(t, 1, w.Up.Count("GET /token 200"))
		})
	}
}

func testCredentialsOfManyPulls(t *testing.T) {
	for name, auth := range map[string]pullthroughtest.Auth{"basic": pullthroughtest.Basic, "bearer": pullthroughtest.Bearer} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			w := testkit.NewWorld(t, pullthroughtest.Config{Auth: auth, Users: testkit.Users}, testkit.WithSecret(&asked))
			var tags []string
			for i := range 100 {
				tags = append(tags, fmt.Sprint(i))
			}
			pushEach(w, "a", tags...)
			for _, tag := range tags {
				require.NoError(t, pullTag(t, w, "a", tag))
			}
			assert.EqualValues(t, 1, asked.Load())
			assert.Equal(t, 100, w.Up.Count("GET /v2/a/manifests/* 200"))
			assert.Equal(t, 1, w.Up.Count("* 401"))
		})
	}
}

func testCredentialsThatExpire(t *testing.T) {
	now := new(testkit.HandClock)
	var asked atomic.Int32
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: testkit.Users}, func(p *pullthrough.Proxy) {
		p.Now = now.Now
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			asked.Add(1)
			return pullthrough.Credential{Username: "me", AccessToken: testkit.Canary, ExpiresAt: now.Now().Add(time.Hour)}, nil
		}
	})
	for i := range 9 { // every 20 minutes, for three hours
		pushEach(w, "a", fmt.Sprint(i))
		require.NoError(t, pullTag(t, w, "a", fmt.Sprint(i)))
		assert.EqualValues(t, i/3+1, asked.Load())
		now.Pass(20 * time.Minute)
	}
	assert.Equal(t, 1, w.Up.Count("* 401"))
	assert.Equal(t, 9, w.Up.Count("* 200"))
}

func testCredentialsThatBlock(t *testing.T, obeys bool) {
	up, enter := testkit.Piped(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users})
	synctest.Test(t, func(t *testing.T) {
		w, release := enter(t), make(chan struct{})
		defer close(release)
		var limited atomic.Bool
		w.Credentials = func(ctx context.Context, _ pullthrough.Repo, _ pullthrough.Rule) (pullthrough.Credential, error) {
			_, ok := ctx.Deadline()
			limited.Store(ok)
			if obeys {
				<-ctx.Done()
				return pullthrough.Credential{}, context.Cause(ctx)
			}
			<-release
			return pullthrough.Credential{}, errors.New("too late")
		}
		pushEach(w, "a", "1")
		start := time.Now()
		err := pullTag(t, w, "a", "1")
		_, typed := errors.AsType[*pullthrough.Error](err)
		assert.True(t, typed, "%v", err)
		assert.LessOrEqual(t, time.Since(start), time.Minute)
		assert.True(t, limited.Load(), "the host can see how long it has")
		assert.Equal(t, []string{"GET /v2/a/manifests/1 401"}, up.Log())
	})
}

func testOneNewTokenForAllAfter401(t *testing.T) {
	t.Run("20 at once", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
		var tags []string
		for i := range 21 {
			tags = append(tags, fmt.Sprint(i))
		}
		pushEach(w, "a", tags...)
		require.NoError(t, pullTag(t, w, "a", "20"))
		w.Up.RevokeTokens()
		w.Up.Reset()
		gate := testkit.NewGate(t)
		w.Up.Fault(pullthroughtest.Fault{Match: "* 401", Stall: gate.C})
		var wg sync.WaitGroup
		for _, tag := range tags[:20] {
			wg.Go(func() { assert.NoError(t, pullTag(t, w, "a", tag)) })
		}
		assert.NoError(t, w.Up.Wait(t.Context(), "GET /v2/a/manifests/*", 20))
		gate.Open()
		wg.Wait()
		assert.Equal(t, 1, w.Up.Count("GET /token*"))
		assert.Equal(t, 20, w.Up.Count("GET /v2/a/manifests/* 200"))
		assert.Equal(t, 20, w.Up.Count("GET /v2/a/manifests/* 401"))
	})
	t.Run("a refusal that is late", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
		pushEach(w, "a", "1", "2", "3")
		require.NoError(t, pullTag(t, w, "a", "1"))
		w.Up.RevokeTokens()
		w.Up.Reset()
		gate := testkit.NewGate(t)
		w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/2 401", Stall: gate.C})
		late := make(chan error, 1)
		go func() { late <- pullTag(t, w, "a", "2") }()
		require.NoError(t, w.Up.Wait(t.Context(), "GET /v2/a/manifests/2", 1))
		require.NoError(t, pullTag(t, w, "a", "3"))
		gate.Open()
		assert.NoError(t, <-late)
		assert.Equal(t, 1, w.Up.Count("GET /token*"), "it was the old token that was refused")
		sent := authorizations(w.Up, "GET /v2/a/")
		require.Len(t, sent, 4)
		assert.Len(t, slices.Compact(slices.Sorted(slices.Values(sent))), 2)
	})
}

func testNewCredentialsAfter400Or403(t *testing.T) {
	for _, status := range []int{400, 403} {
		for name, auth := range map[string]pullthroughtest.Auth{"Basic": pullthroughtest.Basic, "Bearer": pullthroughtest.Bearer} {
			t.Run(fmt.Sprint(name, " ", status), func(t *testing.T) { testRefusedWith(t, auth, status) })
		}
	}
}

func testRefusedWith(t *testing.T, auth pullthroughtest.Auth, status int) {
	refused, served := fmt.Sprint("GET /v2/a/manifests/2 ", status), "GET /v2/a/manifests/2 200"
	kind := map[int]error{400: pullthrough.ErrUnavailable, 403: pullthrough.ErrDenied}[status]
	token := []string{"GET /token 200"}
	if auth == pullthroughtest.Basic {
		token = nil
	}
	for name, tc := range map[string]struct {
		cached bool
		times  int
		asked  int32
		err    error
		log    []string
	}{
		"once":         {true, 1, 2, nil, slices.Concat([]string{refused}, token, []string{served})},
		"twice":        {true, 2, 2, kind, slices.Concat([]string{refused}, token, []string{refused})},
		"when new":     {false, 1, 1, kind, slices.Concat([]string{"GET /v2/a/manifests/2 401"}, token, []string{refused})},
		"without end":  {true, 0, 2, kind, slices.Concat([]string{refused}, token, []string{refused})},
		"from the 1st": {false, 0, 1, kind, slices.Concat([]string{"GET /v2/a/manifests/2 401"}, token, []string{refused})},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			w := testkit.NewWorld(t, pullthroughtest.Config{Auth: auth, Users: testkit.Users}, testkit.WithSecret(&asked))
			pushEach(w, "a", "1", "2")
			if tc.cached {
				require.NoError(t, pullTag(t, w, "a", "1"))
				w.Up.Reset()
			}
			w.Up.Fault(pullthroughtest.Fault{Match: served, Times: tc.times, Status: status})
			assert.ErrorIs(t, pullTag(t, w, "a", "2"), tc.err)
			assert.Equal(t, tc.log, w.Up.Log())
			assert.Equal(t, tc.asked, asked.Load())
		})
	}
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
