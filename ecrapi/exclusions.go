package ecrapi

import (
	"context"
	"fmt"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// Exclusion is a principal whose pulls do not change the time of an image's last
// recorded pull. It has no influence on when tags are checked again.
type Exclusion struct {
	PrincipalArn string `json:"principalArn,omitempty"`
	CreatedAt    Time   `json:"createdAt,omitzero"`
}

// maxExclusions is how many ARNs there may be in one registry (exclusion-quota). The
// number is a guess: it is the length of the longest list in the API model.
const maxExclusions = 100

// RegisterPullTimeUpdateExclusionInput is a request; nil members were not sent.
type RegisterPullTimeUpdateExclusionInput struct {
	PrincipalArn *string `json:"principalArn,omitempty"` // required: an IAM role or user
}

// RegisterPullTimeUpdateExclusionOutput is an answer.
type RegisterPullTimeUpdateExclusionOutput Exclusion

// RegisterPullTimeUpdateExclusion excludes a principal. See
// [RegisterPullTimeUpdateExclusion] for the errors.
//
// [RegisterPullTimeUpdateExclusion]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_RegisterPullTimeUpdateExclusion.html
func (a *API) RegisterPullTimeUpdateExclusion(ctx context.Context, id pullthrough.Identity, in RegisterPullTimeUpdateExclusionInput) (out RegisterPullTimeUpdateExclusionOutput, err error) {
	reg := a.registry(id.Account, id.Region)
	if err := fails(shape.PrincipalARN.Need("principalArn", in.PrincipalArn)); err != nil {
		return out, err
	}
	e := Exclusion{*in.PrincipalArn, Time{a.now()}}
	err = a.update(ctx, reg, func(s *Settings) error {
		switch {
		case find(s.Exclusions, exclusionARN, e.PrincipalArn) >= 0:
			return exclusionExists(reg, e.PrincipalArn)
		case len(s.Exclusions) >= maxExclusions:
			return tooManyExclusions(reg)
		}
		s.Exclusions = with(s.Exclusions, e)
		return nil
	})
	if err != nil {
		return out, err
	}
	return RegisterPullTimeUpdateExclusionOutput(e), nil
}

// DeregisterPullTimeUpdateExclusionInput is a request; nil members were not sent.
type DeregisterPullTimeUpdateExclusionInput struct {
	PrincipalArn *string `json:"principalArn,omitempty"` // required
}

// DeregisterPullTimeUpdateExclusionOutput is an answer.
type DeregisterPullTimeUpdateExclusionOutput struct {
	PrincipalArn string `json:"principalArn,omitempty"`
}

// DeregisterPullTimeUpdateExclusion ends the exclusion of a principal. See
// [DeregisterPullTimeUpdateExclusion] for the errors.
//
// [DeregisterPullTimeUpdateExclusion]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_DeregisterPullTimeUpdateExclusion.html
func (a *API) DeregisterPullTimeUpdateExclusion(ctx context.Context, id pullthrough.Identity, in DeregisterPullTimeUpdateExclusionInput) (out DeregisterPullTimeUpdateExclusionOutput, err error) {
	reg := a.registry(id.Account, id.Region)
	if err := fails(shape.PrincipalARN.Need("principalArn", in.PrincipalArn)); err != nil {
		return out, err
	}
	err = a.update(ctx, reg, func(s *Settings) error {
		i := find(s.Exclusions, exclusionARN, *in.PrincipalArn)
		if i < 0 {
			return noSuchExclusion(reg, *in.PrincipalArn)
		}
		s.Exclusions = without(s.Exclusions, i)
		return nil
	})
	if err != nil {
		return out, err
	}
	return DeregisterPullTimeUpdateExclusionOutput{*in.PrincipalArn}, nil
}

// ListPullTimeUpdateExclusionsInput is a request; nil members were not sent.
type ListPullTimeUpdateExclusionsInput struct {
	MaxResults *int64  `json:"maxResults,omitempty"` // nil: 100
	NextToken  *string `json:"nextToken,omitempty"`
}

// ListPullTimeUpdateExclusionsOutput is an answer: ARNs. NextToken is "" on the last
// page.
type ListPullTimeUpdateExclusionsOutput struct {
	PullTimeUpdateExclusions []string `json:"pullTimeUpdateExclusions"`
	NextToken                string   `json:"nextToken,omitempty"`
}

// ListPullTimeUpdateExclusions returns the principals that are excluded, in the order
// of their ARNs (describe-order). See [ListPullTimeUpdateExclusions] for the errors.
//
// [ListPullTimeUpdateExclusions]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_ListPullTimeUpdateExclusions.html
func (a *API) ListPullTimeUpdateExclusions(ctx context.Context, id pullthrough.Identity, in ListPullTimeUpdateExclusionsInput) (out ListPullTimeUpdateExclusionsOutput, err error) {
	p, err := pageOf("ListPullTimeUpdateExclusions", in.NextToken, in.MaxResults)
	if err != nil {
		return out, err
	}
	settings, err := a.load(ctx, a.registry(id.Account, id.Region))
	if err != nil {
		return out, err
	}
	part, next := cutPage(p, settings.Exclusions, exclusionARN)
	out.NextToken = next
	out.PullTimeUpdateExclusions = make([]string, len(part))
	for i, e := range part {
		out.PullTimeUpdateExclusions[i] = e.PrincipalArn
	}
	return out, nil
}

func exclusionARN(e Exclusion) string { return e.PrincipalArn }

// The sentences about exclusions are our own.

func noSuchExclusion(reg registry, arn string) *Error {
	return &Error{"ExclusionNotFoundException", fmt.Sprintf(
		"The pull time update exclusion of '%s' does not exist in the registry with id '%s'", arn, reg.account)}
}

func exclusionExists(reg registry, arn string) *Error {
	return &Error{"ExclusionAlreadyExistsException", fmt.Sprintf(
		"The pull time update exclusion of '%s' already exists in the registry with id '%s'", arn, reg.account)}
}

func tooManyExclusions(reg registry) *Error {
	return &Error{limitExceeded, fmt.Sprintf(
		"The registry with id '%s' has %d pull time update exclusions already, which is as many as there may be", reg.account, maxExclusions)}
}
