package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/egress"
	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
)

const (
	dialTimeout   = 10 * time.Second
	headerTimeout = 30 * time.Second // until the answer's header is in
	maxPools      = 1024             // pools of connections whose last request failed
)

// errNoAnswer is the cause with which a request without an answer is given up.
var errNoAnswer = &interruption{fmt.Errorf("no answer within %v", headerTimeout)}

// transport is the one way out: each request of the package goes through its
// roundTrip. There is no http.Client. That would follow redirects by rules of its
// own, with credentials to another port or to a subdomain, and put URLs into
// errors. It is safe for concurrent use.
type transport struct {
	custom http.RoundTripper // the caller's; nil: own ones
	own    transports
	failed *lru.Cache[connPool, struct{}] // where the last request failed
	sent   *lru.Cache[any, *secrets]      // by Target.ID
}

func newTransport(custom http.RoundTripper) *transport {
	return &transport{
		custom: custom, failed: lru.New[connPool, struct{}](maxPools), sent: lru.New[any, *secrets](maxRegistries),
	}
}

// secretsOf are the secrets that were sent for targets like t.
func (x *transport) secretsOf(t *Target) *secrets {
	return x.sent.GetOrPut(t.ID, func() *secrets { return new(secrets) })
}

// roundTrip sends one request. The answer's header has to arrive in time; its
// body ends with the request's context.
func (x *transport) roundTrip(t *Target, req *http.Request) (*http.Response, error) {
	secrets := x.secretsOf(t)
	secrets.noteRequest(req)
	through, err := x.roundTripper(t, req)
	if err != nil {
		return nil, secrets.clean(&Error{Kind: ErrUnavailable, Host: req.URL.Host, Err: err}, t.Base.Host)
	}
	pool, known := poolOf(through, req)
	if known {
		x.closeAfterFailure(pool)
	}
	trace := traceOf(req.Context())
	trace.countRequest()
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(headerTimeout, func() { cancel(errNoAnswer) })
	resp, err := send(through, req.WithContext(ctx))
	timer.Stop()
	if known && (err == nil || req.Context().Err() == nil) { // that we gave it up says nothing of the connection
		x.noteOutcome(pool, err)
	}
	if err != nil {
		cause := context.Cause(ctx)
		if cause == nil {
			cause = t.explainScheme(req.URL, markBroken(ctx, err))
		}
		cancel(nil)
		return nil, secrets.clean(&Error{Kind: ErrUnavailable, Host: req.URL.Host, Err: cause}, t.Base.Host)
	}
	resp.Request = req // also where a caller's own RoundTripper leaves it out
	trace.keepWarnings(resp, secrets)
	resp.Body = &cancellingBody{resp.Body, cancel}
	return resp, nil
}

// explainScheme says what to write for a registry that does not speak https. Nobody
// has to have written https: it is what a host without a scheme means.
func (t *Target) explainScheme(to *url.URL, err error) error {
	record, ok := errors.AsType[tls.RecordHeaderError](err)
	if !ok || string(record.RecordHeader[:]) != "HTTP/" || origin(to) != origin(t.Base) {
		return err
	}
	return fmt.Errorf("%w: it speaks http and not https, so write http://%s", err, to.Host)
}

// send sends req through a RoundTripper that may be the caller's: it may panic.
func send(through http.RoundTripper, req *http.Request) (resp *http.Response, err error) {
	defer hostcall.Recover("Transport", &err)
	resp, err = through.RoundTrip(req)
	switch {
	case err != nil:
		return nil, err
	case resp == nil:
		return nil, errors.New("the Transport has neither an answer nor an error")
	case resp.Body == nil:
		resp.Body = http.NoBody
	}
	return resp, nil
}

// roundTripper returns what req goes through, or why it must not be sent. A
// caller's own RoundTripper dials as it likes, but no literal address gets past.
func (x *transport) roundTripper(t *Target, req *http.Request) (http.RoundTripper, error) {
	addresses := t.addressesFor(req.URL)
	if err := addresses.CheckHost(req.URL.Hostname()); err != nil {
		return nil, err
	}
	if x.custom != nil {
		return x.custom, nil
	}
	return x.own.get(transportKey{addresses, t.Options.HTTP1}), nil
}

