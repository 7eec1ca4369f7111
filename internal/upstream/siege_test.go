package upstream_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// siege is a proxy before a registry in somebody else's hands, and what there is
// beside it, in a bubble. The rule names the registry registry.test, so that
// nothing of it is a loopback address.
type siege struct {
	*testkit.World
	config pullthroughtest.Config
	other  *pullthroughtest.Upstream // a host that upstream may name; it holds the image too
	img    *pullthroughtest.Image    // a:1
	roots  *x509.CertPool            // both registries'; nil: plain http

	policy    atomic.Pointer[pullthrough.Policy]
	secret    atomic.Pointer[pullthrough.Credential]
	answering sync.WaitGroup

	mu      sync.Mutex
	hosts   map[string]dialFunc // what is where, by host and port
	dialled []string
	framed  []net.Conn
	handler func(http.ResponseWriter, *http.Request) bool // answers for upstream; nil: upstream does
}

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// besieged runs test in a bubble. Whatever upstream does in it: what is stored is
// what its digest says, no goroutine outlives it, no secret gets about, and the
// next pull works.
func besieged(t *testing.T, c pullthroughtest.Config, test func(t *testing.T, s *siege)) {
	t.Helper()
	testkit.Baseline(t)
	s := &siege{config: c, hosts: map[string]dialFunc{}}
	s.img = pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 41, LayerSize: 5000})
	c.Handler = s.answer
	if c.Realm == "" {
		c.Realm = s.url() + "/token"
	}
	up := pullthroughtest.New(t, c)
	s.other = pullthroughtest.New(t, pullthroughtest.Config{TLS: c.TLS, HTTP2: c.HTTP2})
	if c.TLS {
		s.roots = trusting(t, up, s.other)
	}
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s.enter(t, up, dir)
		test(t, s)
		s.assertHealthy(t)
	})
}

// rule sets the rule's policy, credential what its upstream is told, login that
// it is told the one good secret.
func (s *siege) rule(pol pullthrough.Policy) { s.policy.Store(&pol) }

func (s *siege) credential(c pullthrough.Credential) { s.secret.Store(&c) }

func (s *siege) login() {
	s.credential(pullthrough.Credential{Username: "me", AccessToken: testkit.Canary})
}

// url is the registry's origin as the rule names it.
func (s *siege) url() string {
	if s.config.TLS {
		return "https://registry.test"
	}
	return "http://registry.test"
}

func (s *siege) enter(t *testing.T, up *pullthroughtest.Upstream, dir string) {
	s.World = &testkit.World{Up: up, Mem: memstore.New(), Secrets: pullthroughtest.NewSecrets(t)}
	s.at("registry.test", s.Up.DialPipe)
	transport := &http.Transport{DialContext: s.dial, DisableCompression: true, Protocols: new(http.Protocols)}
	transport.Protocols.SetHTTP1(true)
	transport.Protocols.SetHTTP2(s.config.HTTP2)
	transport.TLSClientConfig = &tls.Config{RootCAs: s.roots}
	s.Proxy = &pullthrough.Proxy{
		Store:     honest{t, s.Mem},
		Rules:     pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: s.url()}},
		SpoolDir:  dir,
		Transport: transport,
		Policy: func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return *s.policy.Load()
		},
		Credentials: func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			return *s.secret.Load(), nil
		},
	}
	s.rule(pullthrough.Policy{})
	s.credential(pullthrough.Credential{})
	s.Watch()
	s.Secrets.Watch(s.other)
	for _, u := range []*pullthroughtest.Upstream{up, s.other} {
		u.Push("a", "1", s.img)
	}
	t.Cleanup(func() {
		assert.NoError(t, s.Shutdown(context.Background()))
		transport.CloseIdleConnections()
		s.answering.Wait() // the clock stops with the test
	})
}

// trusting returns a pool with the certificates of several registries.
func trusting(t *testing.T, all ...*pullthroughtest.Upstream) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, u := range all {
		conn, err := tls.Dial("tcp", u.Host(), &tls.Config{RootCAs: u.Roots(), ServerName: "registry.test"})
		require.NoError(t, err)
		pool.AddCert(conn.ConnectionState().PeerCertificates[0])
		require.NoError(t, conn.Close())
	}
	return pool
}

// at puts something where host, or host and port, is dialled.
func (s *siege) at(host string, dial dialFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, _, err := net.SplitHostPort(host); err == nil {
		s.hosts[host] = dial
		return
	}
	s.hosts[net.JoinHostPort(host, "80")], s.hosts[net.JoinHostPort(host, "443")] = dial, dial
}

func (s *siege) dial(ctx context.Context, network, address string) (net.Conn, error) {
	s.mu.Lock()
	s.dialled = append(s.dialled, address)
	dial := s.hosts[address]
	s.mu.Unlock()
	if dial == nil {
		return nil, fmt.Errorf("nobody is at %s", address)
	}
	return dial(ctx, network, address)
}

// assertNotDialled checks that nothing but the registry itself was connected to.
func (s *siege) assertNotDialled(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, address := range s.dialled {
		assert.Contains(t, []string{"registry.test:80", "registry.test:443"}, address)
	}
	assert.Empty(t, s.other.Log())
}

