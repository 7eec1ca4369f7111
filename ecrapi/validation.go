package ecrapi

import (
	"context"
	"errors"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// ValidatePullThroughCacheRuleInput is a request; nil members were not sent.
type ValidatePullThroughCacheRuleInput struct {
	EcrRepositoryPrefix *string `json:"ecrRepositoryPrefix,omitempty"` // required
	RegistryId          *string `json:"registryId,omitempty"`
}

// ValidatePullThroughCacheRuleOutput is an answer; members that are zero are absent,
// but for IsValid.
type ValidatePullThroughCacheRuleOutput struct {
	EcrRepositoryPrefix      string `json:"ecrRepositoryPrefix,omitempty"`
	RegistryId               string `json:"registryId,omitempty"`
	UpstreamRegistryUrl      string `json:"upstreamRegistryUrl,omitempty"`
	CredentialArn            string `json:"credentialArn,omitempty"`
	CustomRoleArn            string `json:"customRoleArn,omitempty"`
	UpstreamRepositoryPrefix string `json:"upstreamRepositoryPrefix,omitempty"`
	IsValid                  bool   `json:"isValid"`
	Failure                  string `json:"failure,omitempty"` // why it is not valid
}

// ValidatePullThroughCacheRule tells whether a rule would work now: its secret can
// be read and is well-formed, its upstream registry can be reached and takes the
// credential, as far as API.Validate finds out. What is wrong stands in the answer;
// an error is a rule that does not exist, or a failure of the host's. See
// [ValidatePullThroughCacheRule] for the errors.
//
// [ValidatePullThroughCacheRule]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_ValidatePullThroughCacheRule.html
func (a *API) ValidatePullThroughCacheRule(ctx context.Context, id pullthrough.Identity, in ValidatePullThroughCacheRuleInput) (out ValidatePullThroughCacheRuleOutput, err error) {
	reg, err := a.rulesOf(id, in.RegistryId)
	if err != nil {
		return out, err
	}
	if err := fails(shape.RulePrefix.Need("ecrRepositoryPrefix", in.EcrRepositoryPrefix)); err != nil {
		return out, err
	}
	settings, err := a.load(ctx, reg)
	if err != nil {
		return out, err
	}
	i := find(settings.Rules, rulePrefix, *in.EcrRepositoryPrefix)
	if i < 0 {
		return out, noSuchRule(reg, *in.EcrRepositoryPrefix)
	}
	rule := settings.Rules[i]
	failure, err := failureText(a.try(ctx, reg, rule))
	if err != nil {
		return out, err
	}
	return ValidatePullThroughCacheRuleOutput{
		EcrRepositoryPrefix: rule.Prefix, RegistryId: reg.account, UpstreamRegistryUrl: rule.UpstreamURL,
		CredentialArn: rule.CredentialARN, CustomRoleArn: rule.CustomRoleARN, UpstreamRepositoryPrefix: rule.UpstreamPrefix,
		IsValid: failure == "", Failure: failure,
	}, nil
}

// try does what a pull by the rule would do first.
func (a *API) try(ctx context.Context, reg registry, rule pullthrough.Rule) error {
	repo := pullthrough.Repo{Account: reg.account, Region: reg.region}
	if a.Secrets != nil || rule.CredentialARN == "" {
		if _, err := a.Credentials(ctx, repo, rule); err != nil {
			return err
		}
	}
	if a.Validate == nil {
		return nil
	}
	return a.Validate(ctx, repo, rule)
}

// failureText says what is wrong (validate-failure-text): the sentences are our own.
// An error that is nobody's but the host's comes back.
func failureText(err error) (string, error) {
	if err == nil {
		return "", nil
	}
	for _, trouble := range secretTroubles {
		if errors.Is(err, trouble.err) {
			return trouble.message, nil
		}
	}
	for _, trouble := range upstreamTroubles {
		if errors.Is(err, trouble.err) {
			return trouble.message, nil
		}
	}
	return "", err
}

var upstreamTroubles = []struct {
	err     error
	message string
}{
	{errNoRole, "The upstream registry belongs to another account. Specify a customRoleArn that may pull from it."},
	{pullthrough.ErrDenied, "The upstream registry refused the credentials. Verify that they are correct."},
	{pullthrough.ErrRateLimited, "The upstream registry limits the rate of requests. Try again later."},
	{pullthrough.ErrUnavailable, "The upstream registry could not be reached."},
	{pullthrough.ErrNotFound, "The upstream registry could not be reached."},
	{context.DeadlineExceeded, "The upstream registry could not be reached."},
}
