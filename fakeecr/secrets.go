package fakeecr

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

// secrets take the place of Secrets Manager: by the names of the secrets, without an ARN.
type secrets map[string]pullthrough.Credential

// secretSuffix is what Secrets Manager puts at the end of the names in its ARNs.
var secretSuffix = regexp.MustCompile(`-[A-Za-z0-9]{6}$`)

// findSecret fits [ecrapi.API.Secrets].
func (s *Server) findSecret(_ context.Context, _, _, arn string) (string, error) {
	return secrets(s.upstreams.Load().Secrets).find(arn)
}

// find returns the secret that arn names, with or without the six characters at its
// end. The API has already checked that the ARN belongs to this account and Region.
func (s secrets) find(arn string) (string, error) {
	_, name, _ := strings.Cut(arn, ":secret:")
	c, ok := s[name]
	if !ok {
		c, ok = s[secretSuffix.ReplaceAllString(name, "")]
	}
	if !ok {
		return "", fmt.Errorf("no -secret has the name %q: %w", name, ecrapi.ErrSecretNotFound)
	}
	content, err := json.Marshal(map[string]string{"username": c.Username, "accessToken": c.AccessToken})
	return string(content), err
}
