// Package upstream is a client for pulling from OCI registries: manifests, blobs
// and lists of referrers, as the OCI distribution specification has them ("Pull",
// "Listing Referrers"), with the token handshake of distribution ("Token
// Authentication Specification", "OAuth2 Token Authentication").
//
// # The handshake
//
// The first request to a registry goes without authorization. If the registry
// wants to know who asks, it answers 401 with a challenge: Basic, or Bearer with
// the URL of a token server (the realm), a service and a scope. For Bearer the
// Client asks the token server for a token, with the credential of the target if
// the token server may have it, and for no other scope than a pull of the
// repository. Then it sends the request again, with the token. The challenge is
// kept for all targets with the same ID, so that later requests fetch their token
// first and are not challenged. The token is kept for one target ID, credential,
// challenge and scope. While the first request is under way, others to the same
// target ID wait for its answer, 2 seconds at most; requests that need the same
// token wait for one fetch. A token is thrown away when it expires, or when it was
// kept from an earlier request and a request that was sent with it is answered 401,
// 403 or 400: then exactly that token is dropped, and the request is sent once more
// with a new one. A token of an old credential is not used once the target has a new
// one. A challenge is thrown
// away when no token can be had for it, unless it was the registry's own token
// server that refused. A registry that challenges at /v2/ only is asked there by
// targets that have a credential.
//
// The same steps, interleaved with those of other requests, are told where the code
// is: the first challenge at registry, a refused token at authorizer.dropToken, a
// new credential at authorizer.fetch, identity tokens at identities, rate limits at
// limiter, a download that breaks off at [Transfer].
//
// # What goes where
//
// A credential goes to the registry itself, to a token server on the same host, to
// one that is known to belong to the registry, and to those that the options name. A
// redirect to another origin is followed without it. No registry can lead the Client
// to a loopback, link-local or metadata address by naming a host, unless it is on such
// an address itself. No error and no log line holds a secret.
package upstream

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
)

// Config is what a [Client] is made of. The zero Config will do.
type Config struct {
	// Transport carries out the requests. It must not follow redirects. nil: the
	// Client's own transports, which check each address when it is dialled.
	Transport http.RoundTripper
	// Log gets what an operator should see. nil: nothing is logged.
	Log *slog.Logger
	// Now is the clock for the lifetime of tokens. nil: time.Now.
	Now func() time.Time
	// Flights is what the Client's token fetches join, under the name "token", and its
	// questions to /v2/, under "login", for an owner that waits for them or ends them. They are fetched also after its Close: a
	// request that has begun may need one. nil: they end when nobody waits for them.
	Flights *flight.Set
}

// Client talks to any number of registries. It is safe for concurrent use.
type Client struct {
	transport *transport
	limiters  *limiters
	auth      *authorizer
	noRanges  *lru.Cache[any, time.Time] // by Target.ID: when a Range was ignored
	log       *slog.Logger
}

// New returns a Client. It does no I/O.
func New(config Config) *Client {
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	c := &Client{transport: newTransport(config.Transport), limiters: newLimiters(), noRanges: lru.New[any, time.Time](maxRegistries), log: config.Log}
	c.auth = newAuthorizer(&tokenServers{
		transport:  c.transport,
		limiters:   c.limiters,
		callbacks:  &callbacks{log: config.Log},
		identities: newIdentities(),
	}, config.Log, config.Now)
	if config.Flights != nil {
		c.auth.fetches.JoinInner(config.Flights, "token")
		c.auth.logins.JoinInner(config.Flights, "login")
	}
	return c
}

// Close closes the connections that nobody uses. The Client stays usable. A
// Transport of the caller's is not touched.
func (c *Client) Close() { c.transport.own.closeIdle() }

// object is a request for an object of a repository.
type object struct {
	method   string
	kind     string // "manifests", "blobs" or "referrers"
	ref      string
	header   http.Header
	attempts attempts
	query    string // the next page of a list; "": none
}

// get sends a request for an object.
func (c *Client) get(ctx context.Context, t *Target, o object) (*http.Response, error) {
	at := t.Base.JoinPath("v2", t.Name, o.kind, o.ref)
	at.RawQuery = o.query
	return c.request(ctx, t, c.auth, at.String(), o)
}

// request sends o to url, with the authorization that the registry wants, and as
// often as the attempts allow. The order matters: each authorization has its own
// attempts, and each attempt follows redirects of its own. Nothing is sent to a
// registry or its token server but what begins here.
func (c *Client) request(ctx context.Context, t *Target, auth *authorizer, url string, o object) (*http.Response, error) {
	return auth.do(ctx, t, func(header string, answered func(*http.Response)) (*http.Response, error) {
		return retry(ctx, c.limiters.of(t, o.kind), o.attempts, func() (*http.Response, error) {
			req, err := http.NewRequestWithContext(ctx, o.method, url, nil)
			if err != nil {
				return nil, t.fail(ErrUnavailable, redact(ctx, err))
			}
			for k, v := range o.header {
				req.Header[k] = v
			}
			if header != "" {
				req.Header.Set("Authorization", header)
			}
			resp, err := c.transport.send(t, req, anyOrigin)
			if err == nil {
				answered(resp)
			}
			return resp, err
		})
	})
}

// HTTPTransport returns the Client's own transport for requests to t's registry. It
// is for tests that connect in a way of their own, before the first request.
func (c *Client) HTTPTransport(t *Target) *http.Transport {
	return c.transport.own.get(transportKey{t.addressesFor(t.Base), t.Options.HTTP1})
}
