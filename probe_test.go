package pullthrough_test

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
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// account is whose rule it is.
var account = pullthrough.Repo{Account: "123456789012", Region: "us-east-1"}

// validate asks about a rule whose upstream is w's.
func (w *world) validate() error {
	return w.ValidateRule(context.Background(), account, pullthrough.Rule{Prefix: "any", UpstreamURL: w.up.URL()})
}

func says(cred pullthrough.Credential, err error) func(*pullthrough.Proxy) {
	return func(p *pullthrough.Proxy) {
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			return cred, err
		}
	}
}

func TestValidateRuleReachesUpstreamAndAuthenticates(t *testing.T) {
	good, bad := says(pullthrough.Credential{Username: "me", AccessToken: canary}, nil), says(pullthrough.Credential{Username: "me", AccessToken: canary + "s"}, nil)
	basic := pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: users}
	bearer := pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: users}
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
			policy(pullthrough.Policy{AnonymousFallback: true})(p)
		}, pullthrough.ErrDenied, []string{"GET /v2/ 401", "GET /token 401"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, c.config, c.change)
			w.secrets.Allow(canary+"s", w.up)
			err := w.validate()
			if c.want == nil {
				assert.NoError(t, err)
			} else {
				assert.ErrorIs(t, err, c.want)
				e, ok := errors.AsType[*pullthrough.Error](err)
				assert.True(t, ok)
				assert.Equal(t, account, e.Repo)
			}
			assert.Equal(t, c.asked, w.up.Log())
			for _, r := range w.up.Requests() {
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
			w := newWorld(t, pullthroughtest.Config{}, oneTry)
			c.fault.Match = "GET /v2/"
			w.up.Fault(c.fault)
			assert.ErrorIs(t, w.validate(), c.want)
			assert.Len(t, w.up.Log(), 1)
		})
	}
	w := newWorld(t, pullthroughtest.Config{}, nil)
	for _, rule := range []pullthrough.Rule{{Prefix: "any"}, {Prefix: "any", UpstreamURL: "ftp://x"}, {Prefix: "any", UpstreamURL: "http://me:secret@x"}} {
		assert.ErrorIs(t, w.ValidateRule(t.Context(), account, rule), pullthrough.ErrInvalid)
	}
	assert.Empty(t, w.up.Log())
}

// What pulls have learnt does not hide that the secret has changed, and a failed
// validation costs pulls nothing.
func TestValidateRuleTrustsNothingThatIsOld(t *testing.T) {
	var wrong atomic.Bool
	w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: users}, func(p *pullthrough.Proxy) {
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			if wrong.Load() {
				return pullthrough.Credential{Username: "me", AccessToken: "wrong"}, nil
			}
			return pullthrough.Credential{Username: "me", AccessToken: canary}, nil
		}
	})
	img := image(1)
	w.up.Push("a", "1", img)
	w.pull(t, "a", "1", img)
	rules, err := w.Rules.Rules(t.Context(), "", "")
	require.NoError(t, err)
	validate := func() error { return w.ValidateRule(t.Context(), pullthrough.Repo{}, rules[0]) }
	assert.NoError(t, validate())
	assert.NoError(t, validate())
	assert.Equal(t, 2, w.up.Count("GET /v2/ 200"))
	assert.Equal(t, 3, w.up.Count("GET /token 200"))
	wrong.Store(true)
	assert.ErrorIs(t, validate(), pullthrough.ErrDenied)
	other := image(2)
	w.up.Push("a", "2", other)
	w.pull(t, "a", "2", other) // by the token that pulls have
	assert.Equal(t, 3, w.up.Count("GET /token 200"))
}

func TestValidationsOfOneRuleAtOnceAreOne(t *testing.T) {
	up, enter := piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		stall := make(chan struct{})
		up.Fault(pullthroughtest.Fault{Match: "GET /v2/", Stall: stall})
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() { assert.NoError(t, w.validate()) })
		}
		synctest.Wait()
		close(stall)
		all.Wait()
		assert.Equal(t, []string{"GET /v2/ 200"}, up.Log())
	})
}

func TestValidateRuleEndsWithTheProxyAndWithItsCaller(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{}, nil)
	gone, leave := context.WithCancel(t.Context())
	leave()
	assert.ErrorIs(t, w.ValidateRule(gone, account, pullthrough.Rule{Prefix: "any", UpstreamURL: w.up.URL()}), context.Canceled)
	require.NoError(t, w.Shutdown(t.Context()))
	asked := len(w.up.Log())
	assert.ErrorIs(t, w.validate(), pullthrough.ErrClosed)
	assert.Len(t, w.up.Log(), asked)
}
