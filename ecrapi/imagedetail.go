package ecrapi

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// ImageIdentifier names an image by its tag, its digest or both.
type ImageIdentifier struct {
	ImageDigest *string `json:"imageDigest,omitempty"`
	ImageTag    *string `json:"imageTag,omitempty"`
}

// ImageFilter picks images; nil members were not sent and pick all.
type ImageFilter struct {
	TagStatus   *string `json:"tagStatus,omitempty"`   // TAGGED, UNTAGGED, ANY
	ImageStatus *string `json:"imageStatus,omitempty"` // ACTIVE, ARCHIVED, ACTIVATING, ANY; here all are active
}

// DescribeImagesInput is a request; nil members were not sent.
type DescribeImagesInput struct {
	RegistryId     *string           `json:"registryId,omitempty"`
	RepositoryName *string           `json:"repositoryName,omitempty"` // required
	ImageIds       []ImageIdentifier `json:"imageIds,omitempty"`
	Filter         *ImageFilter      `json:"filter,omitempty"`
	MaxResults     *int64            `json:"maxResults,omitempty"` // nil: 100
	NextToken      *string           `json:"nextToken,omitempty"`
}

// DescribeImagesOutput is an answer. NextToken is "" on the last page.
type DescribeImagesOutput struct {
	ImageDetails []ImageDetail `json:"imageDetails"`
	NextToken    string        `json:"nextToken,omitempty"`
}

// ImageDetail is an image in an answer; members that are zero are absent, but for
// ImageSizeInBytes.
type ImageDetail struct {
	RegistryId             string   `json:"registryId,omitempty"`
	RepositoryName         string   `json:"repositoryName,omitempty"`
	ImageDigest            string   `json:"imageDigest,omitempty"`
	ImageTags              []string `json:"imageTags,omitempty"`
	ImageSizeInBytes       int64    `json:"imageSizeInBytes"`       // of a list: of the largest image in it that is stored, 0 where none is
	ImagePushedAt          Time     `json:"imagePushedAt,omitzero"` // when it was imported
	ImageManifestMediaType string   `json:"imageManifestMediaType,omitempty"`
	ArtifactMediaType      string   `json:"artifactMediaType,omitempty"`
	LastRecordedPullTime   Time     `json:"lastRecordedPullTime,omitzero"`
	SubjectManifestDigest  string   `json:"subjectManifestDigest,omitempty"`
	ImageStatus            string   `json:"imageStatus,omitempty"`
}

const active = "ACTIVE"

// DescribeImages returns the images that are stored, in the order of their digests. It
// never asks upstream. Images that are asked for by name come on one page, and all of
// them must be there. See [DescribeImages] for the errors.
//
// [DescribeImages]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_DescribeImages.html
func (a *API) DescribeImages(ctx context.Context, id pullthrough.Identity, in DescribeImagesInput) (out DescribeImagesOutput, err error) {
	at, err := a.repositoryOf(id, in.RegistryId, in.RepositoryName)
	if err != nil {
		return out, err
	}
	if err := fails(in.Filter.check(), checkIDs(in.ImageIds)); err != nil {
		return out, err
	}
	p, err := pageOf("DescribeImages", in.NextToken, in.MaxResults)
	if err != nil {
		return out, err
	}
	all, err := a.imagesOf(ctx, at, id, "DescribeImages")
	if err != nil {
		return out, err
	}
	if in.ImageIds != nil {
		if err := onePage("imageIds", in.NextToken, in.MaxResults); err != nil {
			return out, err
		}
		if all, err = pick(at, all, in.ImageIds); err != nil {
			return out, err
		}
	}
	all = slices.DeleteFunc(all, func(img image) bool { return !in.Filter.wants(len(img.Tags) > 0) })
	part, next := cutPage(p, all, func(img image) string { return img.Digest.String() })
	out.NextToken = next
	out.ImageDetails = make([]ImageDetail, len(part))
	for i, img := range part {
		out.ImageDetails[i] = ImageDetail{
			RegistryId: at.reg.account, RepositoryName: at.repo.Name, ImageDigest: img.Digest.String(), ImageTags: img.Tags,
			ImageSizeInBytes: img.Size, ImagePushedAt: Time{img.PushedAt}, ImageManifestMediaType: img.MediaType,
			ArtifactMediaType: img.ArtifactType, LastRecordedPullTime: Time{img.PulledAt},
			SubjectManifestDigest: img.Subject.String(), ImageStatus: active,
		}
	}
	return out, nil
}

