package ecrapi

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// isForeign reports whether somebody else gets a request whose operation the API knows: it
// names repositories of which none is the API's.
func (a *API) isForeign(ctx context.Context, id pullthrough.Identity, op string, body []byte) bool {
	if _, ok := imageOperations[op]; !ok || op == "CreateRepository" {
		return false
	}
	var named naming
	if decode(body, &named) != nil {
		return false
	}
	names := named.names()
	isOwn := func(name string) bool { return a.isOwn(ctx, id, named.RegistryId, name) }
	return len(names) > 0 && !slices.ContainsFunc(names, isOwn)
}

// naming has the members by which requests name repositories.
type naming struct {
	RegistryId      *string  `json:"registryId"`
	RepositoryName  *string  `json:"repositoryName"`
	RepositoryNames []string `json:"repositoryNames"`
	ResourceArn     *string  `json:"resourceArn"`
}

func (n *naming) names() (names []string) {
	names = append(names, n.RepositoryNames...)
	if n.RepositoryName != nil {
		names = append(names, *n.RepositoryName)
	}
	if _, name, ok := strings.Cut(value(n.ResourceArn), ":repository/"); ok {
		names = append(names, name)
	}
	return names
}

// isOwn reports whether the repository exists here, or a rule covers it. One that cannot be
// looked for counts as our own: the answer says why.
func (a *API) isOwn(ctx context.Context, id pullthrough.Identity, registryID *string, name string) bool {
	at, err := a.placeOf(id, registryID)
	if err != nil || shape.RepositoryName.Check("", name) != nil {
		return true
	}
	at.repo.Name = name
	rules, err := a.Rules(ctx, at.repo.Account, at.repo.Region)
	if err != nil {
		return true
	}
	if _, _, covered := pullthrough.Match(rules, name); covered {
		return true
	}
	_, err = a.Images.Catalog.Repository(ctx, at.repo)
	return !errors.Is(err, fs.ErrNotExist)
}
