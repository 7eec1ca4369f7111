package ecrapi

import (
	"context"
	"slices"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// BatchGetImageInput is a request; nil members were not sent.
type BatchGetImageInput struct {
	RegistryId         *string           `json:"registryId,omitempty"`
	RepositoryName     *string           `json:"repositoryName,omitempty"` // required
	ImageIds           []ImageIdentifier `json:"imageIds,omitempty"`       // required
	AcceptedMediaTypes []string          `json:"acceptedMediaTypes,omitempty"`
}

// BatchGetImageOutput is an answer.
type BatchGetImageOutput struct {
	Images   []Image        `json:"images"`
	Failures []ImageFailure `json:"failures"`
}

// Image is an image in an answer.
type Image struct {
	RegistryId             string          `json:"registryId,omitempty"`
	RepositoryName         string          `json:"repositoryName,omitempty"`
	ImageId                ImageIdentifier `json:"imageId"`
	ImageManifest          string          `json:"imageManifest,omitempty"`
	ImageManifestMediaType string          `json:"imageManifestMediaType,omitempty"`
}

// ImageFailure says why there is no image in an answer.
type ImageFailure struct {
	ImageId       ImageIdentifier `json:"imageId"`
	FailureCode   string          `json:"failureCode,omitempty"`
	FailureReason string          `json:"failureReason,omitempty"`
}

// The failure codes of one image of a batch.
const (
	missingDigestAndTag = "MissingDigestAndTag"
	invalidImageDigest  = "InvalidImageDigest"
	tagIsNoDigest       = "ImageTagDoesNotMatchDigest"
	imageNotFound       = "ImageNotFound"

	sayNoImage       = "Requested image not found"
	sayTagIsNoDigest = "Requested image tag does not match the requested image digest"
)

// BatchGetImage returns manifests as a registry client's GET does: a tag is pulled
// through, or checked if it is due. If one image fails, the answer says so. If the
// repository does not exist, or if the secret of its rule cannot be used, the call returns
// an error. An image of a media type that is not accepted counts as not found: nothing is
// converted (accepted-media-types). See [BatchGetImage] for the errors.
//
// [BatchGetImage]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_BatchGetImage.html
func (a *API) BatchGetImage(ctx context.Context, id pullthrough.Identity, in BatchGetImageInput) (out BatchGetImageOutput, err error) {
	at, err := a.repositoryOf(id, in.RegistryId, in.RepositoryName)
	if err != nil {
		return out, err
	}
	if err := in.check(); err != nil {
		return out, err
	}
	out.Images, out.Failures = []Image{}, []ImageFailure{}
	for _, want := range in.ImageIds {
		img, failure, err := a.getImage(ctx, at, id.Caller, want, in.AcceptedMediaTypes)
		switch {
		case err != nil:
			return BatchGetImageOutput{}, err
		case failure != nil:
			out.Failures = append(out.Failures, *failure)
		default:
			out.Images = append(out.Images, img)
		}
	}
	return out, nil
}

func (in *BatchGetImageInput) check() error {
	if in.ImageIds == nil {
		return fails(&shape.Error{At: "imageIds", Constraint: "Member must not be null"})
	}
	return fails(checkIdentifiers(in.ImageIds), shape.String{}.Each("acceptedMediaTypes", in.AcceptedMediaTypes, 1, 100))
}

// failure returns the failureCode, with its reason, of an identifier that can name no
// image. The code is "" if it can.
func (id ImageIdentifier) failure() (code, reason string) {
	switch {
	case id.ImageDigest == nil && id.ImageTag == nil:
		return missingDigestAndTag, "Invalid request parameters: both tag and digest cannot be null"
	case id.ImageDigest != nil && !ocipath.ValidDigest(*id.ImageDigest):
		return invalidImageDigest, "Invalid request parameters: image digest should satisfy the regex '[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+'"
	case id.ImageTag != nil && !ocipath.ValidTag(*id.ImageTag):
		return "InvalidImageTag", "Invalid request parameters: image tag should satisfy the regex '[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}'"
	}
	return "", ""
}

// getImage pulls one image. If it is named by a tag and a digest, it is pulled by the
// tag.
func (a *API) getImage(ctx context.Context, at place, caller string, want ImageIdentifier, accepted []string) (img Image, failure *ImageFailure, err error) {
	fail := func(code, reason string) *ImageFailure { return &ImageFailure{want, code, reason} }
	if code, reason := want.failure(); code != "" {
		return img, fail(code, reason), nil
	}
	ref := or(value(want.ImageTag), value(want.ImageDigest))
	m, err := a.Images.Proxy.Manifest(ctx, pullthrough.Request{Repo: at.repo, Ref: ref, Caller: caller})
	if err != nil {
		code, reason, exception := a.refusal(ctx, at, err, "BatchGetImage", sayNoImage)
		if exception != nil {
			return img, nil, exception
		}
		return img, fail(code, reason), nil
	}
	d := m.Descriptor.Digest.String()
	switch {
	case want.ImageDigest != nil && *want.ImageDigest != d:
		return img, fail(tagIsNoDigest, sayTagIsNoDigest), nil
	case accepted != nil && !slices.Contains(accepted, m.Descriptor.MediaType):
		return img, fail(imageNotFound, sayNoImage), nil
	}
	return Image{
		RegistryId: at.reg.account, RepositoryName: at.repo.Name, ImageId: ImageIdentifier{&d, want.ImageTag},
		ImageManifest: string(m.Content), ImageManifestMediaType: m.Descriptor.MediaType,
	}, nil, nil
}
