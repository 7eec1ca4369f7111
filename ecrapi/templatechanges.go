package ecrapi

import (
	"context"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// templates are the templates of a registry. ECR has a LimitExceededException for them,
// but 100 is a guess (template-quota). The sentences are our own.
var templates = list[Template]{
	key: func(t Template) string { return t.Prefix }, max: 100,
	item: "repository creation template with prefix", items: "repository creation templates",
	notFound: "TemplateNotFoundException", exists: "TemplateAlreadyExistsException",
}

// CreateRepositoryCreationTemplateInput is a request; nil members were not sent. See
// [Template] for the members.
type CreateRepositoryCreationTemplateInput struct {
	Prefix                             *string                  `json:"prefix,omitempty"` // required
	Description                        *string                  `json:"description,omitempty"`
	EncryptionConfiguration            *EncryptionConfiguration `json:"encryptionConfiguration,omitempty"`
	ResourceTags                       []Tag                    `json:"resourceTags,omitempty"`
	ImageTagMutability                 *string                  `json:"imageTagMutability,omitempty"`
	ImageTagMutabilityExclusionFilters []ExclusionFilter        `json:"imageTagMutabilityExclusionFilters,omitempty"`
	RepositoryPolicy                   *string                  `json:"repositoryPolicy,omitempty"`
	LifecyclePolicy                    *string                  `json:"lifecyclePolicy,omitempty"`
	AppliedFor                         []string                 `json:"appliedFor,omitempty"` // required
	CustomRoleArn                      *string                  `json:"customRoleArn,omitempty"`
}

// CreateRepositoryCreationTemplateOutput is an answer.
type CreateRepositoryCreationTemplateOutput struct {
	RegistryId                 string    `json:"registryId,omitempty"`
	RepositoryCreationTemplate *Template `json:"repositoryCreationTemplate,omitempty"`
}

// CreateRepositoryCreationTemplate creates a template. Tags or a key need a role, but a
// missing role is refused only when the template is applied. See
// [CreateRepositoryCreationTemplate] for the errors.
//
// [CreateRepositoryCreationTemplate]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_CreateRepositoryCreationTemplate.html
func (a *API) CreateRepositoryCreationTemplate(ctx context.Context, id pullthrough.Identity, in CreateRepositoryCreationTemplateInput) (out CreateRepositoryCreationTemplateOutput, err error) {
	reg := a.registry(id.Account, id.Region)
	required := error(nil)
	if in.AppliedFor == nil {
		required = &shape.Error{At: "appliedFor", Constraint: "Member must not be null"}
	}
	if err := fails(in.check(reg), required); err != nil {
		return out, err
	}
	now := Time{a.now()}
	t := Template{
		Prefix: *in.Prefix, CreatedAt: now, UpdatedAt: now,
		EncryptionConfiguration: &EncryptionConfiguration{EncryptionType: new(aes256)}, ImageTagMutability: mutable,
	}
	if err := in.apply(&t); err != nil {
		return out, err
	}
	err = a.update(ctx, reg, func(s *Settings) (err error) {
		s.Templates, err = templates.add(reg, s.Templates, t)
		return err
	})
	if err != nil {
		return out, err
	}
	return CreateRepositoryCreationTemplateOutput{reg.account, &t}, nil
}

// UpdateRepositoryCreationTemplateInput is a request; nil members were not sent and
// stay as they are. See [Template] for the members.
type UpdateRepositoryCreationTemplateInput CreateRepositoryCreationTemplateInput

// UpdateRepositoryCreationTemplateOutput is an answer.
type UpdateRepositoryCreationTemplateOutput CreateRepositoryCreationTemplateOutput

// UpdateRepositoryCreationTemplate changes the members that were sent
// (template-update). See [UpdateRepositoryCreationTemplate] for the errors.
//
// [UpdateRepositoryCreationTemplate]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_UpdateRepositoryCreationTemplate.html
func (a *API) UpdateRepositoryCreationTemplate(ctx context.Context, id pullthrough.Identity, in UpdateRepositoryCreationTemplateInput) (out UpdateRepositoryCreationTemplateOutput, err error) {
	reg := a.registry(id.Account, id.Region)
	changes := CreateRepositoryCreationTemplateInput(in)
	if err := fails(changes.check(reg)); err != nil {
		return out, err
	}
	now := Time{a.now()}
	var t Template
	err = a.update(ctx, reg, func(s *Settings) error {
		have, i, err := templates.find(reg, s.Templates, *in.Prefix)
		if err != nil {
			return err
		}
		t = have
		t.UpdatedAt = now
		if err := changes.apply(&t); err != nil {
			return err
		}
		s.Templates = templates.replace(s.Templates, i, t)
		return nil
	})
	if err != nil {
		return out, err
	}
	return UpdateRepositoryCreationTemplateOutput{reg.account, &t}, nil
}

// apply changes a template that nothing else uses yet. It replaces pointers and slices
// and never writes to what they point to.
func (in *CreateRepositoryCreationTemplateInput) apply(t *Template) error {
	if in.ImageTagMutability != nil { // the old filters belong to the old setting
		t.ImageTagMutability, t.ImageTagMutabilityExclusionFilters = *in.ImageTagMutability, nil
	}
	if in.ImageTagMutabilityExclusionFilters != nil {
		t.ImageTagMutabilityExclusionFilters = in.ImageTagMutabilityExclusionFilters
	}
	if err := fails(checkFilters(t.ImageTagMutability, t.ImageTagMutabilityExclusionFilters)); err != nil {
		return err
	}
	set(&t.Description, in.Description)
	set(&t.RepositoryPolicy, in.RepositoryPolicy)
	set(&t.LifecyclePolicy, in.LifecyclePolicy)
	set(&t.CustomRoleArn, in.CustomRoleArn)
	if in.EncryptionConfiguration != nil {
		t.EncryptionConfiguration = in.EncryptionConfiguration
	}
	if in.ResourceTags != nil {
		t.ResourceTags = in.ResourceTags
	}
	if in.AppliedFor != nil {
		t.AppliedFor = in.AppliedFor
	}
	return nil
}

// checkFilters checks that there are filters if the setting has exclusions, and none
// otherwise.
func checkFilters(mutability string, filters []ExclusionFilter) error {
	const at = "imageTagMutabilityExclusionFilters"
	switch plain := mutability == mutable || mutability == immutable; {
	case plain && len(filters) > 0:
		return &shape.Error{At: at, Constraint: "ImageTagMutabilityExclusionFilters are not allowed when imageTagMutability is set to " + mutability}
	case !plain && len(filters) == 0:
		return &shape.Error{At: at, Constraint: "ImageTagMutabilityExclusionFilters can't be null when imageTagMutability is set to " + mutability}
	}
	return nil
}
