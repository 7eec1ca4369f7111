package main

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
)

// upstream is a rule with all that the other flags say about it.
type upstream struct {
	rule       pullthrough.Rule
	credential pullthrough.Credential // zero: anonymous
	realms     []string               // token servers that may have the credential
}

// upstreams are in the order of the command line.
type upstreams []*upstream

// of returns the upstream of the rule with that prefix; nil: there is none.
func (us upstreams) of(prefix string) *upstream {
	i := slices.IndexFunc(us, func(u *upstream) bool { return u.rule.Prefix == strings.TrimSuffix(prefix, "/") })
	if i < 0 {
		return nil
	}
	return us[i]
}

// behind returns the upstream that the rule means; nil: the command line does not
// speak of it. The API may have deleted a rule and created one with the same prefix
// for another registry, which must not get the credential.
func (us upstreams) behind(rule pullthrough.Rule) *upstream {
	if u := us.of(rule.Prefix); u != nil && u.rule.UpstreamURL == rule.UpstreamURL {
		return u
	}
	return nil
}

// given returns the upstream whose credential the rule goes by; nil: it has a secret of
// its own, or none.
func (us upstreams) given(rule pullthrough.Rule) *upstream {
	if rule.CredentialARN != "" {
		return nil
	}
	return us.behind(rule)
}

// rules are those of the command line, created now.
func (us upstreams) rules(now time.Time) (rules []pullthrough.Rule) {
	for _, u := range us {
		u.rule.CreatedAt, u.rule.UpdatedAt = now, now
		rules = append(rules, u.rule)
	}
	return rules
}

// addUpstreams reads the rules first: the other flags are about them, in
// whatever order they were given.
func (c *config) addUpstreams(a *arguments) error {
	for _, add := range []struct {
		values []string
		value  func(string) error
	}{
		{a.rules, c.addRule},
		{a.credentials, c.addCredential},
		{a.realms, c.addRealm},
		{a.endpoints, c.addEndpoint},
	} {
		for _, v := range add.values {
			if err := add.value(v); err != nil {
				return err
			}
		}
	}
	return nil
}

// addRule reads PREFIX=UPSTREAM. The path behind UPSTREAM's host is the
// upstream repository prefix.
func (c *config) addRule(value string) error {
	prefix, to, ok := strings.Cut(value, "=")
	switch {
	case strings.Contains(value, "@"):
		return badFlag("-rule", hideUser(value), "a user or password does not belong here, see -credential")
	case !ok || prefix == "":
		return badFlag("-rule", value, "want PREFIX=UPSTREAM")
	}
	scheme, rest := cutScheme(to)
	host, path, _ := strings.Cut(rest, "/")
	rule := pullthrough.Rule{Prefix: prefix, UpstreamURL: scheme + host, UpstreamPrefix: path}
	if err := rule.Check(); err != nil {
		return badFlag("-rule", value, reason(err))
	}
	if !isHost(host) {
		return badFlag("-rule", value, fmt.Sprintf("%q is no host name", host))
	}
	if c.upstreams.of(prefix) != nil {
		return badFlag("-rule", value, "there is a rule with this prefix already")
	}
	rule.Prefix = strings.TrimSuffix(prefix, "/")
	c.upstreams = append(c.upstreams, &upstream{rule: rule})
	return nil
}

// cutScheme cuts "https://" off a URL; what has none is a host and its path.
func cutScheme(raw string) (scheme, rest string) {
	if scheme, rest, ok := strings.Cut(raw, "://"); ok {
		return scheme + "://", rest
	}
	return "", raw
}

// reason is what Rule.Check found, without what all of its errors begin with.
func reason(err error) string {
	if e, ok := errors.AsType[*pullthrough.Error](err); ok && e.Err != nil {
		return e.Err.Error()
	}
	return err.Error()
}

// hideUser keeps a password that stands where none belongs out of messages.
func hideUser(value string) string {
	return "*****" + value[strings.LastIndexByte(value, '@'):]
}

