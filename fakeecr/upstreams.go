package fakeecr

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/hostname"
)

// Reload puts what config says of upstreams in the place of what the Server was made
// with: Rules, Credentials, RealmHosts, Secrets and Endpoints. Its other fields are
// checked and not used. As at the start, a rule of config hides one with the same prefix
// that Data keeps, also where the API has changed or deleted it since. Rules that the API
// has created stay. What is stored stays, too, and pulls that run go on. If there is an
// error, nothing has changed.
func (s *Server) Reload(config Config) error {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	config.Now = s.config.Now
	config.Rules = withTimes(config.Rules, s.upstreams.Load().Rules)
	if err := config.complete(); err != nil {
		return fmt.Errorf("fakeecr: %w", err)
	}
	s.upstreams.Store(&config)
	s.settings.give(config.Rules)
	return nil
}

// withTimes returns rules with the times of those that were there before, and are the same:
// a rule with other times counts as another rule.
func withTimes(rules, before []pullthrough.Rule) []pullthrough.Rule {
	rules = slices.Clone(rules)
	for i, rule := range rules {
		if !rule.CreatedAt.IsZero() {
			continue
		}
		for _, old := range before {
			timed := rule
			timed.Prefix = trimPrefix(rule.Prefix)
			timed.CreatedAt, timed.UpdatedAt = old.CreatedAt, old.UpdatedAt
			if timed == old {
				rules[i] = timed
			}
		}
	}
	return rules
}

// means reports whether credentials and realm hosts are about the rule. The API may have
// deleted a rule of the Config and created one with the same prefix for another
// registry, which must not get the credential.
func (c *Config) means(rule pullthrough.Rule) bool {
	return slices.ContainsFunc(c.Rules, func(r pullthrough.Rule) bool {
		return samePrefix(r, rule) && r.UpstreamURL == rule.UpstreamURL
	})
}

// credential returns what the Config gives a rule; the zero Credential if nothing.
func (c *Config) credential(rule pullthrough.Rule) pullthrough.Credential {
	if rule.CredentialARN != "" || !c.means(rule) {
		return pullthrough.Credential{}
	}
	return c.Credentials[trimPrefix(rule.Prefix)]
}

// realmsOf returns the token servers that the Config gives a rule.
func (c *Config) realmsOf(rule pullthrough.Rule) []string {
	hosts := c.RealmHosts[trimPrefix(rule.Prefix)]
	if hosts == nil || !c.means(rule) {
		return nil
	}
	return hosts
}

// endpoint returns where the rule's upstream really is; nil: where the rule says.
func (c *Config) endpoint(rule pullthrough.Rule) *url.URL {
	at, ok := c.Endpoints[hostname.Canonical(rule.UpstreamURL)]
	if !ok && !strings.Contains(rule.UpstreamURL, "://") {
		at = c.Endpoints[AnyHost]
	}
	return at
}
