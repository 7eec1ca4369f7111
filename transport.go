package pullthrough

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/egress"
)

const (
	dialTimeout   = 10 * time.Second
	headerTimeout = 30 * time.Second // until the answer's header is in
	drainTimeout  = 2 * time.Second  // for the rest of an answer that is not wanted
	maxErrorBody  = 64 << 10
	userAgent     = "pullthrough (+https://github.com/ecr-pullthrough/pullthrough)"
)

var errDrained = errors.New("the rest of the answer did not come")

var errNoAnswer = fmt.Errorf("no answer within %v", headerTimeout)

// lane is what connections may be shared for. A pooled connection was checked
// when it was dialled, so requests that may go to different addresses must not
// share a pool.
type lane struct {
	addresses egress.Policy
	http1     bool
}

// lanes are the transports, by what they may be used for. There are few. The
// zero value is ready for use and safe for concurrent use.
type lanes struct {
	mu         sync.Mutex
	transports map[lane]*http.Transport
	proxies    sync.Map // addresses of the HTTP proxies that the environment names
}

func (l *lanes) transport(of lane) *http.Transport {
	l.mu.Lock()
	defer l.mu.Unlock()
	t, ok := l.transports[of]
	if !ok {
		if l.transports == nil {
			l.transports = make(map[lane]*http.Transport)
		}
		t = l.newTransport(of)
		l.transports[of] = t
	}
	return t
}

func (l *lanes) newTransport(of lane) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(!of.http1)
	return &http.Transport{
		Proxy:                  l.proxy,
		DialContext:            l.dialer(of.addresses),
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

// proxy is the environment's choice. Which addresses are behind a proxy is the
// proxy's business; the proxy itself may be anywhere.
func (l *lanes) proxy(req *http.Request) (*url.URL, error) {
	u, err := http.ProxyFromEnvironment(req)
	if u != nil && err == nil {
		port := u.Port()
		if port == "" {
			port = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
		}
		l.proxies.Store(net.JoinHostPort(u.Hostname(), port), struct{}{})
	}
	return u, err
}

// dialer checks addresses when they are dialled: a name may resolve to anything,
// and to something else the next time.
func (l *lanes) dialer(p egress.Policy) func(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	guarded := p.Dialer(d)
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if _, ok := l.proxies.Load(address); ok {
			return d.DialContext(ctx, network, address)
		}
		return guarded.DialContext(ctx, network, address)
	}
}

// close lets go of the connections that nobody uses.
func (l *lanes) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range l.transports {
		t.CloseIdleConnections()
	}
}

// roundTripper returns what req goes through, or why it must not be sent. A
// host's own Transport dials as it likes, but no literal address gets past.
func (u *upstream) roundTripper(rt *route, req *http.Request) (http.RoundTripper, error) {
	addresses := rt.reach(req.URL)
	if err := addresses.CheckHost(req.URL.Hostname()); err != nil {
		return nil, err
	}
	if u.transport != nil {
		return u.transport, nil
	}
	return u.lanes.transport(lane{addresses, rt.policy.HTTP1}), nil
}

// reach is which addresses a request of the route may go to for the sake of the
// URL's host. That is upstream's word, unless the rule names the host itself.
func (rt *route) reach(to *url.URL) egress.Policy {
	own := rt.base.Hostname()
	if strings.EqualFold(to.Hostname(), own) || rt.policy.namesRealm(to) {
		return egress.Policy{Any: true}
	}
	return egress.Policy{
		Loopback:     egress.Policy{}.CheckHost(own) != nil && egress.Policy{Loopback: true}.CheckHost(own) == nil,
		BlockPrivate: rt.policy.BlockPrivate,
	}
}

// pool is the connections of a transport to one host.
type pool struct {
	transport *http.Transport
	host      string
}

// poolOf returns where the request's connection comes from; ok is false where
// that is not for us to know.
func poolOf(through http.RoundTripper, req *http.Request) (p pool, ok bool) {
	t, ok := through.(*http.Transport)
	return pool{t, req.URL.Host}, ok
}

// renew closes the unused connections if the last request to the host has failed:
// HTTP/2 would go on with one whose streams all fail, or are never answered.
func (u *upstream) renew(p pool) {
	if _, failed := u.failed.Get(p); failed {
		p.transport.CloseIdleConnections()
	}
}

// note keeps in mind whether the host's last request has failed.
func (u *upstream) note(p pool, err error) {
	if err != nil {
		u.failed.Put(p, struct{}{})
		return
	}
	u.failed.RemoveIf(p, func(struct{}) bool { return true })
}

// roundTrip sends one request. The answer's header has to arrive in time; its
// body ends with the request's context.
func (u *upstream) roundTrip(rt *route, req *http.Request) (*http.Response, error) {
	through, err := u.roundTripper(rt, req)
	if err != nil {
		return nil, &Error{Kind: ErrUnavailable, Host: req.URL.Host, Err: err}
	}
	from, known := poolOf(through, req)
	if known {
		u.renew(from)
	}
	trace := traceOf(req.Context())
	trace.sent()
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(headerTimeout, func() { cancel(errNoAnswer) })
	resp, err := through.RoundTrip(req.WithContext(ctx))
	timer.Stop()
	if known {
		u.note(from, err)
	}
	if err != nil {
		cause := context.Cause(ctx)
		if cause == nil {
			cause = broken(err)
		}
		cancel(nil)
		return nil, &Error{Kind: ErrUnavailable, Host: req.URL.Host, Err: cause}
	}
	trace.answered(resp)
	resp.Request = req // also where a host's own RoundTripper leaves it out
	resp.Body = &cancellingBody{resp.Body, cancel}
	return resp, nil
}

type cancellingBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (b *cancellingBody) Close() error {
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// drain ends an answer so that its connection can be used again, unless that
// costs more than a new one.
func drain(resp *http.Response) {
	if resp.ContentLength <= maxErrorBody {
		defer hurry(resp)()
		_, _ = io.CopyN(io.Discard, resp.Body, maxErrorBody)
	}
	_ = resp.Body.Close()
}

// keepBody takes the answer's body into memory, so that its connection is free
// although the answer may still be needed.
func keepBody(resp *http.Response) {
	stop := hurry(resp)
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody)) // what has come of it
	stop()
	_ = resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(body))
}

// hurry gives the body of an answer that nobody wants a short time to come. The
// function it returns ends that.
func hurry(resp *http.Response) func() {
	body, ok := resp.Body.(*cancellingBody)
	if !ok {
		return func() {}
	}
	timer := time.AfterFunc(drainTimeout, func() { body.cancel(errDrained) })
	return func() { timer.Stop() }
}
