package ecrapi

import (
	"context"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// UpdatePullThroughCacheRuleInput is a request; nil members were not sent.
type UpdatePullThroughCacheRuleInput struct {
	EcrRepositoryPrefix *string `json:"ecrRepositoryPrefix,omitempty"` // required
	RegistryId          *string `json:"registryId,omitempty"`
	CredentialArn       *string `json:"credentialArn,omitempty"`
	CustomRoleArn       *string `json:"customRoleArn,omitempty"` // "": the rule has none from now on (empty-role)
}

// UpdatePullThroughCacheRuleOutput is an answer; members that are zero are absent.
type UpdatePullThroughCacheRuleOutput struct {
	EcrRepositoryPrefix      string `json:"ecrRepositoryPrefix,omitempty"`
	RegistryId               string `json:"registryId,omitempty"`
	UpdatedAt                Time   `json:"updatedAt,omitzero"`
	CredentialArn            string `json:"credentialArn,omitempty"`
	CustomRoleArn            string `json:"customRoleArn,omitempty"`
	UpstreamRepositoryPrefix string `json:"upstreamRepositoryPrefix,omitempty"`
}

// UpdatePullThroughCacheRule changes the secret and the role of a rule, under the
// conditions of Create, and nothing else. A request that has neither is refused. Cached
// tags stay as fresh as they were (update-resets-window). See
// [UpdatePullThroughCacheRule] for the errors.
//
// [UpdatePullThroughCacheRule]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_UpdatePullThroughCacheRule.html
func (a *API) UpdatePullThroughCacheRule(ctx context.Context, id pullthrough.Identity, in UpdatePullThroughCacheRuleInput) (out UpdatePullThroughCacheRuleOutput, err error) {
	reg, err := a.rulesOf(id, in.RegistryId)
	if err != nil {
		return out, err
	}
	err = fails(
		shape.RulePrefix.Need("ecrRepositoryPrefix", in.EcrRepositoryPrefix),
		shape.CredentialARN.May("credentialArn", in.CredentialArn),
		shape.RoleARN.May("customRoleArn", in.CustomRoleArn),
	)
	if err != nil {
		return out, err
	}
	settings, err := a.load(ctx, reg)
	if err != nil {
		return out, err
	}
	if _, err := in.apply(reg, &settings, time.Time{}); err != nil { // the secret is asked for after this check
		return out, err
	}
	if err := a.checkSecret(ctx, reg, value(in.CredentialArn)); err != nil {
		return out, err
	}
	var rule pullthrough.Rule
	now := a.now()
	err = a.update(ctx, reg, func(s *Settings) (err error) {
		rule, err = in.apply(reg, s, now)
		return err
	})
	if err != nil {
		return out, err
	}
	return UpdatePullThroughCacheRuleOutput{
		EcrRepositoryPrefix: rule.Prefix, RegistryId: reg.account, UpdatedAt: Time{rule.UpdatedAt},
		CredentialArn: rule.CredentialARN, CustomRoleArn: rule.CustomRoleARN, UpstreamRepositoryPrefix: rule.UpstreamPrefix,
	}, nil
}

// apply changes the rule and returns it. The host may have added a rule that Create would
// refuse. Such a rule need not become one that Create accepts.
func (in *UpdatePullThroughCacheRuleInput) apply(reg registry, s *Settings, now time.Time) (pullthrough.Rule, error) {
	rule, i, err := rules.find(reg, s.Rules, *in.EcrRepositoryPrefix)
	if err != nil {
		return rule, err
	}
	if in.CredentialArn == nil && in.CustomRoleArn == nil {
		return rule, &Error{invalidParameter, "Invalid input: Please set either credential arn or role arn to update the credentials"}
	}
	ours := rule.Validate(reg.account, reg.region) == nil
	set(&rule.CredentialARN, in.CredentialArn)
	set(&rule.CustomRoleARN, in.CustomRoleArn)
	if err := rule.Validate(reg.account, reg.region); err != nil && ours {
		return rule, asError(err, "UpdatePullThroughCacheRule")
	}
	rule.UpdatedAt = now
	s.Rules = rules.replace(s.Rules, i, rule)
	return rule, nil
}

// set changes a member that was sent.
func set(member *string, sent *string) {
	if sent != nil {
		*member = *sent
	}
}

// DeletePullThroughCacheRuleInput is a request; nil members were not sent.
type DeletePullThroughCacheRuleInput struct {
	EcrRepositoryPrefix *string `json:"ecrRepositoryPrefix,omitempty"` // required
	RegistryId          *string `json:"registryId,omitempty"`
}

// DeletePullThroughCacheRuleOutput is an answer; members that are zero are absent.
type DeletePullThroughCacheRuleOutput struct {
	EcrRepositoryPrefix      string `json:"ecrRepositoryPrefix,omitempty"`
	UpstreamRegistryUrl      string `json:"upstreamRegistryUrl,omitempty"`
	CreatedAt                Time   `json:"createdAt,omitzero"`
	RegistryId               string `json:"registryId,omitempty"`
	CredentialArn            string `json:"credentialArn,omitempty"`
	CustomRoleArn            string `json:"customRoleArn,omitempty"`
	UpstreamRepositoryPrefix string `json:"upstreamRepositoryPrefix,omitempty"`
}

// DeletePullThroughCacheRule deletes a rule. What was pulled through it is still served.
// See [DeletePullThroughCacheRule] for the errors.
//
// [DeletePullThroughCacheRule]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_DeletePullThroughCacheRule.html
func (a *API) DeletePullThroughCacheRule(ctx context.Context, id pullthrough.Identity, in DeletePullThroughCacheRuleInput) (out DeletePullThroughCacheRuleOutput, err error) {
	reg, err := a.rulesOf(id, in.RegistryId)
	if err != nil {
		return out, err
	}
	if err := fails(shape.RulePrefix.Need("ecrRepositoryPrefix", in.EcrRepositoryPrefix)); err != nil {
		return out, err
	}
	var rule pullthrough.Rule
	err = a.update(ctx, reg, func(s *Settings) (err error) {
		s.Rules, rule, err = rules.remove(reg, s.Rules, *in.EcrRepositoryPrefix)
		return err
	})
	if err != nil {
		return out, err
	}
	return DeletePullThroughCacheRuleOutput{
		EcrRepositoryPrefix: rule.Prefix, UpstreamRegistryUrl: rule.UpstreamURL, CreatedAt: Time{rule.CreatedAt},
		RegistryId: reg.account, CredentialArn: rule.CredentialARN, CustomRoleArn: rule.CustomRoleARN,
		UpstreamRepositoryPrefix: rule.UpstreamPrefix,
	}, nil
}
