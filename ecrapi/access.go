package ecrapi

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// regionsWithout are the Regions that have no pull through cache.
var regionsWithout = []string{"cn-north-1", "cn-northwest-1", "us-gov-east-1", "us-gov-west-1"}

// rulesOf finds the registry that a request about rules means. A caller whose
// account is known may use the registry of that account and no other. A caller
// without an account may name any registry (other-registry).
func (a *API) rulesOf(id pullthrough.Identity, registryID *string) (registry, error) {
	reg := a.registry(id.Account, id.Region)
	if err := fails(shape.RegistryID.May("registryId", registryID)); err != nil {
		return reg, err
	}
	switch {
	case registryID == nil:
	case id.Account == "":
		reg.account = *registryID
	case id.Account != *registryID:
		return reg, &Error{accessDenied, fmt.Sprintf("The registry with id '%s' belongs to another account", *registryID)}
	}
	if a.CheckRegion && slices.Contains(regionsWithout, reg.region) {
		return reg, &Error{invalidParameter, "This feature is disabled"} // region-error: these words were seen
	}
	return reg, nil
}

// ask asks the Proxy's Authorize whether the caller may use the operation op on the
// repository, or on the registry if the repository has no name. The operations that pull
// leave that to the Proxy.
func (a *API) ask(ctx context.Context, at place, id pullthrough.Identity, op string) error {
	if a.Images.Proxy == nil || a.Images.Proxy.Authorize == nil {
		return nil
	}
	err := hostcall.Guard("Authorize", func() error {
		return a.Images.Proxy.Authorize(ctx, pullthrough.Action(op), pullthrough.Request{Repo: at.repo, Caller: id.Caller})
	})
	_, panicked := errors.AsType[*hostcall.PanicError](err)
	_, typed := errors.AsType[*pullthrough.Error](err)
	if err == nil || panicked || typed || errors.Is(err, pullthrough.ErrUnauthorized) || ctx.Err() != nil {
		return err
	}
	return &Error{accessDenied, err.Error()}
}
