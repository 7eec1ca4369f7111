package ecrapi_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

const goodSecret = `{"username":"canary-robot","accessToken":"canary-token"}`

// vault is a Secrets Manager.
type vault struct {
	content string
	err     error
	asked   []string // account, Region and ARN
}

func (v *vault) secret(_ context.Context, account, region, arn string) (string, error) {
	v.asked = append(v.asked, account+" "+region+" "+arn)
	return v.content, v.err
}

var secretErrors = map[string]struct {
	err           error
	code, message string
}{
	"not found":   {fmt.Errorf("canary-vault: %w", ecrapi.ErrSecretNotFound), "SecretNotFoundException", "The ARN of the secret specified in the pull through cache rule was not found. Update the pull through cache rule with a valid secret ARN and try again."},
	"unreadable":  {ecrapi.ErrSecretAccess, "UnableToAccessSecretException", "The secret is unable to be accessed. Verify the resource permissions for the secret and try again."},
	"undecrypted": {ecrapi.ErrSecretDecrypt, "UnableToDecryptSecretValueException", "The secret is accessible but is unable to be decrypted. Verify the resource permissions and try again."},
}

// badSecret is the test of one of secretErrors at Create and Update.
func badSecret(name string) func(*testing.T) {
	return func(t *testing.T) {
		e, ok := secretErrors[name]
		require.True(t, ok)
		v := &vault{err: e.err}
		c := start(t, &ecrapi.API{Secrets: v.secret})
		request := object("ecrRepositoryPrefix", "hub", "upstreamRegistryUrl", "ghcr.io", "credentialArn", secret)
		c.fails(t, "CreatePullThroughCacheRule", request, e.code, e.message)
		c.ok(t, "DescribePullThroughCacheRules", "{}", `{"pullThroughCacheRules":[]}`)
		v.err = nil
		resp, body := c.send(t, target+"CreatePullThroughCacheRule", request)
		require.Equal(t, 200, resp.StatusCode, body)
		assert.Equal(t, []string{account + " " + region + " " + secret, account + " " + region + " " + secret}, v.asked)

		v.err = e.err
		c.fails(t, "UpdatePullThroughCacheRule", object("ecrRepositoryPrefix", "hub", "credentialArn", secret2), e.code, e.message)
		c.fails(t, "UpdatePullThroughCacheRule", object("ecrRepositoryPrefix", "hub"), "InvalidParameterException", sayEmptyUpdate)
		assert.Len(t, v.asked, 3, "an empty update asks for no secret")
	}
}

// empty-secret: what a secret says does not matter before it is used.
func TestTheContentOfASecretIsNotCheckedAtCreate(t *testing.T) {
	for _, content := range []string{"test", "", "{}", goodSecret} {
		v := &vault{content: content}
		c := start(t, &ecrapi.API{Secrets: v.secret})
		resp, body := c.send(t, target+"CreatePullThroughCacheRule", object("ecrRepositoryPrefix", "hub", "upstreamRegistryUrl", "registry-1.docker.io", "credentialArn", secret))
		assert.Equal(t, 200, resp.StatusCode, body)
		assert.NotContains(t, body, "canary")
	}
}

func TestSecretsAreNotAskedForInVain(t *testing.T) {
	v := &vault{err: errors.New("canary")}
	c := start(t, &ecrapi.API{Secrets: v.secret})
	c.create(t, "hub")
	resp, body := c.send(t, target+"CreatePullThroughCacheRule", object("ecrRepositoryPrefix", "h2", "upstreamRegistryUrl", "quay.io", "credentialArn", secret))
	assertException(t, resp, body, "UnsupportedUpstreamRegistryException")
	resp, body = c.send(t, target+"UpdatePullThroughCacheRule", object("ecrRepositoryPrefix", "gone", "credentialArn", secret))
	assertException(t, resp, body, "PullThroughCacheRuleNotFoundException")
	c.ok(t, "ValidatePullThroughCacheRule", object("ecrRepositoryPrefix", "hub"),
		`{"ecrRepositoryPrefix":"hub","registryId":"123456789012","upstreamRegistryUrl":"quay.io","isValid":true}`)
	assert.Empty(t, v.asked)
}

func TestAVaultThatFails(t *testing.T) {
	v := &vault{err: errors.New("canary-vault is down")}
	c := start(t, &ecrapi.API{Secrets: v.secret})
	resp, body := c.send(t, target+"CreatePullThroughCacheRule", object("ecrRepositoryPrefix", "hub", "upstreamRegistryUrl", "ghcr.io", "credentialArn", secret))
	assertException(t, resp, body, "ServerException")
	assert.NotContains(t, body, "canary")
}