// imagesOf returns the images of the repository for the operation op, or the exception for
// a caller who may not use it or for a repository that does not exist.
func (a *API) imagesOf(ctx context.Context, at place, id pullthrough.Identity, op string) ([]image, error) {
	if err := a.ask(ctx, at, id, op); err != nil {
		return nil, err
	}
	a.await(ctx, at.repo)
	all, err := a.Images.Catalog.images(ctx, at.repo)
	return all, a.asNoRepository(at, err)
}

// pick returns the images that ids name, each once.
func pick(at place, all []image, ids []ImageIdentifier) (part []image, err error) {
	for _, id := range ids {
		i := slices.IndexFunc(all, func(img image) bool {
			return (id.ImageDigest == nil || *id.ImageDigest == img.Digest.String()) &&
				(id.ImageTag == nil || slices.Contains(img.Tags, *id.ImageTag))
		})
		if i < 0 {
			return nil, noSuchImage(at, id)
		}
		part = append(part, all[i])
	}
	slices.SortFunc(part, func(x, y image) int { return cmp.Compare(x.Digest, y.Digest) })
	return slices.CompactFunc(part, func(x, y image) bool { return x.Digest == y.Digest }), nil
}

// noSuchImage returns the exception with ECR's sentence, which has null for what was not
// sent.
func noSuchImage(at place, id ImageIdentifier) *Error {
	return &Error{"ImageNotFoundException", fmt.Sprintf(
		"The image with imageId {imageDigest:'%s', imageTag:'%s'} does not exist within the repository with name '%s' in the registry with id '%s'",
		orNull(id.ImageDigest), orNull(id.ImageTag), at.repo.Name, at.reg.account)}
}

func orNull(s *string) string {
	if s == nil {
		return "null"
	}
	return *s
}

// checkIDs checks that each identifier has a tag or a digest.
func checkIDs(ids []ImageIdentifier) error {
	if err := checkIdentifiers(ids); err != nil {
		return err
	}
	for i, id := range ids {
		if id.ImageDigest == nil && id.ImageTag == nil {
			return &shape.Error{At: fmt.Sprintf("imageIds.%d.member", i+1), Constraint: "Member must have an imageDigest or an imageTag"}
		}
	}
	return nil
}

// checkIdentifiers checks the constraints of the API model. nil is a list that was not
// sent.
func checkIdentifiers(ids []ImageIdentifier) error {
	if ids == nil {
		return nil
	}
	if err := shape.Length("imageIds", len(ids), 1, 100); err != nil {
		return err
	}
	for i, id := range ids {
		if err := shape.ImageTag.May(fmt.Sprintf("imageIds.%d.member.imageTag", i+1), id.ImageTag); err != nil {
			return err
		}
	}
	return nil
}

func (f *ImageFilter) check() error {
	if f == nil {
		return nil
	}
	return fails(shape.TagStatus.May("filter.tagStatus", f.TagStatus), shape.ImageStatus.May("filter.imageStatus", f.ImageStatus))
}

// wants reports whether the filter picks an image that is tagged or not.
func (f *ImageFilter) wants(tagged bool) bool {
	if f == nil {
		return true
	}
	return (value(f.TagStatus) != "TAGGED" || tagged) && (value(f.TagStatus) != "UNTAGGED" || !tagged) && isActive(f.ImageStatus)
}

// isActive reports whether a filter's status picks active images. All images are active.
func isActive(status *string) bool { return status == nil || *status == active || *status == "ANY" }
