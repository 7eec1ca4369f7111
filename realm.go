package pullthrough

import (
	"errors"
	"fmt"
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

	maxOpaqueScopes = 8
)

// realmPairs are token servers that belong to a registry on another host. The
// trust is in the pair, not in the server.
var realmPairs = map[string]string{
	"registry-1.docker.io": "auth.docker.io",
	"registry.gitlab.com":  "gitlab.com",
}

// demand is what a challenge asks for. The zero demand asks for nothing.
type demand struct {
	scheme  string
	realm   string
	service string
	opaque  string // scopes that are no resource scopes (ECR Public's "aws"), space-separated
}

// choose picks the challenge to answer: a Bearer one that can be used, else a
// Basic one. from is the URL that was challenged, had what we knew before. narrow
// reports that the token was good but not for enough: then d adds to had.
func choose(from *url.URL, all []challenge.Challenge, had demand) (d demand, narrow, ok bool) {
	for _, c := range all {
		switch c.Scheme {
		case bearerScheme:
			if checkRealm(from, c.Params["realm"]) != nil {
				continue
			}
			d = demand{bearerScheme, c.Params["realm"], c.Params["service"], opaqueScopes(c.Params["scope"])}
			narrow = c.Params["error"] == "insufficient_scope" && d.realm == had.realm && d.service == had.service
			if narrow {
				d.opaque = opaqueScopes(had.opaque + " " + d.opaque)
			}
			return d, narrow, true
		case basicScheme:
			d, ok = demand{scheme: basicScheme}, true
		}
	}
	return d, false, ok
}

// opaqueScopes keeps those of a challenge's scopes that name no resource. A
// challenge must not widen what we ask for to another repository or to a push.
func opaqueScopes(scope string) string {
	fields := slices.DeleteFunc(strings.Fields(scope), func(s string) bool {
		return strings.Contains(s, ":") || len(s) > 256
	})
	slices.Sort(fields)
	fields = slices.Compact(fields)
	return strings.Join(fields[:min(len(fields), maxOpaqueScopes)], " ")
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
	return ocierror.Excerpt([]byte(strings.Join(extra, " ")), ocierror.MaxExcerpt, nil)
}

// checkRealm refuses token servers that no secret and no question may go to:
// the realm is upstream's word, and upstream may be hostile. from is the URL
// that was challenged.
func checkRealm(from *url.URL, realm string) error {
	u, err := url.Parse(realm)
	switch {
	case err != nil, len(realm) > 4096, strings.ContainsFunc(realm, func(r rune) bool { return r <= ' ' || r > '~' }):
		return errors.New("token server is no URL")
	case u.Scheme != "https" && (u.Scheme != "http" || from.Scheme != "http"):
		return fmt.Errorf("token server has the scheme %.20q", u.Scheme)
	case u.Hostname() == "" || u.User != nil || u.Opaque != "" || strings.Contains(realm, "#"):
		return errors.New("token server is no plain URL")
	}
	return nil
}

// trusted reports whether a demand's token server is one for the rule's secret.
func trusted(rt *route, d demand) bool {
	realm, err := url.Parse(d.realm)
	return err == nil && mayHaveCredentials(rt, realm)
}

// mayHaveCredentials reports whether the rule's secret may go to the token
// server: it has the registry's scheme and host name (on any port), is the
// registry's known partner, or the rule names it.
func mayHaveCredentials(rt *route, realm *url.URL) bool {
	host := strings.ToLower(realm.Hostname())
	registry := strings.ToLower(rt.base.Hostname())
	if realm.Scheme == rt.base.Scheme && host == registry {
		return true
	}
	if realm.Scheme == "https" && realmPairs[registry] == host {
		return true
	}
	return rt.policy.namesRealm(realm)
}

// namesRealm reports whether the URL's host stands in RealmHosts, with its port
// or without one.
func (pol Policy) namesRealm(u *url.URL) bool {
	return slices.ContainsFunc(pol.RealmHosts, func(allowed string) bool {
		return strings.EqualFold(allowed, u.Hostname()) || strings.EqualFold(allowed, u.Host)
	})
}
