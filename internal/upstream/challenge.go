package upstream

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/ecr-pullthrough/pullthrough/internal/challenge"
	"github.com/ecr-pullthrough/pullthrough/internal/ocierror"
)

const (
	bearerScheme  = "bearer"
	basicScheme   = "basic"
	pullScopeForm = "repository:%s:pull"

	maxRealm        = 4096 // bytes
	maxService      = 4096 // bytes
	maxOpaqueScopes = 8
	maxToken        = 16 << 10 // bytes of a token, or of any other text that a header may hold
)

// authChallenge is how a registry wants to be told who asks. The zero value asks
// for nothing. It is kept for long, so its texts are short, and are no parts of the
// header that they came in.
type authChallenge struct {
	scheme  string // bearerScheme or basicScheme
	realm   string // the token server's URL; "" for Basic
	service string
	opaque  string // scopes that are no resource scopes (ECR Public's "aws"), space-separated
}

// chooseChallenge picks the challenge to answer: a Bearer one that can be used,
// else a Basic one. from is the URL that was challenged, had what we knew before.
// narrow reports that the token was good but not for enough: then the scopes of ch
// add to those of had.
func chooseChallenge(from *url.URL, all []challenge.Challenge, had authChallenge) (ch authChallenge, narrow, ok bool) {
	for _, c := range all {
		switch c.Scheme {
		case bearerScheme:
			realm, service := c.Params["realm"], c.Params["service"]
			if checkRealm(from, realm) != nil || len(service) > maxService {
				continue
			}
			ch = authChallenge{bearerScheme, strings.Clone(realm), strings.Clone(service), opaqueScopes(c.Params["scope"])}
			narrow = c.Params["error"] == "insufficient_scope" && ch.realm == had.realm && ch.service == had.service
			if narrow {
				ch.opaque = opaqueScopes(had.opaque + " " + ch.opaque)
			}
			return ch, narrow, true
		case basicScheme:
			ch, ok = authChallenge{scheme: basicScheme}, true
		}
	}
	return ch, false, ok
}

// scope is what to ask the token server for: pulls from the repository and nothing
// else. The scopes of the challenge come first, since some registries read one
// scope only. name may be "", for the registry as a whole.
func (ch authChallenge) scope(name string) string {
	if ch.scheme == basicScheme {
		return ""
	}
	if name == "" {
		return ch.opaque
	}
	return strings.TrimSpace(ch.opaque + " " + fmt.Sprintf(pullScopeForm, name))
}

// opaqueScopes keeps those of a challenge's scopes that name no resource. A
// challenge must not widen what we ask for to another repository or to a push.
func opaqueScopes(scope string) string {
	fields := slices.DeleteFunc(strings.Fields(scope), func(s string) bool {
		return strings.Contains(s, ":") || len(s) > 256
	})
	slices.Sort(fields)
	fields = slices.Compact(fields)
	return strings.Clone(strings.Join(fields[:min(len(fields), maxOpaqueScopes)], " "))
}

// extraScopes are those scopes of a challenge that go beyond a pull of the
// repository called name, for the log.
func extraScopes(all []challenge.Challenge, name string) string {
	var extra []string
	for _, c := range all {
		for _, s := range strings.Fields(c.Params["scope"]) {
			if strings.Contains(s, ":") && s != fmt.Sprintf(pullScopeForm, name) {
				extra = append(extra, s)
			}
		}
	}
	return ocierror.Excerpt([]byte(strings.Join(extra, " ")), ocierror.MaxExcerpt)
}

// guestChallenge is the challenge of a registry that we were redirected to, and the
// scope that a pull of what we were redirected to needs.
func guestChallenge(resp *http.Response) (ch authChallenge, scope string, ok bool) {
	all := challenge.Parse(resp.Header.Values("WWW-Authenticate"))
	ch, _, ok = chooseChallenge(resp.Request.URL, all, authChallenge{})
	if !ok || ch.scheme != bearerScheme {
		return authChallenge{}, "", false
	}
	name, _ := repositoryIn(resp.Request.URL.Path)
	return ch, ch.scope(name), true
}

// repositoryIn is the name in another registry's path, whose grammar need not be
// that of ours.
func repositoryIn(path string) (string, bool) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	end := max(strings.LastIndex(rest, "/manifests/"), strings.LastIndex(rest, "/blobs/"))
	if !ok || end < 1 || end > 512 || !mayStandInHeader(rest[:end]) {
		return "", false
	}
	return rest[:end], true
}

// mayStandInHeader reports whether s is text that may be sent in a header.
func mayStandInHeader(s string) bool {
	return s != "" && len(s) <= maxToken && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
