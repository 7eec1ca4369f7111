package ecrapi

import (
	"context"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/ecr"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// rules are the rules of a registry. 50 is ECR's quota, which cannot be raised. The
// sentences are our own (rule-error-texts).
var rules = list[pullthrough.Rule]{
	key: func(rule pullthrough.Rule) string { return rule.Prefix }, max: 50,
	item: "pull through cache rule with repository prefix", items: "pull through cache rules",
	notFound: "PullThroughCacheRuleNotFoundException", exists: "PullThroughCacheRuleAlreadyExistsException",
}

// CreatePullThroughCacheRuleInput is a request; nil members were not sent.
type CreatePullThroughCacheRuleInput struct {
	EcrRepositoryPrefix      *string `json:"ecrRepositoryPrefix,omitempty"` // required
	UpstreamRegistryUrl      *string `json:"upstreamRegistryUrl,omitempty"` // required
	RegistryId               *string `json:"registryId,omitempty"`
	UpstreamRegistry         *string `json:"upstreamRegistry,omitempty"`
	UpstreamRepositoryPrefix *string `json:"upstreamRepositoryPrefix,omitempty"`
	CredentialArn            *string `json:"credentialArn,omitempty"`
	CustomRoleArn            *string `json:"customRoleArn,omitempty"`
}

// CreatePullThroughCacheRuleOutput is an answer; members that are zero are absent.
type CreatePullThroughCacheRuleOutput struct {
	EcrRepositoryPrefix      string `json:"ecrRepositoryPrefix,omitempty"`
	UpstreamRegistryUrl      string `json:"upstreamRegistryUrl,omitempty"`
	CreatedAt                Time   `json:"createdAt,omitzero"`
	RegistryId               string `json:"registryId,omitempty"`
	UpstreamRegistry         string `json:"upstreamRegistry,omitempty"`
	CredentialArn            string `json:"credentialArn,omitempty"`
	CustomRoleArn            string `json:"customRoleArn,omitempty"`
	UpstreamRepositoryPrefix string `json:"upstreamRepositoryPrefix,omitempty"`
}

// CreatePullThroughCacheRule creates a rule that [pullthrough.Rule.Validate] accepts.
// API.Secrets must have its secret, whatever the content is (empty-secret). Rules may nest
// (nested-prefixes). What the caller has left out is not in the answers, except that the
// name of an upstream registry which needs a secret is derived from its URL
// (upstream-registry-echo). An absent upstream prefix does not become ROOT
// (ecr-upstream-prefix-echo). The first time of update is the time of creation
// (first-update-time). See [CreatePullThroughCacheRule] for the errors.
//
// [CreatePullThroughCacheRule]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_CreatePullThroughCacheRule.html
func (a *API) CreatePullThroughCacheRule(ctx context.Context, id pullthrough.Identity, in CreatePullThroughCacheRuleInput) (out CreatePullThroughCacheRuleOutput, err error) {
	reg, err := a.rulesOf(id, in.RegistryId)
	if err != nil {
		return out, err
	}
	if err := in.check(); err != nil {
		return out, err
	}
	now := a.now()
	rule := pullthrough.Rule{
		Prefix: *in.EcrRepositoryPrefix, UpstreamURL: *in.UpstreamRegistryUrl,
		Upstream: value(in.UpstreamRegistry), UpstreamPrefix: value(in.UpstreamRepositoryPrefix),
		CredentialARN: value(in.CredentialArn), CustomRoleARN: value(in.CustomRoleArn),
		CreatedAt: now, UpdatedAt: now,
	}
	if err := a.validateRule(reg, rule); err != nil {
		return out, asError(err, "CreatePullThroughCacheRule")
	}
	if err := a.checkSecret(ctx, reg, rule.CredentialARN); err != nil {
		return out, err
	}
	err = a.update(ctx, reg, func(s *Settings) (err error) {
		s.Rules, err = rules.add(reg, s.Rules, rule)
		return err
	})
	if err != nil {
		return out, err
	}
	return CreatePullThroughCacheRuleOutput{
		EcrRepositoryPrefix: rule.Prefix, UpstreamRegistryUrl: rule.UpstreamURL, CreatedAt: Time{rule.CreatedAt},
		RegistryId: reg.account, UpstreamRegistry: upstreamName(rule), CredentialArn: rule.CredentialARN,
		CustomRoleArn: rule.CustomRoleARN, UpstreamRepositoryPrefix: rule.UpstreamPrefix,
	}, nil
}

// validateRule refuses what ECR refuses. Of an upstream that API.AllowUpstream allows, ECR
// knows nothing; the rest of the rule is checked as if its upstream took what it is given.
func (a *API) validateRule(reg registry, rule pullthrough.Rule) error {
	if a.AllowUpstream == nil || ecr.TakesUpstream(rule.UpstreamURL) || !a.AllowUpstream(rule.UpstreamURL) {
		return rule.Validate(reg.account, reg.region)
	}
	if err := rule.Check(); err != nil {
		return &Error{invalidParameter, "Invalid input: " + ecr.RedactURL(rule.UpstreamURL) + " is no upstream registry: a host name, or an http or https URL, is expected."}
	}
	rule.UpstreamURL, rule.Upstream, rule.CustomRoleARN = "quay.io", "", ""
	if rule.CredentialARN != "" {
		rule.UpstreamURL = "ghcr.io"
	}
	return rule.Validate(reg.account, reg.region)
}

func (in *CreatePullThroughCacheRuleInput) check() error {
	return fails(
		shape.RulePrefix.Need("ecrRepositoryPrefix", in.EcrRepositoryPrefix),
		shape.String{}.Need("upstreamRegistryUrl", in.UpstreamRegistryUrl),
		shape.Upstream.May("upstreamRegistry", in.UpstreamRegistry),
		shape.RulePrefix.May("upstreamRepositoryPrefix", in.UpstreamRepositoryPrefix),
		shape.CredentialARN.May("credentialArn", in.CredentialArn),
		shape.RoleARN.May("customRoleArn", in.CustomRoleArn),
	)
}

// DescribePullThroughCacheRulesInput is a request; nil members were not sent.
type DescribePullThroughCacheRulesInput struct {
	RegistryId            *string  `json:"registryId,omitempty"`
	EcrRepositoryPrefixes []string `json:"ecrRepositoryPrefixes,omitempty"`
	NextToken             *string  `json:"nextToken,omitempty"`
	MaxResults            *int64   `json:"maxResults,omitempty"` // nil: 100
}

// DescribePullThroughCacheRulesOutput is an answer. NextToken is "" on the last page.
type DescribePullThroughCacheRulesOutput struct {
	PullThroughCacheRules []PullThroughCacheRule `json:"pullThroughCacheRules"`
	NextToken             string                 `json:"nextToken,omitempty"`
}

// PullThroughCacheRule is a rule in an answer. Members that are zero are absent.
type PullThroughCacheRule struct {
	EcrRepositoryPrefix      string `json:"ecrRepositoryPrefix,omitempty"`
	UpstreamRegistryUrl      string `json:"upstreamRegistryUrl,omitempty"`
	CreatedAt                Time   `json:"createdAt,omitzero"`
	RegistryId               string `json:"registryId,omitempty"`
	CredentialArn            string `json:"credentialArn,omitempty"`
	CustomRoleArn            string `json:"customRoleArn,omitempty"`
	UpstreamRepositoryPrefix string `json:"upstreamRepositoryPrefix,omitempty"`
	UpstreamRegistry         string `json:"upstreamRegistry,omitempty"`
	UpdatedAt                Time   `json:"updatedAt,omitzero"`
}

// DescribePullThroughCacheRules returns rules in the order of their prefixes
// (describe-order). Rules that are asked for by prefix come on one page, and all of
// them must exist. A token cannot be used together with prefixes (token-with-filter). See
// [DescribePullThroughCacheRules] for the errors.
//
// [DescribePullThroughCacheRules]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_DescribePullThroughCacheRules.html
func (a *API) DescribePullThroughCacheRules(ctx context.Context, id pullthrough.Identity, in DescribePullThroughCacheRulesInput) (out DescribePullThroughCacheRulesOutput, err error) {
	reg, err := a.rulesOf(id, in.RegistryId)
	if err != nil {
		return out, err
	}
	if err := fails(shape.RulePrefix.Each("ecrRepositoryPrefixes", in.EcrRepositoryPrefixes, 1, 100)); err != nil {
		return out, err
	}
	p, err := pageOf("DescribePullThroughCacheRules", in.NextToken, in.MaxResults)
	switch {
	case err != nil:
		return out, err
	case in.EcrRepositoryPrefixes != nil && hasToken(in.NextToken):
		return out, &Error{invalidParameter, "A nextToken cannot be used together with ecrRepositoryPrefixes."}
	}
	settings, err := a.load(ctx, reg)
	if err != nil {
		return out, err
	}
	part := settings.Rules
	if in.EcrRepositoryPrefixes == nil {
		part, out.NextToken = cutPage(p, part, rules.key)
	} else {
		for _, prefix := range in.EcrRepositoryPrefixes {
			if _, _, err := rules.find(reg, part, prefix); err != nil {
				return out, err
			}
		}
		part = rules.only(part, in.EcrRepositoryPrefixes)
	}
	out.PullThroughCacheRules = make([]PullThroughCacheRule, len(part))
	for i, rule := range part {
		out.PullThroughCacheRules[i] = describeRule(reg, rule)
	}
	return out, nil
}

func describeRule(reg registry, rule pullthrough.Rule) PullThroughCacheRule {
	return PullThroughCacheRule{
		EcrRepositoryPrefix: rule.Prefix, UpstreamRegistryUrl: rule.UpstreamURL, CreatedAt: Time{rule.CreatedAt},
		RegistryId: reg.account, CredentialArn: rule.CredentialARN, CustomRoleArn: rule.CustomRoleARN,
		UpstreamRepositoryPrefix: rule.UpstreamPrefix, UpstreamRegistry: upstreamName(rule), UpdatedAt: Time{rule.UpdatedAt},
	}
}

// upstreamName is the member upstreamRegistry of answers.
func upstreamName(rule pullthrough.Rule) string {
	return or(rule.Upstream, ecr.SecretUpstream(rule.UpstreamURL))
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
