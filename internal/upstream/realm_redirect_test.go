package upstream_test

import (
	"net/http"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// testRedirectedTokenRequest is what TestUpstreamRedirectMatrix leaves over.
func testRedirectedTokenRequest(t *testing.T) {
	const query = "/token?service=registry.test&scope=repository:a:pull"
	for name, tc := range map[string]struct {
		credentials func(*pullthrough.Proxy)
		away        bool // to another origin
		times       int
		log         []string
		ok          bool
	}{
		"GET within its origin":         {testkit.WithSecret(nil), false, 1, []string{"GET /token 307", "GET /token 200"}, true},
		"GET to another":                {testkit.WithSecret(nil), true, 1, []string{"GET /token 307"}, false},
		"GET to another, anonymously":   {nil, true, 1, []string{"GET /token 307"}, false},
		"GET without end":               {testkit.WithSecret(nil), false, 0, slices.Repeat([]string{"GET /token 307"}, 6), false},
		"POST within its origin":        {withIdentityToken(identityCanary, ""), false, 1, []string{"POST /token 307"}, false},
		"POST to another":               {withIdentityToken(identityCanary, ""), true, 1, []string{"POST /token 307"}, false},
		"POST, a password is there too": {withIdentityToken(identityCanary, testkit.Canary), true, 1, []string{"POST /token 307"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users, Anonymous: true, IdentityTokens: []string{identityCanary}}
			elsewhere := pullthroughtest.New(t, c)
			w := testkit.NewWorld(t, c, tc.credentials)
			pushEach(w, "a", "1")
			to := w.Up
			if tc.away {
				to = elsewhere
			}
			w.Up.Fault(pullthroughtest.Fault{Match: "* /token*", Times: tc.times, Redirect: to.URL + query})
			err := pullTag(t, w, "a", "1")
			assert.Empty(t, elsewhere.Log())
			assert.Equal(t, tc.log, w.Up.Log()[1:1+len(tc.log)])
			if tc.ok {
				require.NoError(t, err)
				sent := authorizations(w.Up, "GET /token")
				assert.Equal(t, sent[0], sent[1], "the token server is the same")
				return
			}
			assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
			assert.Len(t, w.Up.Log(), 1+len(tc.log))
		})
	}
}

func testRedirectsOfAPull(t *testing.T) {
	t.Run("how many", testRedirectsCounted)
	t.Run("to what is no registry", testRedirectsRefused)
	t.Run("what goes along", testRedirectsCarryNothing)
	t.Run("from https to http", func(t *testing.T) {
		n := new(network)
		w := newNamedWorld(t, n, secureRegistry, pullthroughtest.Config{}, nil)
		plain := pullthroughtest.New(t, pullthroughtest.Config{})
		n.put(t, "http://registry.test", plain)
		pushEach(w, "a", "1")
		w.Up.Fault(pullthroughtest.Fault{Redirect: "http://registry.test{path}"})
		assert.ErrorIs(t, pullTag(t, w, "a", "1"), pullthrough.ErrUnavailable)
		assert.Equal(t, []string{"registry.test:443"}, n.calls())
		assert.Equal(t, []string{"GET /v2/a/manifests/1 307"}, w.Up.Log())
	})
}

func testRedirectsCounted(t *testing.T) {
	for name, tc := range map[string]struct {
		times, requests int
		ok              bool
	}{
		"5":       {5, 6, true},
		"6":       {6, 6, false},
		"no end":  {0, 6, false},
		"0 of it": {-1, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			pushEach(w, "a", "1")
			if tc.times >= 0 {
				w.Up.Fault(pullthroughtest.Fault{Times: tc.times, Redirect: "{path}?more"})
			}
			err := pullTag(t, w, "a", "1")
			assert.Equal(t, tc.ok, err == nil, "%v", err)
			assert.Equal(t, tc.requests, w.Up.Count("GET /v2/a/manifests/1"))
		})
	}
	t.Run("to and fro", func(t *testing.T) {
		w, elsewhere := testkit.NewWorld(t, pullthroughtest.Config{}, nil), pullthroughtest.New(t, pullthroughtest.Config{})
		w.Up.Fault(pullthroughtest.Fault{Redirect: elsewhere.URL + "{path}"})
		elsewhere.Fault(pullthroughtest.Fault{Redirect: w.Up.URL + "{path}"})
		assert.ErrorIs(t, pullTag(t, w, "a", "1"), pullthrough.ErrUnavailable)
		assert.Equal(t, 6, w.Up.Count("")+elsewhere.Count(""), "and not once more")
	})
}

