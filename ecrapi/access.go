package ecrapi

import (
	"fmt"
	"slices"

	"github.com/ecr-pullthrough/pullthrough"
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
