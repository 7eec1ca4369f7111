package ecrapi

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ecr-pullthrough/pullthrough"
)

// Template is a repository creation template: the settings of repositories that ECR
// itself creates, for example when somebody pulls through a rule. Members that are zero
// are absent in answers. See [RepositoryCreationTemplate] for what each means.
//
// [RepositoryCreationTemplate]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_RepositoryCreationTemplate.html
type Template struct {
	Prefix                             string                   `json:"prefix,omitempty"`
	Description                        string                   `json:"description,omitempty"`
	EncryptionConfiguration            *EncryptionConfiguration `json:"encryptionConfiguration,omitempty"` // AES256 if the caller has not set it
	ResourceTags                       []Tag                    `json:"resourceTags,omitempty"`
	ImageTagMutability                 string                   `json:"imageTagMutability,omitempty"` // MUTABLE if the caller has not set it
	ImageTagMutabilityExclusionFilters []ExclusionFilter        `json:"imageTagMutabilityExclusionFilters,omitempty"`
	RepositoryPolicy                   string                   `json:"repositoryPolicy,omitempty"`
	LifecyclePolicy                    string                   `json:"lifecyclePolicy,omitempty"`
	AppliedFor                         []string                 `json:"appliedFor,omitempty"`
	CustomRoleArn                      string                   `json:"customRoleArn,omitempty"`
	CreatedAt                          Time                     `json:"createdAt,omitzero"`
	UpdatedAt                          Time                     `json:"updatedAt,omitzero"`
}

// EncryptionConfiguration says how a repository is encrypted.
type EncryptionConfiguration struct {
	EncryptionType *string `json:"encryptionType,omitempty"` // AES256, KMS, KMS_DSSE; required
	KmsKey         *string `json:"kmsKey,omitempty"`         // the key's ARN; "" or nil: AWS's own
}

// Tag is a tag of a repository. Its members' names are upper case on the wire.
type Tag struct {
	Key   *string `json:"Key,omitempty"`   // required
	Value *string `json:"Value,omitempty"` // required
}

// ExclusionFilter names tags to which the tag mutability of a repository does not apply.
type ExclusionFilter struct {
	FilterType *string `json:"filterType,omitempty"` // WILDCARD; required
	Filter     *string `json:"filter,omitempty"`     // "release-*"; required
}

// Values of the members.
const (
	mutable            = "MUTABLE"
	immutable          = "IMMUTABLE"
	aes256             = "AES256"
	appliedPullThrough = "PULL_THROUGH_CACHE"
)

// Template returns the creation template for a repository that a pull creates. It picks
// among the templates for PULL_THROUGH_CACHE only (template-shadowing): the one with the
// longest prefix on whole path components, and ROOT last. ok is false if there is none.
// The repository is then mutable and AES256, without policies and tags.
//
// A template that has tags or a KMS key but no role cannot be applied. It is returned
// with an error that Is [pullthrough.ErrNoRule], so that clients read NAME_UNKNOWN
// (template-role-missing). Other errors are those of the State.
func (a *API) Template(ctx context.Context, repo pullthrough.Repo) (t Template, ok bool, err error) {
	settings, err := a.load(ctx, a.registry(repo.Account, repo.Region))
	if err != nil {
		return t, false, err
	}
	var prefixes []pullthrough.Rule // templates match as rules do
	for _, candidate := range settings.Templates {
		if slices.Contains(candidate.AppliedFor, appliedPullThrough) {
			prefixes = append(prefixes, pullthrough.Rule{Prefix: candidate.Prefix})
		}
	}
	match, _, ok := pullthrough.Match(prefixes, repo.Name)
	if !ok {
		return t, false, nil
	}
	t = settings.Templates[templates.index(settings.Templates, match.Prefix)]
	if t.needsRole() && t.CustomRoleArn == "" {
		return t, true, &pullthrough.Error{Kind: pullthrough.ErrNoRule, Repo: repo, Err: fmt.Errorf("creation template %q: %w", t.Prefix, errTemplateRole)}
	}
	return t, true, nil
}

var errTemplateRole = errors.New("tags or a KMS key need a customRoleArn")

func (t *Template) needsRole() bool {
	return len(t.ResourceTags) > 0 || t.EncryptionConfiguration != nil && value(t.EncryptionConfiguration.EncryptionType) != aes256
}
