package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/ecr"
	"github.com/ecr-pullthrough/pullthrough/internal/extent"
	"github.com/ecr-pullthrough/pullthrough/internal/fill"
	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/hostname"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/quota"
	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
)

// route is the way from one of our repositories to its upstream. It is made once
// per request. Nothing after it looks at names again.
type route struct {
	beginning
	id     routeID
	rule   Rule
	policy Policy
	base   *url.URL // /v2/ stands below it
	name   string   // the repository's name upstream
}

// routeID is the identity of a rule. Whatever requests share is keyed by it, so a
// rule that is made anew under an old name shares nothing with the old one.
type routeID struct {
	account, region                               string
	prefix, upstreamURL, upstreamPrefix, upstream string
	credentialARN, roleARN                        string
	createdAt, updatedAt                          int64
	endpoint                                      string
}

// objectKey is what requests may share: the same object of the same repository by
// the same rule.
type objectKey struct {
	rule routeID
	repo string
	ref  string
}

// hash is the key for those who do not know what a rule is. It has all fields, each as Go
// would write it, but for the times of the rule: many hosts make the same rules anew each
// time they start.
func (k objectKey) hash() string {
	k.rule.createdAt, k.rule.updatedAt = 0, 0
	return digest.FromString(fmt.Sprintf("%#v", k)).Encoded()
}

// String names the object, for people.
func (k objectKey) String() string { return ocipath.Object(k.repo, k.ref) }

// isOf reports whether the object is of the repository. One without a name stands for all
// of its account in its Region.
func (k objectKey) isOf(repo Repo) bool {
	return k.rule.account == repo.Account && k.rule.region == repo.Region && (repo.Name == "" || k.repo == repo.Name)
}

// host is that of the rule's upstream registry.
func (id routeID) host() string {
	u, err := url.Parse(id.endpoint)
	if err != nil {
		return ""
	}
	return u.Host
}

// waiting is the event of a fetch that has not ended, of an object of that kind.
func (k objectKey) waiting(object string) Event {
	return Event{
		Kind: EventFetch, Object: object, Rule: k.rule.prefix,
		Request: Request{Repo: Repo{k.rule.account, k.rule.region, k.repo}, Ref: k.ref},
	}
}

// objectOf are the kinds of object by the words of the registry client, and by the names of
// the flights that fetch them.
var objectOf = map[string]string{
	"manifests": EventManifest, "blobs": EventBlob, "referrers": EventReferrers,
	"manifest": EventManifest, "blob": EventBlob, "size of": EventBlob, "referrers of": EventReferrers,
}

// held is what upstream registries have asked us to wait with, as events of fetches that
// wait.
func (g *registries) held() (all []Event) {
	for _, h := range g.client.Held() {
		if id, ok := h.ID.(routeID); ok {
			e := objectKey{rule: id}.waiting(objectOf[h.Kind])
			e.Err = fromClient(h.Err)
			all = append(all, e)
		}
	}
	return all
}

func (rt *route) key(ref string) objectKey { return objectKey{rt.id, rt.repo.Name, ref} }

// limit gives the job of a fill what the Policy allows it.
func (rt *route) limit(j *fill.Job) {
	pol := &rt.policy
	j.MaxBytes, j.Retry = pol.maxBlob(), pol.Retries >= 0
	j.Lane, j.MaxPerLane = rt.id, pol.maxDownloads()
	j.Connections = min(pol.Connections, maxConnections)
	j.Orphans, j.OrphanBytes = pol.maxOrphans(), pol.maxOrphanBytes()
}

// begin lets a fetch go on for a while after its last client has left, if the Policy
// allows that: the client may try again.
func (rt *route) begin(call interface{ Linger() }) {
	if rt.policy.maxOrphans() > 0 {
		call.Linger()
	}
}

// prefix names the rule.
func (rt *route) prefix() string { return rt.rule.Prefix }

// wantsManifestFirst reports whether a blob is no business of a repository that is
// not there: the image makes the repository.
func (rt *route) wantsManifestFirst() bool { return !rt.policy.BlobsFirst }

// isDue reports whether a stored tag must be confirmed again.
func (rt *route) isDue(have *Manifest, now time.Time) bool {
	return rt.policy.due(have.Origin, have.CheckedAt, now)
}

