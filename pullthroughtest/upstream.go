// Package pullthroughtest helps to test programs that pull from OCI registries.
//
// [Upstream] is a registry that runs in the test's own process on a loopback port, for programs that pull from any
// registry. It speaks real HTTP, logs every request and misbehaves on demand ([Fault], [Upstream.Script]):
//
//	up := pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
//	up.Push("library/alpine", "latest", pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}))
//	up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/* 200", Times: 1, CutAfter: new(int64(100))})
//	... pull ...
//	assert.Equal(t, 2, up.Count("GET /v2/*/blobs/* 200"))
//
// [NewECR] starts a whole fake Amazon ECR with such a registry behind its pull through cache rules, for programs that use
// ECR: they pull from [ECR].Host, and AWS SDKs use [ECR].URL.
//
//	ecr := pullthroughtest.NewECR(t, nil, fakeecr.Config{})
//	ecr.Upstream.Push("library/alpine", "3.22", pullthroughtest.NewHello())
//	... pull ecr.Host + "/docker-hub/library/alpine:3.22" ...
//
// All of it ends with the test.
//
// [NewImage] makes images with layers of a size or of files, which clients can pull and unpack; the one of [NewHello] runs.
// [Secrets] fails a test that sends a credential to a registry that must not receive it, or that shows a credential in
// logs or errors. [TestStore] checks that a [pullthrough.Store] keeps its promises.
package pullthroughtest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"testing"
	"time"
)

// Upstream is an OCI registry in this process, listening on a loopback port. Make one with [New] or [Start]; the
// zero Upstream is not usable. All its methods are safe for concurrent use, also while requests are being answered.
type Upstream struct {
	// URL is the registry's origin, like http://127.0.0.1:4711, without a trailing slash. It must not be changed.
	URL string

	config  Config
	host    string
	server  *http.Server
	client  *http.Client
	roots   *x509.CertPool
	tls     *tls.Certificate // nil: plain http
	cancel  context.CancelFunc
	stopped chan struct{} // closed when the accept loop has ended

	log      ledger
	content  content
	tokens   tokens
	faults   faults
	watchers watchers
}

// Config says what kind of registry an [Upstream] is. The zero Config is a plain http registry without authentication. A
// Config is read when the registry starts and must not be changed afterwards. It may start several registries.
type Config struct {
	// Auth is how clients must authenticate. Zero: Open, without authentication.
	Auth Auth

	// Users are the accepted user names and their passwords. Nil: there are no users, so Basic refuses every request
	// and Bearer issues tokens to anonymous clients only.
	Users map[string]string

	// Anonymous issues tokens to clients without credentials even if Users is set, as registries with public and
	// private images do. False: they get tokens only if Users is nil.
	Anonymous bool

	// Allow reports whether user ("" for an anonymous client) may pull repo. It must be safe for concurrent use. Nil:
	// every authenticated client may pull everything.
	Allow func(user, repo string) bool

	// IdentityTokens are the refresh tokens that POST /token accepts. Nil: none, and such a POST is answered 401.
	IdentityTokens []string

	// TokenTTL is the lifetime of a token, also in expires_in. Zero: 300 s.
	TokenTTL time.Duration

	// Now is the clock for the lifetime of tokens. It must be safe for concurrent use. Nil: time.Now.
	Now func() time.Time

	// TLS serves https with a certificate of this registry's own, which [Upstream.Roots] verifies. False: http.
	TLS bool

	// HTTP2 offers HTTP/2 besides HTTP/1.1, which needs TLS. False: HTTP/1.1 only.
	HTTP2 bool

	// Realm is the token endpoint that challenges name. It is sent literally, so a test can make it wrong in any way.
	// Empty: the Issuer's /token.
	Realm string

	// Issuer is the registry whose tokens this one accepts, for a token server on another origin. It logs the token
	// requests and uses its own Users. Nil: this registry itself.
	Issuer *Upstream

	// Service is the service (Bearer) or realm (Basic) that challenges name. Empty: "registry.test".
	Service string

	// Scope is the scope that challenges name and tokens must have, like the opaque "aws" of ECR Public. Empty:
	// repository:<name>:pull.
	Scope string

	// Handler gets each request first and returns true if it has answered it. It must be safe for concurrent use and
	// must return when the request's context ends. Its answers are logged, and faults apply to them. Nil: the registry
	// answers every request.
	Handler func(http.ResponseWriter, *http.Request) bool
}

