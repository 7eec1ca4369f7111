package upstream_test

import (
	"cmp"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// network is a small Internet of the test's own, in which upstreams have names
// and addresses that are not loopback. It remembers who was called.
type network struct {
	mu     sync.Mutex
	places map[string]*pullthroughtest.Upstream // "registry.test:443"
	called []string

	everywhere *pullthroughtest.Upstream // who answers where nobody else does; nil: nobody
}

// put makes up answer at the origin, like "https://registry.test".
func (n *network) put(t *testing.T, origin string, up *pullthroughtest.Upstream) {
	t.Helper()
	u := testkit.MustURL(t, origin)
	port := cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	require.NotEmpty(t, port)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.places == nil {
		n.places = map[string]*pullthroughtest.Upstream{}
	}
	n.places[strings.ToLower(net.JoinHostPort(u.Hostname(), port))] = up
}

// calls are the places that were called, each once, in alphabetical order.
func (n *network) calls() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Compact(slices.Sorted(slices.Values(n.called)))
}

// forget empties the list of calls.
func (n *network) forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.called = nil
}

func (n *network) find(place string) *pullthroughtest.Upstream {
	n.mu.Lock()
	defer n.mu.Unlock()
	place = strings.ToLower(place)
	n.called = append(n.called, place)
	if up, ok := n.places[place]; ok {
		return up
	}
	return n.everywhere
}

func (n *network) dial(ctx context.Context, place string) (net.Conn, *pullthroughtest.Upstream, error) {
	up := n.find(place)
	if up == nil {
		return nil, nil, &net.DNSError{Err: "no such host", Name: place, IsNotFound: true}
	}
	conn, err := pullthroughtest.DialLoopback(ctx, "tcp", up.Host())
	return conn, up, err
}

// transport is as a host might make it. Each upstream is trusted for its own
// certificate only, which knows nothing of the upstream's other names.
func (n *network) transport(t *testing.T) http.RoundTripper {
	t.Helper()
	transport := &http.Transport{
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, place string) (net.Conn, error) {
			conn, _, err := n.dial(ctx, place)
			return conn, err
		},
		DialTLSContext: func(ctx context.Context, _, place string) (net.Conn, error) {
			conn, up, err := n.dial(ctx, place)
			if err != nil {
				return nil, err
			}
			secure := tls.Client(conn, &tls.Config{RootCAs: up.Roots(), ServerName: "registry.test"})
			if err := secure.HandshakeContext(ctx); err != nil {
				_ = conn.Close()
				return nil, err
			}
			return secure, nil
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

// newNamedWorld returns a world whose upstream stands at the origin in n.
func newNamedWorld(t *testing.T, n *network, origin string, c pullthroughtest.Config, change func(*pullthrough.Proxy)) *testkit.World {
	t.Helper()
	c.TLS = testkit.MustURL(t, origin).Scheme == "https"
	w := testkit.NewWorld(t, c, change)
	w.Rules = pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: origin}}
	w.Transport = n.transport(t)
	n.put(t, origin, w.Up)
	return w
}

// pullTag pulls a manifest whose content does not matter.
func pullTag(t *testing.T, w *testkit.World, name, ref string) error {
	t.Helper()
	_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo(name), Ref: ref})
	return err
}

// pushEach pushes images of their own under the tags.
func pushEach(w *testkit.World, name string, tags ...string) {
	for i, tag := range tags {
		w.Up.Push(name, tag, pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i)}))
	}
}

// tokenRequests are those to /token, in their order.
func tokenRequests(up *pullthroughtest.Upstream) []pullthroughtest.Request {
	return slices.DeleteFunc(up.Requests(), func(r pullthroughtest.Request) bool { return r.Path != "/token" })
}

// tokenForms are what the token requests asked for: the query of a GET, the
// body of a POST.
func tokenForms(t *testing.T, up *pullthroughtest.Upstream) []url.Values {
	t.Helper()
	var forms []url.Values
	for _, r := range tokenRequests(up) {
		text := r.Query
		if r.Method == http.MethodPost {
			text = string(r.Body)
		}
		form, err := url.ParseQuery(text)
		require.NoError(t, err)
		forms = append(forms, form)
	}
	return forms
}

// authorizations are the Authorization headers of the requests that start with
// the line, like "GET /v2/a/", in their order.
func authorizations(up *pullthroughtest.Upstream, line string) []string {
	var sent []string
	for _, r := range up.Requests() {
		if got := r.String(); len(got) >= len(line) && got[:len(line)] == line {
			sent = append(sent, r.Header.Get("Authorization"))
		}
	}
	return sent
}

// challengeWith makes upstream answer 401 to so many requests like match, with the
// parameters beside realm and service in its challenge.
func challengeWith(w *testkit.World, match string, times int, params string) {
	w.Up.Fault(pullthroughtest.Fault{Match: match, Times: times, Status: http.StatusUnauthorized, Header: http.Header{
		"Www-Authenticate": {`Bearer realm="` + w.Up.URL + `/token",service="registry.test"` + params},
	}})
}