// isListDue reports whether a list of referrers that upstream confirmed at checked
// must be asked for again.
func (rt *route) isListDue(checked, now time.Time) bool {
	return !rt.policy.Offline && expired(rt.policy.ReferrersTTL, defaultReferrersTTL, checked, now)
}

// outcome is what is known once upstream was asked by the route.
func (rt *route) outcome(repository presence) outcome {
	return outcome{hideDenied: rt.policy.HideDenied, repository: repository, advice: rt.advice()}
}

// library is the namespace of Docker Hub's official images.
const library = "library/"

// needsLibrary reports whether the name upstream is one that Docker Hub has only below library/.
func (rt *route) needsLibrary() bool {
	return rt.name != "" && !strings.Contains(rt.name, "/") && hostname.Canonical(rt.rule.UpstreamURL) == hostname.DockerHub
}

// advice is for a client that reads that the image cannot be had; "": there is none.
func (rt *route) advice() string {
	if !rt.needsLibrary() {
		return ""
	}
	return "Docker Hub has its official images below " + library + ": ask for '" + strings.TrimSuffix(rt.repo.Name, rt.name) + library + rt.name + "'."
}

func (rt *route) error(kind, cause error) *Error {
	return &Error{Kind: kind, Host: rt.base.Host, Err: cause}
}

// router finds the rule that covers a repository, and with it the way upstream.
type router struct {
	rules    RuleSource
	endpoint func(ctx context.Context, repo Repo, rule Rule) (*url.URL, error) // nil: where the rule says
	policy   func(ctx context.Context, repo Repo, rule Rule) Policy            // nil: the zero Policy
	// callbacks bounds calls of the host that are not made on a request's own
	// goroutine. They do not share the Store's bound: a Store that hangs must not keep
	// anybody from upstream.
	callbacks *hostcall.Lookups
	deletions *deletions
}

// route finds the rule that covers repo. An error is ErrNoRule where there is none.
func (ro *router) route(ctx context.Context, repo Repo) (*route, error) {
	rules, err := ro.askRules(ctx, repo.Account, repo.Region)
	if err != nil {
		return nil, err
	}
	rule, name, ok := Match(rules, repo.Name)
	if !ok {
		return nil, noRule(rules)
	}
	return ro.routeBy(ctx, rule, repo, name)
}

// routeBeside is route for a miss: the caller leaves when its context ends.
func (ro *router) routeBeside(ctx context.Context, repo Repo) (*route, error) {
	return callBeside(ctx, ro.callbacks, "Rules", func(ctx context.Context) (*route, error) {
		return ro.route(ctx, repo)
	})
}

// callBeside calls the host for a request whose caller leaves when its context ends.
// Where too many calls hang the host is called on the request's own goroutine: then
// it can hold up this request, and no other.
func callBeside[T any](ctx context.Context, l *hostcall.Lookups, what string, f func(context.Context) (T, error)) (T, error) {
	v, err := hostcall.Do(ctx, l, what, nil, f)
	if errors.Is(err, hostcall.ErrStuck) {
		err = hostcall.Guard(what, func() (err error) { v, err = f(ctx); return err })
	}
	return v, err
}

// routeBy is the way that rule says, to name upstream.
func (ro *router) routeBy(ctx context.Context, rule Rule, repo Repo, name string) (_ *route, err error) {
	rt := &route{beginning: beginning{repo, ro.deletions.now()}, rule: rule, name: name}
	if rt.base, err = ro.base(ctx, repo, rule); err != nil {
		return nil, err
	}
	if ro.policy != nil {
		err = hostcall.Guard("Policy", func() error { rt.policy = ro.policy(ctx, repo, rule); return nil })
	}
	if rt.policy.Library && rt.needsLibrary() {
		rt.name = library + name
	}
	rt.id = routeID{
		repo.Account, repo.Region,
		rule.Prefix, rule.UpstreamURL, rule.UpstreamPrefix, rule.Upstream,
		rule.CredentialARN, rule.CustomRoleARN,
		rule.CreatedAt.UnixNano(), rule.UpdatedAt.UnixNano(),
		rt.base.String(),
	}
	return rt, err
}

func (ro *router) askRules(ctx context.Context, account, region string) (rules []Rule, err error) {
	defer hostcall.Recover("Rules", &err)
	rules, err = ro.rules.Rules(ctx, account, region)
	return rules, hostcall.Named("Rules", err)
}

