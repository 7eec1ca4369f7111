package ecrapi

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// Images is what an [API] needs for its operations on repositories and images. It is
// a struct to fill in; fields must not change after first use.
//
// The operations do not ask [pullthrough.Proxy.Authorize], but where they pull. They
// show what was pulled before they were called, if the Proxy's OnEvent calls
// [Catalog.RecordPull]: for that they wait until the Store has it, for a second at most.
type Images struct {
	// Proxy pulls, and its Store has the images. Of a caller its Identify must say what
	// the API's says, also where both say nothing. Required.
	Proxy *pullthrough.Proxy
	// Catalog stands around the Proxy's Store. Required.
	Catalog *Catalog
	// RegistryURL is where clients reach the /v2/ of a private registry, a scheme and a
	// host without a path. nil: https://<account>.dkr.ecr.<region>.amazonaws.com
	RegistryURL func(account, region string) string
	// LayerURL returns where a layer can be downloaded without any authorization in a
	// header. nil: the Proxy's own endpoint below RegistryURL, for registries that let
	// everybody in (layer-url).
	LayerURL func(ctx context.Context, repo pullthrough.Repo, layer digest.Digest) (string, error)
	// Password makes the password of an authorization token, which is good for 12 hours.
	// nil: a random one, for registries that do not look at it.
	Password func(ctx context.Context, id pullthrough.Identity) (string, error)
}

// imageOperations are the targets of an API that has Images; of another they are Next's.
var imageOperations = map[string]operation{
	"DescribeRepositories":        of((*API).DescribeRepositories),
	"DescribeImages":              of((*API).DescribeImages),
	"ListImages":                  of((*API).ListImages),
	"BatchGetImage":               of((*API).BatchGetImage),
	"ListImageReferrers":          of((*API).ListImageReferrers),
	"GetDownloadUrlForLayer":      of((*API).GetDownloadUrlForLayer),
	"BatchCheckLayerAvailability": of((*API).BatchCheckLayerAvailability),
	"GetAuthorizationToken":       of((*API).GetAuthorizationToken),
}

// operation finds what a target means.
func (a *API) operation(target string) (do operation, known bool) {
	if do, known = operations[target]; !known && a.Images != nil {
		do, known = imageOperations[target]
	}
	return do, known
}

// place is a repository, or a registry, that a request is about.
type place struct {
	reg  registry         // as answers name it
	repo pullthrough.Repo // as the Proxy knows it
}

// placeOf finds the registry. What nobody has said stays unsaid for the Proxy, whose
// own callers do not say it either.
func (a *API) placeOf(id pullthrough.Identity, registryID *string) (at place, err error) {
	at.reg, at.repo = a.registry(id.Account, id.Region), pullthrough.Repo{Account: id.Account, Region: id.Region}
	if a.Images == nil {
		return at, &Error{unknownOperation, "The API has no images."}
	}
	if err := fails(shape.RegistryID.May("registryId", registryID)); err != nil {
		return at, err
	}
	switch {
	case registryID == nil || *registryID == at.reg.account:
	case id.Account == "":
		at.reg.account, at.repo.Account = *registryID, *registryID
	default:
		return at, &Error{accessDenied, fmt.Sprintf("The registry with id '%s' belongs to another account", *registryID)}
	}
	return at, nil
}

// repositoryOf finds the repository, which may not exist.
func (a *API) repositoryOf(id pullthrough.Identity, registryID, name *string) (place, error) {
	at, err := a.placeOf(id, registryID)
	if err == nil {
		err = fails(shape.RepositoryName.Need("repositoryName", name))
	}
	at.repo.Name = value(name)
	return at, err
}

// exists reports whether the repository exists.
func (a *API) exists(ctx context.Context, at place) bool {
	a.Images.Catalog.awaitNew(ctx, at.repo.Account, at.repo.Region)
	return a.Images.Catalog.has(at.repo)
}

func (a *API) noSuchRepository(at place) *Error {
	_, _, message := pullthrough.OCI(&pullthrough.Error{
		Kind: pullthrough.ErrNoRule, Repo: pullthrough.Repo{Account: at.reg.account, Name: at.repo.Name},
	})
	return &Error{"RepositoryNotFoundException", message}
}

// refusal is err, the Proxy's, in the words of the operation op: a failureCode with its
// reason, or an exception. what tells what is not there, where the repository is.
func (a *API) refusal(ctx context.Context, at place, err error, op, what string) (failureCode, reason string, exception error) {
	e, typed := errors.AsType[*pullthrough.Error](err)
	if typed && (errors.Is(e.Kind, pullthrough.ErrNoRule) || e.Code == "NAME_UNKNOWN") {
		if !a.exists(ctx, at) {
			return "", "", a.noSuchRepository(at)
		}
		// It has what is stored and no more.
		err = &pullthrough.Error{Kind: pullthrough.ErrNotFound, Repo: at.repo, Ref: e.Ref, Message: what}
	}
	code, failureCode, reason := pullthrough.AWS(err, op)
	switch code {
	case "":
		return failureCode, reason, nil
	case serverException:
		return "", "", err // for the log
	}
	return "", "", &Error{code, reason}
}

// registryURL is a scheme and a host.
func (a *API) registryURL(reg registry) string {
	if a.Images.RegistryURL != nil {
		return a.Images.RegistryURL(reg.account, reg.region)
	}
	return "https://" + reg.account + ".dkr.ecr." + reg.region + ".amazonaws.com"
}
