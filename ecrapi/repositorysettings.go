package ecrapi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// subject is the repository that a request is about.
type subject struct {
	op               string
	registryID, name *string
}

// ofRepository checks a request about the settings of a repository, and returns them. change
// may change them; nil: they are read only. checks are those of the request's own members.
func (a *API) ofRepository(ctx context.Context, id pullthrough.Identity, s subject, change func(place, *CatalogRepository) error, checks ...error) (at place, r CatalogRepository, err error) {
	at, err = a.repositoryOf(id, s.registryID, s.name)
	if err == nil {
		err = fails(checks...)
	}
	if err != nil {
		return at, r, err
	}
	r, err = a.settings(ctx, id, s.op, at, change)
	return at, r, err
}

// settings is ofRepository once the repository is known.
func (a *API) settings(ctx context.Context, id pullthrough.Identity, op string, at place, change func(place, *CatalogRepository) error) (r CatalogRepository, err error) {
	if err := a.ask(ctx, at, id, op); err != nil {
		return r, err
	}
	a.await(ctx, at.repo)
	if change == nil {
		r, err = a.Images.Catalog.Repository(ctx, at.repo)
	} else {
		err = a.Images.Catalog.UpdateRepository(ctx, at.repo, func(s *CatalogRepository) error {
			err := change(at, s)
			r = *s
			return err
		})
	}
	return r, a.asNoRepository(at, err)
}

// CreateRepositoryInput is a request; nil members were not sent.
type CreateRepositoryInput struct {
	RegistryId                         *string                     `json:"registryId,omitempty"`
	RepositoryName                     *string                     `json:"repositoryName,omitempty"` // required
	Tags                               []Tag                       `json:"tags,omitempty"`
	ImageTagMutability                 *string                     `json:"imageTagMutability,omitempty"` // nil: MUTABLE
	ImageTagMutabilityExclusionFilters []ExclusionFilter           `json:"imageTagMutabilityExclusionFilters,omitempty"`
	ImageScanningConfiguration         *ImageScanningConfiguration `json:"imageScanningConfiguration,omitempty"`
	EncryptionConfiguration            *EncryptionConfiguration    `json:"encryptionConfiguration,omitempty"` // nil: AES256
}

// CreateRepositoryOutput is an answer.
type CreateRepositoryOutput struct {
	Repository *Repository `json:"repository,omitempty"`
}

// CreateRepository creates a repository with these settings. Creation templates do not
// apply to it. If a rule covers it, images are pulled into it as into others. See
// [CreateRepository] for the errors.
//
// [CreateRepository]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_CreateRepository.html
func (a *API) CreateRepository(ctx context.Context, id pullthrough.Identity, in CreateRepositoryInput) (out CreateRepositoryOutput, err error) {
	at, err := a.repositoryOf(id, in.RegistryId, in.RepositoryName)
	if err != nil {
		return out, err
	}
	settings := fromTemplate(Template{
		ResourceTags: in.Tags, ImageTagMutability: value(in.ImageTagMutability),
		ImageTagMutabilityExclusionFilters: in.ImageTagMutabilityExclusionFilters, EncryptionConfiguration: in.EncryptionConfiguration,
	})
	if in.ImageScanningConfiguration != nil {
		settings.ImageScanningConfiguration = *in.ImageScanningConfiguration
	}
	settings = a.Images.Catalog.complete(settings)
	err = fails(
		checkMutability(in.ImageTagMutability, in.ImageTagMutabilityExclusionFilters),
		checkFilters(settings.ImageTagMutability, in.ImageTagMutabilityExclusionFilters),
		in.EncryptionConfiguration.check(at.reg, shape.RepositoryKMSKey),
		checkResourceTags("tags", in.Tags),
	)
	if err == nil {
		err = a.ask(ctx, at, id, "CreateRepository")
	}
	if err != nil {
		return out, err
	}
	a.await(ctx, at.repo)
	err = a.Images.Catalog.CreateRepository(ctx, at.repo, settings)
	switch {
	case errors.Is(err, fs.ErrExist):
		err = &Error{"RepositoryAlreadyExistsException", "The repository with name '" + at.repo.Name + "' already exists in the registry with id '" + at.reg.account + "'"}
	case errors.Is(err, errManyRepositories):
		err = &Error{limitExceeded, fmt.Sprintf("There are %d repositories already, which is as many as there may be", maxRepositories)}
	case err == nil:
		out.Repository = new(a.repository(ctx, at, settings))
	}
	return out, err
}

// PutImageTagMutabilityInput is a request; nil members were not sent.
type PutImageTagMutabilityInput struct {
	RegistryId                         *string           `json:"registryId,omitempty"`
	RepositoryName                     *string           `json:"repositoryName,omitempty"`     // required
	ImageTagMutability                 *string           `json:"imageTagMutability,omitempty"` // required
	ImageTagMutabilityExclusionFilters []ExclusionFilter `json:"imageTagMutabilityExclusionFilters,omitempty"`
}

// PutImageTagMutabilityOutput is an answer.
type PutImageTagMutabilityOutput struct {
	RegistryId                         string            `json:"registryId,omitempty"`
	RepositoryName                     string            `json:"repositoryName,omitempty"`
	ImageTagMutability                 string            `json:"imageTagMutability,omitempty"`
	ImageTagMutabilityExclusionFilters []ExclusionFilter `json:"imageTagMutabilityExclusionFilters,omitempty"`
}

// PutImageTagMutability says which tags of a repository must not move from now on. The old
// filters go. See [PutImageTagMutability] for the errors.
//
// [PutImageTagMutability]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_PutImageTagMutability.html
func (a *API) PutImageTagMutability(ctx context.Context, id pullthrough.Identity, in PutImageTagMutabilityInput) (out PutImageTagMutabilityOutput, err error) {
	at, r, err := a.ofRepository(ctx, id, subject{"PutImageTagMutability", in.RegistryId, in.RepositoryName}, func(_ place, r *CatalogRepository) error {
		r.ImageTagMutability, r.ImageTagMutabilityExclusionFilters = *in.ImageTagMutability, in.ImageTagMutabilityExclusionFilters
		return nil
	},
		shape.Mutability.Need("imageTagMutability", in.ImageTagMutability),
		checkMutability(nil, in.ImageTagMutabilityExclusionFilters),
		checkFilters(value(in.ImageTagMutability), in.ImageTagMutabilityExclusionFilters),
	)
	if err != nil {
		return out, err
	}
	return PutImageTagMutabilityOutput{at.reg.account, at.repo.Name, r.ImageTagMutability, r.ImageTagMutabilityExclusionFilters}, nil
}
