package fakeecr

import (
	"context"
	"net/http"
	"net/url"
	"slices"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/internal/hostname"
)

func (s *Server) newProxy(store pullthrough.Store, api *ecrapi.API) *pullthrough.Proxy {
	c := &s.config
	return &pullthrough.Proxy{
		Store:    store,
		Fill:     c.Fill,
		Rules:    api,
		Endpoint: c.endpoint,
		Policy:   c.policy,
		Identify: s.identifyClient,
		Now:      c.Now,
		Logger:   c.Logger,
		Credentials: func(ctx context.Context, repo pullthrough.Repo, rule pullthrough.Rule) (pullthrough.Credential, error) {
			if rule.CredentialARN == "" && c.means(rule) {
				return c.Credentials[trimPrefix(rule.Prefix)], nil
			}
			return api.Credentials(ctx, repo, rule)
		},
		OnEvent: func(ctx context.Context, e pullthrough.Event) {
			s.catalog.RecordPull(ctx, e)
			s.page.Record(ctx, e)
			if c.OnEvent != nil {
				c.OnEvent(ctx, e)
			}
			logEvent(ctx, c.Logger, api, e)
		},
	}
}

// endpoint fits [pullthrough.Proxy.Endpoint].
func (c *Config) endpoint(_ context.Context, _ pullthrough.Repo, rule pullthrough.Rule) (*url.URL, error) {
	return c.Endpoints[hostname.Canonical(rule.UpstreamURL)], nil
}

// policy fits [pullthrough.Proxy.Policy].
func (c *Config) policy(_ context.Context, _ pullthrough.Repo, rule pullthrough.Rule) pullthrough.Policy {
	policy := c.Policy
	if hosts := c.RealmHosts[trimPrefix(rule.Prefix)]; hosts != nil && c.means(rule) {
		policy.RealmHosts = slices.Concat(policy.RealmHosts, hosts)
	}
	return policy
}

// identifyClient fits [pullthrough.Proxy.Identify].
func (s *Server) identifyClient(r *http.Request) (pullthrough.Identity, error) {
	if s.config.RequireLogin {
		if err := s.logins.admit(r); err != nil {
			return pullthrough.Identity{}, err
		}
	}
	return s.config.identify(r)
}

// identify returns the same account and Region for every request, since a request that
// docker sends to localhost:5000 names none.
func (c *Config) identify(*http.Request) (pullthrough.Identity, error) {
	return pullthrough.Identity{Account: c.Account, Region: c.Region}, nil
}
