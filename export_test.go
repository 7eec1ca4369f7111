package pullthrough

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Running returns how many fetches run.
func (p *Proxy) Running() int {
	return p.state().imports.Len() + p.state().manifests.Len() + p.state().blobs.Len()
}

// Waiting returns how many callers wait for a manifest.
func (p *Proxy) Waiting(repo Repo, ref string) int {
	rt, err := p.route(context.Background(), repo)
	if err != nil {
		return 0
	}
	return p.state().manifests.Waiting(rt.key(ref))
}

var RetryAfter = retryAfter

// RealmMayHaveCredentials is what a rule with that upstream decides about a
// challenge's realm.
func RealmMayHaveCredentials(upstream, realm string, realmHosts []string) bool {
	base, err := url.Parse(upstream)
	if err != nil || checkRealm(base, realm) != nil {
		return false
	}
	u, err := url.Parse(realm)
	return err == nil && mayHaveCredentials(&route{base: base, policy: Policy{RealmHosts: realmHosts}}, u)
}

// ParseToken reads a token server's answer.
func ParseToken(body []byte) (token, refresh string, life time.Duration, err error) {
	a, err := parseToken(body)
	return a.token, a.refresh, a.life, err
}

// ErrorText is what is kept of an upstream's refusal.
func ErrorText(resp *http.Response) string {
	if err := reason(resp); err != nil {
		return err.Error()
	}
	return ""
}