// badSecrets are not what ECR reads.
var badSecrets = map[string]string{
	"no version":           "",
	"plain text":           "canary-test",
	"other case":           `{"Username":"canary-robot","AccessToken":"canary-token"}`,
	"other name":           `{"username":"canary-robot","password":"canary-token"}`,
	"no user":              `{"accessToken":"canary-token"}`,
	"no token":             `{"username":"canary-robot"}`,
	"empty user":           `{"username":"","accessToken":"canary-token"}`,
	"empty token":          `{"username":"canary-robot","accessToken":""}`,
	"null":                 `null`,
	"a null token":         `{"username":"canary-robot","accessToken":null}`,
	"a number":             `{"username":"canary-robot","accessToken":1}`,
	"a list":               `["canary-robot","canary-token"]`,
	"a string":             `"canary"`,
	"trailing":             goodSecret + "x",
	"over 65,536 bytes":    strings.TrimSuffix(goodSecret, "}") + `,"x":"` + strings.Repeat("x", 65_536) + `"}`,
	"case beside the name": `{"username":"canary-robot","ACCESSTOKEN":"canary-token"}`,
}

var (
	secretRepo = pullthrough.Repo{Account: "111122223333", Region: "eu-west-1", Name: "hub/a"}
	secretRule = pullthrough.Rule{Prefix: "hub", UpstreamURL: "ghcr.io", CredentialARN: secret}
)

// secret-cache: a secret is asked for each time.
func TestASecretIsReadAnew(t *testing.T) {
	v := &vault{content: goodSecret}
	api := &ecrapi.API{Secrets: v.secret}
	for range 2 {
		got, err := api.Credentials(t.Context(), secretRepo, secretRule)
		require.NoError(t, err)
		assert.True(t, got == pullthrough.Credential{Username: "canary-robot", AccessToken: "canary-token"})
	}
	assert.Equal(t, []string{"111122223333 eu-west-1 " + secret, "111122223333 eu-west-1 " + secret}, v.asked)
	v.content = `{"note":"canary","username":"u","accessToken":"t"}`
	got, err := api.Credentials(t.Context(), secretRepo, secretRule)
	require.NoError(t, err)
	assert.True(t, got == pullthrough.Credential{Username: "u", AccessToken: "t"})
}

func TestSecretsThatAreOfNoUse(t *testing.T) {
	v := &vault{}
	api := &ecrapi.API{Secrets: v.secret}
	for name, content := range badSecrets {
		v.content = content
		_, err := api.Credentials(t.Context(), secretRepo, secretRule)
		require.Error(t, err, name)
		assert.NotContains(t, err.Error(), "canary", name)
	}
	for _, e := range secretErrors {
		v.err = e.err
		_, err := api.Credentials(t.Context(), secretRepo, secretRule)
		assert.ErrorIs(t, err, e.err)
	}
	_, err := new(ecrapi.API).Credentials(t.Context(), secretRepo, secretRule)
	assert.ErrorIs(t, err, ecrapi.ErrSecretAccess, "without Secrets nobody knows what it says")
}

func TestCredentialsOfRulesWithoutASecret(t *testing.T) {
	api := &ecrapi.API{}
	repo := pullthrough.Repo{Account: account, Region: region, Name: "hub/a"}
	for url, c := range map[string]struct {
		role   string
		denied bool
	}{
		"quay.io": {}, "http://127.0.0.1:5000": {},
		"123456789012.dkr.ecr.eu-west-1.amazonaws.com": {},             // another Region
		"111122223333.dkr.ecr.us-east-1.amazonaws.com": {denied: true}, // cross-account-no-role: the pull is denied
		"444455556666.dkr.ecr.us-east-1.amazonaws.com": {role: role},   // whoever plays the role
	} {
		got, err := api.Credentials(t.Context(), repo, pullthrough.Rule{Prefix: "hub", UpstreamURL: url, CustomRoleARN: c.role})
		assert.True(t, got == pullthrough.Credential{}, url)
		assert.Equal(t, c.denied, errors.Is(err, pullthrough.ErrDenied), url)
	}
}

const valid = `{"ecrRepositoryPrefix":"hub","registryId":"123456789012","upstreamRegistryUrl":"ghcr.io","upstreamRepositoryPrefix":"up","credentialArn":"` + secret + `","isValid":true}`

func invalid(text string) string {
	return strings.Replace(valid, `"isValid":true`, `"isValid":false,"failure":"`+text+`"`, 1)
}

// validated is an API whose rule hub can be validated.
type validated struct {
	*client
	vault
	reached []pullthrough.Repo
	answer  error // of Validate
}

var validateHub = object("ecrRepositoryPrefix", "hub/")

