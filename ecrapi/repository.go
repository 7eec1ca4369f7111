package ecrapi

import (
	"context"
	"slices"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// DescribeRepositoriesInput is a request; nil members were not sent.
type DescribeRepositoriesInput struct {
	RegistryId      *string  `json:"registryId,omitempty"`
	RepositoryNames []string `json:"repositoryNames,omitempty"`
	MaxResults      *int64   `json:"maxResults,omitempty"` // nil: 100
	NextToken       *string  `json:"nextToken,omitempty"`
}

// DescribeRepositoriesOutput is an answer. NextToken is "" on the last page.
type DescribeRepositoriesOutput struct {
	Repositories []Repository `json:"repositories"`
	NextToken    string       `json:"nextToken,omitempty"`
}

// Repository is a repository in an answer.
type Repository struct {
	RepositoryArn                      string                     `json:"repositoryArn,omitempty"`
	RegistryId                         string                     `json:"registryId,omitempty"`
	RepositoryName                     string                     `json:"repositoryName,omitempty"`
	RepositoryUri                      string                     `json:"repositoryUri,omitempty"`
	CreatedAt                          Time                       `json:"createdAt,omitzero"`
	ImageTagMutability                 string                     `json:"imageTagMutability,omitempty"`
	ImageTagMutabilityExclusionFilters []ExclusionFilter          `json:"imageTagMutabilityExclusionFilters,omitempty"`
	ImageScanningConfiguration         ImageScanningConfiguration `json:"imageScanningConfiguration"`
	EncryptionConfiguration            EncryptionConfiguration    `json:"encryptionConfiguration"`
}

// ImageScanningConfiguration says whether images are scanned. Here none is.
type ImageScanningConfiguration struct {
	ScanOnPush bool `json:"scanOnPush"`
}

// DescribeRepositories returns repositories in the order of their names. Repositories
// that are asked for by name come on one page, and all of them must exist. See
// [DescribeRepositories] for the errors.
//
// [DescribeRepositories]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_DescribeRepositories.html
func (a *API) DescribeRepositories(ctx context.Context, id pullthrough.Identity, in DescribeRepositoriesInput) (out DescribeRepositoriesOutput, err error) {
	const op = "DescribeRepositories"
	at, err := a.placeOf(id, in.RegistryId)
	if err != nil {
		return out, err
	}
	if err := fails(shape.RepositoryName.Each("repositoryNames", in.RepositoryNames, 1, 100)); err != nil {
		return out, err
	}
	p, err := pageOf(op, in.NextToken, in.MaxResults)
	if err != nil {
		return out, err
	}
	names := in.RepositoryNames
	if names != nil {
		if err := onePage("repositoryNames", in.NextToken, in.MaxResults); err != nil {
			return out, err
		}
		names = slices.Compact(slices.Sorted(slices.Values(names)))
	}
	if err := a.askEach(ctx, at, id, op, names); err != nil {
		return out, err
	}
	if names == nil {
		all, err := a.Images.Catalog.Repositories(ctx, at.repo.Account, at.repo.Region)
		if err != nil {
			return out, err
		}
		names, out.NextToken = cutPage(p, all, func(name string) string { return name })
	}
	out.Repositories = make([]Repository, 0, len(names))
	for _, at.repo.Name = range names {
		if in.RepositoryNames != nil {
			if err := a.asNoRepository(at, a.Images.Catalog.find(ctx, at.repo)); err != nil {
				return DescribeRepositoriesOutput{}, err
			}
		}
		out.Repositories = append(out.Repositories, a.repository(at, a.Images.Catalog.settings(ctx, at.repo)))
	}
	return out, nil
}

// askEach asks for each of the repositories, or for the registry if they are nil.
func (a *API) askEach(ctx context.Context, at place, id pullthrough.Identity, op string, names []string) error {
	if names == nil {
		return a.ask(ctx, at, id, op)
	}
	for _, at.repo.Name = range names {
		if err := a.ask(ctx, at, id, op); err != nil {
			return err
		}
	}
	return nil
}

func (a *API) repository(at place, r CatalogRepository) Repository {
	_, host, _ := strings.Cut(a.registryURL(at.reg), "://")
	return Repository{
		RepositoryArn: repositoryARN(at.reg, at.repo.Name), RegistryId: at.reg.account, RepositoryName: at.repo.Name,
		RepositoryUri: strings.TrimSuffix(host, "/") + "/" + at.repo.Name, CreatedAt: Time{r.CreatedAt},
		ImageTagMutability: r.ImageTagMutability, ImageTagMutabilityExclusionFilters: r.ImageTagMutabilityExclusionFilters,
		EncryptionConfiguration: r.EncryptionConfiguration,
	}
}

// repositoryARN returns the ARN of a repository, in the partition of the Region.
func repositoryARN(reg registry, name string) string {
	partition := "aws"
	switch {
	case strings.HasPrefix(reg.region, "cn-"):
		partition = "aws-cn"
	case strings.HasPrefix(reg.region, "us-gov-"):
		partition = "aws-us-gov"
	}
	return "arn:" + partition + ":ecr:" + reg.region + ":" + reg.account + ":repository/" + name
}

// onePage refuses the members for pages if items are asked for by name. The sentence is
// our own.
func onePage(names string, nextToken *string, maxResults *int64) error {
	if hasToken(nextToken) || maxResults != nil {
		return &Error{invalidParameter, "The parameters 'nextToken' and 'maxResults' cannot be used together with '" + names + "'"}
	}
	return nil
}
