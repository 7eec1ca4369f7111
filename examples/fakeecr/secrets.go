package main

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

// secrets stand in for Secrets Manager: by the names of the secrets, without an ARN.
type secrets map[string]pullthrough.Credential

var (
	// secretName is what a rule's credentialArn must end in.
	secretName = regexp.MustCompile(`^ecr-pullthroughcache/[A-Za-z0-9/_+.@-]+$`)
	// secretSuffix is what Secrets Manager puts at the end of the names in its ARNs.
	secretSuffix = regexp.MustCompile(`-[A-Za-z0-9]{6}$`)
)

// parseSecrets reads NAME=USER:TOKEN, each. Messages show NAME at most, and that only
// if it can be one.
func parseSecrets(values []string) (secrets, error) {
	var all secrets
	for _, v := range values {
		name, secret, _ := strings.Cut(v, "=")
		if !secretName.MatchString(name) {
			return nil, &flagError{flag: "-secret", value: "*****", why: "want NAME=USER:TOKEN with a NAME like ecr-pullthroughcache/docker-hub"}
		}
		hidden := name + "=*****"
		user, token, ok := strings.Cut(secret, ":")
		if !ok || user == "" || token == "" {
			return nil, badFlag("-secret", hidden, "want NAME=USER:TOKEN")
		}
		if _, taken := all[name]; taken {
			return nil, badFlag("-secret", hidden, "there is a secret with this name already")
		}
		if all == nil {
			all = secrets{}
		}
		all[name] = pullthrough.Credential{Username: user, AccessToken: token}
	}
	return all, nil
}

// find returns the secret that arn names, with or without the six characters at its
// end; it fits [ecrapi.API.Secrets]. That the ARN is one of this account and Region
// the API has seen to.
func (s secrets) find(_ context.Context, _, _, arn string) (string, error) {
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
