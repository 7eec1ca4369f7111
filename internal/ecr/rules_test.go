package ecr_test

import (
	"context"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var ecrRules = []trait{
	{"R01", "a rule owns every name that begins with its prefix and a slash", "documented", "the same: `hub` covers `hub/a` and `hub/a/b`, not `hub`, `hubs/a` or `a/hub/b`", testPrefixOwnsWholeComponents},
	{"R02", "the rest of the name is the name upstream; an upstream prefix stands before it", "documented", "the same, for all upstreams, with AWS's own examples", testUpstreamPrefix},
	{"R03", "`ROOT` covers what no other rule owns, with the whole name", "documented", "the same, beside other rules too", testRootCoversTheRest},
	{"R04", "`ROOT` takes no other upstream prefix than `ROOT`", "documented", "`Rule.Check` refuses such a rule; a pull by it fails as a mistake of the host's (500)", testRootTakesNoOtherPrefix},
	{"R05", "of `docker` and `docker/hub` one wins", "inferred, `nested-prefixes`", "both are allowed; the longest prefix on whole path components wins, `ROOT` comes last", testLongestPrefixWins},
	{"R06", "a prefix is read as if it ended in a slash", "documented, `slash-prefix`", "`foo` and `foo/` are one prefix; of two such rules the first counts", testSlashAtTheEndOfAPrefix},
	{"R07", "prefixes have dots, underscores, dashes, several components, and 30 characters at most", "documented", "the same characters; up to 256 of them, since users want more", testCharactersOfPrefixes},
	{"R08", "rules are those of one account in one Region, and so are images", "documented", "the same: nothing is shared between accounts or Regions", testRulesOfOneAccountAndRegion},
	{"R09", "a repository that was made by hand under a prefix is covered too; with `ROOT` every one is", "documented", "the same: tags that it lacks come from upstream", testRepositoriesMadeByHand},
	{"R10", "Docker Hub's official images need `library/`: nothing is added or taken away", "documented", "the same, and the error says what to write; `Policy.Library` finds them without", testOfficialImagesNeedLibrary},
	{"R11", "a rule works as soon as it was created, and no longer once it was deleted", "inferred", "the same: rules are asked for on each miss", testRulesWorkAtOnce},
	{"R12", "images of each kind of upstream have the name that AWS documents: `kubernetes/pause`, `gitlab/group/project/image`", "documented", "the same; a name upstream may have one component or many", testNamesByUpstream},
	{"R13", "open registries are asked anonymously, and count by address; with a secret its user's limits count", "documented", "the same: nothing authenticates a rule without a credential", testOpenRegistriesAreAskedAnonymously},
	{"R14", "a secret is used by Basic at upstream's token service, whose token is then used by Bearer", "inferred", "the same; a registry that asks for Basic gets that", testASecretBuysAToken},
	{"R15", "an ECR upstream may itself pull through", "inferred", "the same: digests stay those of the last upstream", testUpstreamsMayPullThrough},
	{"R16", "FIPS endpoints do not serve the first pull of an image", "documented", "departs: `HostIdentity` knows their names, and they are as others", testFIPSEndpoints},
	{"R17", "`ns` in a query means nothing: ECR is no mirror of other registries", "inferred", "departs: with `Proxy.Mirror` it names the upstream registry. Without, where only `ROOT` covers the name and is for another registry than `ns` names, the image is not there", testMirrorsAreNamed},
	{"R20", "ECR knows nine kinds of upstream, each by a URL and with one kind of credential: none, a secret that must be given, a role", "measured", "`Rule.Validate` has the same table, which `CreatePullThroughCacheRule` goes by (N30 and following); a host's own rules may name any upstream", TestValidateUpstreams},
	{"R21", "each URL has one spelling, without scheme, port, path or upper case; `docker.io`, `gcr.io`, Harbor and others are none of them", "measured", "the same", TestValidateRefusesOtherSpellings},
	{"R22", "prefixes, and upstream prefixes, have 2 to 30 characters of the grammar, or are `ROOT`", "documented", "the same, to the words", TestValidatePrefixes},
	{"R23", "a secret's ARN has `ecr-pullthroughcache/`; the six characters at its end may be missing", "documented", "the same, to the words", TestValidateSecretARNs},
	{"R24", "each refusal has its exception and its sentence", "measured", "the same; what is guessed of them has a line of its own (N33 and following)", TestValidateMessages},
}

// mapped is a registry with these rules, whatever they call their upstream.
func mapped(t *testing.T, rules ...pullthrough.Rule) *ecr {
	t.Helper()
	return startECR(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		up := p.Rules.(pullthrough.StaticRules)[0].UpstreamURL
		p.Rules = pullthrough.StaticRules(rules)
		p.Endpoint = func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error) { return url.Parse(up) }
	})
}