// covers reports whether a rule of the account and Region covers the name. One outside the
// grammar can be covered by its prefix. "ROOT" is none: it does not cover what no upstream
// can have, such as a name of a single letter.
func (ro *router) covers(ctx context.Context, account, region, name string) (bool, error) {
	rules, err := ro.askRules(ctx, account, region)
	if err != nil {
		return false, err
	}
	rule, _, ok := Match(rules, name)
	return ok && (rule.Prefix != ecr.Root || ocipath.ValidName(name)), nil
}

// isFresh reports whether a stored tag need not be checked, as far as that can be said
// without its rule.
func (ro *router) isFresh(have *Manifest, now time.Time) bool {
	return ro.policy == nil && !(Policy{}).due(have.Origin, have.CheckedAt, now)
}

// noRule is ErrNoRule. If there is a rule that can never match, the error says so,
// since the reason would otherwise be hard to find.
func noRule(rules []Rule) error {
	for _, r := range rules {
		if err := r.Check(); err != nil {
			return &Error{Kind: ErrNoRule, Err: err}
		}
	}
	return &Error{Kind: ErrNoRule}
}

// base is where the rule's upstream registry is: where the rule says, unless the
// host knows better.
func (ro *router) base(ctx context.Context, repo Repo, rule Rule) (*url.URL, error) {
	own, err := rule.endpoint()
	if err != nil || ro.endpoint == nil {
		return own, err
	}
	var u *url.URL
	err = hostcall.Guard("Endpoint", func() (err error) { u, err = ro.endpoint(ctx, repo, rule); return err })
	if err != nil || u == nil {
		return own, hostcall.Named("Endpoint", err)
	}
	err = checkEndpoint(u)
	if err == nil {
		err = checkAPIPath(u)
	}
	if err != nil {
		return nil, ruleError("endpoint", ecr.RedactURL(u.String()), err.Error())
	}
	clean := *u
	clean.Path = strings.TrimRight(u.Path, "/")
	return &clean, nil
}

// errRuleGone is why something is served and not stored.
var errRuleGone = errors.New("the rule is not what it was when the fetch began")

// unchanged returns nil if the rule is still the one that the fetch began with.
// What came by a rule that is gone, or that is another one by now, is served and
// not stored.
func (ro *router) unchanged(ctx context.Context, rt *route) error {
	now, err := hostcall.Do(ctx, ro.callbacks, "Rules", nil, func(ctx context.Context) (*route, error) {
		return ro.route(ctx, rt.repo)
	})
	if errors.Is(err, ErrNoRule) || err == nil && now.id != rt.id {
		return errRuleGone
	}
	return err
}

// registries is the seam to the registry client, and the only place that calls it:
// a route becomes a target, and the client's errors become ours.
type registries struct {
	client      *upstream.Client
	credentials func(ctx context.Context, repo Repo, rule Rule) (Credential, error) // nil: anonymous
	rotated     func(ctx context.Context, repo Repo, rule Rule, identityToken string)
	memory      *memory // is told what upstream tells of other objects
	turns       *quota.Lanes[routeID]
	listTurns   *quota.Lanes[routeID]
}

const (
	// maxFetches is how many manifests and sizes of one rule are fetched at a time,
	// maxAllFetches how many of all rules, but for the few that are each rule's own:
	// clients choose what they ask for, and rules do not wait for each other. Blobs
	// have a limit of their own (Policy.MaxDownloads). Tokens have none, since what has
	// its turn waits for them.
	maxFetches    = 256
	maxAllFetches = 1024
	turnWait      = 10 * time.Second

	// Lists of referrers take more memory than others, and so have fewer turns.
	maxListFetches    = 8
	maxAllListFetches = 32
)

func newRegistries(client *upstream.Client, s *guardedStore, now func() time.Time) *registries {
	return &registries{
		client: client, memory: newMemory(s, now),
		turns:     quota.NewLanes[routeID](maxFetches, maxAllFetches),
		listTurns: quota.NewLanes[routeID](maxListFetches, maxAllListFetches),
	}
}

// reach gives what the client needs for a fetch by the route, and the fetch its turn:
// give must be called then. A pull waits for its turn, ten seconds at most. A check does
// not: there is something to serve.
func (g *registries) reach(ctx context.Context, rt *route, ref string, e upstream.Effort) (t *upstream.Target, give func(), err error) {
	if t, err = g.target(rt, ref); err != nil {
		return nil, nil, err
	}
	wait := turnWait
	if e == upstream.Check {
		wait = 0
	}
	give, err = takeTurn(ctx, g.turns, rt, wait)
	return t, give, err
}

