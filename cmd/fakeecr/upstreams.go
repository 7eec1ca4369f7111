package main

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/hostname"
)

// addUpstreams reads the flags about upstreams. It reads rules before the flags that are
// about rules, whatever their order on the command line is.
func (c *config) addUpstreams(a *arguments) error {
	for _, add := range []struct {
		values []string
		value  func(string) error
	}{
		{a.secrets, c.addSecret},
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
	err := rule.Check()
	if err == nil && scheme != "" { // a URL may be one that no rule takes
		err = pullthrough.Rule{Prefix: prefix, UpstreamURL: to}.Check()
	}
	if err != nil {
		return badFlag("-rule", value, reason(err))
	}
	if !hostname.Valid(host) {
		return badFlag("-rule", value, fmt.Sprintf("%q is no host name", host))
	}
	rule.Prefix = strings.TrimSuffix(prefix, "/")
	if c.hasRule(rule.Prefix) {
		return badFlag("-rule", value, "there is a rule with this prefix already")
	}
	c.Rules = append(c.Rules, rule)
	return nil
}

func (c *config) hasRule(prefix string) bool {
	return slices.ContainsFunc(c.Rules, func(r pullthrough.Rule) bool { return r.Prefix == prefix })
}

// cutScheme cuts "https://" off a URL. A value without a scheme is a host and its path.
func cutScheme(raw string) (scheme, rest string) {
	if scheme, rest, ok := strings.Cut(raw, "://"); ok {
		return scheme + "://", rest
	}
	return "", raw
}

// reason returns what Rule.Check has found, without the text that all its errors begin
// with.
func reason(err error) string {
	if e, ok := errors.AsType[*pullthrough.Error](err); ok && e.Err != nil {
		return e.Err.Error()
	}
	return err.Error()
}

// hideUser removes user and password from a value for a message. They do not belong into
// the value.
func hideUser(value string) string {
	return "*****" + value[strings.LastIndexByte(value, '@'):]
}

// addCredential reads PREFIX=USER:TOKEN. Its messages show PREFIX at most, and only if it
// can be a prefix. Otherwise it may be a piece of a token with a = in it.
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
	key := strings.TrimSuffix(prefix, "/")
	if !c.hasRule(key) {
		return badFlag("-credential", hidden, fmt.Sprintf("no -rule has the prefix %q", prefix))
	}
	if _, taken := c.Credentials[key]; taken {
		return badFlag("-credential", hidden, "there is a credential for this prefix already")
	}
	put(&c.Credentials, key, pullthrough.Credential{Username: user, AccessToken: token})
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
	case !ok || prefix == "" || !hostname.Valid(host):
		return badFlag("-realm", value, "want PREFIX=HOST, the host name of a token server")
	}
	key := strings.TrimSuffix(prefix, "/")
	if !c.hasRule(key) {
		return badFlag("-realm", value, fmt.Sprintf("no -rule has the prefix %q", prefix))
	}
	put(&c.RealmHosts, key, append(c.RealmHosts[key], host))
	return nil
}

// addEndpoint reads HOST=URL. It warns if no rule names HOST and the API could not create
// one that does. That is no error, since people use one command line in several places.
func (c *config) addEndpoint(value string) error {
	host, raw, ok := strings.Cut(value, "=")
	switch {
	case strings.Contains(value, "@"):
		return badFlag("-endpoint", hideUser(value), "a user or password does not belong here, see -credential")
	case !ok || !hostname.Valid(host):
		return badFlag("-endpoint", value, "want HOST=URL, HOST as the rule spells it")
	}
	at, err := parseEndpoint(raw)
	if err != nil {
		return badFlag("-endpoint", value, err.Error())
	}
	name := hostname.Canonical(host)
	if c.Endpoints[name] != nil {
		return badFlag("-endpoint", value, "there is an endpoint for this host already")
	}
	put(&c.Endpoints, name, at)
	named := slices.ContainsFunc(c.Rules, func(r pullthrough.Rule) bool { return hostname.Canonical(r.UpstreamURL) == name })
	if !named && !isCreatable(host) {
		c.warnings = append(c.warnings, fmt.Sprintf("-endpoint %q: no rule names this host", value))
	}
	return nil
}

// isCreatable reports whether the API would create a rule for the upstream host.
func isCreatable(host string) bool {
	open := pullthrough.Rule{Prefix: "any", UpstreamURL: hostname.Canonical(host)}
	closed := open
	closed.CredentialARN = "arn:aws:secretsmanager:us-east-1:123456789012:secret:ecr-pullthroughcache/any"
	return open.Validate("", "") == nil || closed.Validate("", "") == nil
}

// parseEndpoint reads a URL. It must have a scheme, since http or https matters here, and
// a rule must accept it.
func parseEndpoint(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || !strings.Contains(raw, "://") || !hostname.Valid(u.Host) {
		return nil, errors.New("want a plain http:// or https:// URL after the =")
	}
	if err := (pullthrough.Rule{Prefix: "any", UpstreamURL: raw}).Check(); err != nil {
		return nil, errors.New("want a plain http:// or https:// URL after the =: " + reason(err))
	}
	return u, nil
}

// secretName is what a rule's credentialArn must end in.
var secretName = regexp.MustCompile(`^ecr-pullthroughcache/[A-Za-z0-9/_+.@-]+$`)

// addSecret reads NAME=USER:TOKEN. Its messages show NAME at most, and only if it can be
// a name.
func (c *config) addSecret(value string) error {
	name, secret, _ := strings.Cut(value, "=")
	if !secretName.MatchString(name) {
		return &flagError{flag: "-secret", value: "*****", why: "want NAME=USER:TOKEN with a NAME like ecr-pullthroughcache/docker-hub"}
	}
	hidden := name + "=*****"
	user, token, ok := strings.Cut(secret, ":")
	if !ok || user == "" || token == "" {
		return badFlag("-secret", hidden, "want NAME=USER:TOKEN")
	}
	if _, taken := c.Secrets[name]; taken {
		return badFlag("-secret", hidden, "there is a secret with this name already")
	}
	put(&c.Secrets, name, pullthrough.Credential{Username: user, AccessToken: token})
	return nil
}

// put adds to a map that may be nil.
func put[V any](m *map[string]V, key string, value V) {
	if *m == nil {
		*m = map[string]V{}
	}
	(*m)[key] = value
}
