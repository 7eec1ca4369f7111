package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

const (
	dialTimeout   = 10 * time.Second
	headerTimeout = 30 * time.Second // until the answer's header is in
	drainTimeout  = 2 * time.Second  // for the rest of an answer that is not wanted
	maxRedirects  = 5
	maxErrorBody  = 64 << 10
	userAgent     = "pullthrough (+https://github.com/ecr-pullthrough/pullthrough)"
)

func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:      true,
		TLSHandshakeTimeout:    dialTimeout,
		ResponseHeaderTimeout:  headerTimeout,
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

// redirectScope says how far a request may be redirected.
type redirectScope bool

const (
	anyOrigin  redirectScope = false
	sameOrigin redirectScope = true // a token request: its answer is worth as much as the secret
)

// send carries out req and follows redirects. Every request of the module goes
// through here.
func (u *upstream) send(req *http.Request, scope redirectScope) (*http.Response, error) {
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", userAgent)
	for hop := 0; ; hop++ {
		resp, err := u.roundTrip(req)
		if err != nil {
			return nil, err
		}
		if !isRedirect(resp.StatusCode) || resp.Header.Get("Location") == "" {
			return resp, nil
		}
		next, err := redirect(req, resp, scope)
		_ = resp.Body.Close() // unread: it may never come
		if err == nil && hop == maxRedirects {
			err = fmt.Errorf("more than %d redirects", maxRedirects)
		}
		if err != nil {
			return nil, &Error{Kind: ErrUnavailable, Host: req.URL.Host, Status: resp.StatusCode, Err: err}
		}
		req = next
	}
}

// roundTrip sends one request. The answer's header has to arrive in time; its
// body ends with the request's context.
func (u *upstream) roundTrip(req *http.Request) (*http.Response, error) {
	count(req.Context())
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(headerTimeout, func() {
		cancel(fmt.Errorf("no answer within %v", headerTimeout))
	})
	resp, err := u.transport.RoundTrip(req.WithContext(ctx))
	timer.Stop()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, &Error{Kind: ErrUnavailable, Host: req.URL.Host, Err: redacted(err)}
	}
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

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// redirect returns the request that follows resp's Location, or why it must
// not be sent. What leaves its origin loses its credentials for good: the next
// hop is made from this one's headers.
func redirect(req *http.Request, resp *http.Response, scope redirectScope) (*http.Request, error) {
	to, err := req.URL.Parse(resp.Header.Get("Location"))
	if err != nil {
		return nil, errors.New("redirected to what is no URL")
	}
	switch {
	case to.Scheme != "https" && to.Scheme != "http", to.Host == "":
		return nil, errors.New("redirected to what is no http URL")
	case to.User != nil:
		return nil, errors.New("redirected to a URL with credentials in it")
	case req.URL.Scheme == "https" && to.Scheme == "http":
		return nil, errors.New("redirected from https to http")
	case scope == sameOrigin && origin(to) != origin(req.URL):
		return nil, fmt.Errorf("token request redirected to another origin, %s", origin(to))
	}
	next := req.Clone(req.Context())
	next.URL, next.Host = to, ""
	if origin(to) != origin(req.URL) {
		for _, h := range []string{"Authorization", "Cookie", "Proxy-Authorization", "Referer"} {
			next.Header.Del(h)
		}
	}
	return next, nil
}

// origin is scheme, host and port.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// drain ends an answer so that its connection can be used again, unless that
// costs more than a new one.
func drain(resp *http.Response) {
	defer hurry(resp)()
	_, _ = io.CopyN(io.Discard, resp.Body, maxErrorBody)
	_ = resp.Body.Close()
}

// hurry gives the body of an answer that nobody wants a short time to come. The
// function it returns ends that.
func hurry(resp *http.Response) func() {
	body, ok := resp.Body.(*cancellingBody)
	if !ok {
		return func() {}
	}
	timer := time.AfterFunc(drainTimeout, func() { body.cancel(errors.New("the rest of the answer did not come")) })
	return func() { timer.Stop() }
}

// redacted is err without the URL: the query of a presigned one is a secret.
func redacted(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

type counterKey struct{}

// withCounter returns a context under which requests to upstream are counted.
func withCounter(ctx context.Context) (context.Context, *atomic.Int64) {
	n := new(atomic.Int64)
	return context.WithValue(ctx, counterKey{}, n), n
}

// withCounterOf counts requests made under ctx where those of from are counted.
func withCounterOf(ctx, from context.Context) context.Context {
	return context.WithValue(ctx, counterKey{}, from.Value(counterKey{}))
}

func count(ctx context.Context) {
	if n, ok := ctx.Value(counterKey{}).(*atomic.Int64); ok {
		n.Add(1)
	}
}
