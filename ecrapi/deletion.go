package ecrapi

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// DeleteRepositoryInput is a request; nil members were not sent.
type DeleteRepositoryInput struct {
	RegistryId     *string `json:"registryId,omitempty"`
	RepositoryName *string `json:"repositoryName,omitempty"` // required
	Force          *bool   `json:"force,omitempty"`          // delete the images, too
}

// DeleteRepositoryOutput is an answer.
type DeleteRepositoryOutput struct {
	Repository Repository `json:"repository"`
}

// DeleteRepository deletes a repository. Without Force it must have no images. A fetch
// that runs does not bring it back, see [pullthrough.Proxy.DeleteRepo]. See
// [DeleteRepository] for the errors.
//
// [DeleteRepository]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_DeleteRepository.html
func (a *API) DeleteRepository(ctx context.Context, id pullthrough.Identity, in DeleteRepositoryInput) (out DeleteRepositoryOutput, err error) {
	at, err := a.repositoryOf(id, in.RegistryId, in.RepositoryName)
	if err != nil {
		return out, err
	}
	images, err := a.imagesOf(ctx, at, id, "DeleteRepository")
	if err != nil {
		return out, err
	}
	if len(images) > 0 && (in.Force == nil || !*in.Force) {
		return out, &Error{"RepositoryNotEmptyException", "The repository with name '" + at.repo.Name +
			"' in registry with id '" + at.reg.account + "' cannot be deleted because it still contains images"}
	}
	out.Repository = a.repository(ctx, at, a.Images.Catalog.settings(ctx, at.repo))
	if err := a.asNoRepository(at, a.Images.Proxy.DeleteRepo(ctx, at.repo)); err != nil {
		return DeleteRepositoryOutput{}, err
	}
	return out, nil
}

// BatchDeleteImageInput is a request; nil members were not sent.
type BatchDeleteImageInput struct {
	RegistryId     *string           `json:"registryId,omitempty"`
	RepositoryName *string           `json:"repositoryName,omitempty"` // required
	ImageIds       []ImageIdentifier `json:"imageIds,omitempty"`       // required
}

// BatchDeleteImageOutput is an answer.
type BatchDeleteImageOutput struct {
	ImageIds []ImageIdentifier `json:"imageIds"` // each tag that is gone, and each image that had none
	Failures []ImageFailure    `json:"failures"`
}

// BatchDeleteImage deletes images, in the order of ImageIds. By a tag it deletes the tag,
// and with its last tag the image; by a digest the image with all its tags. The next pull
// of what was deleted asks upstream, see [pullthrough.Proxy.DeleteImage]. If one image
// fails, the answer says so: one that a manifest list of the repository refers to stays as
// long as the list does. See [BatchDeleteImage] for the errors.
//
// [BatchDeleteImage]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_BatchDeleteImage.html
func (a *API) BatchDeleteImage(ctx context.Context, id pullthrough.Identity, in BatchDeleteImageInput) (out BatchDeleteImageOutput, err error) {
	const op = "BatchDeleteImage"
	at, err := a.repositoryOf(id, in.RegistryId, in.RepositoryName)
	if err != nil {
		return out, err
	}
	if in.ImageIds == nil {
		return out, fails(&shape.Error{At: "imageIds", Constraint: "Member must not be null"})
	}
	if err := fails(checkIdentifiers(in.ImageIds)); err != nil {
		return out, err
	}
	all, err := a.imagesOf(ctx, at, id, op)
	if err != nil {
		return out, err
	}
	d := &deletion{api: a, at: at, images: map[string]image{}}
	for _, img := range all {
		d.images[img.Digest.String()] = img
	}
	out.ImageIds, out.Failures = []ImageIdentifier{}, []ImageFailure{}
	for _, want := range in.ImageIds {
		gone, code, reason, err := d.delete(ctx, want)
		if err != nil {
			return BatchDeleteImageOutput{}, err
		}
		if code != "" {
			out.Failures = append(out.Failures, ImageFailure{want, code, reason})
		}
		out.ImageIds = append(out.ImageIds, gone...)
	}
	return out, nil
}

// deletion is a batch of deletions. images are those that are left, by their digests.
type deletion struct {
	api    *API
	at     place
	images map[string]image
}

// delete deletes one image of the batch, and returns the identifiers that are gone, or a
// failureCode and its reason.
func (d *deletion) delete(ctx context.Context, want ImageIdentifier) (gone []ImageIdentifier, code, reason string, err error) {
	if code, reason = want.failure(); code != "" {
		return nil, code, reason, nil
	}
	img, tagged := d.find(want)
	switch {
	case img.Digest == "" && tagged:
		return nil, tagIsNoDigest, sayTagIsNoDigest, nil
	case img.Digest == "":
		return nil, imageNotFound, sayNoImage, nil
	}
	left := []string{} // tags of the image
	if want.ImageTag != nil {
		left = slices.DeleteFunc(slices.Clone(img.Tags), func(tag string) bool { return tag == *want.ImageTag })
	}
	ref := img.Digest.String()
	if len(left) > 0 {
		ref = *want.ImageTag
	} else if lists := d.lists(ref); len(lists) > 0 {
		return nil, "ImageReferencedByManifestList", "Requested image referenced by manifest list: [" + strings.Join(lists, ", ") + "]", nil
	}
	err = d.api.Images.Proxy.DeleteImage(ctx, d.at.repo, ref)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, imageNotFound, sayNoImage, nil // somebody was faster
	}
	if err != nil {
		return nil, "", "", err
	}
	return d.note(img, want, left), "", "", nil
}

// find returns the image, or the zero image. tagged reports whether the tag names another
// image then.
func (d *deletion) find(want ImageIdentifier) (img image, tagged bool) {
	for _, one := range d.images {
		hasTag := want.ImageTag == nil || slices.Contains(one.Tags, *want.ImageTag)
		if hasTag && (want.ImageDigest == nil || *want.ImageDigest == one.Digest.String()) {
			return one, true
		}
		tagged = tagged || hasTag && want.ImageTag != nil
	}
	return image{}, tagged
}

// lists returns the digests of the lists that refer to the image, in order.
func (d *deletion) lists(ref string) []string {
	lists := slices.Sorted(maps.Keys(d.images))
	return slices.DeleteFunc(lists, func(list string) bool {
		return !slices.ContainsFunc(d.images[list].Children, func(child digest.Digest) bool { return child.String() == ref })
	})
}

// note takes out what was deleted, and returns its identifiers. left are the tags that the
// image keeps.
func (d *deletion) note(img image, want ImageIdentifier, left []string) (gone []ImageIdentifier) {
	ref := img.Digest.String()
	tags := img.Tags
	if want.ImageTag != nil {
		tags = []string{*want.ImageTag}
	}
	for _, tag := range tags {
		gone = append(gone, ImageIdentifier{&ref, &tag})
	}
	if gone == nil {
		gone = []ImageIdentifier{{ImageDigest: &ref}}
	}
	img.Tags = left
	if d.images[ref] = img; len(left) == 0 {
		delete(d.images, ref)
	}
	return gone
}
