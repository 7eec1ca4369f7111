// Package pullthroughtest helps to test programs that pull from OCI registries.
//
// Its centre is [Upstream], a registry that runs in the test's own process on a loopback port, speaks real HTTP,
// remembers every request it was sent and misbehaves on demand:
//
//	up := pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
//	up.Push("library/alpine", "latest", pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}))
//	up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/* 200", Times: 1, CutAfter: new(int64(100))})
//	... pull ...
//	assert.Equal(t, 2, up.Count("GET /v2/*/blobs/* 200"))
//
// [Secrets] fails a test that sends a credential to a registry that must not have it, or shows one in logs or errors.
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
	config  Config
	url     string
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

// Config says what kind of registry an [Upstream] is. The zero Config is a plain http registry that lets everybody
// in. It is read when the registry starts and must not be changed afterwards; a Config may start several registries.
type Config struct {
	// Auth is how clients must prove who they are. Zero: Open, not at all.
	Auth Auth

	// Users are the accepted user names with their passwords. Nil: nobody has a password, so Basic refuses everybody
	// and Bearer gives tokens to the anonymous only.
	Users map[string]string

	// Anonymous gives tokens to clients without credentials even though Users is set, as registries with public and
	// private images do. False: only when Users is nil.
	Anonymous bool

	// Allow says whether user ("" when anonymous) may pull repo. It must be safe for concurrent use. Nil: everybody
	// who was let in may pull everything.
	Allow func(user, repo string) bool

	// IdentityTokens are the refresh tokens that POST /token takes. Nil: none, such a POST is answered 401.
	IdentityTokens []string

	// TokenTTL is how long a token lives and what expires_in says. Zero: 300 s.
	TokenTTL time.Duration

	// Now is the clock for the lifetime of tokens. It must be safe for concurrent use. Nil: time.Now.
	Now func() time.Time

	// TLS serves https with a certificate of this registry's own; see [Upstream.Roots] for who can trust it. False: http.
	TLS bool

	// HTTP2 offers HTTP/2 besides HTTP/1.1, which needs TLS. False: HTTP/1.1 only.
	HTTP2 bool

	// Realm is the token endpoint that challenges name, taken literally, so that it can be as wrong as a test needs.
	// Empty: the Issuer's /token.
	Realm string

	// Issuer is the registry whose tokens are good here, for token servers on another origin. It logs the token
	// requests and uses its own Users. Nil: this registry itself.
	Issuer *Upstream

	// Service is the service (Bearer) or realm (Basic) that challenges name. Empty: "registry.test".
	Service string

	// Scope is the scope that challenges ask for and tokens must hold, like the opaque "aws" of ECR Public. Empty:
	// repository:<name>:pull.
	Scope string

	// Handler sees each request first and returns true if it has answered it. It must be safe for concurrent use and
	// return when the request's context ends. What it answers is logged and subject to faults like any other answer.
	// Nil: the registry answers everything.
	Handler func(http.ResponseWriter, *http.Request) bool
}

// New starts a registry and closes it when the test ends. It fails the test when that is not possible.
func New(tb testing.TB, c Config) *Upstream {
	tb.Helper()
	u, err := Start(c)
	if err != nil {
		tb.Fatalf("pullthroughtest: %v", err)
	}
	tb.Cleanup(u.Close)
	return u
}

// Start starts a registry on a free port of 127.0.0.1. The caller closes it.
func Start(c Config) (*Upstream, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen on loopback: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	u := &Upstream{config: c, host: listener.Addr().String(), cancel: cancel, stopped: make(chan struct{})}
	u.url = "http://" + u.host
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
	u.url = "https://" + u.host
	u.tls = &certificate
	u.roots = x509.NewCertPool()
	u.roots.AddCert(certificate.Leaf)
	return nil
}

func (u *Upstream) newServer() *http.Server {
	s := &http.Server{
		Handler:     u,
		ConnContext: withConn,
		ErrorLog:    log.New(io.Discard, "", 0), // broken connections are what this server is for
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

// serve returns when the listener is at its end, which is always an error and never a surprise.
func (u *Upstream) serve(s *http.Server, listener net.Listener) {
	if u.tls != nil {
		_ = s.ServeTLS(listener, "", "")
		return
	}
	_ = s.Serve(listener)
}

// Close stops the registry. Requests that are being answered are cut off, stalled ones included; Close does not wait
// for them. Closing twice is fine.
func (u *Upstream) Close() {
	u.cancel()
	_ = u.server.Close() // nothing to be done about a socket that does not close
	<-u.stopped
	u.client.CloseIdleConnections()
}

// URL is the registry's origin, like http://127.0.0.1:4711, without a slash at the end.
func (u *Upstream) URL() string { return u.url }

// Host is the host and port of URL, the way image references name a registry.
func (u *Upstream) Host() string { return u.host }

// Roots are the certificates with which clients can trust this registry under the names 127.0.0.1, localhost,
// registry.test and *.registry.test. Nil without Config.TLS.
func (u *Upstream) Roots() *x509.CertPool { return u.roots }

// Client is a client that trusts the registry's certificate, dials loopback addresses only and has no timeout.
func (u *Upstream) Client() *http.Client { return u.client }

// ServeHTTP answers one request just as the registry's own listener does, for tests that bring a listener of their own.
func (u *Upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e := u.log.arrive(r)
	defer u.log.finish(e)
	u.show(e.request)
	if e.readBody(r) {
		u.show(Request{Method: e.request.Method, Path: e.request.Path, Body: e.request.Body})
	}
	a := &answer{upstream: u, entry: e, w: w, r: r}
	defer a.close()
	if !u.handled(a, r) {
		u.route(a, r)
	}
	a.finish()
}

// handled asks Config.Handler, which may keep the request as long as it likes.
func (u *Upstream) handled(a *answer, r *http.Request) bool {
	if u.config.Handler == nil {
		return false
	}
	a.entry.settle(true)
	if u.config.Handler(a, r) {
		return true
	}
	a.entry.settle(false)
	return false
}

// show lets the ledgers of secrets look at what has arrived.
func (u *Upstream) show(r Request) {
	for _, s := range u.watchers.list() {
		s.see(u, r)
	}
}
