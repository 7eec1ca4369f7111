package ecrapi

import (
	"context"
	"errors"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

const (
	defaultReferrers = 20
	maxReferrers     = 50
)

// ListImageReferrersInput is a request; nil members were not sent.
type ListImageReferrersInput struct {
	RegistryId     *string            `json:"registryId,omitempty"`
	RepositoryName *string            `json:"repositoryName,omitempty"` // required
	SubjectId      *SubjectIdentifier `json:"subjectId,omitempty"`      // required
	Filter         *ReferrersFilter   `json:"filter,omitempty"`
	MaxResults     *int64             `json:"maxResults,omitempty"` // up to 50; nil: 20
	NextToken      *string            `json:"nextToken,omitempty"`
}

// SubjectIdentifier names the image that is referred to.
type SubjectIdentifier struct {
	ImageDigest *string `json:"imageDigest,omitempty"` // required
}

// ReferrersFilter picks referrers. A nil member was not sent and picks all.
type ReferrersFilter struct {
	ArtifactTypes  []string `json:"artifactTypes,omitempty"`
	ArtifactStatus *string  `json:"artifactStatus,omitempty"` // ACTIVE, ARCHIVED, ACTIVATING, ANY; here all are active
}

// ListImageReferrersOutput is an answer. NextToken is "" on the last page.
type ListImageReferrersOutput struct {
	Referrers []ImageReferrer `json:"referrers"`
	NextToken string          `json:"nextToken,omitempty"`
}

// ImageReferrer is what refers to an image. Members that are zero are absent.
type ImageReferrer struct {
	Digest       string            `json:"digest"`
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Size         int64             `json:"size"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

// ListImageReferrers returns what refers to an image, in the order of digests. It calls
// [pullthrough.Proxy.Referrers]. The list is empty if nobody knows the image, or if no
// rule covers the repository. See [ListImageReferrers] for the errors.
//
// [ListImageReferrers]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_ListImageReferrers.html
func (a *API) ListImageReferrers(ctx context.Context, id pullthrough.Identity, in ListImageReferrersInput) (out ListImageReferrersOutput, err error) {
	const op = "ListImageReferrers"
	at, err := a.repositoryOf(id, in.RegistryId, in.RepositoryName)
	if err != nil {
		return out, err
	}
	if err := in.check(); err != nil {
		return out, err
	}
	p, err := pageOf(op, in.NextToken, nil)
	if err != nil {
		return out, err
	}
	p.max = defaultReferrers
	if in.MaxResults != nil {
		p.max = int(*in.MaxResults)
	}
	if err := a.ask(ctx, at, id, op); err != nil {
		return out, err
	}
	if err := a.find(ctx, at); err != nil {
		return out, err
	}
	var all []ocispec.Descriptor
	index, err := a.Images.Proxy.Referrers(ctx, pullthrough.Request{Repo: at.repo, Ref: *in.SubjectId.ImageDigest, Caller: id.Caller}, "")
	switch {
	case err == nil:
		all = index.Manifests
	case !errors.Is(err, pullthrough.ErrNoRule) && !errors.Is(err, pullthrough.ErrNotFound):
		_, _, exception := a.refusal(ctx, at, err, op, "")
		return out, exception
	}
	out.Referrers, out.NextToken = in.Filter.page(p, all)
	return out, nil
}

func (in *ListImageReferrersInput) check() error {
	var subject *string
	if in.SubjectId != nil {
		subject = in.SubjectId.ImageDigest
	}
	err := fails(
		shape.String{}.Need("subjectId.imageDigest", subject),
		shape.Number("maxResults", in.MaxResults, 1, maxReferrers),
	)
	if err != nil || in.Filter == nil {
		return err
	}
	return fails(
		shape.ArtifactType.Each("filter.artifactTypes", in.Filter.ArtifactTypes, 0, 5),
		shape.ImageStatus.May("filter.artifactStatus", in.Filter.ArtifactStatus),
	)
}

// page returns the part of the list that a request asks for.
func (f *ReferrersFilter) page(p page, all []ocispec.Descriptor) (part []ImageReferrer, nextToken string) {
	all = slices.DeleteFunc(sortBy(all, referrerKey), func(d ocispec.Descriptor) bool { return !f.wants(d) })
	all = slices.CompactFunc(all, func(x, y ocispec.Descriptor) bool { return x.Digest == y.Digest })
	all, nextToken = cutPage(p, all, referrerKey)
	part = make([]ImageReferrer, len(all))
	for i, d := range all {
		part[i] = ImageReferrer{d.Digest.String(), d.MediaType, d.ArtifactType, d.Size, d.Annotations}
	}
	return part, nextToken
}

func referrerKey(d ocispec.Descriptor) string { return d.Digest.String() }

func (f *ReferrersFilter) wants(d ocispec.Descriptor) bool {
	if f == nil {
		return true
	}
	return (len(f.ArtifactTypes) == 0 || slices.Contains(f.ArtifactTypes, d.ArtifactType)) && isActive(f.ArtifactStatus)
}
