package upstream

import (
	"context"
	"net/url"
)

// Target is a repository of a registry, and the way in. It is not changed once it
// has been passed to a [Client].
type Target struct {
	// ID says which targets share challenges, tokens and rate limits: those with equal
	// IDs. It must be comparable. Targets of one ID must have the same Base and the same
	// Credential. nil is an ID, too.
	ID any
	// Base is where the registry is: /v2/ stands below it.
	Base *url.URL
	// Name is the name of the repository in the registry. "": the target is the
	// registry as a whole, which can only be probed.
	Name string
	// Label is what the log calls the repository. "": Name.
	Label string
	// Options say what the registry may do.
	Options Options
	// Credential is called for each token, and for Basic when the credential has
	// expired or was refused. It runs under a context of its own, which carries no
	// value of a request's. Its errors reach the caller of the Client unchanged; a
	// panic does so as a *hostcall.PanicError. A call that blocks is given up when its
	// context ends. It must be safe for concurrent use. nil: anonymous.
	Credential func(context.Context) (Credential, error)
	// Rotated is told the identity token that a token server gave in place of
	// [Credential.IdentityToken], which may be worth nothing from then on. A call that
	// blocks is given up when its context ends. It must be safe for concurrent use.
	// nil: nobody is told.
	Rotated func(ctx context.Context, identityToken string)
}

// Options say, for one [Target], what its registry may do. The zero value is the
// careful default.
type Options struct {
	// RealmHosts are the hosts, "auth.example.com", with a port or without one, whose
	// token server may be sent the credential, beside the registry's own host and the
	// built-in pairs such as registry-1.docker.io and auth.docker.io. nil: none.
	RealmHosts []string
	// Retries is how often a request that failed in passing is sent again: 408, 429,
	// 500, 502, 503, 504, or a connection that broke before there was an answer.
	// 0: 3 times. Negative: never.
	Retries int
	// RefuseWrongDigest refuses a manifest by tag for which the registry names a digest
	// that neither its content has nor what the registry has under that digest. false:
	// the content's own digest counts.
	RefuseWrongDigest bool
	// AnonymousFallback asks for a token without credential when the token server has
	// refused it. false: the request is refused.
	AnonymousFallback bool
	// BlockPrivate keeps redirects and token servers out of private networks. false:
	// they may lead there. Loopback, link-local and metadata addresses are closed to
	// them anyhow, unless the registry itself is given as a loopback address.
	BlockPrivate bool
	// ReferrersTag falls back on the referrers tag, "sha256-<hex>", with registries
	// that have no referrers API. false: their lists are empty.
	ReferrersTag bool
	// HTTP1 speaks HTTP/1.1 with registries that get HTTP/2 wrong. false: HTTP/2 where
	// the registry offers it.
	HTTP1 bool
}

// fail returns an error of the target's registry.
func (t *Target) fail(kind, cause error) *Error {
	return &Error{Kind: kind, Host: t.Base.Host, Err: cause}
}

// label is what the log calls the repository.
func (t *Target) label() string {
	if t.Label != "" {
		return t.Label
	}
	return t.Name
}