// addCredential reads PREFIX=USER:TOKEN. Its messages show PREFIX at most, and
// that only if it can be one rather than a piece of a token with a = in it.
func (c *config) addCredential(value string) error {
	prefix, secret, _ := strings.Cut(value, "=")
	if !isPrefix(prefix) {
		return &flagError{flag: "-credential", value: "*****", why: "want PREFIX=USER:TOKEN"}
	}
	hidden := prefix + "=*****"
	user, token, ok := strings.Cut(secret, ":")
	if !ok || user == "" || token == "" {
		return badFlag("-credential", hidden, "want PREFIX=USER:TOKEN")
	}
	u := c.upstreams.of(prefix)
	if u == nil {
		return badFlag("-credential", hidden, fmt.Sprintf("no -rule has the prefix %q", prefix))
	}
	if u.credential != (pullthrough.Credential{}) {
		return badFlag("-credential", hidden, "there is a credential for this prefix already")
	}
	u.credential = pullthrough.Credential{Username: user, AccessToken: token}
	return nil
}

func isPrefix(s string) bool {
	return pullthrough.Rule{Prefix: s, UpstreamURL: "registry.test"}.Check() == nil
}

// addRealm reads PREFIX=HOST.
func (c *config) addRealm(value string) error {
	prefix, host, ok := strings.Cut(value, "=")
	switch {
	case strings.Contains(value, "@"):
		return badFlag("-realm", hideUser(value), "a user or password does not belong here, see -credential")
	case !ok || prefix == "" || !isHost(host):
		return badFlag("-realm", value, "want PREFIX=HOST, the host name of a token server")
	}
	u := c.upstreams.of(prefix)
	if u == nil {
		return badFlag("-realm", value, fmt.Sprintf("no -rule has the prefix %q", prefix))
	}
	u.realms = append(u.realms, host)
	return nil
}

// isHost reports whether s is a host name, with or without a port, and nothing
// else.
func isHost(s string) bool {
	u, err := url.Parse("https://" + s)
	if err != nil || u.Host != s || u.Hostname() == "" || strings.HasSuffix(s, ":") {
		return false
	}
	_, err = strconv.ParseUint(u.Port(), 10, 16)
	return err == nil || u.Port() == ""
}

// addEndpoint reads HOST=URL. A HOST that no rule names, and none of the API could,
// may be a mistake or part of a command line used everywhere, so it is warned of.
func (c *config) addEndpoint(value string) error {
	host, raw, ok := strings.Cut(value, "=")
	switch {
	case strings.Contains(value, "@"):
		return badFlag("-endpoint", hideUser(value), "a user or password does not belong here, see -credential")
	case !ok || !isHost(host):
		return badFlag("-endpoint", value, "want HOST=URL, HOST as the rule spells it")
	}
	at, ok := parseEndpoint(raw)
	if !ok {
		return badFlag("-endpoint", value, "want a plain http:// or https:// URL after the =")
	}
	name := upstreamHost(host)
	if c.endpoints[name] != nil {
		return badFlag("-endpoint", value, "there is an endpoint for this host already")
	}
	if c.endpoints == nil {
		c.endpoints = map[string]*url.URL{}
	}
	c.endpoints[name] = at
	named := slices.ContainsFunc(c.upstreams, func(u *upstream) bool { return upstreamHost(u.rule.UpstreamURL) == name })
	if !named && !creatable(host) {
		c.warnings = append(c.warnings, fmt.Sprintf("-endpoint %q: no rule names this host", value))
	}
	return nil
}

// creatable reports whether the API would create a rule for the upstream host.
func creatable(host string) bool {
	open := pullthrough.Rule{Prefix: "any", UpstreamURL: upstreamHost(host)}
	closed := open
	closed.CredentialARN = "arn:aws:secretsmanager:us-east-1:123456789012:secret:ecr-pullthroughcache/any"
	return open.Validate("", "") == nil || closed.Validate("", "") == nil
}

// parseEndpoint wants a whole URL, since http or https matters here, and one
// that could stand in a rule.
func parseEndpoint(raw string) (*url.URL, bool) {
	u, err := url.Parse(raw)
	rule := pullthrough.Rule{Prefix: "any", UpstreamURL: raw}
	return u, err == nil && strings.Contains(raw, "://") && rule.Check() == nil && isHost(u.Host)
}

// upstreamHost is the name by which hosts are compared. Docker Hub has three.
func upstreamHost(s string) string {
	_, host := cutScheme(strings.ToLower(s))
	switch host {
	case "docker.io", "index.docker.io":
		return "registry-1.docker.io"
	}
	return host
}