// takeTurn waits for a turn, and no longer than that.
func takeTurn(ctx context.Context, turns *quota.Lanes[routeID], rt *route, wait time.Duration) (give func(), err error) {
	soon, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	give, err = turns.Take(soon, rt.id)
	switch {
	case err == nil:
		return give, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	}
	busy := rt.error(errBusy, errors.New("too many requests to upstream at a time"))
	busy.RetryAfter = turnWait
	return nil, busy
}

// target is the route as the client knows it. It refuses what the Policy keeps off
// the network: without a target nothing is sent.
func (g *registries) target(rt *route, ref string) (*upstream.Target, error) {
	pol := &rt.policy
	if pol.Offline {
		message := "offline: " + ocipath.Object(rt.repo.Name, ref) + " is not stored"
		return nil, &Error{Kind: ErrUnavailable, Message: message, Err: errors.New(message)}
	}
	t := &upstream.Target{
		ID: rt.id, Base: rt.base, Name: rt.name, Label: rt.repo.Name,
		Options: upstream.Options{
			RealmHosts: pol.RealmHosts, Retries: pol.Retries, RefuseWrongDigest: pol.RefuseWrongDigest,
			AnonymousFallback: pol.AnonymousFallback, BlockPrivate: pol.BlockPrivate,
			ReferrersTag: pol.ReferrersTag, HTTP1: pol.HTTP1,
		},
	}
	if g.credentials != nil {
		t.Credential = func(ctx context.Context) (upstream.Credential, error) { return g.credential(ctx, rt) }
	}
	if g.rotated != nil {
		t.Rotated = func(ctx context.Context, identityToken string) { g.rotated(ctx, rt.repo, rt.rule, identityToken) }
	}
	return t, nil
}

