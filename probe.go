package pullthrough

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
)

// ValidateRule tells whether a pull by the rule would get anywhere now: it asks the
// rule's upstream registry for /v2/ (OCI distribution spec, "Determining Support"),
// with the credentials of the rule if it is challenged, and keeps nothing of what it
// learns. repo says whose rule it is; it needs no name. It is made for
// ValidatePullThroughCacheRule of Amazon ECR: see ecrapi.API.Validate.
//
// The error is an [*Error]: ErrDenied when the registry or its token server refuses
// the credentials or Proxy.Credentials has none, ErrUnavailable when the registry
// cannot be reached, ErrNotFound when what answers is no registry, ErrInvalid for a
// rule that can never work. Rule.Validate is not asked, nor is Authorize.
func (p *Proxy) ValidateRule(ctx context.Context, repo Repo, rule Rule) error {
	return at(ctx, p.validateRule(ctx, repo, rule), repo, "")
}

func (p *Proxy) validateRule(ctx context.Context, repo Repo, rule Rule) error {
	rt, err := p.routeBy(ctx, rule, repo, "")
	if err != nil {
		return err
	}
	rt.policy.AnonymousFallback = false // it is the credentials that are in question
	_, _, err = p.state().probes.Do(ctx, rt.key(""), func(call *probeCall) (struct{}, error) {
		return struct{}{}, p.state().upstream.probe(call.Context(), rt)
	})
	return err
}

type probeCall = flight.Call[objectKey, struct{}]

// probe is asked by an authorizer of its own: what pulls have learnt may be out of
// date, and it is the credentials of now that count.
func (u *upstream) probe(ctx context.Context, rt *route) error {
	ctx, cancel := context.WithTimeout(ctx, smallTimeout)
	defer cancel()
	target := rt.base.JoinPath("v2/").String()
	resp, err := u.ask(ctx, rt, u.auth.fresh(), target, question{method: http.MethodGet, kind: "probe", effort: rt.policy.effort()})
	if err != nil {
		return err
	}
	defer drain(resp)
	switch {
	case resp.StatusCode != http.StatusOK:
		return statusError(rt, resp)
	case strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html"):
		return rt.error(ErrNotFound, errors.New("upstream answers with a web page"))
	}
	return nil
}
