package fakeecr

import (
	"context"
	"net/http"
	"net/url"
	"slices"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

func (s *Server) newProxy(store pullthrough.Store, api *ecrapi.API) *pullthrough.Proxy {
	c := &s.config
	return &pullthrough.Proxy{
		Store:     store,
		Fill:      c.Fill,
		Rules:     api,
		Endpoint:  s.endpoint,
		Policy:    s.policy,
		Mirror:    c.Mirror,
		Identify:  s.identifyClient,
		Transport: c.Transport,
		Now:       c.Now,
		Logger:    c.Logger,
		Credentials: func(ctx context.Context, repo pullthrough.Repo, rule pullthrough.Rule) (pullthrough.Credential, error) {
			if own := s.upstreams.Load().credential(rule); own != (pullthrough.Credential{}) {
				return own, nil
			}
			return api.Credentials(ctx, repo, rule)
		},
		OnEvent: func(ctx context.Context, e pullthrough.Event) {
			s.Catalog.RecordPull(ctx, e)
			s.Page.Record(ctx, e)
			if c.OnEvent != nil {
				c.OnEvent(ctx, e)
			}
			logEvent(ctx, c.Logger, api, e)
		},
	}
}

// endpoint fits [pullthrough.Proxy.Endpoint].
func (s *Server) endpoint(_ context.Context, _ pullthrough.Repo, rule pullthrough.Rule) (*url.URL, error) {
	return s.upstreams.Load().endpoint(rule), nil
}

// policy fits [pullthrough.Proxy.Policy].
func (s *Server) policy(_ context.Context, _ pullthrough.Repo, rule pullthrough.Rule) pullthrough.Policy {
	policy := s.config.Policy
	if hosts := s.upstreams.Load().realmsOf(rule); hosts != nil {
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