func validating(t *testing.T) *validated {
	t.Helper()
	v := &validated{vault: vault{content: goodSecret}}
	v.client = start(t, &ecrapi.API{Secrets: v.secret, Validate: func(_ context.Context, repo pullthrough.Repo, rule pullthrough.Rule) error {
		v.reached = append(v.reached, repo)
		assert.Equal(t, "ghcr.io", rule.UpstreamURL)
		return v.answer
	}})
	resp, body := v.send(t, target+"CreatePullThroughCacheRule", object("ecrRepositoryPrefix", "hub", "upstreamRegistryUrl", "ghcr.io", "upstreamRepositoryPrefix", "up", "credentialArn", secret))
	require.Equal(t, 200, resp.StatusCode, body)
	return v
}

func TestAValidRule(t *testing.T) {
	v := validating(t)
	v.ok(t, "ValidatePullThroughCacheRule", validateHub, valid)
	assert.Equal(t, []pullthrough.Repo{{Account: account, Region: region}}, v.reached)
}

func TestValidationOfARuleWithoutUpstream(t *testing.T) {
	v := validating(t)
	for err, text := range map[error]string{
		pullthrough.ErrDenied:      "The upstream registry refused the credentials. Verify that they are correct.",
		pullthrough.ErrRateLimited: "The upstream registry limits the rate of requests. Try again later.",
		pullthrough.ErrUnavailable: "The upstream registry could not be reached.",
		pullthrough.ErrNotFound:    "The upstream registry could not be reached.",
		context.DeadlineExceeded:   "The upstream registry could not be reached.",
		ecrapi.ErrSecretDecrypt:    secretErrors["undecrypted"].message,
	} {
		v.answer = fmt.Errorf("canary: %w", err)
		v.ok(t, "ValidatePullThroughCacheRule", validateHub, invalid(text))
	}
}

func TestValidationOfARuleWithoutASecret(t *testing.T) {
	v := validating(t)
	for _, content := range badSecrets {
		v.content = content
		v.ok(t, "ValidatePullThroughCacheRule", validateHub, invalid("The secret must be a JSON object with the members username and accessToken."))
	}
	for _, e := range secretErrors {
		v.err = e.err
		v.ok(t, "ValidatePullThroughCacheRule", validateHub, invalid(e.message))
	}
	assert.Empty(t, v.reached, "without a good secret upstream is not asked")
}

func TestValidationThatFails(t *testing.T) {
	v := validating(t)
	v.answer = errors.New("canary")
	resp, body := v.send(t, target+"ValidatePullThroughCacheRule", validateHub)
	assertException(t, resp, body, "ServerException")
	assert.NotContains(t, body, "canary")
	v.answer, v.err = nil, errors.New("canary")
	resp, body = v.send(t, target+"ValidatePullThroughCacheRule", validateHub)
	assertException(t, resp, body, "ServerException")
	assert.NotContains(t, body, "canary")
}

// unreached are the answers of Validate where nobody reaches upstream.
var unreached = map[string]string{
	"open": `{"ecrRepositoryPrefix":"open","registryId":"123456789012","upstreamRegistryUrl":"quay.io","isValid":true}`,
	"hub":  `{"ecrRepositoryPrefix":"hub","registryId":"123456789012","upstreamRegistryUrl":"ghcr.io","credentialArn":"` + secret + `","isValid":true}`,
	"near": `{"ecrRepositoryPrefix":"near","registryId":"123456789012","upstreamRegistryUrl":"123456789012.dkr.ecr.eu-west-1.amazonaws.com","isValid":true}`,
	// cross-account-no-role
	"far": `{"ecrRepositoryPrefix":"far","registryId":"123456789012","upstreamRegistryUrl":"111122223333.dkr.ecr.us-east-1.amazonaws.com","isValid":false,
		"failure":"The upstream registry belongs to another account. Specify a customRoleArn that may pull from it."}`,
}

// validatedAlone is the test of some of unreached.
func validatedAlone(prefixes ...string) func(*testing.T) {
	return func(t *testing.T) {
		c := start(t, &ecrapi.API{})
		c.create(t, "open")
		for prefix, url := range map[string]string{"far": "111122223333.dkr.ecr.us-east-1.amazonaws.com", "near": "123456789012.dkr.ecr.eu-west-1.amazonaws.com"} {
			_, _ = c.send(t, target+"CreatePullThroughCacheRule", object("ecrRepositoryPrefix", prefix, "upstreamRegistryUrl", url))
		}
		_, _ = c.send(t, target+"CreatePullThroughCacheRule", object("ecrRepositoryPrefix", "hub", "upstreamRegistryUrl", "ghcr.io", "credentialArn", secret))
		for _, prefix := range prefixes {
			want, ok := unreached[prefix]
			require.True(t, ok, prefix)
			c.ok(t, "ValidatePullThroughCacheRule", object("ecrRepositoryPrefix", prefix), want)
		}
	}
}
