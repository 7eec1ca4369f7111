package ecrapi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// Images is what an [API] needs for its operations on repositories and images. It is
// a struct to fill in; fields must not change after first use.
//
// The operations ask [pullthrough.Proxy.Authorize]. One that pulls asks for what the pull
// asks for, and one that reads for its own name: DescribeRepositories for the repositories
// that it names, or for the whole registry with a Repo that has no name, DescribeImages,
// ListImages, BatchCheckLayerAvailability and ListImageReferrers. They show what was pulled
// before: a Proxy answers a pull before its Store has the image, and so the operations wait
// for the Store, for up to one second ([pullthrough.Proxy.Idle]).
type Images struct {
	// Proxy pulls, and its Store has the images. Its Identify must return the same
	// Identity for a caller as the API's Identify. Required.
	Proxy *pullthrough.Proxy
	// Catalog is around the Proxy's Store, see [Catalog.Around]. Required.
	Catalog *Catalog
	// RegistryURL is where clients reach the /v2/ of a private registry, a scheme and a
	// host without a path. nil: https://<account>.dkr.ecr.<region>.amazonaws.com
	RegistryURL func(account, region string) string
	// LayerURL returns a URL where a layer can be downloaded without an Authorization
	// header. nil: the Proxy's own endpoint below RegistryURL. That serves registries
	// which want no login (layer-url).
	LayerURL func(ctx context.Context, repo pullthrough.Repo, layer digest.Digest) (string, error)
	// Password returns the password of an authorization token, which must be valid for 12
	// hours. nil: a random password, for registries that do not check it.
	Password func(ctx context.Context, id pullthrough.Identity) (string, error)
}

// imageOperations are the targets that an API with Images knows. Without Images they go
// to Next.
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

// operation returns the operation for a target.
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

// placeOf finds the registry. An account or a Region that the caller does not name stays
// "" in repo: the Proxy's own callers do not name it either, so its repositories have "".
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

// patience is how long an operation waits until the Store has what was pulled before.
const patience = time.Second

// await waits for what was pulled from the repository, or from all of the registry if it
// has no name.
func (a *API) await(ctx context.Context, repo pullthrough.Repo) {
	if a.Images.Proxy == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_ = a.Images.Proxy.Idle(ctx, repo) // the list is that of now, then
}

// find returns the exception for a repository that does not exist, or the Store's error.
func (a *API) find(ctx context.Context, at place) error {
	a.await(ctx, at.repo)
	_, err := a.Images.Catalog.Repository(ctx, at.repo)
	return a.asNoRepository(at, err)
}

// asNoRepository returns the exception for err if that says that the repository does not
// exist.
func (a *API) asNoRepository(at place, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return a.noSuchRepository(at)
	}
	return err
}

func (a *API) noSuchRepository(at place) *Error {
	_, _, message := pullthrough.OCI(&pullthrough.Error{
		Kind: pullthrough.ErrNoRule, Repo: pullthrough.Repo{Account: at.reg.account, Name: at.repo.Name},
	})
	return &Error{"RepositoryNotFoundException", message}
}

// refusal puts err, an error of the Proxy, into the words of the operation op. It returns
// a failureCode with its reason, or an exception. what is the sentence for an image or a
// layer that is not in a repository that exists.
func (a *API) refusal(ctx context.Context, at place, err error, op, what string) (failureCode, reason string, exception error) {
	e, typed := errors.AsType[*pullthrough.Error](err)
	if typed && (errors.Is(e.Kind, pullthrough.ErrNoRule) || e.Code == "NAME_UNKNOWN") {
		if err := a.find(ctx, at); err != nil {
			return "", "", err
		}
		// No rule covers the repository, so it has what is stored and nothing else.
		err = &pullthrough.Error{Kind: pullthrough.ErrNotFound, Repo: at.repo, Ref: e.Ref, Message: what}
	}
	code, failureCode, reason := pullthrough.AWS(err, op)
	switch code {
	case "":
		return failureCode, reason, nil
	case serverException:
		return "", "", err // it is logged
	}
	return "", "", &Error{code, reason}
}

// registryURL returns a scheme and a host.
func (a *API) registryURL(reg registry) string {
	if a.Images.RegistryURL != nil {
		return a.Images.RegistryURL(reg.account, reg.region)
	}
	return "https://" + reg.account + ".dkr.ecr." + reg.region + ".amazonaws.com"
}
