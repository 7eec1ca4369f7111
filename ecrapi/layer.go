package ecrapi

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// GetDownloadUrlForLayerInput is a request; nil members were not sent.
type GetDownloadUrlForLayerInput struct {
	RegistryId     *string `json:"registryId,omitempty"`
	RepositoryName *string `json:"repositoryName,omitempty"` // required
	LayerDigest    *string `json:"layerDigest,omitempty"`    // required
}

// GetDownloadUrlForLayerOutput is an answer.
type GetDownloadUrlForLayerOutput struct {
	DownloadUrl string `json:"downloadUrl,omitempty"`
	LayerDigest string `json:"layerDigest,omitempty"`
}

// GetDownloadUrlForLayer returns the URL where a layer can be downloaded, see
// [Images.LayerURL]. If the layer is not stored but upstream has it, the download pulls
// it through. See [GetDownloadUrlForLayer] for the errors.
//
// [GetDownloadUrlForLayer]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_GetDownloadUrlForLayer.html
func (a *API) GetDownloadUrlForLayer(ctx context.Context, id pullthrough.Identity, in GetDownloadUrlForLayerInput) (out GetDownloadUrlForLayerOutput, err error) {
	const op = "GetDownloadUrlForLayer"
	at, err := a.repositoryOf(id, in.RegistryId, in.RepositoryName)
	if err != nil {
		return out, err
	}
	if err := fails(shape.LayerDigest.Need("layerDigest", in.LayerDigest)); err != nil {
		return out, err
	}
	b, err := a.Images.Proxy.Blob(ctx, pullthrough.Request{Repo: at.repo, Ref: *in.LayerDigest, Head: true, Caller: id.Caller})
	if err != nil {
		_, _, exception := a.refusal(ctx, at, err, op, "The layer with digest '"+*in.LayerDigest+"' was not found in the repository with name '"+at.repo.Name+"'")
		return out, exception
	}
	if err := b.Body.Close(); err != nil {
		return out, err
	}
	d := digest.Digest(*in.LayerDigest)
	to, err := a.layerURL(ctx, at, d)
	return GetDownloadUrlForLayerOutput{to, d.String()}, err
}

func (a *API) layerURL(ctx context.Context, at place, d digest.Digest) (string, error) {
	if a.Images.LayerURL != nil {
		return a.Images.LayerURL(ctx, at.repo, d)
	}
	return strings.TrimSuffix(a.registryURL(at.reg), "/") + "/v2/" + at.repo.Name + "/blobs/" + d.String(), nil
}

// BatchCheckLayerAvailabilityInput is a request; nil members were not sent.
type BatchCheckLayerAvailabilityInput struct {
	RegistryId     *string  `json:"registryId,omitempty"`
	RepositoryName *string  `json:"repositoryName,omitempty"` // required
	LayerDigests   []string `json:"layerDigests,omitempty"`   // required
}

// BatchCheckLayerAvailabilityOutput is an answer.
type BatchCheckLayerAvailabilityOutput struct {
	Layers   []Layer        `json:"layers"`
	Failures []LayerFailure `json:"failures"`
}

// Layer is a layer in an answer.
type Layer struct {
	LayerDigest       string `json:"layerDigest,omitempty"`
	LayerAvailability string `json:"layerAvailability,omitempty"` // AVAILABLE, UNAVAILABLE
	LayerSize         int64  `json:"layerSize,omitempty"`
}

// LayerFailure says why there is no layer in an answer.
type LayerFailure struct {
	LayerDigest   string `json:"layerDigest,omitempty"`
	FailureCode   string `json:"failureCode,omitempty"`
	FailureReason string `json:"failureReason,omitempty"`
}

// BatchCheckLayerAvailability tells which layers are stored in the repository. A layer
// that only upstream has is not available. See [BatchCheckLayerAvailability] for the errors.
//
// [BatchCheckLayerAvailability]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_BatchCheckLayerAvailability.html
func (a *API) BatchCheckLayerAvailability(ctx context.Context, id pullthrough.Identity, in BatchCheckLayerAvailabilityInput) (out BatchCheckLayerAvailabilityOutput, err error) {
	at, err := a.repositoryOf(id, in.RegistryId, in.RepositoryName)
	if err != nil {
		return out, err
	}
	if in.LayerDigests == nil {
		return out, fails(&shape.Error{At: "layerDigests", Constraint: "Member must not be null"})
	}
	if err := fails(shape.BatchedDigest.Each("layerDigests", in.LayerDigests, 1, 100)); err != nil {
		return out, err
	}
	if err := a.ask(ctx, at, id, "BatchCheckLayerAvailability"); err != nil {
		return out, err
	}
	if err := a.find(ctx, at); err != nil {
		return out, err
	}
	out.Layers, out.Failures = []Layer{}, []LayerFailure{}
	for _, d := range in.LayerDigests {
		switch {
		case d == "":
			out.Failures = append(out.Failures, LayerFailure{d, "MissingLayerDigest", "Invalid request parameters: layer digest cannot be empty"})
		case !ocipath.ValidDigest(d):
			out.Failures = append(out.Failures, LayerFailure{d, "InvalidLayerDigest", "Invalid request parameters: layer digest should satisfy the regex '[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+'"})
		default:
			layer, err := a.layer(ctx, at, digest.Digest(d))
			if err != nil {
				return BatchCheckLayerAvailabilityOutput{}, err
			}
			out.Layers = append(out.Layers, layer)
		}
	}
	return out, nil
}

// layer asks the Store for one layer. It never asks upstream.
func (a *API) layer(ctx context.Context, at place, d digest.Digest) (Layer, error) {
	b, err := a.Images.Proxy.Store.Blob(ctx, at.repo, d)
	if errors.Is(err, fs.ErrNotExist) {
		return Layer{LayerDigest: d.String(), LayerAvailability: "UNAVAILABLE"}, nil
	}
	if err != nil {
		return Layer{}, err
	}
	size := b.Descriptor.Size
	if seeker, ok := b.Body.(io.Seeker); ok && size == 0 {
		size, err = seeker.Seek(0, io.SeekEnd)
	}
	return Layer{d.String(), "AVAILABLE", size}, errors.Join(err, b.Body.Close())
}
