package upstream_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

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
				lines[i] = strings.ReplaceAll(lines[i], "URL", w.Up.URL)
			}
			w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/*", Times: 1, Status: 401, Header: http.Header{"Www-Authenticate": lines}})
			w.Up.Push("a", "1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))
			_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
			assert.NoError(t, err)
			assert.Equal(t, []string{"GET /v2/a/manifests/1 401", "GET /token 200", "GET /v2/a/manifests/1 200"}, w.Up.Log())
		})
	}
}

// Those who come while a challenge is on its way wait for it, for as long as they like.
func TestACallerThatWaitsForAnothersChallengeMayLeave(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(t *testing.T, w *testkit.World) {
		testkit.WithPolicy(pullthrough.Policy{Orphans: -1})(w.Proxy) // what nobody waits for ends
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

func testInsufficientScopeIsMetOnce(t *testing.T) {
	const scarce = `,error="insufficient_scope",scope="aws repository:a:pull,push"`
	for name, tc := range map[string]struct {
		cached bool
		params string
		times  int
		scopes []string // of the last token
		tokens int
		asks   int // for the manifest
	}{
		"insufficient_scope for a token from before": {true, scarce, 1, []string{"aws", "repository:a:pull"}, 1, 2},
		"insufficient_scope for a new token":         {false, scarce, 1, []string{"aws", "repository:a:pull"}, 2, 3},
		"insufficient_scope without a scope":         {true, `,error="insufficient_scope"`, 1, []string{"repository:a:pull"}, 1, 2},
		"insufficient_scope for another repository":  {true, `,error="insufficient_scope",scope="repository:b:pull"`, 1, []string{"repository:a:pull"}, 1, 2},
		"insufficient_scope twice":                   {true, scarce, 0, []string{"aws", "repository:a:pull"}, 1, 2},
		"insufficient_scope twice for new tokens":    {false, scarce, 0, []string{"aws", "repository:a:pull"}, 2, 3},
		"invalid_token":                              {true, `,error="invalid_token"`, 1, []string{"repository:a:pull"}, 1, 2},
		"invalid_token twice":                        {true, `,error="invalid_token"`, 0, []string{"repository:a:pull"}, 1, 2},
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
			pushEach(w, "a", "1", "2")
			if tc.cached {
				require.NoError(t, pullTag(t, w, "a", "1"))
				w.Up.Reset()
			}
			challengeWith(w, "GET /v2/a/manifests/2 200", tc.times, tc.params)
			err := pullTag(t, w, "a", "2")
			if tc.times > 0 {
				assert.NoError(t, err)
			} else {
				assert.ErrorIs(t, err, pullthrough.ErrDenied)
			}
			assert.Equal(t, tc.asks, w.Up.Count("GET /v2/a/manifests/2"))
			forms := tokenForms(t, w.Up)
			require.Len(t, forms, tc.tokens)
			assert.Equal(t, tc.scopes, forms[len(forms)-1]["scope"])
		})
	}
	t.Run("the reason", testReasonOfRefusal)
}

func testReasonOfRefusal(t *testing.T) {
	const reason = "the subscription of this organisation has ended in October: that, and more, at the desk"
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
	pushEach(w, "a", "1")
	challengeWith(w, "GET /v2/a/manifests/1 200", 0, `,error="insufficient_scope",error_description="`+reason+`"`)
	err := pullTag(t, w, "a", "1")
	require.ErrorIs(t, err, pullthrough.ErrDenied)
	assert.ErrorContains(t, err, "insufficient_scope")
	assert.NotContains(t, err.Error(), "subscription", "upstream's text is not kept")
	assert.Positive(t, w.Up.Count("GET /v2/a/manifests/1 401"))
}

func testChallengesThatCannotBeMet(t *testing.T) {
	for name, lines := range map[string][]string{
		"no header":             nil,
		"an empty one":          {" "},
		"a scheme of no use":    {`Negotiate abc==`},
		"Digest":                {`Digest realm="x", nonce="y"`},
		"Bearer without a word": {`Bearer`},
		"Bearer without realm":  {`Bearer service="registry.test",scope="repository:a:pull"`},
		"an empty realm":        {`Bearer realm="",service="registry.test"`},
		"a realm that is open":  {`Bearer realm="http://127.0.0.1/token`},
		"a realm twice":         {`Bearer realm="http://127.0.0.1/a",realm="http://127.0.0.1/b"`},
		"no challenge":          {`, , ;;;`},
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, testkit.WithSecret(nil))
			pushEach(w, "a", "1")
			w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/*", Status: 401, Header: http.Header{"Www-Authenticate": lines}})
			err := pullTag(t, w, "a", "1")
			assert.ErrorIs(t, err, pullthrough.ErrDenied)
			status, _, _ := pullthrough.OCI(err)
			assert.Equal(t, http.StatusForbidden, status)
			want := []string{"GET /v2/a/manifests/1 401"}
			if lines == nil {
				want = append(want, "GET /v2/ 401") // which might have a challenge
			}
			assert.Equal(t, want, w.Up.Log())
			assert.False(t, w.Up.Saw(testkit.Canary))
		})
	}
}
