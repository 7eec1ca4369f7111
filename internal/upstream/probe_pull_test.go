package upstream_test

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// validate asks about a rule whose upstream is w's.
func validate(w *testkit.World) error {
	return w.ValidateRule(context.Background(), testkit.Account, pullthrough.Rule{Prefix: "any", UpstreamURL: w.Up.URL})
}

func says(cred pullthrough.Credential, err error) func(*pullthrough.Proxy) {
	return func(p *pullthrough.Proxy) {
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			return cred, err
		}
	}
}

func TestValidateRuleReachesUpstreamAndAuthenticates(t *testing.T) {
	good, bad := says(pullthrough.Credential{Username: "me", AccessToken: testkit.Canary}, nil), says(pullthrough.Credential{Username: "me", AccessToken: testkit.Canary + "s"}, nil)
	basic := pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: testkit.Users}
	bearer := pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}
	for name, c := range map[string]struct {
		config pullthroughtest.Config
		change func(*pullthrough.Proxy)
		want   error
		asked  []string
	}{
		"open":                    {pullthroughtest.Config{}, nil, nil, []string{"GET /v2/ 200"}},
		"open, with a credential": {pullthroughtest.Config{}, good, nil, []string{"GET /v2/ 200"}},
		"Basic":                   {basic, good, nil, []string{"GET /v2/ 401", "GET /v2/ 200"}},
		"Basic, wrong":            {basic, bad, pullthrough.ErrDenied, []string{"GET /v2/ 401", "GET /v2/ 401"}},
		"Bearer":                  {bearer, good, nil, []string{"GET /v2/ 401", "GET /token 200", "GET /v2/ 200"}},
		"Bearer, wrong":           {bearer, bad, pullthrough.ErrDenied, []string{"GET /v2/ 401", "GET /token 401"}},
		"Bearer, for anybody":     {pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil, nil, []string{"GET /v2/ 401", "GET /token 200", "GET /v2/ 200"}},
		"no secret":               {bearer, says(pullthrough.Credential{}, errors.New("no such secret")), pullthrough.ErrDenied, []string{"GET /v2/ 401"}},
		"wrong, falling back pulls": {bearer, func(p *pullthrough.Proxy) {
			bad(p)
			testkit.WithPolicy(pullthrough.Policy{AnonymousFallback: true})(p)
		}, pullthrough.ErrDenied, []string{"GET /v2/ 401", "GET /token 401"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, c.config, c.change)
			w.Secrets.Allow(testkit.Canary+"s", w.Up)
			err := validate(w)
			if c.want == nil {
				assert.NoError(t, err)
			} else {
				assert.ErrorIs(t, err, c.want)
				e, ok := errors.AsType[*pullthrough.Error](err)
				assert.True(t, ok)
				assert.Equal(t, testkit.Account, e.Repo)
			}
			assert.Equal(t, c.asked, w.Up.Log())
			for _, r := range w.Up.Requests() {
				assert.NotContains(t, r.Query, "scope", "of the registry as a whole")
			}
		})
	}
}

func TestValidateRuleSaysWhatAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		fault pullthroughtest.Fault
		want  error
	}{
		"no such path": {pullthroughtest.Fault{Status: http.StatusNotFound}, pullthrough.ErrNotFound},
		"a web page":   {pullthroughtest.Fault{Status: http.StatusOK, Header: http.Header{"Content-Type": {"text/html; charset=utf-8"}}}, pullthrough.ErrNotFound},
		"forbidden":    {pullthroughtest.Fault{Status: http.StatusForbidden}, pullthrough.ErrDenied},
		"too many":     {pullthroughtest.Fault{Status: http.StatusTooManyRequests}, pullthrough.ErrRateLimited},
		"broken":       {pullthroughtest.Fault{Status: http.StatusInternalServerError}, pullthrough.ErrUnavailable},
		"no redirect":  {pullthroughtest.Fault{Status: http.StatusMovedPermanently}, pullthrough.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, testkit.OneTry)
			c.fault.Match = "GET /v2/"
			w.Up.Fault(c.fault)
			assert.ErrorIs(t, validate(w), c.want)
			assert.Len(t, w.Up.Log(), 1)
		})
	}
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	for _, rule := range []pullthrough.Rule{{Prefix: "any"}, {Prefix: "any", UpstreamURL: "ftp://x"}, {Prefix: "any", UpstreamURL: "http://me:secret@x"}} {
		assert.ErrorIs(t, w.ValidateRule(t.Context(), testkit.Account, rule), pullthrough.ErrInvalid)
	}
	assert.Empty(t, w.Up.Log())
}

// What pulls have learnt does not hide that the secret has changed, and a failed
// validation costs pulls nothing.
func TestValidateRuleTrustsNothingThatIsOld(t *testing.T) {
	var wrong atomic.Bool
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, func(p *pullthrough.Proxy) {
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			if wrong.Load() {
				return pullthrough.Credential{Username: "me", AccessToken: "wrong"}, nil
			}
			return pullthrough.Credential{Username: "me", AccessToken: testkit.Canary}, nil
		}
	})
	img := testkit.Image(1)
	w.Up.Push("a", "1", img)
	w.Pull(t, "a", "1", img)
	rules, err := w.Rules.Rules(t.Context(), "", "")
	require.NoError(t, err)
	validate := func() error { return w.ValidateRule(t.Context(), pullthrough.Repo{}, rules[0]) }
	assert.NoError(t, validate())
	assert.NoError(t, validate())
	assert.Equal(t, 2, w.Up.Count("GET /v2/ 200"))
	assert.Equal(t, 3, w.Up.Count("GET /token 200"))
	wrong.Store(true)
	assert.ErrorIs(t, validate(), pullthrough.ErrDenied)
	other := testkit.Image(2)
	w.Up.Push("a", "2", other)
	w.Pull(t, "a", "2", other) // by the token that pulls have
	assert.Equal(t, 3, w.Up.Count("GET /token 200"))
}

func TestValidationsOfOneRuleAtOnceAreOne(t *testing.T) {
	up, enter := testkit.Piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		stall := make(chan struct{})
		up.Fault(pullthroughtest.Fault{Match: "GET /v2/", Stall: stall})
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() { assert.NoError(t, validate(w)) })
		}
		synctest.Wait()
		close(stall)
		all.Wait()
		assert.Equal(t, []string{"GET /v2/ 200"}, up.Log())
	})
}

func TestValidateRuleEndsWithTheProxyAndWithItsCaller(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	gone, leave := context.WithCancel(t.Context())
	leave()
	assert.ErrorIs(t, w.ValidateRule(gone, testkit.Account, pullthrough.Rule{Prefix: "any", UpstreamURL: w.Up.URL}), context.Canceled)
	require.NoError(t, w.Shutdown(t.Context()))
	asked := len(w.Up.Log())
	assert.ErrorIs(t, validate(w), pullthrough.ErrClosed)
	assert.Len(t, w.Up.Log(), asked)
}
