package ecrapi

import (
	"fmt"
	"strings"

	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

const (
	// maxTags is ECR's limit for the tags of a repository.
	maxTags    = 50
	maxFilters = 5
	// maxWildcards is documented. The sentence is our own.
	maxWildcards = 2
)

// check checks the constraints of the API model, except for members that only Create
// requires.
func (in *CreateRepositoryCreationTemplateInput) check(reg registry) error {
	return fails(
		shape.TemplatePrefix.Need("prefix", in.Prefix),
		shape.Description.May("description", in.Description),
		in.EncryptionConfiguration.check(reg, shape.KMSKey),
		checkTags(in.ResourceTags),
		checkMutability(in.ImageTagMutability, in.ImageTagMutabilityExclusionFilters),
		shape.RepositoryPolicy.May("repositoryPolicy", in.RepositoryPolicy),
		checkPolicy("repositoryPolicy", unlessEmpty(in.RepositoryPolicy), "repository"),
		shape.LifecyclePolicy.May("lifecyclePolicy", in.LifecyclePolicy),
		checkLifecycle("lifecyclePolicy", unlessEmpty(in.LifecyclePolicy)),
		shape.AppliedFor.Each("appliedFor", in.AppliedFor, 0, 0),
		shape.RoleARN.May("customRoleArn", in.CustomRoleArn),
	)
}

// unlessEmpty is nil for a policy of no characters, which means none.
func unlessEmpty(policy *string) *string {
	if value(policy) == "" {
		return nil
	}
	return policy
}

// check checks how a repository is to be encrypted. key is what the name of a key looks like.
func (c *EncryptionConfiguration) check(reg registry, key shape.String) error {
	const at = "encryptionConfiguration"
	if c == nil {
		return nil
	}
	err := fails(
		shape.EncryptionType.Need(at+".encryptionType", c.EncryptionType),
		key.May(at+".kmsKey", c.KmsKey),
	)
	switch {
	case err != nil || value(c.KmsKey) == "":
		return err
	case *c.EncryptionType == aes256:
		return &shape.Error{At: at, Constraint: "Invalid encryption configuration: Encryption key should not be set for AES256 encryption."}
	}
	// A repository's key may be named by an alias or an id, too, which have no Region.
	if part := strings.Split(*c.KmsKey, ":"); len(part) > 3 && part[3] != reg.region {
		return &Error{"KmsException", "Invalid arn " + part[3]}
	}
	return nil
}

func checkTags(tags []Tag) error {
	if err := shape.Length("resourceTags", len(tags), 0, maxTags); err != nil {
		return err
	}
	for i, tag := range tags {
		at := fmt.Sprintf("resourceTags.%d.member.", i+1)
		if err := fails(shape.TagKey.Need(at+"key", tag.Key), shape.TagValue.Need(at+"value", tag.Value)); err != nil {
			return err
		}
	}
	return nil
}

// checkMutability checks the constraints of the API model. Whether there are filters only
// where they belong is checkFilters' to tell.
func checkMutability(mutability *string, filters []ExclusionFilter) error {
	const at = "imageTagMutabilityExclusionFilters"
	if err := shape.Mutability.May("imageTagMutability", mutability); err != nil {
		return err
	}
	if filters == nil {
		return nil
	}
	if err := shape.Length(at, len(filters), 1, maxFilters); err != nil {
		return err
	}
	for i, f := range filters {
		at := fmt.Sprintf(at+".%d.member.", i+1)
		if err := fails(shape.FilterType.Need(at+"filterType", f.FilterType), shape.Filter.Need(at+"filter", f.Filter)); err != nil {
			return err
		}
		if strings.Count(*f.Filter, "*") > maxWildcards {
			return &shape.Error{At: at + "filter", Constraint: fmt.Sprintf("Member must have at most %d wildcards", maxWildcards)}
		}
	}
	return nil
}
