package main

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/fakeecr"
	"github.com/ecr-pullthrough/pullthrough/internal/hostname"
)

// addUpstreams reads the flags about upstreams. It reads rules before the flags that are
// about rules, whatever their order on the command line is.
func (c *config) addUpstreams(a *arguments) error {
	credentials, err := withFiles("-credential-file", a.credentials, a.credentialFiles)
	if err != nil {
		return err
	}
	secrets, err := withFiles("-secret-file", a.secrets, a.secretFiles)
	if err != nil {
		return err
	}
	if err := addAll(secrets, c.addSecret); err != nil {
		return err
	}
	if err := addAll(a.rules, c.addRule); err != nil {
		return err
	}
	for _, rule := range a.described {
		if err := c.addDescribed(a.file, rule); err != nil {
			return err
		}
	}
	if err := addAll(credentials, c.addCredential); err != nil {
		return err
	}
	if err := addAll(a.realms, c.addRealm); err != nil {
		return err
	}
	return addAll(a.endpoints, c.addEndpoint)
}

// addAll adds settings until one cannot be used. The error says where it stands.
func addAll(settings []setting, add func(value string, from source) error) error {
	for _, s := range settings {
		err := add(s.value, s.from)
		if e, ok := errors.AsType[*flagError](err); ok {
			e.place = s.place
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// addRule reads PREFIX=UPSTREAM. The path behind UPSTREAM's host is the
// upstream repository prefix.
func (c *config) addRule(value string, from source) error {
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
	if !c.addRuleOf(from, rule) {
		return badFlag("-rule", value, "there is a rule with this prefix already")
	}
	return nil
}

// addRuleOf adds a rule, unless a source that counts more has one with its prefix. It reports
// false if the source itself has.
func (c *config) addRuleOf(from source, rule pullthrough.Rule) bool {
	rule.Prefix = strings.TrimSuffix(rule.Prefix, "/")
	switch c.claimed.claim("rule", rule.Prefix, from) {
	case twice:
		return false
	case hidden:
		c.claimed.hide(rule, from, c.Rules)
	case counts:
		c.Rules = append(c.Rules, rule)
	}
	return true
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
func (c *config) addCredential(value string, from source) error {
	prefix, secret, named := strings.Cut(value, "=")
	if !named || !isPrefix(prefix) {
		return &flagError{flag: "-credential", value: "*****", why: "want PREFIX=USER:TOKEN"}
	}
	shown := prefix + "=*****"
	user, token, ok := strings.Cut(secret, ":")
	if !ok || user == "" || token == "" {
		return badFlag("-credential", shown, "want PREFIX=USER:TOKEN")
	}
	key := strings.TrimSuffix(prefix, "/")
	if !c.hasRule(key) {
		return badFlag("-credential", shown, fmt.Sprintf("no -rule has the prefix %q", prefix))
	}
	switch c.claimed.claim("credential", key, from) {
	case twice:
		return badFlag("-credential", shown, "there is a credential for this prefix already")
	case counts:
		put(&c.Credentials, key, pullthrough.Credential{Username: user, AccessToken: token})
	}
	return nil
}

func isPrefix(s string) bool {
	return pullthrough.Rule{Prefix: s, UpstreamURL: "registry.test"}.Check() == nil
}

// addRealm reads PREFIX=HOST.
func (c *config) addRealm(value string, from source) error {
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
	if !c.claimed.isHidden(key, from) {
		put(&c.RealmHosts, key, append(c.RealmHosts[key], host))
	}
	return nil
}

// addEndpoint reads HOST=URL. It warns if no rule names HOST and the API could not create
// one that does. That is no error, since people use one command line in several places.
func (c *config) addEndpoint(value string, from source) error {
	host, raw, ok := strings.Cut(value, "=")
	switch {
	case strings.Contains(value, "@"):
		return badFlag("-endpoint", hideUser(value), "a user or password does not belong here, see -credential")
	case !ok || host != fakeecr.AnyHost && !hostname.Valid(host):
		return badFlag("-endpoint", value, "want HOST=URL, HOST as the rule spells it")
	}
	at, err := parseEndpoint(raw)
	if err != nil {
		return badFlag("-endpoint", value, err.Error())
	}
	name := hostname.Canonical(host)
	switch c.claimed.claim("endpoint", name, from) {
	case twice:
		return badFlag("-endpoint", value, "there is an endpoint for this host already")
	case hidden:
		return nil
	}
	put(&c.Endpoints, name, at)
	named := slices.ContainsFunc(c.Rules, func(r pullthrough.Rule) bool { return hostname.Canonical(r.UpstreamURL) == name })
	if !named && host != fakeecr.AnyHost && !isCreatable(host) {
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
func (c *config) addSecret(value string, from source) error {
	name, secret, _ := strings.Cut(value, "=")
	if !secretName.MatchString(name) {
		return &flagError{flag: "-secret", value: "*****", why: "want NAME=USER:TOKEN with a NAME like ecr-pullthroughcache/docker-hub"}
	}
	shown := name + "=*****"
	user, token, ok := strings.Cut(secret, ":")
	if !ok || user == "" || token == "" {
		return badFlag("-secret", shown, "want NAME=USER:TOKEN")
	}
	switch c.claimed.claim("secret", name, from) {
	case twice:
		return badFlag("-secret", shown, "there is a secret with this name already")
	case counts:
		put(&c.Secrets, name, pullthrough.Credential{Username: user, AccessToken: token})
	}
	return nil
}

// put adds to a map that may be nil.
func put[K comparable, V any](m *map[K]V, key K, value V) {
	if *m == nil {
		*m = map[K]V{}
	}
	(*m)[key] = value
}