// credential asks the host. A failure refuses the pull as Amazon ECR does when it
// cannot read a rule's secret. An ErrDenied of the host's is no trouble with a
// secret: there is no way into the upstream registry.
func (g *registries) credential(ctx context.Context, rt *route) (cred upstream.Credential, err error) {
	err = hostcall.Guard("Credentials", func() error {
		c, err := g.credentials(ctx, rt.repo, rt.rule)
		cred = upstream.Credential(c)
		return err
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return upstream.Credential{}, context.Cause(ctx) // we gave it up: that says nothing of the secret
	case errors.Is(err, ErrDenied):
		return upstream.Credential{}, rt.error(ErrDenied, fmt.Errorf("credentials of the rule: %w", err))
	case err != nil:
		return upstream.Credential{}, rt.error(ErrDenied, fmt.Errorf("%w: %w", errSecret, err))
	}
	return cred, nil
}

// refuse returns an error for a manifest that upstream need not be asked for.
func (g *registries) refuse(ctx context.Context, rt *route, ref string) error {
	return g.memory.refuse(ctx, rt, ref)
}

// manifest fetches the manifest ref. What it refers to is remembered, and so is that
// upstream does not have what is pulled for the first time.
func (g *registries) manifest(ctx context.Context, rt *route, ref string, effort upstream.Effort) (*Manifest, error) {
	t, give, err := g.reach(ctx, rt, ref, effort)
	if err != nil {
		return nil, err
	}
	defer give()
	got, err := g.client.Manifest(ctx, t, ref, effort)
	if err != nil {
		err = fromClient(err)
		if effort == upstream.Pull {
			g.memory.noteMissing(rt, ref, err)
		}
		return nil, err
	}
	g.memory.learn(rt, got.Info)
	if !got.Info.IsTyped {
		got.Descriptor.MediaType = g.storedType(ctx, rt, got)
	}
	m := &Manifest{Descriptor: got.Descriptor, Content: got.Content, Origin: rt.base.Host, Source: SourceFill}
	if !ocipath.IsDigest(ref) {
		m.Tag = ref
	}
	return m, nil
}

// storedType is the media type of a manifest whose content does not say what it is. Two
// tags may have it under two types, and under two kinds of digest. Everybody gets the type
// under which it is stored.
func (g *registries) storedType(ctx context.Context, rt *route, got *upstream.Manifest) string {
	for _, d := range []digest.Digest{got.Descriptor.Digest, digest.FromBytes(got.Content)} {
		if have := g.memory.store.findManifest(ctx, rt.repo, d.String()); have != nil {
			return have.Descriptor.MediaType
		}
	}
	return got.Descriptor.MediaType
}

// head asks which digest tag has now; "" where upstream does not say so.
func (g *registries) head(ctx context.Context, rt *route, tag string) (digest.Digest, error) {
	t, give, err := g.reach(ctx, rt, tag, upstream.Check)
	if err != nil {
		return "", err
	}
	defer give()
	d, err := g.client.Head(ctx, t, tag)
	return d, fromClient(err)
}

func (g *registries) blobSize(ctx context.Context, rt *route, d digest.Digest) (int64, error) {
	t, give, err := g.reach(ctx, rt, d.String(), upstream.Pull)
	if err != nil {
		return 0, err
	}
	defer give()
	size, err := g.client.BlobSize(ctx, t, d)
	return size, fromClient(err)
}

// blob begins to download the blob, or the bytes of span of it, if that is not empty; see
// [upstream.Client.TransferPart]. The errors of reading it are the client's.
func (g *registries) blob(ctx context.Context, rt *route, d digest.Digest, span extent.Span, size int64) (fill.Source, error) {
	t, err := g.target(rt, d.String())
	if err != nil {
		return nil, err
	}
	var body *upstream.Transfer
	if span.Len() > 0 {
		body, err = g.client.TransferPart(ctx, t, d, span, size)
	} else {
		body, err = g.client.Transfer(ctx, t, d)
	}
	if err != nil {
		return nil, fromClient(err)
	}
	return body, nil
}

// part asks for some bytes of the blob on a connection of their own.
func (g *registries) part(ctx context.Context, rt *route, d digest.Digest, span extent.Span) (fill.Part, error) {
	t, err := g.target(rt, d.String())
	if err != nil {
		return nil, err
	}
	part, err := g.client.Part(ctx, t, d, span.From, span.To)
	if err == nil {
		return part, nil
	}
	if e, ok := errors.AsType[*upstream.Error](err); ok && (e.RetryAfter > 0 || e.Kind == upstream.ErrRateLimited) {
		err = fmt.Errorf("%w: %w", fill.ErrLater, err)
	}
	return nil, err
}

// referrers lists what refers to the subject. sure is false where it is a guess that
// upstream has no list.
func (g *registries) referrers(ctx context.Context, rt *route, subject digest.Digest) (index *ocispec.Index, sure bool, err error) {
	t, err := g.target(rt, subject.String())
	if err != nil {
		return nil, false, err
	}
	give, err := takeTurn(ctx, g.listTurns, rt, turnWait)
	if err != nil {
		return nil, false, err
	}
	defer give()
	index, sure, err = g.client.Referrers(ctx, t, subject)
	return index, sure, fromClient(err)
}

// tags lists the tags of the repository.
func (g *registries) tags(ctx context.Context, rt *route) ([]string, error) {
	t, err := g.target(rt, "")
	if err != nil {
		return nil, err
	}
	give, err := takeTurn(ctx, g.listTurns, rt, turnWait)
	if err != nil {
		return nil, err
	}
	defer give()
	tags, err := g.client.Tags(ctx, t)
	return tags, fromClient(err)
}

// probe asks the registry for /v2/, as docker login does.
func (g *registries) probe(ctx context.Context, rt *route) error {
	t, give, err := g.reach(ctx, rt, "", upstream.Pull)
	if err != nil {
		return err
	}
	defer give()
	return fromClient(g.client.Probe(ctx, t))
}

var clientKinds = map[error]error{
	upstream.ErrNotFound:    ErrNotFound,
	upstream.ErrDenied:      ErrDenied,
	upstream.ErrRateLimited: ErrRateLimited,
	upstream.ErrUnavailable: ErrUnavailable,
	upstream.ErrDigest:      ErrDigest,
	upstream.ErrTooLarge:    ErrTooLarge,
}

// fromClient puts an error of the client into our words. Others stay as they are:
// ours, which the client hands on, and those of contexts.
func fromClient(err error) error {
	if _, ours := errors.AsType[*Error](err); ours {
		return err
	}
	e, ok := errors.AsType[*upstream.Error](err)
	if !ok {
		return err
	}
	return &Error{Kind: clientKinds[e.Kind], Host: e.Host, Status: e.Status, RetryAfter: e.RetryAfter, Err: e.Err}
}
