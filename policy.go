package pullthrough

import "time"

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
	// for 10 seconds at most. Manifests and tokens never wait. 0: 64.
	MaxDownloads int
	// Orphans is how many downloads may finish after their last client has left,
	// and OrphanBytes how much may be left of them together, counted over all
	// rules; the others end within a second. 0: 4 downloads, 1 GiB. Negative: none.
	Orphans     int
	OrphanBytes int64
	// MaxBlobBytes limits the size of a blob. 0: 52,000 MiB, Amazon ECR's limit
	// for a layer.
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
	// RefuseWrongDigest refuses a manifest by tag for which upstream names another
	// digest than its content has. false: the content's own digest counts; see
	// [Event.WrongDigest].
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
	// again. 0: 10 seconds. Negative: it is asked for on every pull.
	NotFoundTTL time.Duration
	// KeepLocal never checks tags that were pushed locally ([Manifest.Origin] "").
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
	// that have no referrers API. false: their lists are empty, as in Amazon ECR.
	ReferrersTag bool
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
	defaultMaxBlob      = 52_000 << 20
	defaultMaxDownloads = 64
	defaultOrphans      = 4
	defaultOrphanBytes  = 1 << 30
	// clockSkew is how far in the future a stored check may lie before it counts
	// as a broken clock's.
	clockSkew = 5 * time.Minute
)

// due reports whether a stored tag must be confirmed again.
func (pol Policy) due(have *Manifest, now time.Time) bool {
	if have.Origin == "" && pol.KeepLocal || pol.Offline {
		return false
	}
	return expired(pol.TagTTL, defaultTagTTL, have.CheckedAt, now)
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