// maps pulls local:1, which must come from there upstream; "": no rule covers it.
func (e *ecr) maps(t *testing.T, local, upstream string) {
	t.Helper()
	img := testkit.Image(1)
	if upstream == "" {
		e.Up.Reset()
		r := e.Get(t, "/v2/"+local+"/manifests/1")
		assert.Equal(t, testkit.SayNoRepository(local, testkit.RegistryAccount), testkit.AssertOCI(t, r, 404, "NAME_UNKNOWN"))
		e.asked(t)
		return
	}
	e.push("1", img, upstream)
	testkit.AssertManifest(t, e.Get(t, "/v2/"+local+"/manifests/1"), "GET", img, img.Digest)
	e.asked(t, "GET /v2/"+upstream+"/manifests/1 200")
}

func testPrefixOwnsWholeComponents(t *testing.T) {
	e := mapped(t, pullthrough.Rule{Prefix: "hub", UpstreamURL: "quay.io"})
	e.maps(t, "hub/aa", "aa")
	e.maps(t, "hub/a/b/c", "a/b/c")
	e.maps(t, "hub/hub/aa", "hub/aa")
	for _, name := range []string{"hub", "hubs/aa", "hu/aa", "aa/hub/b", "aa"} {
		e.maps(t, name, "")
	}
}

func testUpstreamPrefix(t *testing.T) {
	for name, c := range map[string]struct{ prefix, upstream, local, there string }{
		"none":            {"ecr-public", "", "ecr-public/my-app/image1", "my-app/image1"},
		"ROOT":            {"ecr-public", "ROOT", "ecr-public/my-app/image1", "my-app/image1"},
		"ROOT to ROOT":    {"ROOT", "ROOT", "my-app/image1", "my-app/image1"},
		"the same":        {"team-a", "team-a", "team-a/myapp/image1", "team-a/myapp/image1"},
		"another":         {"my-app", "upstream-app", "my-app/image1", "upstream-app/image1"},
		"a domain":        {"cg-ecr", "example.com", "cg-ecr/chainguard-base", "example.com/chainguard-base"},
		"a domain, twice": {"cg-ecr", "example.com", "cg-ecr/example.com/chainguard-base", "example.com/example.com/chainguard-base"},
		"with a slash":    {"my-app/", "upstream-app/", "my-app/image1", "upstream-app/image1"},
		"components":      {"a/b", "c/d", "a/b/image1", "c/d/image1"},
	} {
		t.Run(name, func(t *testing.T) {
			e := mapped(t, pullthrough.Rule{Prefix: c.prefix, UpstreamPrefix: c.upstream, UpstreamURL: "cgr.dev"})
			e.maps(t, c.local, c.there)
		})
	}
}

func testRootCoversTheRest(t *testing.T) {
	e := mapped(t, pullthrough.Rule{Prefix: "ROOT", UpstreamURL: "quay.io"}, pullthrough.Rule{Prefix: "hub", UpstreamURL: "quay.io"})
	e.maps(t, "my-app/image1", "my-app/image1")
	e.maps(t, "hub/image1", "image1")
	e.maps(t, "hub", "hub")
	e.maps(t, "hubs/image1", "hubs/image1")
}

