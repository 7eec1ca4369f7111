package ecrapi

import (
	"context"
	"fmt"

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
	if !a.exists(ctx, at) {
		return r, a.noSuchRepository(at)
	}
	ok := false
	if change == nil {
		r, ok = a.Images.Catalog.Repository(at.repo)
	} else {
		r, ok, err = a.Images.Catalog.change(ctx, at.repo, func(r *CatalogRepository) error { return change(at, r) })
	}
	if !ok {
		return r, a.noSuchRepository(at)
	}
	return r, err
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
	settings := a.Images.Catalog.newSettings(Template{
		ResourceTags: in.Tags, ImageTagMutability: value(in.ImageTagMutability),
		ImageTagMutabilityExclusionFilters: in.ImageTagMutabilityExclusionFilters, EncryptionConfiguration: in.EncryptionConfiguration,
	})
	if in.ImageScanningConfiguration != nil {
		settings.ImageScanningConfiguration = *in.ImageScanningConfiguration
	}
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
	if a.exists(ctx, at) {
		return out, a.repositoryExists(at)
	}
	if a.Images.Catalog.count() >= maxRepositories {
		return out, &Error{limitExceeded, fmt.Sprintf("There are %d repositories already, which is as many as there may be", maxRepositories)}
	}
	if !a.Images.Catalog.add(at.repo, settings) {
		return out, a.repositoryExists(at)
	}
	a.Images.Catalog.writeChange(ctx)
	return CreateRepositoryOutput{new(a.repository(at, settings))}, nil
}

// maxRepositories is Amazon ECR's quota for one Region. Here it counts for all registries
// together, since callers may be allowed to name any account. Pulls may go beyond it.
const maxRepositories = 100_000

func (a *API) repositoryExists(at place) error {
	return &Error{"RepositoryAlreadyExistsException", "The repository with name '" + at.repo.Name + "' already exists in the registry with id '" + at.reg.account + "'"}
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

// count is the number of all repositories.
func (c *Catalog) count() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.repos)
}

// change changes what is kept of a repository, all of it or, if f fails, nothing. f must
// replace slices, not write to them. ok is false if there is no such repository.
func (c *Catalog) change(ctx context.Context, repo pullthrough.Repo, f func(*CatalogRepository) error) (r CatalogRepository, ok bool, err error) {
	c.mu.Lock()
	have := c.repos[repo]
	if have == nil {
		c.mu.Unlock()
		return r, false, nil
	}
	r = have.CatalogRepository
	if err = f(&r); err == nil {
		have.CatalogRepository = r
	}
	c.mu.Unlock()
	if err == nil {
		c.writeChange(ctx)
	}
	return r, true, err
}
