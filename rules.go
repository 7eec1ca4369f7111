package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// Root is the prefix of the rule that covers every name no other rule covers,
// and the upstream prefix that adds nothing.
const Root = "ROOT"

// Repo names a repository of one private registry. It is comparable.
type Repo struct {
	Account string // 12-digit account id; a host with one account may leave it empty
	Region  string // for example "us-east-1"; a host with one Region may leave it empty
	Name    string // "docker-hub/library/alpine"
}

// Rule is a pull through cache rule. The zero Rule covers nothing.
//
// See [CreatePullThroughCacheRule] for what Amazon ECR means by each field.
//
// [CreatePullThroughCacheRule]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_CreatePullThroughCacheRule.html
type Rule struct {
	// Prefix is the first part of the names that the rule covers, whole path
	// components; [Root] is the fallback for every name. A slash at the end
	// means the same as none.
	Prefix string
	// UpstreamURL is the upstream registry as ECR spells it,
	// "registry-1.docker.io", or any http or https URL; its path, if any, stands
	// before /v2/. Without a scheme it is https.
	UpstreamURL string
	// UpstreamPrefix stands before the rest of the name upstream; "" and [Root]
	// add nothing.
	UpstreamPrefix string
	// Upstream is ECR's name for the kind of upstream registry, as the caller of
	// CreatePullThroughCacheRule sent it. The proxy does not look at it.
	Upstream string
	// CredentialARN and CustomRoleARN are handed to [Proxy.Credentials] with the
	// rule; the proxy does not look at them.
	CredentialARN, CustomRoleARN string
	// CreatedAt and UpdatedAt tell a rule from another of the same name before it.
	CreatedAt, UpdatedAt time.Time
}

// Match returns the rule that covers the repository name and the repository's
// name upstream: the rule with the longest matching prefix on whole path
// components wins, [Root] comes last, and of two equal prefixes the first. ok
// is false if no rule covers the name. Rules without a prefix cover nothing.
// Match is pure: it does no I/O and keeps nothing.
func Match(rules []Rule, name string) (rule Rule, upstreamName string, ok bool) {
	best := -1
	for i := range rules {
		rest, covers := rules[i].rest(name)
		if covers && (best < 0 || rules[i].weight() > rules[best].weight()) {
			best, upstreamName = i, rest
		}
	}
	if best < 0 {
		return Rule{}, "", false
	}
	if up := rules[best].UpstreamPrefix; up != "" && up != Root {
		upstreamName = strings.TrimSuffix(up, "/") + "/" + upstreamName
	}
	return rules[best], upstreamName, true
}

// rest is what follows the rule's prefix in name.
func (r *Rule) rest(name string) (string, bool) {
	if r.Prefix == Root {
		return name, name != ""
	}
	prefix := strings.TrimSuffix(r.Prefix, "/")
	if prefix == "" || len(name) <= len(prefix)+1 || name[len(prefix)] != '/' || name[:len(prefix)] != prefix {
		return "", false
	}
	return name[len(prefix)+1:], true
}

// weight orders matching rules: the length of the prefix, nothing for ROOT.
func (r *Rule) weight() int {
	if r.Prefix == Root {
		return 0
	}
	return len(strings.TrimSuffix(r.Prefix, "/"))
}

// Check reports whether a proxy can work with the rule: the prefixes are in
// ECR's grammar, the upstream is a host or an http or https URL. The error is
// an [ErrInvalid] that names the bad value. Check asks for less than ECR does
// when a rule is created: any upstream will do.
func (r Rule) Check() error {
	if !ocipath.ValidPrefix(r.Prefix) {
		return ruleError("prefix", r.Prefix, "must be path components of a repository name, or ROOT")
	}
	if r.UpstreamPrefix != "" && !ocipath.ValidPrefix(r.UpstreamPrefix) {
		return ruleError("upstream prefix", r.UpstreamPrefix, "must be path components of a repository name, or ROOT")
	}
	if r.Prefix == Root && r.UpstreamPrefix != "" && r.UpstreamPrefix != Root {
		return ruleError("upstream prefix", r.UpstreamPrefix, "must be ROOT, as the prefix is")
	}
	_, err := r.endpoint()
	return err
}

func ruleError(what, value, why string) error {
	return &Error{Kind: errBadRule, Err: fmt.Errorf("%s %q: %s", what, value, why)}
}

// endpoint is where the rule's upstream registry is: /v2/ stands below it.
func (r *Rule) endpoint() (*url.URL, error) {
	raw := r.UpstreamURL
	if !strings.Contains(raw, "://") {
		raw = "https://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, ruleError("upstream URL", redactURL(r.UpstreamURL), "is no host name and no URL")
	}
	if err := checkEndpoint(u); err != nil {
		return nil, ruleError("upstream URL", redactURL(r.UpstreamURL), err.Error())
	}
	switch u.Host {
	case "docker.io", "index.docker.io":
		u.Host = "registry-1.docker.io"
	}
	u.Path = strings.TrimRight(u.Path, "/")
	return u, nil
}

// checkEndpoint refuses what cannot have /v2/ below it, and secrets in URLs.
func checkEndpoint(u *url.URL) error {
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("scheme %q is neither http nor https", u.Scheme)
	case u.Hostname() == "" || strings.ContainsAny(u.Host, " \t\\<>\"'"):
		return fmt.Errorf("host %q is no host name", u.Host)
	case strings.HasSuffix(u.Host, ":") || u.Port() != "" && !validPort(u.Port()):
		return fmt.Errorf("port %q is no port", u.Port())
	case u.User != nil:
		return errors.New("credentials do not belong into it")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return errors.New("a query or fragment does not belong into it")
	case strings.Contains(u.Path, "..") || strings.Contains(u.EscapedPath(), "%"):
		return fmt.Errorf("path %q is not plain", u.EscapedPath())
	}
	return nil
}

func validPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// redactURL keeps passwords and queries that were written into a URL out of
// messages, also of one that cannot be parsed.
func redactURL(raw string) string {
	if i := strings.LastIndex(raw, "@"); i >= 0 {
		raw = "..." + raw[i:]
	}
	if i := strings.Index(raw, "?"); i >= 0 {
		raw = raw[:i] + "?..."
	}
	return raw
}

// RuleSource gives the rules of one account in one Region. It is asked on each
// miss, and must be safe for concurrent use: the host keeps its own create,
// read, update and delete. The slice is not changed and not kept.
type RuleSource interface {
	Rules(ctx context.Context, account, region string) ([]Rule, error)
}

// StaticRules are the same rules in every account and Region.
type StaticRules []Rule

// Rules returns s.
func (s StaticRules) Rules(context.Context, string, string) ([]Rule, error) { return s, nil }

// RuleSourceFunc makes a function a RuleSource.
type RuleSourceFunc func(ctx context.Context, account, region string) ([]Rule, error)

// Rules calls f.
func (f RuleSourceFunc) Rules(ctx context.Context, account, region string) ([]Rule, error) {
	return f(ctx, account, region)
}