func testRootTakesNoOtherPrefix(t *testing.T) {
	rule := pullthrough.Rule{Prefix: "ROOT", UpstreamPrefix: "team", UpstreamURL: "quay.io"}
	assert.ErrorIs(t, rule.Check(), pullthrough.ErrInvalid)
	e := mapped(t, rule)
	testkit.AssertOCI(t, e.Get(t, "/v2/my-app/manifests/1"), 500, "UNKNOWN")
	e.asked(t)
}

func testLongestPrefixWins(t *testing.T) {
	docker := pullthrough.Rule{Prefix: "docker", UpstreamPrefix: "one", UpstreamURL: "quay.io"}
	hub := pullthrough.Rule{Prefix: "docker/hub", UpstreamPrefix: "two", UpstreamURL: "quay.io"}
	root := pullthrough.Rule{Prefix: "ROOT", UpstreamURL: "quay.io"}
	for _, rules := range [][]pullthrough.Rule{{docker, hub, root}, {root, hub, docker}} {
		e := mapped(t, rules...)
		e.maps(t, "docker/hub/alpine", "two/alpine")
		e.maps(t, "docker/hubs/alpine", "one/hubs/alpine")
		e.maps(t, "docker/hub", "one/hub")
		e.maps(t, "docker", "docker")
	}
}

func testSlashAtTheEndOfAPrefix(t *testing.T) {
	slash := pullthrough.Rule{Prefix: "foo/", UpstreamPrefix: "one", UpstreamURL: "quay.io"}
	plain := pullthrough.Rule{Prefix: "foo", UpstreamPrefix: "two", UpstreamURL: "quay.io"}
	mapped(t, slash).maps(t, "foo/aa", "one/aa")
	mapped(t, slash, plain).maps(t, "foo/aa", "one/aa")
	mapped(t, plain, slash).maps(t, "foo/aa", "two/aa")
	mapped(t, slash).maps(t, "foobar/aa", "")
}

func testCharactersOfPrefixes(t *testing.T) {
	for _, p := range []string{"docker.io", "k8s-io", "cache/docker-hub", "a_b", "a__b", "a---b", "1", strings.Repeat("a", 30), strings.Repeat("a", 31), strings.Repeat("a/", 100) + "a"} {
		mapped(t, pullthrough.Rule{Prefix: p, UpstreamURL: "quay.io"}).maps(t, p+"/aa", "aa")
	}
	for _, p := range []string{"Docker", "a..b", "a___b", "-a", "a-", "/a", "a//b", ".", "root", "a b", ""} {
		err := pullthrough.Rule{Prefix: p, UpstreamURL: "quay.io"}.Check()
		if p == "root" {
			assert.NoError(t, err, "it is a name like another")
			continue
		}
		assert.ErrorIs(t, err, pullthrough.ErrInvalid, "%q", p)
	}
}

func testRulesOfOneAccountAndRegion(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		rules := p.Rules
		p.Identify = pullthrough.HostIdentity
		p.Rules = pullthrough.RuleSourceFunc(func(ctx context.Context, account, region string) ([]pullthrough.Rule, error) {
			if account == testkit.RegistryAccount && region != "us-east-1" {
				return rules.Rules(ctx, account, region)
			}
			return nil, nil
		})
	})
	img := testkit.Image(1)
	e.push("1", img)
	e.serves(t, "1", img, "Host", testkit.RegistryHost)
	e.asked(t, asks("GET", "1", 200))
	for _, host := range []string{"210987654321.dkr.ecr.eu-west-1.amazonaws.com", testkit.RegistryAccount + ".dkr.ecr.us-east-1.amazonaws.com"} {
		account, _, _ := strings.Cut(host, ".")
		r := e.Get(t, testkit.ManifestPath("a", "1"), "Host", host)
		assert.Equal(t, testkit.SayNoRepository("hub/a", account), testkit.AssertOCI(t, r, 404, "NAME_UNKNOWN"))
	}
	e.asked(t)
	e.serves(t, "1", img, "Host", testkit.RegistryAccount+".dkr.ecr.eu-north-1.amazonaws.com")
	e.asked(t, asks("GET", "1", 200)) // what one Region has, another does not
}