// addressesFor is which addresses a request of the target may go to for the sake
// of the URL's host. The registry's own host and those that the options name may
// be anywhere. Any other host is the registry's word, which may be hostile.
func (t *Target) addressesFor(to *url.URL) egress.Policy {
	own := t.Base.Hostname()
	if strings.EqualFold(to.Hostname(), own) || t.Options.namesRealm(to) {
		return egress.Policy{Any: true}
	}
	return egress.Policy{
		Loopback:     egress.Policy{}.CheckHost(own) != nil && egress.Policy{Loopback: true}.CheckHost(own) == nil,
		BlockPrivate: t.Options.BlockPrivate,
	}
}

// connPool is the connections of a transport to one host.
type connPool struct {
	transport *http.Transport
	host      string
}

// poolOf returns where the request's connection comes from. ok is false for a
// caller's own RoundTripper, which may keep connections as it likes.
func poolOf(through http.RoundTripper, req *http.Request) (p connPool, ok bool) {
	t, ok := through.(*http.Transport)
	return connPool{t, req.URL.Host}, ok
}

// closeAfterFailure closes the unused connections if the last request to the host
// has failed. HTTP/2 would go on with a connection whose streams all fail, or are
// never answered.
func (x *transport) closeAfterFailure(p connPool) {
	if _, failed := x.failed.Get(p); failed {
		p.transport.CloseIdleConnections()
	}
}

// noteOutcome keeps in mind whether the host's last request has failed.
func (x *transport) noteOutcome(p connPool, err error) {
	if err != nil {
		x.failed.Put(p, struct{}{})
		return
	}
	x.failed.RemoveIf(p, func(struct{}) bool { return true })
}

// transportKey is what connections may be shared for. A pooled connection was
// checked when it was dialled, so requests that may go to different addresses must
// not share a pool.
type transportKey struct {
	addresses egress.Policy
	http1     bool
}

// transports are the http.Transports, by what they may be used for. There are few.
// The zero value is ready for use and safe for concurrent use.
type transports struct {
	mu      sync.Mutex
	byKey   map[transportKey]*http.Transport
	proxies sync.Map // addresses of the HTTP proxies that the environment names
}

// get returns the key's transport, and makes it when it is needed first.
func (x *transports) get(key transportKey) *http.Transport {
	x.mu.Lock()
	defer x.mu.Unlock()
	t, ok := x.byKey[key]
	if !ok {
		if x.byKey == nil {
			x.byKey = make(map[transportKey]*http.Transport)
		}
		t = x.make(key)
		x.byKey[key] = t
	}
	return t
}

func (x *transports) make(key transportKey) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(!key.http1)
	return &http.Transport{
		Proxy:                  x.proxy,
		DialContext:            x.dialer(key.addresses),
		Protocols:              protocols,
		TLSHandshakeTimeout:    dialTimeout,
		ExpectContinueTimeout:  time.Second,
		IdleConnTimeout:        90 * time.Second,
		MaxIdleConns:           256,
		MaxIdleConnsPerHost:    64,
		MaxResponseHeaderBytes: 256 << 10,
		// The bytes that have the digest are the raw ones.
		DisableCompression: true,
		HTTP2:              &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second, MaxReceiveBufferPerStream: 512 << 10},
	}
}

// proxy is the environment's choice. The proxy itself may be anywhere, and it
// decides which addresses may be reached through it.
func (x *transports) proxy(req *http.Request) (*url.URL, error) {
	u, err := http.ProxyFromEnvironment(req)
	if u != nil && err == nil {
		port := u.Port()
		if port == "" {
			port = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
		}
		x.proxies.Store(net.JoinHostPort(u.Hostname(), port), struct{}{})
	}
	return u, err
}

// dialer checks addresses when they are dialled: a name may resolve to anything,
// and to something else the next time.
func (x *transports) dialer(p egress.Policy) func(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	guarded := p.Dialer(d)
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if _, ok := x.proxies.Load(address); ok {
			return d.DialContext(ctx, network, address)
		}
		return guarded.DialContext(ctx, network, address)
	}
}

// closeIdle closes the connections that nobody uses.
func (x *transports) closeIdle() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, t := range x.byKey {
		t.CloseIdleConnections()
	}
}
