package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/ecr"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// Rule is a pull through cache rule. The zero Rule covers nothing.
//
// See [CreatePullThroughCacheRule] for what Amazon ECR means by each field.
//
// [CreatePullThroughCacheRule]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_CreatePullThroughCacheRule.html
type Rule struct {
	// Prefix is the first part of the names that the rule covers, whole path
	// components; "ROOT" is the fallback for every name. A slash at the end
	// means the same as none.
	Prefix string
	// UpstreamURL is the upstream registry as ECR spells it,
	// "registry-1.docker.io", or any http or https URL; its path, if any, stands
	// before /v2/, which the URL itself must not end in. Without a scheme it is https.
	UpstreamURL string
	// UpstreamPrefix stands before the rest of the name upstream; "" and "ROOT"
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
// components wins, "ROOT" comes last, and of two equal prefixes the first. ok
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
	if above := rules[best].upstreamPrefix(); above != "" {
		upstreamName = above + "/" + upstreamName
	}
	return rules[best], upstreamName, true
}

// upstreamPrefix is what stands before the rest of a name upstream, without a slash at its end.
func (r *Rule) upstreamPrefix() string {
	if r.UpstreamPrefix == ecr.Root {
		return ""
	}
	return strings.TrimSuffix(r.UpstreamPrefix, "/")
}

