package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/url"
	"time"
)

var RetryAfter = retryAfter

// RealmMayHaveCredentials is what a target with that registry decides about a
// challenge's realm.
func RealmMayHaveCredentials(registry, realm string, realmHosts []string) bool {
	base, err := url.Parse(registry)
	if err != nil || checkRealm(base, realm) != nil {
		return false
	}
	u, err := url.Parse(realm)
	return err == nil && mayHaveCredentials(&Target{Base: base, Options: Options{RealmHosts: realmHosts}}, u)
}

// ParseToken reads a token server's answer.
func ParseToken(body []byte) (token, refresh string, life time.Duration, err error) {
	a, err := parseToken(body)
	return a.token, a.refresh, a.life, err
}

// ErrorText is what is kept of a refusal.
func ErrorText(resp *http.Response) string {
	if err := reason(resp); err != nil {
		return err.Error()
	}
	return ""
}

// Connect has connections to the target's registry made by dial, and its
// certificate checked against roots. All else about them stays as it is without a
// Transport from the caller.
func (c *Client) Connect(t *Target, dial func(context.Context, string, string) (net.Conn, error), roots *x509.CertPool) {
	own := c.transport.own.get(transportKey{t.addressesFor(t.Base), t.Options.HTTP1})
	own.DialContext = dial
	if own.TLSClientConfig == nil {
		own.TLSClientConfig = new(tls.Config)
	}
	own.TLSClientConfig.RootCAs = roots
}

// Secrets is what is remembered of secrets that were sent in this order.
func Secrets(sent ...string) []string {
	var s secrets
	s.note(sent...)
	return s.words
}
