package ecrapi

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// The sentences of the exceptions' documentation.
var (
	errTag      = &Error{"InvalidTagParameterException", "An invalid parameter has been specified. Tag keys can have a maximum character length of 128 characters, and tag values can have a maximum length of 256 characters."}
	errManyTags = &Error{"TooManyTagsException", "The list of tags on the repository is over the limit. The maximum number of tags that can be applied to a repository is 50."}
)

// checkResourceTags checks tags that a repository is to have. Keys that begin with aws: are
// AWS's own. A key twice is refused as well (tag-twice).
func checkResourceTags(at string, tags []Tag) error {
	keys := map[string]bool{}
	for i, tag := range tags {
		at := fmt.Sprintf("%s.%d.member.", at, i+1)
		if err := fails(shape.String{}.Need(at+"key", tag.Key), shape.String{}.Need(at+"value", tag.Value)); err != nil {
			return err
		}
		if err := checkTagKey(*tag.Key); err != nil || keys[*tag.Key] || shape.TagValue.Check(at, *tag.Value) != nil {
			return errTag
		}
		keys[*tag.Key] = true
	}
	if len(tags) > maxTags {
		return errManyTags
	}
	return nil
}

func checkTagKey(key string) error {
	if shape.TagKey.Check("", key) != nil || strings.HasPrefix(strings.ToLower(key), "aws:") {
		return errTag
	}
	return nil
}

// resource finds the repository that an ARN names.
func (a *API) resource(id pullthrough.Identity, arn *string) (at place, err error) {
	if err := fails(shape.String{}.Need("resourceArn", arn)); err != nil {
		return at, err
	}
	part := strings.SplitN(*arn, ":", 6)
	if len(part) < 6 || part[0] != "arn" || !strings.HasPrefix(part[1], "aws") || part[2] != "ecr" {
		return at, errARN
	}
	name, ok := strings.CutPrefix(part[5], "repository/")
	if !ok || shape.RegistryID.Check("", part[4]) != nil || shape.RepositoryName.Check("", name) != nil {
		return at, errARN
	}
	at, err = a.placeOf(id, &part[4])
	at.repo.Name = name
	if err == nil && part[3] != at.reg.region {
		err = errARN // resource-region
	}
	return at, err
}

var errARN = fails(&shape.Error{At: "resourceArn", Constraint: "Invalid ARN"})

// ListTagsForResourceInput is a request; nil members were not sent.
type ListTagsForResourceInput struct {
	ResourceArn *string `json:"resourceArn,omitempty"` // required: of a repository
}

// ListTagsForResourceOutput is an answer.
type ListTagsForResourceOutput struct {
	Tags []Tag `json:"tags"`
}

// ListTagsForResource returns the tags of a repository in the order of their keys. See
// [ListTagsForResource] for the errors.
//
// [ListTagsForResource]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_ListTagsForResource.html
func (a *API) ListTagsForResource(ctx context.Context, id pullthrough.Identity, in ListTagsForResourceInput) (out ListTagsForResourceOutput, err error) {
	at, err := a.resource(id, in.ResourceArn)
	if err != nil {
		return out, err
	}
	r, err := a.settings(ctx, id, "ListTagsForResource", at, nil)
	if err != nil {
		return out, err
	}
	out.Tags = append([]Tag{}, sortBy(r.ResourceTags, tagKey)...)
	return out, nil
}

func tagKey(tag Tag) string { return value(tag.Key) }

// TagResourceInput is a request; nil members were not sent.
type TagResourceInput struct {
	ResourceArn *string `json:"resourceArn,omitempty"` // required: of a repository
	Tags        []Tag   `json:"tags,omitempty"`        // required
}

// TagResourceOutput is an answer.
type TagResourceOutput struct{}

// TagResource adds tags to a repository. One that it has gets the new value. See
// [TagResource] for the errors.
//
// [TagResource]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_TagResource.html
func (a *API) TagResource(ctx context.Context, id pullthrough.Identity, in TagResourceInput) (out TagResourceOutput, err error) {
	at, err := a.resource(id, in.ResourceArn)
	if err != nil {
		return out, err
	}
	if in.Tags == nil {
		return out, fails(&shape.Error{At: "tags", Constraint: "Member must not be null"})
	}
	if err := checkResourceTags("tags", in.Tags); err != nil {
		return out, err
	}
	_, err = a.settings(ctx, id, "TagResource", at, func(_ place, r *CatalogRepository) error {
		tags := append(without(r.ResourceTags, func(key string) bool {
			return slices.ContainsFunc(in.Tags, func(tag Tag) bool { return *tag.Key == key })
		}), in.Tags...)
		if len(tags) > maxTags {
			return errManyTags
		}
		r.ResourceTags = tags
		return nil
	})
	return out, err
}

// UntagResourceInput is a request; nil members were not sent.
type UntagResourceInput struct {
	ResourceArn *string  `json:"resourceArn,omitempty"` // required: of a repository
	TagKeys     []string `json:"tagKeys,omitempty"`     // required
}

// UntagResourceOutput is an answer.
type UntagResourceOutput struct{}

// UntagResource deletes tags of a repository. Keys that it does not have are ignored. See
// [UntagResource] for the errors.
//
// [UntagResource]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_UntagResource.html
func (a *API) UntagResource(ctx context.Context, id pullthrough.Identity, in UntagResourceInput) (out UntagResourceOutput, err error) {
	at, err := a.resource(id, in.ResourceArn)
	if err != nil {
		return out, err
	}
	if in.TagKeys == nil {
		return out, fails(&shape.Error{At: "tagKeys", Constraint: "Member must not be null"})
	}
	for _, key := range in.TagKeys {
		if err := checkTagKey(key); err != nil {
			return out, err
		}
	}
	_, err = a.settings(ctx, id, "UntagResource", at, func(_ place, r *CatalogRepository) error {
		r.ResourceTags = without(r.ResourceTags, func(key string) bool { return slices.Contains(in.TagKeys, key) })
		return nil
	})
	return out, err
}

// without returns a copy of tags without those whose key is gone.
func without(tags []Tag, gone func(key string) bool) []Tag {
	return slices.DeleteFunc(slices.Clone(tags), func(tag Tag) bool { return gone(tagKey(tag)) })
}
