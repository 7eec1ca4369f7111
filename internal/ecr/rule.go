// Package ecr is what Amazon ECR's documentation and its users tell of its API, as
// tables: which rules it takes, and which exception each operation has for what.
package ecr

import (
	"regexp"
	"strings"

	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// Root is the prefix of the rule for every name that no other rule covers.
const Root = "ROOT"

// Rule is what CreatePullThroughCacheRule is given.
type Rule struct {
	Prefix, UpstreamURL, UpstreamPrefix, Upstream, CredentialARN, CustomRoleARN string
}

// Exception is an exception of Amazon ECR's JSON API.
type Exception struct{ Name, Message string }

// Error returns name and message.
func (e *Exception) Error() string { return e.Name + ": " + e.Message }

// During is the exception that op declares in place of e: UpdatePullThroughCacheRule
// has none for upstreams that do not take the credential.
func (e *Exception) During(op string) string {
	if e.Name == unsupportedUpstream && op == "UpdatePullThroughCacheRule" {
		return InvalidParameter
	}
	return e.Name
}

// Validate returns the exception with which ECR refuses to create the rule in the
// private registry of the account in the Region; nil: it creates the rule. An empty
// account or Region is not compared with the rule's. Validate is pure: it does not
// know which prefixes are taken and which secrets exist.
func (r Rule) Validate(account, region string) *Exception {
	if err := r.checkShapes(); err != nil {
		return &Exception{InvalidParameter, err.Error()}
	}
	if r.Prefix == Root && r.UpstreamPrefix != "" && r.UpstreamPrefix != Root {
		return &Exception{InvalidParameter, sayRootPrefix}
	}
	up, ok := upstreamOf(r.UpstreamURL)
	switch {
	case !ok:
		return &Exception{unsupportedUpstream, "The upstream registry URL " + RedactURL(r.UpstreamURL) + " is invalid. Specify a valid upstream registry URL and try again"}
	case r.UpstreamURL == account+".dkr.ecr."+region+".amazonaws.com":
		return &Exception{InvalidParameter, saySameRegistry}
	case up.access != open && r.Upstream != "" && r.Upstream != up.name:
		return &Exception{InvalidParameter, sayMismatch}
	}
	return r.checkCredential(up, account, region)
}

// RedactURL removes what may be secret from a URL for a message: a password and a
// query. It takes text that is no URL, too.
func RedactURL(raw string) string {
	if i := strings.LastIndex(raw, "@"); i >= 0 {
		raw = "..." + raw[i:]
	}
	if i := strings.Index(raw, "?"); i >= 0 {
		raw = raw[:i] + "?..."
	}
	return raw
}

// checkShapes checks the constraints of the API model.
func (r Rule) checkShapes() error {
	for _, member := range []struct {
		at, value string
		shape     shape.String
		required  bool
	}{
		{"ecrRepositoryPrefix", r.Prefix, shape.RulePrefix, true},
		{"upstreamRegistry", r.Upstream, shape.Upstream, false},
		{"upstreamRepositoryPrefix", r.UpstreamPrefix, shape.RulePrefix, false},
		{"credentialArn", r.CredentialARN, shape.CredentialARN, false},
		{"customRoleArn", r.CustomRoleARN, shape.RoleARN, false},
	} {
		if member.value == "" && !member.required {
			continue
		}
		if err := member.shape.Check(member.at, member.value); err != nil {
			return err
		}
	}
	return nil
}

func (r Rule) checkCredential(up upstreamKind, account, region string) *Exception {
	switch {
	case r.CustomRoleARN != "" && up.access != byRole, r.CredentialARN != "" && up.access == byRole:
		return &Exception{InvalidParameter, sayCredentialType}
	case r.CredentialARN != "" && up.access == open:
		return &Exception{unsupportedUpstream, sayOpen}
	case r.CredentialARN == "" && up.access == bySecret:
		return &Exception{unsupportedUpstream, sayNeedsSecret}
	case r.CredentialARN != "" && !secretIsIn(r.CredentialARN, account, region):
		return &Exception{secretNotFound, saySecretElsewhere}
	}
	return nil
}

// secretIsIn compares the place in the ARN of a secret,
// arn:aws:secretsmanager:us-east-1:123456789012:secret:name, where it is known.
func secretIsIn(arn, account, region string) bool {
	part := strings.SplitN(arn, ":", 6)
	return len(part) == 6 && (region == "" || part[3] == region) && (account == "" || part[4] == account)
}

// SecretUpstream is ECR's name of the upstream registry that has the URL, if it is one of
// those that need a secret, and "" for all others. ECR's answers have it where the caller
// did not send it (upstream-registry-echo).
func SecretUpstream(url string) string {
	if kind, ok := upstreamOf(url); ok && kind.access == bySecret {
		return kind.name
	}
	return ""
}

// access is how ECR gets into a kind of upstream registry.
type access int

const (
	open     access = iota // without a credential, and none may be given
	bySecret               // with a secret, which must be given
	byRole                 // with an IAM role, which may be given: another account's registry needs it
)

// upstreamKind is a kind of upstream registry by its name in the API.
type upstreamKind struct {
	name   string
	access access
}

// upstreamKinds are the URLs that ECR takes, case-sensitive, without scheme, port or path.
var upstreamKinds = map[string]upstreamKind{
	"public.ecr.aws":       {"ecr-public", open},
	"registry.k8s.io":      {"k8s", open},
	"quay.io":              {"quay", open},
	"registry-1.docker.io": {"docker-hub", bySecret},
	"ghcr.io":              {"github-container-registry", bySecret},
	"registry.gitlab.com":  {"gitlab-container-registry", bySecret},
	"cgr.dev":              {"chainguard", bySecret},
}

// The URLs that have a name in them. What ends in .amazonaws.com.cn is refused
// (china-suffix): there is no pull through cache in these Regions.
var (
	azureURL = regexp.MustCompile(`\A[a-z0-9]([a-z0-9.-]*[a-z0-9])?\.azurecr\.io\z`)
	ecrURL   = regexp.MustCompile(`\A[0-9]{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com\z`)
)

// TakesUpstream reports whether ECR takes the URL of an upstream registry.
func TakesUpstream(url string) bool {
	_, ok := upstreamOf(url)
	return ok
}

func upstreamOf(url string) (kind upstreamKind, ok bool) {
	switch {
	case azureURL.MatchString(url):
		return upstreamKind{"azure-container-registry", bySecret}, true
	case ecrURL.MatchString(url):
		return upstreamKind{"ecr", byRole}, true
	}
	kind, ok = upstreamKinds[url]
	return kind, ok
}

// The exceptions of CreatePullThroughCacheRule. That of a URL that ECR does not
// know and that of a missing secret were reported by users; the others are
// guesses (create-error-types), as is InvalidParameterException rather than
// ValidationException for what breaks the model (invalid-vs-validation) and for
// the upstream prefix of a ROOT rule (root-upstream-prefix).
const (
	unsupportedUpstream = "UnsupportedUpstreamRegistryException"
	InvalidParameter    = "InvalidParameterException"
	secretNotFound      = "SecretNotFoundException"
)

// The messages of CreatePullThroughCacheRule. Of those that end in a guess
// (create-error-tails) only the beginning was seen, of saySecretElsewhere the two parts.
const (
	sayNeedsSecret = "The specified upstream registry requires authentication. Specify a valid Secrets Manager ARN " +
		"containing the upstream registry credentials and try again."
	sayMismatch = "Invalid input: Upstream registry URL and entered upstream registry do not match. " +
		"Please verify input and try again."

	sayOpen            = "The specified upstream registry doesn't require authentication" + "."
	sayCredentialType  = "Upstream registry URL and provided credential type do not match" + "."
	saySameRegistry    = "Upstream registry URL cannot be the same as the cache registry" + "."
	saySecretElsewhere = "The ARN of the secret specified in the pull through cache rule was not found. " +
		"Please verify the secret exists in the same region and account that the pullthrough cache rule will be created in"

	// The sentence is our own.
	sayRootPrefix = "A pull through cache rule with the prefix ROOT takes no upstream repository prefix but ROOT."
)