// rest is what follows the rule's prefix in name.
func (r *Rule) rest(name string) (string, bool) {
	if r.Prefix == ecr.Root {
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
	if r.Prefix == ecr.Root {
		return 0
	}
	return len(strings.TrimSuffix(r.Prefix, "/"))
}

// Check reports whether a proxy can work with the rule: the prefixes are in
// ECR's grammar, the upstream is a host or an http or https URL. The error is
// an [ErrInvalid] that names the bad value. Check asks for less than ECR does
// when a rule is created: any upstream will do. See [Rule.Validate].
func (r Rule) Check() error {
	_, err := r.endpoint()
	return err
}

// Validate reports whether Amazon ECR would create the rule in the private
// registry of that account and Region: its upstream is one that ECR knows, spelled
// as ECR spells it, with the kind of credential that this upstream takes. It does
// not know what needs more than the rule: whether the prefix is taken, and whether
// the secret exists.
//
// The error is an [*Error] of kind [ErrInvalid] whose Message is ECR's; [AWS] tells
// the exception. An empty account or Region is not compared with the rule's. See
// [Rule.Check] for rules with any other upstream. Validate is pure.
func (r Rule) Validate(account, region string) error {
	e := ecr.Rule{
		Prefix: r.Prefix, UpstreamURL: r.UpstreamURL, UpstreamPrefix: r.UpstreamPrefix, Upstream: r.Upstream,
		CredentialARN: r.CredentialARN, CustomRoleARN: r.CustomRoleARN,
	}.Validate(account, region)
	if e == nil {
		return nil
	}
	return &Error{Kind: ErrInvalid, Message: e.Message, Err: e}
}

func ruleError(what, value, why string) error {
	return &Error{Kind: errBadRule, Err: fmt.Errorf("%s %q: %s", what, value, why)}
}

// endpoint checks the rule and returns where its upstream registry is: /v2/ stands
// below it.
func (r *Rule) endpoint() (*url.URL, error) {
	switch {
	case !ocipath.ValidPrefix(r.Prefix):
		return nil, ruleError("prefix", r.Prefix, "must be path components of a repository name, or ROOT")
	case r.UpstreamPrefix != "" && !ocipath.ValidPrefix(r.UpstreamPrefix):
		return nil, ruleError("upstream prefix", r.UpstreamPrefix, "must be path components of a repository name, or ROOT")
	case r.Prefix == ecr.Root && r.UpstreamPrefix != "" && r.UpstreamPrefix != ecr.Root:
		return nil, ruleError("upstream prefix", r.UpstreamPrefix, "must be ROOT, as the prefix is")
	}
	raw := r.UpstreamURL
	isURL := strings.Contains(raw, "://")
	if !isURL {
		raw = "https://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, ruleError("upstream URL", ecr.RedactURL(r.UpstreamURL), "is no host name and no URL")
	}
	err = checkEndpoint(u)
	if err == nil && isURL {
		err = checkAPIPath(u)
	}
	if err != nil {
		return nil, ruleError("upstream URL", ecr.RedactURL(r.UpstreamURL), err.Error())
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
	if err := checkHost(u); err != nil {
		return err
	}
	switch {
	case u.User != nil:
		return errors.New("credentials do not belong into it")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return errors.New("a query or fragment does not belong into it")
	case strings.Contains(u.Path, "..") || strings.Contains(u.EscapedPath(), "%"):
		return fmt.Errorf("path %q is not plain", u.EscapedPath())
	}
	return nil
}

// checkAPIPath refuses the URL of a registry's API: below it, at /v2/v2/, there would
// be no image. A host and a path without a scheme is not refused, since there "v2" may
// be a part of the registry's path.
func checkAPIPath(u *url.URL) error {
	if strings.HasSuffix(strings.TrimRight(u.Path, "/"), "/v2") {
		return errors.New("ends in /v2, which stands below it anyhow: write the URL without /v2")
	}
	return nil
}

func checkHost(u *url.URL) error {
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("scheme %q is neither http nor https", u.Scheme)
	case u.Hostname() == "" || strings.ContainsAny(u.Host, " \t\\<>\"'"):
		return fmt.Errorf("host %q is no host name", u.Host)
	case strings.HasSuffix(u.Host, ":") || u.Port() != "" && !validPort(u.Port()):
		return fmt.Errorf("port %q is no port", u.Port())
	}
	return nil
}

func validPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
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

// Policy says, per rule, what an upstream registry may do. The zero value is
// Amazon ECR's policy.
type Policy struct {
	// TagTTL is how long a tag counts as fresh after upstream has confirmed it.
	// 0: 24 hours. Negative: a stored tag is never checked again. [EveryPull]:
	// upstream is asked on every pull.
	TagTTL time.Duration
	// RealmHosts are the hosts, "auth.example.com", whose token server may be sent
	// the rule's credentials, beside the upstream host itself and the built-in
	// pairs such as registry-1.docker.io and auth.docker.io. nil: none.
	RealmHosts []string
	// MaxDownloads limits how many blobs the rule downloads at a time; more wait,
	// for 10 seconds at most. Imports have at most half of them, stand behind clients,
	// and wait as long as it takes. Of manifests and sizes 256 are fetched at a time,
	// and of lists of referrers and tags 8, apart from these. Further connections for clients
	// that read far ahead of what has come are at most as many again, and are done without
	// where none is free. 0: 64.
	MaxDownloads int
	// Connections is how many connections to upstream bring one blob, where upstream limits
	// the rate of each. It is for blobs with at least 8 MiB for each connection. All but the
	// first count as further connections (see MaxDownloads), and end when the last client
	// leaves. A blob comes over one connection if upstream ignores or refuses ranges, while
	// upstream asks to wait, and for 10 minutes after its digest was wrong.
	// 0: 1. More than 16 count as 16.
	Connections int
	// Orphans is how many downloads may finish after their last client has left,
	// and OrphanBytes how much may be left of them together, counted over all
	// rules; the others end within a second. 0: 4 downloads, 1 GiB. Negative: none.
	//
	// Before upstream has answered, a fetch of anything goes on for 30 seconds without a
	// client, so that one that tries again finds what its last try began; 64 of all rules
	// do. Where Orphans is negative none does. Content that is here to its last byte is
	// stored in any case.
	Orphans     int
	OrphanBytes int64
	// MaxBlobBytes limits the size of a blob. 0: 200,000,000,000 bytes, Amazon ECR's limit
	// for a layer (layer-limit).
	MaxBlobBytes int64

	// Retries is how often a request of a first pull that failed in passing is sent
	// again: 408, 429, 500, 502, 503, 504, or a connection that broke before there
	// was an answer. 0: 3 times. Negative: never.
	Retries int
	// CheckTimeout is how long a pull of a stored tag waits for its check; then the
	// stored one is served and the check goes on. 0: 2 seconds. Negative: until the
	// check has ended.
	CheckTimeout time.Duration
	// RefuseStale refuses the pull of a stored tag when its check is answered with
	// 401, 403 or 404, or with a redirect that is not followed. false: what is
	// stored is served whatever upstream says, as Amazon ECR does.
	RefuseStale bool
	// HideDenied answers "not found" where upstream refuses access, so that clients
	// do not learn which names exist. false: denied, as Amazon ECR says.
	HideDenied bool
	// RefuseWrongDigest refuses a manifest by tag for which upstream names a digest
	// that neither its content has nor what upstream has under that digest. false: the
	// content's own digest counts; see [Event.WrongDigest].
	RefuseWrongDigest bool
	// AnonymousFallback asks for a token without credentials when the token server
	// has refused the rule's; see [Event.Anonymous]. false: the pull is refused, as
	// a secret that has expired should be noticed.
	AnonymousFallback bool
	// BlockPrivate keeps redirects and token servers out of private networks
	// (RFC 1918, RFC 4193, RFC 6598). Loopback, link-local, metadata, multicast and
	// unspecified addresses are closed to them anyhow, unless the upstream itself
	// is given as a loopback address. The upstream's own host may be anywhere.
	BlockPrivate bool
	// NotFoundTTL is how long a manifest that upstream does not have is not asked for
	// again, nor a list of referrers where upstream seems to have no referrers API but has
	// not said 404. 0: 10 seconds. Negative: it is asked for on every pull.
	NotFoundTTL time.Duration
	// KeepLocal never checks tags that were pushed locally ([Manifest.Origin] ""), and a
	// push during a first pull wins; see [Manifest.KeepLocal].
	// false: upstream's image of that tag replaces them, as in Amazon ECR.
	KeepLocal bool
	// DigestAfterTag refuses a first pull by digest: "not found", unless an index of
	// the repository has been seen to refer to it. Users report that Amazon ECR does
	// so; its documentation says otherwise. false: digests are pulled like tags.
	DigestAfterTag bool
	// BlobsFirst pulls blobs also into repositories that are not there, for clients that
	// have not asked for an image. It is the image that makes the repository, as ever:
	// until then a Store may refuse the blob, which is served all the same. false: such
	// a blob is "name unknown", and upstream is not asked. It matters where the Store
	// is a [RepoCreator].
	BlobsFirst bool
	// ReferrersTTL is how long a list of referrers counts as fresh. 0: 6 hours.
	// Negative: a known list is never asked for again. [EveryPull]: each time.
	ReferrersTTL time.Duration
	// ReferrersTag falls back on the referrers tag, "sha256-<hex>", with upstreams
	// that have no referrers API, if it leads to an OCI index that is not the subject.
	// false: their lists are empty, as in Amazon ECR.
	ReferrersTag bool
	// UpstreamTags has lists of tags (OCI distribution spec, "Listing Tags") name what
	// upstream has, too, for callers who may import. Upstream's list is read to its end,
	// 100,000 tags at most, and counts as fresh for a minute. When upstream fails, the list
	// that it gave last is merged, if it is among the 16 last ones; else the request fails as
	// a pull does. Listing stores nothing and makes no repository. false: what is stored, as
	// in Amazon ECR.
	UpstreamTags bool
	// Library asks Docker Hub for library/NAME where the name of an image has one
	// component there, as in docker-hub/alpine, and so finds its official images under the names that
	// people know. The repository keeps its name: docker-hub/alpine and
	// docker-hub/library/alpine are two. It means nothing for other registries. false: names
	// are asked for as they are, as in Amazon ECR, and the error says what to write.
	Library bool
	// Offline asks no upstream for anything: what is stored is served, whatever its age,
	// and all else is an [ErrUnavailable] that says what is missing. false: online.
	Offline bool
	// HTTP1 speaks HTTP/1.1 with upstreams that get HTTP/2 wrong. false: HTTP/2
	// where upstream offers it.
	HTTP1 bool
}

// EveryPull as [Policy.TagTTL] makes every pull of a tag ask upstream.
const EveryPull time.Duration = 1

const (
	defaultTagTTL       = 24 * time.Hour
	defaultReferrersTTL = 6 * time.Hour
	defaultNotFoundTTL  = 10 * time.Second
	defaultMaxBlob      = 200_000_000_000
	defaultMaxDownloads = 64
	maxConnections      = 16
	defaultOrphans      = 4
	defaultOrphanBytes  = 1 << 30
	// clockSkew is how far in the future a stored check may lie before it counts
	// as a broken clock's.
	clockSkew = 5 * time.Minute
)

// due reports whether a stored tag must be confirmed again. origin and checked are
// those of its [Manifest].
func (pol Policy) due(origin string, checked, now time.Time) bool {
	if origin == "" && pol.KeepLocal || pol.Offline {
		return false
	}
	return expired(pol.TagTTL, defaultTagTTL, checked, now)
}

// expired reports whether what was confirmed at checked must be confirmed again.
// ttl is a Policy's, usual what its 0 means.
func expired(ttl, usual time.Duration, checked, now time.Time) bool {
	switch {
	case ttl < 0:
		return false
	case ttl == EveryPull || checked.IsZero():
		return true
	case ttl == 0:
		ttl = usual
	}
	age := now.Sub(checked)
	return age >= ttl || age < -clockSkew
}

func (pol Policy) maxBlob() int64 {
	if pol.MaxBlobBytes > 0 {
		return pol.MaxBlobBytes
	}
	return defaultMaxBlob
}

func (pol Policy) maxDownloads() int {
	if pol.MaxDownloads > 0 {
		return pol.MaxDownloads
	}
	return defaultMaxDownloads
}

func (pol Policy) maxOrphans() int {
	if pol.Orphans == 0 {
		return defaultOrphans
	}
	return pol.Orphans
}

func (pol Policy) maxOrphanBytes() int64 {
	if pol.OrphanBytes == 0 {
		return defaultOrphanBytes
	}
	return pol.OrphanBytes
}
