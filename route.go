package pullthrough

import (
	"context"
	"errors"
	"net/url"
	"strings"

	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// route is the way from one of our repositories to its upstream. It is made
// once per request; nothing downstream looks at names again.
type route struct {
	id     routeID
	repo   Repo
	rule   Rule
	policy Policy
	base   *url.URL // /v2/ stands below it
	name   string   // the repository's name upstream
}

// routeID is the identity of a rule: whatever is shared between requests is
// keyed by it, so that a rule made anew under an old name shares nothing.
type routeID struct {
	account, region                               string
	prefix, upstreamURL, upstreamPrefix, upstream string
	credentialARN, roleARN                        string
	createdAt, updatedAt                          int64
	endpoint                                      string
}

// route finds the rule that covers repo.
func (p *Proxy) route(ctx context.Context, repo Repo) (*route, error) {
	rules, err := p.rules(ctx, repo.Account, repo.Region)
	if err != nil {
		return nil, err
	}
	rule, name, ok := Match(rules, repo.Name)
	if !ok {
		return nil, noRule(rules)
	}
	return p.routeBy(ctx, rule, repo, name)
}

// routeBy is the way that rule says, to name upstream.
func (p *Proxy) routeBy(ctx context.Context, rule Rule, repo Repo, name string) (_ *route, err error) {
	if err := rule.Check(); err != nil {
		return nil, err
	}
	rt := &route{repo: repo, rule: rule, name: name}
	if rt.base, err = p.endpoint(ctx, repo, rule); err != nil {
		return nil, err
	}
	if p.Policy != nil {
		err = guarded("Policy", func() error { rt.policy = p.Policy(ctx, repo, rule); return nil })
	}
	rt.id = routeID{
		repo.Account, repo.Region,
		rule.Prefix, rule.UpstreamURL, rule.UpstreamPrefix, rule.Upstream,
		rule.CredentialARN, rule.CustomRoleARN,
		rule.CreatedAt.UnixNano(), rule.UpdatedAt.UnixNano(),
		rt.base.String(),
	}
	return rt, err
}

func (p *Proxy) rules(ctx context.Context, account, region string) (rules []Rule, err error) {
	defer recovered("Rules", &err)
	return p.Rules.Rules(ctx, account, region)
}

// noRule is ErrNoRule. If there is a rule that can never match, it says so:
// whoever made that one would look for it long.
func noRule(rules []Rule) error {
	for _, r := range rules {
		if err := r.Check(); err != nil {
			return &Error{Kind: ErrNoRule, Err: err}
		}
	}
	return &Error{Kind: ErrNoRule}
}

func (p *Proxy) endpoint(ctx context.Context, repo Repo, rule Rule) (u *url.URL, err error) {
	if p.Endpoint != nil {
		err = guarded("Endpoint", func() (err error) { u, err = p.Endpoint(ctx, repo, rule); return err })
	}
	if u == nil || err != nil {
		if err != nil {
			return nil, err
		}
		return rule.endpoint()
	}
	if err := checkEndpoint(u); err != nil {
		return nil, ruleError("endpoint", redactURL(u.String()), err.Error())
	}
	clean := *u
	clean.Path = strings.TrimRight(u.Path, "/")
	return &clean, nil
}

func (rt *route) error(kind, cause error) *Error {
	return &Error{Kind: kind, Host: rt.base.Host, Err: cause}
}

// offline says, if upstream must not be asked, what is missing.
func (rt *route) offline(ref string) error {
	if !rt.policy.Offline {
		return nil
	}
	message := "offline: " + ocipath.Object(rt.repo.Name, ref) + " is not stored"
	return &Error{Kind: ErrUnavailable, Message: message, Err: errors.New(message)}
}

// masked is err as a client may know it: where the rule says so, nothing tells a
// name that upstream keeps to itself from one that does not exist. An errors.Is
// still finds the refusal.
func (rt *route) masked(err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok || !rt.policy.HideDenied || e.Kind != ErrDenied {
		return err
	}
	hidden := *e
	hidden.Kind, hidden.Err = ErrNotFound, e
	return &hidden
}