// New starts a registry and closes it when the test ends. It fails the test if the registry cannot be started. The test's
// output names the faults that are installed at its end and have changed nothing, since no request has met them.
func New(tb testing.TB, c Config) *Upstream {
	tb.Helper()
	u, err := Start(c)
	if err != nil {
		tb.Fatalf("pullthroughtest: %v", err)
	}
	tb.Cleanup(func() {
		u.Close()
		for _, match := range u.faults.unmet() {
			tb.Logf("pullthroughtest: no request has met the fault of %q: compare it with Upstream.Log", match)
		}
	})
	return u
}

// Start starts a registry on a free port of 127.0.0.1. The caller must close it.
func Start(c Config) (*Upstream, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen on loopback: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	u := &Upstream{config: c, host: listener.Addr().String(), cancel: cancel, stopped: make(chan struct{})}
	u.URL = "http://" + u.host
	if c.TLS {
		if err := u.certify(); err != nil {
			cancel()
			return nil, errors.Join(err, listener.Close())
		}
	}
	u.server = u.newServer()
	u.server.BaseContext = func(net.Listener) context.Context { return ctx }
	u.client = u.newClient()
	go func() {
		defer close(u.stopped)
		u.serve(u.server, listener)
	}()
	return u, nil
}

func (u *Upstream) certify() error {
	certificate, err := newCertificate()
	if err != nil {
		return fmt.Errorf("make certificate: %w", err)
	}
	u.URL = "https://" + u.host
	u.tls = &certificate
	u.roots = x509.NewCertPool()
	u.roots.AddCert(certificate.Leaf)
	return nil
}

func (u *Upstream) newServer() *http.Server {
	s := &http.Server{
		Handler:     u,
		ConnContext: withConn,
		ErrorLog:    log.New(io.Discard, "", 0), // tests break connections on purpose
		Protocols:   u.protocols(),
	}
	if u.tls != nil {
		s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*u.tls}}
	}
	return s
}

func (u *Upstream) newClient() *http.Client {
	transport := &http.Transport{DialContext: DialLoopback, Protocols: u.protocols()}
	if u.tls != nil {
		transport.TLSClientConfig = &tls.Config{RootCAs: u.roots}
	}
	return &http.Client{Transport: transport}
}

func (u *Upstream) protocols() *http.Protocols {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(u.config.HTTP2)
	return protocols
}

// serve serves until the listener is closed. Serve then returns an error, which is expected.
func (u *Upstream) serve(s *http.Server, listener net.Listener) {
	if u.tls != nil {
		_ = s.ServeTLS(listener, "", "")
		return
	}
	_ = s.Serve(listener)
}

// Close stops the registry. It cuts off the requests that are being answered, including stalled ones, and does not wait
// for them. It may be called more than once.
func (u *Upstream) Close() {
	u.cancel()
	_ = u.server.Close() // nothing can be done about a socket that does not close
	<-u.stopped
	u.client.CloseIdleConnections()
}

// Host returns the host and port of URL, as image references name a registry.
func (u *Upstream) Host() string { return u.host }

// Roots returns the certificates that verify this registry under the names 127.0.0.1, localhost, registry.test and
// *.registry.test. It returns nil without Config.TLS.
func (u *Upstream) Roots() *x509.CertPool { return u.roots }

// Client returns a client that trusts the registry's certificate, dials loopback addresses only and has no timeout.
func (u *Upstream) Client() *http.Client { return u.client }

// ServeHTTP answers one request as the registry's own listener does. Tests with their own listener use it.
func (u *Upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e := u.log.arrive(r)
	defer u.log.finish(e)
	u.show(e.request)
	if e.readBody(r) {
		u.show(Request{Method: e.request.Method, Path: e.request.Path, Body: e.request.Body})
	}
	a := &answer{upstream: u, entry: e, w: w, r: r}
	defer a.close()
	if !u.callHandler(a, r) {
		u.route(a, r)
	}
	a.finish()
}

// callHandler calls Config.Handler and reports whether it has answered. The Handler may take as long as it likes.
func (u *Upstream) callHandler(a *answer, r *http.Request) bool {
	if u.config.Handler == nil {
		return false
	}
	a.entry.setSettled(true)
	if u.config.Handler(a, r) {
		return true
	}
	a.entry.setSettled(false)
	return false
}

// show passes an incoming request to the [Secrets] that watch this registry.
func (u *Upstream) show(r Request) {
	for _, s := range u.watchers.list() {
		s.inspect(u, r)
	}
}
