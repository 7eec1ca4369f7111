package ecrapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
)

// The errors that [API.Secrets] returns. Each stands for ECR's exception of a similar
// name.
var (
	ErrSecretNotFound = errors.New("the secret does not exist")
	ErrSecretAccess   = errors.New("the secret cannot be read")
	ErrSecretDecrypt  = errors.New("the secret cannot be decrypted")

	// The content of a secret is checked when it is used, not before.
	errSecretForm = errors.New("the secret is no JSON object with username and accessToken")
	// cross-account-no-role: such a rule can be created, but not used.
	errNoRole = fmt.Errorf("a registry of another account needs a customRoleArn: %w", pullthrough.ErrDenied)
)

// maxSecret is Secrets Manager's limit for a SecretString.
const maxSecret = 65_536

// Credentials returns the credential for the rule's upstream registry, from the rule's
// secret {"username":…,"accessToken":…}. It reads the secret each time (secret-cache). It
// fits [pullthrough.Proxy.Credentials]. For a rule without a secret it returns the zero
// Credential, which is anonymous. An upstream in ECR itself needs a role: a host that
// supports roles must handle such rules before it calls Credentials.
//
// The error Is [pullthrough.ErrDenied] if the upstream is an ECR registry of another
// account and the rule has no role. It is [ErrSecretAccess] if the rule has a secret and
// Secrets is nil. Other errors are those of Secrets, or say that the secret is not
// well-formed.
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

// lacksRole reports whether the upstream is an ECR registry of another account and the
// rule has no role.
func lacksRole(reg registry, rule pullthrough.Rule) bool {
	account, rest, ok := strings.Cut(rule.UpstreamURL, ".dkr.ecr.")
	return ok && strings.HasSuffix(rest, ".amazonaws.com") && account != reg.account && rule.CustomRoleARN == ""
}

// readSecret reads a secret as ECR does. The names of the members are case-sensitive, so
// it does not use a struct: encoding/json ignores case there. Errors do not repeat the
// secret.
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

// checkSecret checks for Create and Update that a secret exists and can be read,
// whatever its content is (empty-secret).
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

// secretTroubles has the exceptions of Create and Update, with the sentences of their
// documentation. The beginning of the first was seen in an answer. Validate says the same
// (validate-failure-text). The last sentence is our own.
var secretTroubles = []struct {
	err       error
	exception string // "": Create and Update do not notice it
	message   string
}{
	{ErrSecretNotFound, "SecretNotFoundException", "The ARN of the secret specified in the pull through cache rule was not found. Update the pull through cache rule with a valid secret ARN and try again."},
	{ErrSecretAccess, "UnableToAccessSecretException", "The secret is unable to be accessed. Verify the resource permissions for the secret and try again."},
	{ErrSecretDecrypt, "UnableToDecryptSecretValueException", "The secret is accessible but is unable to be decrypted. Verify the resource permissions and try again."},
	{errSecretForm, "", "The secret must be a JSON object with the members username and accessToken."},
}