func testRepositoriesMadeByHand(t *testing.T) {
	e, s := startRepoECR(t, []string{"a"})
	mine := e.local(t, "mine")
	theirs := testkit.Image(1)
	e.push("theirs", theirs)
	e.serves(t, "theirs", theirs)
	e.asked(t, asks("GET", "theirs", 200))
	e.serves(t, mine.Digest.String(), mine)
	e.asked(t)
	assert.Empty(t, s.creations())

	root := startECR(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		rules := p.Rules.(pullthrough.StaticRules)
		rules[0].Prefix = "ROOT"
	})
	root.push("theirs", theirs, "hub/a")
	require.NoError(t, root.Mem.PutManifest(t.Context(), ecrRepo("a"), testkit.LocalManifest("mine")))
	root.serves(t, "theirs", theirs)
	root.asked(t, "GET /v2/hub/a/manifests/theirs 200")
}

func testOfficialImagesNeedLibrary(t *testing.T) {
	e := mapped(t, pullthrough.Rule{Prefix: "docker-hub", UpstreamURL: "registry-1.docker.io"})
	e.maps(t, "docker-hub/library/alpine", "library/alpine")
	e.maps(t, "docker-hub/grafana/grafana", "grafana/grafana")
	e.Up.Delete("library/alpine", "")
	e.push("1", testkit.Image(1), "library/redis")
	e.refusesAt(t, "/v2/docker-hub/redis/manifests/1", 404, "MANIFEST_UNKNOWN",
		testkit.SayNotFound+". Docker Hub has its official images below library/: ask for 'docker-hub/library/redis'.")
	e.asked(t, "GET /v2/redis/manifests/1 404")
}

func testMirrorsAreNamed(t *testing.T) {
	e := mapped(t, pullthrough.Rule{Prefix: "ROOT", UpstreamURL: "docker.io"}, pullthrough.Rule{Prefix: "quay", UpstreamURL: "quay.io"})
	img := testkit.Image(1)
	e.push("1", img, "library/alpine")
	testkit.AssertManifest(t, e.Get(t, "/v2/library/alpine/manifests/1?ns=docker.io"), "GET", img, img.Digest)
	e.asked(t, "GET /v2/library/alpine/manifests/1 200")
	testkit.AssertOCI(t, e.Get(t, "/v2/library/alpine/manifests/1?ns=ghcr.io"), 404, "NAME_UNKNOWN")
	testkit.AssertManifest(t, e.Get(t, "/v2/quay/library/alpine/manifests/1?ns=ghcr.io"), "GET", img, img.Digest)
	e.asked(t, "GET /v2/library/alpine/manifests/1 200")
}

func testNamesByUpstream(t *testing.T) {
	for prefix, names := range map[string]struct{ url, local, there string }{
		"ecr-public": {"public.ecr.aws", "ecr-public/docker/library/alpine", "docker/library/alpine"},
		"kubernetes": {"registry.k8s.io", "kubernetes/pause", "pause"},
		"quay":       {"quay.io", "quay/org/image", "org/image"},
		"docker-hub": {"registry-1.docker.io", "docker-hub/library/alpine", "library/alpine"},
		"github":     {"ghcr.io", "github/owner/image", "owner/image"},
		"gitlab":     {"registry.gitlab.com", "gitlab/group/project/image", "group/project/image"},
		"chainguard": {"cgr.dev", "chainguard/org/image", "org/image"},
		"azure":      {"mine.azurecr.io", "azure/image", "image"},
	} {
		t.Run(prefix, func(t *testing.T) {
			mapped(t, pullthrough.Rule{Prefix: prefix, UpstreamURL: names.url}).maps(t, names.local, names.there)
		})
	}
}

// schemes are the requests that upstream had, each with the scheme of its credentials.
func (e *ecr) schemes() (all []string) {
	for _, r := range e.Up.Requests() {
		scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		all = append(all, strings.TrimSpace(r.Method+" "+r.Path+" "+scheme))
	}
	return all
}

