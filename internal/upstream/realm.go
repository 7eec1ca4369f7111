package upstream

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// realmPairs are token servers that belong to a registry on another host. Only the
// pair is trusted: any other registry that names the same server is refused.
var realmPairs = map[string]string{
	"registry-1.docker.io": "auth.docker.io",
	"registry.gitlab.com":  "gitlab.com",
}

// checkRealm refuses token servers that no secret and no request may go to. The
// realm is the registry's word, which may be hostile. from is the URL that was
// challenged.
func checkRealm(from *url.URL, realm string) error {
	u, err := url.Parse(realm)
	switch {
	case err != nil, len(realm) > maxRealm, strings.ContainsFunc(realm, func(r rune) bool { return r <= ' ' || r > '~' }):
		return errors.New("token server is no URL")
	case u.Scheme != "https" && (u.Scheme != "http" || from.Scheme != "http"):
		return fmt.Errorf("token server has the scheme %.20q", u.Scheme)
	case u.Hostname() == "" || u.User != nil || u.Opaque != "" || strings.Contains(realm, "#"):
		return errors.New("token server is no plain URL")
	}
	return nil
}

// mayHaveCredentials reports whether the target's credential may go to the token
// server: it has the registry's scheme and host name (on any port), is the
// registry's known partner, or stands in the options.
func mayHaveCredentials(t *Target, realm *url.URL) bool {
	host := strings.ToLower(realm.Hostname())
	registry := strings.ToLower(t.Base.Hostname())
	if realm.Scheme == t.Base.Scheme && host == registry {
		return true
	}
	if realm.Scheme == "https" && realmPairs[registry] == host {
		return true
	}
	return t.Options.namesRealm(realm)
}

// namesRealm reports whether the URL's host stands in RealmHosts, with its port
// or without one.
func (o Options) namesRealm(u *url.URL) bool {
	return slices.ContainsFunc(o.RealmHosts, func(allowed string) bool {
		return strings.EqualFold(allowed, u.Hostname()) || strings.EqualFold(allowed, u.Host)
	})
}
