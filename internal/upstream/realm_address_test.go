package upstream_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// testRedirectToAnotherRegistry: registry.k8s.io redirects to registries of its own like this.
func testRedirectToAnotherRegistry(t *testing.T) {
	for name, auth := range map[string]pullthroughtest.Auth{"from Basic": pullthroughtest.Basic, "from Bearer": pullthroughtest.Bearer} {
		t.Run(name, func(t *testing.T) { testRedirectToRegistry(t, auth) })
	}
	t.Run("that wants what cannot be had", testRedirectToDemandingRegistry)
	for _, name := range []string{"a", "pause", "google_containers/pause", "pause--x", "p.q/r__s/manifests/blobs"} {
		t.Run("whose repository is "+name, func(t *testing.T) {
			w, b := newPair(t, name, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
			require.NoError(t, pullTag(t, w, name, "1"))
			assert.Equal(t, []string{"repository:" + name + ":pull"}, tokenForms(t, b)[0]["scope"])
			assert.Equal(t, 1, b.Count("GET /token 200"))
		})
	}
	t.Run("whose token server is elsewhere", func(t *testing.T) {
		issuer := pullthroughtest.New(t, pullthroughtest.Config{})
		w, b := newPair(t, "pause", pullthroughtest.Config{Auth: pullthroughtest.Bearer, Issuer: issuer})
		require.NoError(t, pullTag(t, w, "pause", "1"))
		assert.Equal(t, []string{""}, authorizations(issuer, "GET /token"))
		assert.Equal(t, 1, b.Count("GET /v2/pause/manifests/1 200"))
		assert.False(t, issuer.Saw(testkit.Canary) || b.Saw(testkit.Canary))
	})
	t.Run("whose token server is the first one's", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users, Anonymous: true}, testkit.WithSecret(nil))
		b := pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Issuer: w.Up})
		img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
		w.Up.Push("pause", "1", img)
		b.Push("pause", "1", img)
		w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/* 200", Redirect: b.URL + "{path}"})
		require.NoError(t, pullTag(t, w, "pause", "1"))
		sent := authorizations(w.Up, "GET /token 200")
		require.Len(t, sent, 2)
		assert.True(t, strings.HasPrefix(sent[0], "Basic "))
		assert.Empty(t, sent[1], "who asks for the other registry is nobody")
		assert.False(t, b.Saw(testkit.Canary))
	})
}

// newPair returns a world whose upstream knows the rule's password, and the
// registry that it redirects to, which has the repository.
func newPair(t *testing.T, name string, c pullthroughtest.Config) (*testkit.World, *pullthroughtest.Upstream) {
	t.Helper()
	w, b := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: testkit.Users}, testkit.WithSecret(nil)), pullthroughtest.New(t, c)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push(name, "1", img)
	b.Push(name, "1", img)
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/* 200", Redirect: b.URL + "{path}"})
	return w, b
}

func testRedirectToRegistry(t *testing.T, auth pullthroughtest.Auth) {
	b := pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: auth, Users: testkit.Users}, testkit.WithSecret(nil))
	img, next := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	for _, up := range []*pullthroughtest.Upstream{w.Up, b} {
		up.Push("pause", "1", img)
		up.Push("pause", "2", next)
	}
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/pause/* 200", Redirect: b.URL + "{path}"})
	w.Pull(t, "pause", "1", img)
	w.Pull(t, "pause", "2", next)
	assert.False(t, b.Saw(testkit.Canary))
	own := authorizations(w.Up, "GET /v2/pause/manifests/1 307")
	require.Len(t, own, 1)
	assert.False(t, b.Saw(own[0]))
	for _, r := range tokenRequests(b) {
		assert.Equal(t, "GET", r.Method)
		assert.Empty(t, r.Header["Authorization"])
	}
	pulls := b.Count("GET /v2/pause/* 200")
	assert.Equal(t, 6, pulls, "two manifests with a config and a layer each")
	assert.Equal(t, pulls, b.Count("GET /token 200"), "a token is for one request")
	assert.Equal(t, pulls, b.Count("* 401"))
	assert.Equal(t, 1, w.Up.Count("* 401"), "what the other registry wants says nothing of the first")
	for _, header := range authorizations(w.Up, "GET /v2/pause/")[1:] {
		assert.Equal(t, own[0], header)
	}
}

func testRedirectToDemandingRegistry(t *testing.T) {
	for name, tc := range map[string]struct {
		config pullthroughtest.Config
		log    []string
	}{
		"Basic":          {pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: testkit.Users}, []string{"GET /v2/pause/manifests/1 401"}},
		"a user":         {pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, []string{"GET /v2/pause/manifests/1 401", "GET /token 401"}},
		"another scope":  {pullthroughtest.Config{Auth: pullthroughtest.Bearer, Allow: func(string, string) bool { return false }}, []string{"GET /v2/pause/manifests/1 401", "GET /token 200", "GET /v2/pause/manifests/1 401"}},
		"an odd realm":   {pullthroughtest.Config{Auth: pullthroughtest.Bearer, Realm: "/token"}, []string{"GET /v2/pause/manifests/1 401"}},
		"userinfo in it": {pullthroughtest.Config{Auth: pullthroughtest.Bearer, Realm: "http://u:p@127.0.0.1/token"}, []string{"GET /v2/pause/manifests/1 401"}},
		"a realm by FTP": {pullthroughtest.Config{Auth: pullthroughtest.Bearer, Realm: "ftp://127.0.0.1/token"}, []string{"GET /v2/pause/manifests/1 401"}},
	} {
		t.Run(name, func(t *testing.T) {
			w, b := newPair(t, "pause", tc.config)
			err := pullTag(t, w, "pause", "1")
			assert.ErrorIs(t, err, pullthrough.ErrDenied)
			assert.Equal(t, tc.log, b.Log())
			assert.False(t, b.Saw(testkit.Canary))
			assert.Equal(t, []string{"GET /v2/pause/manifests/1 401", "GET /v2/pause/manifests/1 307"}, w.Up.Log())
		})
	}
}

// closed are the addresses that nobody may send us to, as URLs have them.
var closed = []string{
	"127.0.0.1", "127.8.8.8", "[::1]", "0.0.0.0", "0.1.2.3", "[::]",
	"169.254.169.254", "169.254.170.2", "[fe80::1]", "[fe80::1%25eth0]", "[fd00:ec2::254]", "100.100.100.200", "168.63.129.16",
	"224.0.0.1", "239.255.255.250", "[ff02::1]", "255.255.255.255",
	"[::ffff:169.254.169.254]", "[::ffff:127.0.0.1]", "[::ffff:a9fe:a9fe]", // v4-mapped
	"[64:ff9b::169.254.169.254]", "[64:ff9b::7f00:1]", // NAT64
	"[2002:a9fe:a9fe::1]", "[2002:7f00:1::1]", // 6to4
}

// private are closed by the policy only.
var private = []string{
	"10.0.0.6", "172.16.0.1", "192.168.1.1", "100.64.0.1", "[fd12:3456::1]", "[::ffff:10.0.0.6]", "[64:ff9b::10.0.0.6]", "[2002:a00:6::1]",
}

func blockPrivate(p *pullthrough.Proxy) {
	p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
		return pullthrough.Policy{BlockPrivate: true}
	}
}

func testLocalAddressesGetNothing(t *testing.T) {
	for _, address := range closed {
		testAddress(t, address, nil, false)
		testAddress(t, address, blockPrivate, false)
	}
	for _, address := range append([]string{"203.0.113.7", "[2001:db8::7]"}, private...) {
		testAddress(t, address, nil, true)
	}
	for _, address := range private {
		testAddress(t, address, blockPrivate, false)
	}
	testAddress(t, "203.0.113.7", blockPrivate, true)
	for name, change := range map[string]func(*pullthrough.Proxy){"open": nil, "closed": blockPrivate} {
		t.Run("a registry in a private network, "+name, func(t *testing.T) { testPrivateRegistry(t, change) })
	}
	t.Run("another registry's token server", testGuestAddress)
	t.Run("a registry on this machine", func(t *testing.T) {
		n := new(network)
		w := newNamedWorld(t, n, "http://127.0.0.1", pullthroughtest.Config{}, nil)
		n.put(t, "http://127.0.0.2:5000", w.Up)
		pushEach(w, "a", "1", "2")
		w.Up.Fault(pullthroughtest.Fault{Times: 1, Redirect: "http://127.0.0.2:5000{path}"})
		require.NoError(t, pullTag(t, w, "a", "1"))
		w.Up.Fault(pullthroughtest.Fault{Redirect: "http://169.254.169.254{path}"})
		assert.Error(t, pullTag(t, w, "a", "2"))
		assert.Equal(t, []string{"127.0.0.1:80", "127.0.0.2:5000"}, n.calls())
		assert.Equal(t, 3, w.Up.Count(""))
	})
}

// testAddress is sent to the address by a redirect, and by a token server's URL.
func testAddress(t *testing.T, address string, change func(*pullthrough.Proxy), open bool) {
	for name, send := range map[string]func(*testkit.World){
		"redirect": func(w *testkit.World) {
			w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/*", Times: 1, Redirect: "http://" + address + ":8080{path}"})
		},
		"realm": func(w *testkit.World) {
			w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/*", Times: 1, Status: 401, Header: http.Header{
				"Www-Authenticate": {`Bearer realm="http://` + address + `:8080/token",service="registry.test"`},
			}})
		},
	} {
		t.Run(fmt.Sprint(name, " ", address, " open ", open, " private closed ", change != nil), func(t *testing.T) {
			n := new(network)
			w := newNamedWorld(t, n, "http://registry.test", pullthroughtest.Config{}, change)
			n.everywhere = w.Up
			pushEach(w, "a", "1")
			send(w)
			err := pullTag(t, w, "a", "1")
			if open {
				require.NoError(t, err)
				assert.Len(t, n.calls(), 2)
				assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/1 200"))
				return
			}
			_, typed := err.(*pullthrough.Error)
			require.True(t, typed, "%v", err)
			assert.Equal(t, []string{"registry.test:80"}, n.calls())
			assert.Len(t, w.Up.Log(), 1, "and it is not asked again")
		})
	}
}

// testGuestAddress: nor may another registry send us there for its token.
func testGuestAddress(t *testing.T) {
	n := new(network)
	w := newNamedWorld(t, n, "http://registry.test", pullthroughtest.Config{}, nil)
	other := pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Realm: "http://169.254.169.254/token"})
	n.put(t, "http://other.test", other)
	pushEach(w, "pause", "1")
	other.Push("pause", "1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))
	w.Up.Fault(pullthroughtest.Fault{Redirect: "http://other.test{path}"})
	assert.Error(t, pullTag(t, w, "pause", "1"))
	assert.Equal(t, []string{"other.test:80", "registry.test:80"}, n.calls())
	assert.Equal(t, []string{"GET /v2/pause/manifests/1 401"}, other.Log())
}

// testPrivateRegistry: the rule says where upstream is, and so may upstream.
func testPrivateRegistry(t *testing.T, change func(*pullthrough.Proxy)) {
	n := new(network)
	w := newNamedWorld(t, n, "http://10.0.0.5", pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users, Realm: "http://10.0.0.5:8080/token"}, change)
	testkit.WithSecret(nil)(w.Proxy)
	n.put(t, "http://10.0.0.5:8080", w.Up)
	n.put(t, "http://10.0.0.6", w.Up)
	pushEach(w, "a", "1", "2", "3")
	require.NoError(t, pullTag(t, w, "a", "1"))
	assert.Equal(t, []string{"10.0.0.5:80", "10.0.0.5:8080"}, n.calls())
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/2 200", Times: 1, Redirect: "http://10.0.0.5{path}?again"})
	require.NoError(t, pullTag(t, w, "a", "2"))
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/3 200", Times: 1, Redirect: "http://10.0.0.6{path}"})
	err := pullTag(t, w, "a", "3")
	assert.Error(t, err, "there it is not what the rule says; and if it may be asked, it wants credentials")
	assert.Equal(t, change == nil, len(n.calls()) == 3, "%v", n.calls())
	for _, r := range w.Up.Requests() {
		assert.True(t, r.Host != "10.0.0.6" || r.Header["Authorization"] == nil)
	}
	assert.Equal(t, 1, w.Up.Count("GET /token 200"))
}
