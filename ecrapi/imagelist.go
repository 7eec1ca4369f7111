package ecrapi

import (
	"context"

	"github.com/ecr-pullthrough/pullthrough"
)

// ListImagesInput is a request; nil members were not sent.
type ListImagesInput struct {
	RegistryId     *string      `json:"registryId,omitempty"`
	RepositoryName *string      `json:"repositoryName,omitempty"` // required
	Filter         *ImageFilter `json:"filter,omitempty"`
	MaxResults     *int64       `json:"maxResults,omitempty"` // nil: 100
	NextToken      *string      `json:"nextToken,omitempty"`
}

// ListImagesOutput is an answer. NextToken is "" on the last page.
type ListImagesOutput struct {
	ImageIds  []ImageIdentifier `json:"imageIds"`
	NextToken string            `json:"nextToken,omitempty"`
}

// ListImages returns the names of the images that are stored, in the order of digests
// and tags. There is one name for each tag, and one for each image without a tag. See
// [ListImages] for the errors.
//
// [ListImages]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_ListImages.html
func (a *API) ListImages(ctx context.Context, id pullthrough.Identity, in ListImagesInput) (out ListImagesOutput, err error) {
	at, err := a.repositoryOf(id, in.RegistryId, in.RepositoryName)
	if err != nil {
		return out, err
	}
	if err := fails(in.Filter.check()); err != nil {
		return out, err
	}
	p, err := pageOf("ListImages", in.NextToken, in.MaxResults)
	if err != nil {
		return out, err
	}
	all, err := a.imagesOf(ctx, at, id, "ListImages")
	if err != nil {
		return out, err
	}
	ids := []ImageIdentifier{} // a list, also where it is empty
	for _, img := range all {
		d := img.Digest.String()
		if len(img.Tags) == 0 && in.Filter.wants(false) {
			ids = append(ids, ImageIdentifier{ImageDigest: &d})
		}
		for _, tag := range img.Tags {
			if in.Filter.wants(true) {
				ids = append(ids, ImageIdentifier{ImageDigest: &d, ImageTag: &tag})
			}
		}
	}
	out.ImageIds, out.NextToken = cutPage(p, ids, func(id ImageIdentifier) string { return *id.ImageDigest + " " + value(id.ImageTag) })
	return out, nil
}
