package ecrapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
)

// What can be wrong with a secret; [API.Secrets] returns them. Each is ECR's
// exception of a similar name.
var (
	ErrSecretNotFound = errors.New("the secret does not exist")
	ErrSecretAccess   = errors.New("the secret cannot be read")
	ErrSecretDecrypt  = errors.New("the secret cannot be decrypted")

	// What a secret says is looked at when it is used, not before.
	errSecretForm = errors.New("the secret is no JSON object with username and accessToken")
	// cross-account-no-role: the rule can be created, but not used.
	errNoRole = fmt.Errorf("a registry of another account needs a customRoleArn: %w", pullthrough.ErrDenied)
)

// maxSecret is Secrets Manager's limit for a SecretString.
const maxSecret = 65_536

// Credentials returns what the rule's upstream registry is to be told, from the
// rule's secret {"username":…,"accessToken":…}, read anew each time (secret-cache);
// it fits [pullthrough.Proxy.Credentials]. A rule without a secret is anonymous: an
// upstream in ECR itself asks for a role, which is the host's to play. An ECR
// registry of another account without a role is an [pullthrough.ErrDenied]; the
// other errors are those of Secrets, or say that a secret is not well-formed. With
// a nil Secrets every rule that has a secret is an [ErrSecretAccess].
func (a *API) Credentials(ctx context.Context, repo pullthrough.Repo, rule pullthrough.Rule) (pullthrough.Credential, error) {
	reg := a.registry(repo.Account, repo.Region)
	switch {
	case lacksRole(reg, rule):
		return pullthrough.Credential{}, errNoRole
	case rule.CredentialARN == "":
		return pullthrough.Credential{}, nil
	case a.Secrets == nil:
		return pullthrough.Credential{}, ErrSecretAccess
	}
	secret, err := a.Secrets(ctx, reg.account, reg.region, rule.CredentialARN)
	if err != nil {
		return pullthrough.Credential{}, err
	}
	return readSecret(secret)
}

// lacksRole reports whether the upstream is an ECR registry of another account, and
// the rule has no role that could get in.
func lacksRole(reg registry, rule pullthrough.Rule) bool {
	account, rest, ok := strings.Cut(rule.UpstreamURL, ".dkr.ecr.")
	return ok && strings.HasSuffix(rest, ".amazonaws.com") && account != reg.account && rule.CustomRoleARN == ""
}

// readSecret reads a secret as ECR does: the names of the members are
// case-sensitive, which encoding/json is not for structs. Errors repeat nothing.
func readSecret(secret string) (pullthrough.Credential, error) {
	var members map[string]any
	if len(secret) > maxSecret || json.Unmarshal([]byte(secret), &members) != nil {
		return pullthrough.Credential{}, errSecretForm
	}
	username, _ := members["username"].(string)
	token, _ := members["accessToken"].(string)
	if username == "" || token == "" {
		return pullthrough.Credential{}, errSecretForm
	}
	return pullthrough.Credential{Username: username, AccessToken: token}, nil
}

// checkSecret is what Create and Update ask of a secret: that it is there and can
// be read, whatever it says (empty-secret).
func (a *API) checkSecret(ctx context.Context, reg registry, arn string) error {
	if arn == "" || a.Secrets == nil {
		return nil
	}
	_, err := a.Secrets(ctx, reg.account, reg.region, arn)
	for _, trouble := range secretTroubles {
		if trouble.exception != "" && errors.Is(err, trouble.err) {
			return &Error{trouble.exception, trouble.message}
		}
	}
	return err
}

// secretTroubles are the exceptions at Create and Update, and what Validate says
// (validate-failure-text): the sentences are our own.
var secretTroubles = []struct {
	err       error
	exception string // "": nothing that Create and Update would notice
	message   string
}{
	{ErrSecretNotFound, "SecretNotFoundException", "The secret was not found. Verify that it exists in this account and Region and try again."},
	{ErrSecretAccess, "UnableToAccessSecretException", "The secret could not be read. Verify the permissions on it and try again."},
	{ErrSecretDecrypt, "UnableToDecryptSecretValueException", "The secret could not be decrypted. Verify the permissions on its key and try again."},
	{errSecretForm, "", "The secret must be a JSON object with the members username and accessToken."},
}