// handle has f answer for upstream whenever it returns true.
func (s *siege) handle(f func(http.ResponseWriter, *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handler = f
}

func (s *siege) answer(w http.ResponseWriter, r *http.Request) bool {
	s.answering.Add(1)
	defer s.answering.Done()
	s.mu.Lock()
	f := s.handler
	s.mu.Unlock()
	return f != nil && f(w, r)
}

// refuse pulls ref and checks that it fails as one of the kinds and leaves
// nothing in the Store.
func (s *siege) refuse(t *testing.T, ref string, kinds ...error) *pullthrough.Error {
	t.Helper()
	m, err := s.Resolve(t.Context(), ref)
	assert.True(t, m == nil, "it is served")
	_, stored := s.Stored(t, ref)
	assert.Error(t, stored, "nothing of it is kept")
	return s.assertRefusal(t, ref, err, kinds...)
}

// refuseBlob is refuse for a blob. read is how much of it came before the error.
func (s *siege) refuseBlob(t *testing.T, d digest.Digest, kinds ...error) (e *pullthrough.Error, read int64) {
	t.Helper()
	b, err := s.Open(t.Context(), d)
	if err == nil {
		read, err = io.Copy(io.Discard, b.Body)
		assert.NoError(t, b.Body.Close())
		assert.Less(t, read, b.Descriptor.Size, "what is wrong must not look whole")
	}
	s.Settled(t)
	_, stored := s.Mem.Blob(t.Context(), testkit.Repo("a"), d)
	assert.Error(t, stored, "nothing of it is kept")
	return s.assertRefusal(t, d.String(), err, kinds...), read
}

func (s *siege) assertRefusal(t *testing.T, ref string, err error, kinds ...error) *pullthrough.Error {
	t.Helper()
	require.Error(t, err)
	s.Secrets.Check(err)
	e, ok := errors.AsType[*pullthrough.Error](err)
	require.True(t, ok, "%T: %v", err, err)
	assert.True(t, slices.ContainsFunc(kinds, func(kind error) bool { return errors.Is(e.Kind, kind) }), "%v is none of %v", err, kinds)
	assert.Equal(t, testkit.Repo("a"), e.Repo)
	assert.Equal(t, ref, e.Ref)
	assert.Less(t, len(err.Error()), 2000, "upstream does not write our errors")
	return e
}

// afterwards is what is pulled once upstream has come to its senses.
var afterwards = pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 42, Layers: 2, LayerSize: 70_000})

// assertHealthy heals upstream, and pulls an image that it never harmed and the
// one that it did.
func (s *siege) assertHealthy(t *testing.T) {
	t.Helper()
	s.heal()
	s.Settled(t)
	synctest.Wait() // net/http ends a stream of HTTP/2 a moment after its request has failed
	start := time.Now()
	s.Up.Push("next", "1", afterwards)
	s.Pull(t, "next", "1", afterwards)
	s.Up.Push("a", "healed", s.img)
	s.Pull(t, "a", "healed", s.img)
	assert.LessOrEqual(t, time.Since(start), 5*time.Second, "what upstream did is over")
}

// heal makes upstream, and all that it can name, a registry again.
func (s *siege) heal() {
	s.handle(nil)
	s.Up.Heal()
	s.other.Heal()
	s.at("registry.test", s.Up.DialPipe)
}

// elapsed runs f and returns how long that took, in the bubble's time.
func elapsed(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

// meanwhile runs f in the background, then test when f can get no further without
// time passing, and returns when both have ended.
func meanwhile(f, test func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	synctest.Wait()
	test()
	<-done
}

// honest is a Store that checks what it is given.
type honest struct {
	t *testing.T
	*memstore.Store
}

func (h honest) PutManifest(ctx context.Context, r pullthrough.Repo, m *pullthrough.Manifest) error {
	assert.Equal(h.t, m.Descriptor.Digest, m.Descriptor.Digest.Algorithm().FromBytes(m.Content), "a manifest is stored under a wrong digest")
	assert.EqualValues(h.t, len(m.Content), m.Descriptor.Size)
	return h.Store.PutManifest(ctx, r, m)
}

func (h honest) PutBlob(ctx context.Context, r pullthrough.Repo, desc ocispec.Descriptor, body io.ReadSeeker) error {
	content, err := io.ReadAll(body)
	assert.NoError(h.t, err)
	assert.Equal(h.t, desc.Digest, desc.Digest.Algorithm().FromBytes(content), "a blob is stored under a wrong digest")
	assert.EqualValues(h.t, len(content), desc.Size)
	return h.Store.PutBlob(ctx, r, desc, bytes.NewReader(content))
}

// ask sends a request to the proxy's HTTP face.
func (s *siege) ask(t *testing.T, method, path string) *httptest.ResponseRecorder {
	t.Helper()
	rec := httptest.NewRecorder()
	s.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), method, "http://our.example"+path, nil))
	return rec
}

// wait returns after d, or when the client has gone.
func wait(r *http.Request, d time.Duration) (ok bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

// speak answers in words that net/http would not use, and hangs up.
func speak(t *testing.T, w http.ResponseWriter, parts ...string) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if !assert.NoError(t, err) {
		return
	}
	defer func() { _ = conn.Close() }()
	for _, part := range parts {
		if _, err := io.WriteString(conn, part); err != nil {
			return // the client has heard enough
		}
	}
}

func isOneOf(err error, kinds ...error) bool {
	return slices.ContainsFunc(kinds, func(kind error) bool { return errors.Is(err, kind) })
}

// serving returns a way to a server that treats each connection as it likes, and
// then holds it until the client lets go.
func serving(f func(conn io.ReadWriter)) dialFunc {
	return func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		over := make(chan struct{})
		go func() {
			defer func() { _ = server.Close() }()
			f(server)
			<-over
		}()
		return &watchedConn{Conn: client, over: sync.OnceFunc(func() { close(over) })}, nil
	}
}

type watchedConn struct {
	net.Conn
	over func()
}

func (c *watchedConn) Close() error {
	c.over()
	return c.Conn.Close()
}
