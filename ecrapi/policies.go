package ecrapi

import (
	"context"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/ecr"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// policy is a kind of document that is kept as it was sent.
type policy[T any] struct {
	what, notFound string           // in sentences, and the exception where there is none
	of             func(*T) *string // where it is kept; "": there is none
}

var (
	repositoryPolicy = policy[CatalogRepository]{"Repository policy", "RepositoryPolicyNotFoundException", func(r *CatalogRepository) *string { return &r.RepositoryPolicy }}
	lifecyclePolicy  = policy[CatalogRepository]{"Lifecycle policy", "LifecyclePolicyNotFoundException", func(r *CatalogRepository) *string { return &r.LifecyclePolicy }}
	registryPolicy   = policy[Settings]{"Registry policy", "RegistryPolicyNotFoundException", func(s *Settings) *string { return &s.RegistryPolicy }}
)

// get returns the policy. It fails if there is none.
func (p policy[T]) get(at place, from *T) (text string, err error) {
	if text = *p.of(from); text != "" {
		return text, nil
	}
	where := ""
	if at.repo.Name != "" {
		where = "for the repository with name '" + at.repo.Name + "' "
	}
	return "", &Error{p.notFound, p.what + " does not exist " + where + "in the registry with id '" + at.reg.account + "'"}
}

// remove deletes the policy, and returns what it was.
func (p policy[T]) remove(at place, from *T) (text string, err error) {
	text, err = p.get(at, from)
	*p.of(from) = ""
	return text, err
}

// checkPolicy checks the policy of a repository, or of a registry, which has resources.
// at is the member's name in ECR's answer.
func checkPolicy(at string, text *string, kind string) error {
	if text == nil || ecr.IsPolicy(*text, kind == "registry") {
		return nil
	}
	return &shape.Error{At: at, Constraint: "Invalid " + kind + " policy provided"}
}

// checkLifecycle checks a lifecycle policy. at is the member's name in ECR's answer.
func checkLifecycle(at string, text *string) error {
	if text == nil {
		return nil
	}
	if wrong := ecr.CheckLifecycle(*text); wrong != "" {
		return &shape.Error{At: at, Constraint: "Lifecycle policy validation failure: " + wrong}
	}
	return nil
}

// GetRepositoryPolicyInput is a request; nil members were not sent.
type GetRepositoryPolicyInput struct {
	RegistryId     *string `json:"registryId,omitempty"`
	RepositoryName *string `json:"repositoryName,omitempty"` // required
}

// GetRepositoryPolicyOutput is an answer.
type GetRepositoryPolicyOutput struct {
	RegistryId     string `json:"registryId,omitempty"`
	RepositoryName string `json:"repositoryName,omitempty"`
	PolicyText     string `json:"policyText,omitempty"`
}

// GetRepositoryPolicy returns the policy of a repository, as it was sent. See
// [GetRepositoryPolicy] for the errors.
//
// [GetRepositoryPolicy]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_GetRepositoryPolicy.html
func (a *API) GetRepositoryPolicy(ctx context.Context, id pullthrough.Identity, in GetRepositoryPolicyInput) (out GetRepositoryPolicyOutput, err error) {
	at, r, err := a.ofRepository(ctx, id, subject{"GetRepositoryPolicy", in.RegistryId, in.RepositoryName}, nil)
	if err != nil {
		return out, err
	}
	text, err := repositoryPolicy.get(at, &r)
	return GetRepositoryPolicyOutput{at.reg.account, at.repo.Name, text}, err
}

// SetRepositoryPolicyInput is a request; nil members were not sent.
type SetRepositoryPolicyInput struct {
	RegistryId     *string `json:"registryId,omitempty"`
	RepositoryName *string `json:"repositoryName,omitempty"` // required
	PolicyText     *string `json:"policyText,omitempty"`     // required
	Force          *bool   `json:"force,omitempty"`          // without effect: nobody is locked out here
}

// SetRepositoryPolicyOutput is an answer.
type SetRepositoryPolicyOutput GetRepositoryPolicyOutput

// SetRepositoryPolicy keeps the policy of a repository. It must be an IAM policy without
// resources. Who may do what is the host's to say, by [pullthrough.Proxy.Authorize]. See
// [SetRepositoryPolicy] for the errors.
//
// [SetRepositoryPolicy]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_SetRepositoryPolicy.html
func (a *API) SetRepositoryPolicy(ctx context.Context, id pullthrough.Identity, in SetRepositoryPolicyInput) (out SetRepositoryPolicyOutput, err error) {
	at, r, err := a.ofRepository(ctx, id, subject{"SetRepositoryPolicy", in.RegistryId, in.RepositoryName}, func(_ place, r *CatalogRepository) error {
		r.RepositoryPolicy = *in.PolicyText
		return nil
	}, shape.RepositoryPolicy.Need("policyText", in.PolicyText), checkPolicy("PolicyText", in.PolicyText, "repository"))
	return SetRepositoryPolicyOutput{at.reg.account, at.repo.Name, r.RepositoryPolicy}, err
}

// DeleteRepositoryPolicyInput is a request; nil members were not sent.
type DeleteRepositoryPolicyInput GetRepositoryPolicyInput

// DeleteRepositoryPolicyOutput is an answer with the policy that was deleted.
type DeleteRepositoryPolicyOutput GetRepositoryPolicyOutput

// DeleteRepositoryPolicy deletes the policy of a repository. See [DeleteRepositoryPolicy]
// for the errors.
//
// [DeleteRepositoryPolicy]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_DeleteRepositoryPolicy.html
func (a *API) DeleteRepositoryPolicy(ctx context.Context, id pullthrough.Identity, in DeleteRepositoryPolicyInput) (out DeleteRepositoryPolicyOutput, err error) {
	var text string
	at, _, err := a.ofRepository(ctx, id, subject{"DeleteRepositoryPolicy", in.RegistryId, in.RepositoryName}, func(at place, r *CatalogRepository) (err error) {
		text, err = repositoryPolicy.remove(at, r)
		return err
	})
	return DeleteRepositoryPolicyOutput{at.reg.account, at.repo.Name, text}, err
}

// GetLifecyclePolicyInput is a request; nil members were not sent.
type GetLifecyclePolicyInput GetRepositoryPolicyInput

// GetLifecyclePolicyOutput is an answer. LastEvaluatedAt is
// [CatalogRepository].LifecycleEvaluatedAt, or the beginning of 1970 if the policy was never
// run.
type GetLifecyclePolicyOutput struct {
	RegistryId          string `json:"registryId,omitempty"`
	RepositoryName      string `json:"repositoryName,omitempty"`
	LifecyclePolicyText string `json:"lifecyclePolicyText,omitempty"`
	LastEvaluatedAt     Time   `json:"lastEvaluatedAt,omitzero"`
}

// GetLifecyclePolicy returns the lifecycle policy of a repository, as it was sent. See
// [GetLifecyclePolicy] for the errors.
//
// [GetLifecyclePolicy]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_GetLifecyclePolicy.html
func (a *API) GetLifecyclePolicy(ctx context.Context, id pullthrough.Identity, in GetLifecyclePolicyInput) (out GetLifecyclePolicyOutput, err error) {
	at, r, err := a.ofRepository(ctx, id, subject{"GetLifecyclePolicy", in.RegistryId, in.RepositoryName}, nil)
	if err != nil {
		return out, err
	}
	text, err := lifecyclePolicy.get(at, &r)
	return GetLifecyclePolicyOutput{at.reg.account, at.repo.Name, text, r.evaluatedAt()}, err
}

// evaluatedAt is when the lifecycle policy was run: 0 if it never was, as in AWS's examples.
func (r *CatalogRepository) evaluatedAt() Time {
	if r.LifecycleEvaluatedAt.IsZero() {
		return Time{time.Unix(0, 0)}
	}
	return Time{r.LifecycleEvaluatedAt}
}

// PutLifecyclePolicyInput is a request; nil members were not sent.
type PutLifecyclePolicyInput struct {
	RegistryId          *string `json:"registryId,omitempty"`
	RepositoryName      *string `json:"repositoryName,omitempty"`      // required
	LifecyclePolicyText *string `json:"lifecyclePolicyText,omitempty"` // required
}

// PutLifecyclePolicyOutput is an answer.
type PutLifecyclePolicyOutput struct {
	RegistryId          string `json:"registryId,omitempty"`
	RepositoryName      string `json:"repositoryName,omitempty"`
	LifecyclePolicyText string `json:"lifecyclePolicyText,omitempty"`
}

// PutLifecyclePolicy keeps the lifecycle policy of a repository. It is not run: that is the
// host's to do. See [PutLifecyclePolicy] for the errors.
//
// [PutLifecyclePolicy]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_PutLifecyclePolicy.html
func (a *API) PutLifecyclePolicy(ctx context.Context, id pullthrough.Identity, in PutLifecyclePolicyInput) (out PutLifecyclePolicyOutput, err error) {
	at, r, err := a.ofRepository(ctx, id, subject{"PutLifecyclePolicy", in.RegistryId, in.RepositoryName}, func(_ place, r *CatalogRepository) error {
		r.LifecyclePolicy, r.LifecycleEvaluatedAt = *in.LifecyclePolicyText, time.Time{}
		return nil
	}, shape.LifecyclePolicyText.Need("lifecyclePolicyText", in.LifecyclePolicyText), checkLifecycle("LifecyclePolicyText", in.LifecyclePolicyText))
	return PutLifecyclePolicyOutput{at.reg.account, at.repo.Name, r.LifecyclePolicy}, err
}

// DeleteLifecyclePolicyInput is a request; nil members were not sent.
type DeleteLifecyclePolicyInput GetRepositoryPolicyInput

// DeleteLifecyclePolicyOutput is an answer with the policy that was deleted.
type DeleteLifecyclePolicyOutput GetLifecyclePolicyOutput

// DeleteLifecyclePolicy deletes the lifecycle policy of a repository. See
// [DeleteLifecyclePolicy] for the errors.
//
// [DeleteLifecyclePolicy]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_DeleteLifecyclePolicy.html
func (a *API) DeleteLifecyclePolicy(ctx context.Context, id pullthrough.Identity, in DeleteLifecyclePolicyInput) (out DeleteLifecyclePolicyOutput, err error) {
	at, _, err := a.ofRepository(ctx, id, subject{"DeleteLifecyclePolicy", in.RegistryId, in.RepositoryName}, func(at place, r *CatalogRepository) (err error) {
		out.LastEvaluatedAt = r.evaluatedAt()
		r.LifecycleEvaluatedAt = time.Time{}
		out.LifecyclePolicyText, err = lifecyclePolicy.remove(at, r)
		return err
	})
	out.RegistryId, out.RepositoryName = at.reg.account, at.repo.Name
	return out, err
}
