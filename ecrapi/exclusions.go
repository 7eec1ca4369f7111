package ecrapi

import (
	"context"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// Exclusion is a principal whose pulls do not change the time of an image's last
// recorded pull. It has no influence on when tags are checked again.
type Exclusion struct {
	PrincipalArn string `json:"principalArn,omitempty"`
	CreatedAt    Time   `json:"createdAt,omitzero"`
}

// exclusions are the exclusions of a registry. 100 is a guess: it is the length of the
// longest list in the API model (exclusion-quota). The sentences are our own.
var exclusions = list[Exclusion]{
	key: func(e Exclusion) string { return e.PrincipalArn }, max: 100,
	item: "pull time update exclusion of", items: "pull time update exclusions",
	notFound: "ExclusionNotFoundException", exists: "ExclusionAlreadyExistsException",
}

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
	err = a.update(ctx, reg, func(s *Settings) (err error) {
		s.Exclusions, err = exclusions.add(reg, s.Exclusions, e)
		return err
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
	err = a.update(ctx, reg, func(s *Settings) (err error) {
		s.Exclusions, _, err = exclusions.remove(reg, s.Exclusions, *in.PrincipalArn)
		return err
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
	part, next := cutPage(p, settings.Exclusions, exclusions.key)
	out.NextToken = next
	out.PullTimeUpdateExclusions = make([]string, len(part))
	for i, e := range part {
		out.PullTimeUpdateExclusions[i] = e.PrincipalArn
	}
	return out, nil
}
