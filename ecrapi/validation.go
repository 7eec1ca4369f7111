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

// ValidatePullThroughCacheRuleOutput is an answer. Members that are zero are absent,
// except IsValid.
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

// ValidatePullThroughCacheRule tells whether a rule would work now. The secret must be
// readable and well-formed. API.Validate checks that the upstream registry can be reached
// and accepts the credential. The answer says what is wrong. An error is returned if the
// rule does not exist, or if a function of the host fails. See
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
	rule, _, err := rules.find(reg, settings.Rules, *in.EcrRepositoryPrefix)
	if err != nil {
		return out, err
	}
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

// try does the first steps of a pull by the rule.
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

// failureText says what is wrong (validate-failure-text). The sentences are our own. It
// returns err if that is a failure of the host.
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
