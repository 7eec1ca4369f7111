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
)

// check checks the constraints of the API model, except for members that only Create
// requires.
func (in *CreateRepositoryCreationTemplateInput) check(reg registry) error {
	return fails(
		shape.TemplatePrefix.Need("prefix", in.Prefix),
		shape.Description.May("description", in.Description),
		in.EncryptionConfiguration.check(reg),
		checkTags(in.ResourceTags),
		shape.Mutability.May("imageTagMutability", in.ImageTagMutability),
		checkFilters(in.ImageTagMutabilityExclusionFilters),
		shape.RepositoryPolicy.May("repositoryPolicy", in.RepositoryPolicy),
		shape.LifecyclePolicy.May("lifecyclePolicy", in.LifecyclePolicy),
		shape.AppliedFor.Each("appliedFor", in.AppliedFor, 0, 0),
		shape.RoleARN.May("customRoleArn", in.CustomRoleArn),
	)
}

func (c *EncryptionConfiguration) check(reg registry) error {
	const at = "encryptionConfiguration"
	if c == nil {
		return nil
	}
	err := fails(
		shape.EncryptionType.Need(at+".encryptionType", c.EncryptionType),
		shape.KMSKey.May(at+".kmsKey", c.KmsKey),
	)
	key := value(c.KmsKey)
	switch {
	case err != nil || key == "":
		return err
	case *c.EncryptionType == aes256:
		return &shape.Error{At: at, Constraint: "Invalid encryption configuration: Encryption key should not be set for AES256 encryption."}
	}
	if region := strings.Split(key, ":")[3]; region != reg.region { // the shape ensures that there are four parts
		return &Error{"KmsException", "Invalid arn " + region}
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

func checkFilters(filters []ExclusionFilter) error {
	const at = "imageTagMutabilityExclusionFilters"
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
	}
	return nil
}
