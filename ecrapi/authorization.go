package ecrapi

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// tokenLife is how long an authorization token can be used.
const tokenLife = 12 * time.Hour

// GetAuthorizationTokenInput is a request; nil members were not sent.
type GetAuthorizationTokenInput struct {
	RegistryIds []string `json:"registryIds,omitempty"` // AWS has deprecated it: a token can be used for all registries
}

// GetAuthorizationTokenOutput is an answer.
type GetAuthorizationTokenOutput struct {
	AuthorizationData []AuthorizationData `json:"authorizationData"`
}

// AuthorizationData is what docker login needs: base64 of AWS:PASSWORD, and the address
// of the registry.
type AuthorizationData struct {
	AuthorizationToken string `json:"authorizationToken,omitempty"`
	ExpiresAt          Time   `json:"expiresAt,omitzero"`
	ProxyEndpoint      string `json:"proxyEndpoint,omitempty"`
}

// GetAuthorizationToken returns a password for the registry, see [Images.Password]. See
// [GetAuthorizationToken] for the errors.
//
// [GetAuthorizationToken]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_GetAuthorizationToken.html
func (a *API) GetAuthorizationToken(ctx context.Context, id pullthrough.Identity, in GetAuthorizationTokenInput) (out GetAuthorizationTokenOutput, err error) {
	at, err := a.placeOf(id, nil)
	if err != nil {
		return out, err
	}
	if err := fails(shape.RegistryID.Each("registryIds", in.RegistryIds, 1, 10)); err != nil {
		return out, err
	}
	password := rand.Text()
	if a.Images.Password != nil {
		if password, err = a.Images.Password(ctx, id); err != nil {
			return out, err
		}
	}
	accounts := in.RegistryIds
	if accounts == nil {
		accounts = []string{at.reg.account}
	}
	for _, account := range accounts {
		out.AuthorizationData = append(out.AuthorizationData, AuthorizationData{
			AuthorizationToken: base64.StdEncoding.EncodeToString([]byte("AWS:" + password)),
			ExpiresAt:          Time{a.now().Add(tokenLife)},
			ProxyEndpoint:      a.registryURL(ctx, registry{account, at.reg.region}),
		})
	}
	return out, nil
}