func testOpenRegistriesAreAskedAnonymously(t *testing.T) {
	img := testkit.Image(1)
	open := startECR(t, pullthroughtest.Config{})
	open.push("1", img)
	open.serves(t, "1", img)
	assert.Equal(t, []string{"GET /v2/a/manifests/1"}, open.schemes())

	public := startECR(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users, Anonymous: true})
	public.push("1", img)
	public.serves(t, "1", img)
	assert.Equal(t, []string{"GET /v2/a/manifests/1", "GET /token", "GET /v2/a/manifests/1 Bearer"}, public.schemes())
}

func testASecretBuysAToken(t *testing.T) {
	img := testkit.Image(1)
	for name, c := range map[string]struct {
		auth pullthroughtest.Auth
		want []string
	}{
		"Bearer": {pullthroughtest.Bearer, []string{"GET /v2/a/manifests/1", "GET /token Basic", "GET /v2/a/manifests/1 Bearer"}},
		"Basic":  {pullthroughtest.Basic, []string{"GET /v2/a/manifests/1", "GET /v2/a/manifests/1 Basic"}},
	} {
		t.Run(name, func(t *testing.T) {
			e := startECR(t, pullthroughtest.Config{Auth: c.auth, Users: testkit.Users}, testkit.WithSecret(nil))
			e.push("1", img)
			e.serves(t, "1", img)
			assert.Equal(t, c.want, e.schemes())
		})
	}
}

func testUpstreamsMayPullThrough(t *testing.T) {
	far := startECR(t, pullthroughtest.Config{})
	near := startECR(t, pullthroughtest.Config{}, fills(pullthrough.FillBackground), func(p *pullthrough.Proxy) {
		p.Rules = pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: far.Server.URL, UpstreamPrefix: testkit.Prefix}}
	})
	list, children := index()
	far.push("1", list)
	near.serves(t, "1", list)
	far.Settled(t)
	assert.Equal(t, 1, far.Up.Count("GET /v2/a/manifests/1 200"))
	assert.Len(t, far.Up.Log(), 3+3+2, "upstream: %s", far.Up.Log())
	far.goesOffline(t, append(children, list)...)
	assert.Empty(t, near.Up.Log())
	far.Server.Close()
	for _, img := range append(children, list) {
		near.serves(t, img.Digest.String(), img)
		near.servesBlobs(t, img)
	}
}

func testFIPSEndpoints(t *testing.T) {
	for _, host := range []string{".dkr.ecr-fips.eu-west-1.amazonaws.com", ".dkr-ecr-fips.eu-west-1.on.aws"} {
		e := startECR(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Identify = pullthrough.HostIdentity })
		e.push("1", testkit.Image(1))
		e.serves(t, "1", testkit.Image(1), "Host", testkit.RegistryAccount+host)
		e.asked(t, asks("GET", "1", 200))
		_, err := e.Store.Manifest(t.Context(), ecrRepo("a"), "1")
		assert.NoError(t, err)
	}
}

// refusesAt is refuses for any path.
func (e *ecr) refusesAt(t *testing.T, path string, status int, code, message string) {
	t.Helper()
	assert.Equal(t, message, testkit.AssertOCI(t, e.Get(t, path), status, code))
}

// rulesThatChange are those of a registry, until somebody changes them.
func (e *ecr) rulesThatChange() (rules *[]pullthrough.Rule) {
	rules = new([]pullthrough.Rule)
	*rules = e.Rules.(pullthrough.StaticRules)
	e.Rules = pullthrough.RuleSourceFunc(func(context.Context, string, string) ([]pullthrough.Rule, error) { return *rules, nil })
	return rules
}

func testRulesWorkAtOnce(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	rules := e.rulesThatChange()
	rule := (*rules)[0]
	*rules = nil
	img := testkit.Image(1)
	e.push("1", img)
	e.refuses(t, "1", 404, "NAME_UNKNOWN", testkit.SayNoRepository("hub/a", testkit.RegistryAccount))
	e.asked(t)

	rule.CreatedAt = time.Unix(1_700_000_000, 0)
	*rules = []pullthrough.Rule{rule}
	e.serves(t, "1", img)
	e.asked(t, asks("GET", "1", 200))

	*rules = nil
	testkit.AssertOCI(t, e.Get(t, testkit.ManifestPath("b", "1")), 404, "NAME_UNKNOWN")
	e.asked(t)
}