func testRedirectsRefused(t *testing.T) {
	elsewhere := pullthroughtest.New(t, pullthroughtest.Config{})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	elsewhere.Push("a", "1", img)
	for name, location := range map[string]string{
		"FTP":                 "ftp://" + elsewhere.Host() + "{path}",
		"a file":              "file:///etc/passwd",
		"gopher":              "gopher://" + elsewhere.Host() + "{path}",
		"a script":            "javascript:alert(1)",
		"user and password":   "http://u:p@" + elsewhere.Host() + "{path}",
		"a user":              "http://u@" + elsewhere.Host() + "{path}",
		"no host":             "http:///v2/",
		"no URL":              "http://%zz/",
		"a port that is none": "http://127.0.0.1:x/",
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			w.Up.Push("a", "1", img)
			w.Up.Fault(pullthroughtest.Fault{Redirect: location})
			assert.ErrorIs(t, pullTag(t, w, "a", "1"), pullthrough.ErrUnavailable)
			assert.Equal(t, []string{"GET /v2/a/manifests/1 307"}, w.Up.Log())
			assert.Empty(t, elsewhere.Log())
		})
	}
	for _, status := range []int{300, 304, 305, 306} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			w.Up.Push("a", "1", img)
			w.Up.Fault(pullthroughtest.Fault{Status: status, Redirect: elsewhere.URL + "{path}"})
			assert.ErrorIs(t, pullTag(t, w, "a", "1"), pullthrough.ErrUnavailable)
			assert.Len(t, w.Up.Log(), 1)
			assert.Empty(t, elsewhere.Log())
		})
	}
	t.Run("nowhere", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
		w.Up.Push("a", "1", img)
		w.Up.Fault(pullthroughtest.Fault{Status: http.StatusTemporaryRedirect})
		assert.ErrorIs(t, pullTag(t, w, "a", "1"), pullthrough.ErrUnavailable)
		assert.Equal(t, []string{"GET /v2/a/manifests/1 307"}, w.Up.Log())
	})
}

// testRedirectsCarryNothing goes away, comes back and goes within the origin,
// each with a cookie in the answer.
func testRedirectsCarryNothing(t *testing.T) {
	cookie := http.Header{"Set-Cookie": {"session=canary-cookie; Path=/"}}
	elsewhere := pullthroughtest.New(t, pullthroughtest.Config{})
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: testkit.Users, Handler: func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.RawQuery != "back" {
			return false
		}
		w.Header().Set("Location", r.URL.Path+"?end")
		w.WriteHeader(http.StatusFound)
		return true
	}}, testkit.WithSecret(nil))
	pushEach(w, "a", "1")
	w.Up.Fault(pullthroughtest.Fault{Match: "* 200", Redirect: elsewhere.URL + "{path}", Header: cookie})
	elsewhere.Fault(pullthroughtest.Fault{Redirect: w.Up.URL + "{path}?back", Header: cookie})
	assert.ErrorIs(t, pullTag(t, w, "a", "1"), pullthrough.ErrDenied, "the end of the chain wants credentials and gets none")
	assert.Equal(t, []string{"GET /v2/a/manifests/1 401", "GET /v2/a/manifests/1 307", "GET /v2/a/manifests/1 302", "GET /v2/a/manifests/1 401"}, w.Up.Log())
	assert.Equal(t, []string{"GET /v2/a/manifests/1 307"}, elsewhere.Log())
	for i, r := range slices.Concat(w.Up.Requests(), elsewhere.Requests()) {
		assert.Equal(t, i == 1, r.Header["Authorization"] != nil, "%d %s?%s", i, r, r.Query)
		for _, name := range []string{"Cookie", "Referer", "Proxy-Authorization"} {
			assert.Empty(t, r.Header[name])
		}
	}
	assert.False(t, w.Up.Saw("canary-cookie") || elsewhere.Saw("canary-cookie"))
}
