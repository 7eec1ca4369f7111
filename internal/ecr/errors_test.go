package ecr_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var ecrErrors = []trait{
	{"E01", "404 `NAME_UNKNOWN`, \"The repository with name '…' does not exist in the registry with id '…'\": there is no repository and no rule", "documented", "the same sentence, with name and account", testNoRepositoryAndNoRule},
	{"E02", "404 `MANIFEST_UNKNOWN`, \"Requested image not found\": upstream does not have the image", "documented", "the same", testImageIsMissing},
	{"E03", "404 `BLOB_UNKNOWN`: the blob is neither cached nor upstream", "inferred", "the same, with a sentence of our own", testBlobIsMissing},
	{"E04", "400 `NAME_INVALID`, `TAG_INVALID` or `DIGEST_INVALID`: what was asked for is outside the grammar", "inferred", "the same, with sentences of our own; nobody is asked", testNamesOutsideTheGrammar},
	{"E05", "neither repository nor image: upstream says 404 to the first pull", "chosen, `repo-after-404`", "`NAME_UNKNOWN`, and nothing is made, with a Store that is a `RepoCreator`; without one `MANIFEST_UNKNOWN`", testNeitherRepositoryNorImage},
	{"E06", "403 `DENIED`, \"The authentication to the upstream registry failed. …\": upstream refuses, for whatever reason", "measured", "the same sentence, never 401, which would have clients log in to the wrong registry; `Policy.HideDenied` says not found instead", testUpstreamRefuses},
	{"E07", "the rule's secret cannot be read, or is empty", "chosen, `empty-secret`", "an error of `Proxy.Credentials` is 403 `DENIED` with that sentence; upstream is not asked", testUnreadableSecret},
	{"E08", "another account's ECR is the upstream, and the rule has no role", "chosen, `cross-account-no-role`", "that upstream's refusal is 403 `DENIED` with that sentence", testCrossAccountWithoutRole},
	{"E09", "403 `DENIED`, \"User: … is not authorized to perform: ecr:BatchGetImage …\": the caller may not pull", "inferred", "what `Proxy.Authorize` says, word for word", testCallerMayNotPull},
	{"E10", "403 `DENIED`: the caller may neither read nor import", "measured", "the same, on the first pull and on later ones", testCallerMayNeitherReadNorImport},
	{"E11", "401 with a Basic challenge: no token, or one that has expired", "inferred", "\"Not Authorized\", or the words of `Proxy.Identify`, which may have `DENIED` too", testUnknownCaller},
	{"E12", "429 `TOOMANYREQUESTS`, \"Rate exceeded\": ECR's own limit", "inferred", "a host's callbacks can say so, with `Retry-After`", testRateOfTheRegistryItself},
	{"E13", "upstream limits the rate (429), first pull", "chosen, `wire-429`", "429 `TOOMANYREQUESTS` with upstream's `Retry-After` and a sentence of our own", testUpstreamLimitsTheRate},
	{"E14", "upstream is down, slow, broken or sends rubbish, first pull", "chosen, `wire-unavailable`", "502 `UNKNOWN` with a sentence of our own, without upstream's address, words or secrets", testUpstreamIsDown},
	{"E15", "every error is one document, `{\"errors\":[{\"code\":…,\"message\":…}]}`", "documented", "the same", testErrorsAreOneDocument},
}

func testNoRepositoryAndNoRule(t *testing.T) {
	e, s := startRepoECR(t, nil)
	e.push("1", testkit.Image(1))
	some := digest.FromString("some").String()
	for _, path := range []string{"/v2/mine/manifests/1", "/v2/mine/manifests/" + some, "/v2/mine/blobs/" + some, "/v2/mine/tags/list"} {
		e.refusesAt(t, path, 404, "NAME_UNKNOWN", testkit.SayNoRepository("mine", testkit.RegistryAccount))
	}
	e.asked(t)
	assert.Empty(t, s.creations())
}

func testImageIsMissing(t *testing.T) {
	e, s := startRepoECR(t, []string{"a"})
	e.push("1", testkit.Image(1))
	absent := digest.FromString("absent").String()
	for _, ref := range []string{"2", absent} {
		e.refuses(t, ref, 404, "MANIFEST_UNKNOWN", testkit.SayNotFound)
		e.asked(t, asks("GET", ref, 404))
	}
	assert.Empty(t, s.creations())
	assert.Empty(t, s.puts())
}

func testBlobIsMissing(t *testing.T) {
	e, _ := startRepoECR(t, []string{"a"})
	e.push("1", testkit.Image(1))
	absent := digest.FromString("absent")
	message := testkit.AssertOCI(t, e.Get(t, testkit.BlobPath("a", absent)), 404, "BLOB_UNKNOWN")
	assert.NotEqual(t, testkit.SayNotFound, message, "it is no image")
	e.asked(t, testkit.UpstreamGet(testkit.BlobPath("a", absent), 404))
}

func testNamesOutsideTheGrammar(t *testing.T) {
	e, _ := startRepoECR(t, []string{"a"})
	for path, code := range map[string]string{
		"/v2/hub/A/manifests/1":                                           "NAME_INVALID",
		"/v2/hub/a--/manifests/1":                                         "NAME_INVALID",
		"/v2/hub//manifests/1":                                            "NAME_INVALID",
		"/v2/" + strings.Repeat("a", 257) + "/manifests/1":                "NAME_INVALID",
		"/v2/x/manifests/1":                                               "NAME_INVALID",
		"/v2/hub/A/tags/list":                                             "NAME_INVALID",
		"/v2/hub/a/manifests/-1":                                          "TAG_INVALID",
		"/v2/hub/a/manifests/" + strings.Repeat("a", 129):                 "TAG_INVALID",
		"/v2/hub/a/manifests/sha256:abc":                                  "DIGEST_INVALID",
		"/v2/hub/a/manifests/md5:" + strings.Repeat("0", 32):              "DIGEST_INVALID",
		"/v2/hub/a/blobs/latest":                                          "DIGEST_INVALID",
		"/v2/hub/a/blobs/sha256:" + strings.Repeat("G", 64):               "DIGEST_INVALID",
		"/v2/hub/a/manifests/sha256:" + strings.Repeat("a", 63):           "DIGEST_INVALID",
		"/v2/hub/a/manifests/sha256:" + strings.ToUpper(testkit.Hex64)[:]: "DIGEST_INVALID",
	} {
		testkit.AssertOCI(t, e.Get(t, path), 400, code)
	}
	e.asked(t)
}

func testNeitherRepositoryNorImage(t *testing.T) {
	e, s := startRepoECR(t, nil)
	e.push("1", testkit.Image(1), "other")
	for _, ref := range []string{"1", digest.FromString("absent").String()} {
		e.refuses(t, ref, 404, "NAME_UNKNOWN", testkit.SayNoRepository("hub/a", testkit.RegistryAccount))
		e.asked(t, asks("GET", ref, 404))
	}
	assert.Empty(t, s.creations())
	e.refusesAt(t, tagsPath("a"), 404, "NAME_UNKNOWN", testkit.SayNoRepository("hub/a", testkit.RegistryAccount))

	plain := startECR(t, pullthroughtest.Config{})
	plain.refuses(t, "1", 404, "MANIFEST_UNKNOWN", testkit.SayNotFound)
	plain.asked(t, asks("GET", "1", 404))
	plain.refusesAt(t, tagsPath("a"), 404, "NAME_UNKNOWN", testkit.SayNoRepository("hub/a", testkit.RegistryAccount))
}

func testUpstreamRefuses(t *testing.T) {
	img := testkit.Image(1)
	users := map[string]string{"robot": "canary-right"}
	nobody := func(string, string) bool { return false }
	for name, c := range map[string]struct {
		config pullthroughtest.Config
		cred   pullthrough.Credential
	}{
		"a wrong secret, Basic":      {pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: users}, pullthrough.Credential{Username: "robot", AccessToken: "canary-wrong"}},
		"a wrong secret, Bearer":     {pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: users}, pullthrough.Credential{Username: "robot", AccessToken: "canary-wrong"}},
		"no secret, Basic":           {pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: users}, pullthrough.Credential{}},
		"no secret, Bearer":          {pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: users}, pullthrough.Credential{}},
		"a private repository":       {pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: users, Allow: nobody}, pullthrough.Credential{Username: "robot", AccessToken: "canary-right"}},
		"one that anonymous may not": {pullthroughtest.Config{Auth: pullthroughtest.Bearer, Anonymous: true, Users: users, Allow: nobody}, pullthrough.Credential{}},
	} {
		t.Run(name, func(t *testing.T) {
			secret := func(p *pullthrough.Proxy) {
				p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
					return c.cred, nil
				}
			}
			e := startECR(t, c.config, secret)
			e.push("1", img)
			for _, path := range []string{testkit.ManifestPath("a", "1"), testkit.ManifestPath("a", img.Digest.String()), testkit.BlobPath("a", img.Layers[0].Digest)} {
				r := e.Get(t, path)
				assert.Equal(t, testkit.SayDenied, testkit.AssertOCI(t, r, 403, "DENIED"))
				assert.Empty(t, r.Header.Get("WWW-Authenticate"))
				assert.Equal(t, 403, e.Ask(t, http.MethodHead, path).StatusCode)
			}
			e.Settled(t)
			assert.NotEmpty(t, e.Up.Log())
			assert.Zero(t, e.Up.Count("GET /v2/* 200"))

			hidden := startECR(t, c.config, secret, testkit.WithPolicy(pullthrough.Policy{HideDenied: true}))
			hidden.push("1", img)
			hidden.refuses(t, "1", 404, "MANIFEST_UNKNOWN", testkit.SayNotFound)
		})
	}
	for _, code := range []int{401, 403} {
		e := startECR(t, pullthroughtest.Config{})
		e.push("1", img)
		e.Up.Fault(testkit.Status(code))
		e.refuses(t, "1", 403, "DENIED", testkit.SayDenied)
	}
}

func testUnreadableSecret(t *testing.T) {
	for name, refusal := range map[string]error{
		"unreadable": errVault, "missing": errors.Join(errors.New("canary"), pullthrough.ErrNotFound), "slow": context.DeadlineExceeded,
	} {
		t.Run(name, func(t *testing.T) {
			img := testkit.Image(1)
			e := startECR(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(p *pullthrough.Proxy) {
				p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
					return pullthrough.Credential{}, refusal
				}
			})
			e.push("1", img)
			e.refuses(t, "1", 403, "DENIED", testkit.SayDenied)
			e.refusesAt(t, testkit.BlobPath("a", img.Layers[0].Digest), 403, "DENIED", testkit.SayDenied)
			e.Settled(t)
			assert.Zero(t, e.Up.Count("GET /token*"))
			assert.Zero(t, e.Up.Count("* 200"))
		})
	}
}

func testCrossAccountWithoutRole(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: map[string]string{"AWS": "canary"}}, func(p *pullthrough.Proxy) {
		p.Credentials = func(_ context.Context, _ pullthrough.Repo, rule pullthrough.Rule) (pullthrough.Credential, error) {
			if rule.CustomRoleARN == "" {
				return pullthrough.Credential{}, nil
			}
			return pullthrough.Credential{Username: "AWS", AccessToken: "canary"}, nil
		}
	})
	rules := e.rulesThatChange()
	img := testkit.Image(1)
	e.push("1", img)
	e.refuses(t, "1", 403, "DENIED", testkit.SayDenied)
	withRole := (*rules)[0]
	withRole.CustomRoleARN = "arn:aws:iam::123456789012:role/ptc"
	*rules = []pullthrough.Rule{withRole}
	e.serves(t, "1", img)
	assert.Equal(t, 1, e.Up.Count("GET /v2/a/manifests/1 200"))
}

func testCallerMayNotPull(t *testing.T) {
	say := "User: arn:aws:iam::123456789012:user/bob is not authorized to perform: ecr:BatchGetImage on resource: " +
		"arn:aws:ecr:eu-west-1:123456789012:repository/hub/a because no identity-based policy allows the ecr:BatchGetImage action"
	d := &testkit.Door{Refuse: map[pullthrough.Action]error{pullthrough.ActionPull: errors.New(say)}}
	e, _ := startRepoECR(t, nil, func(p *pullthrough.Proxy) { p.Authorize = d.Authorize })
	img := testkit.Image(1)
	e.push("1", img)
	paths := []string{testkit.ManifestPath("a", "1"), testkit.BlobPath("a", img.Layers[0].Digest), tagsPath("a"), referrersPath("a", img.Digest)}
	for _, path := range paths {
		e.refusesAt(t, path, 403, "DENIED", say)
	}
	e.asked(t)
}

func testCallerMayNeitherReadNorImport(t *testing.T) {
	e, d, img := refusingTo(t, "bob", pullthrough.ActionPull, pullthrough.ActionImport, pullthrough.ActionCreate)
	for range 2 {
		assert.Equal(t, d.say(pullthrough.ActionPull), testkit.AssertOCI(t, e.Get(t, testkit.ManifestPath("a", "1"), "X-Caller", "bob"), 403, "DENIED"))
		e.serves(t, "1", img, "X-Caller", "ann")
	}
	e.asked(t, asks("GET", "1", 200))
}

func testUnknownCaller(t *testing.T) {
	expired := "Your authorization token has expired. Reauthenticate and try again."
	for name, c := range map[string]struct {
		refusal       error
		code, message string
	}{
		"no token":       {pullthrough.ErrUnauthorized, "UNAUTHORIZED", "Not Authorized"},
		"expired":        {&pullthrough.Error{Kind: pullthrough.ErrUnauthorized, Message: expired}, "UNAUTHORIZED", expired},
		"expired, older": {&pullthrough.Error{Kind: pullthrough.ErrUnauthorized, Code: "DENIED", Message: expired}, "DENIED", expired},
	} {
		t.Run(name, func(t *testing.T) {
			e := startECR(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				p.Identify = func(*http.Request) (pullthrough.Identity, error) { return pullthrough.Identity{}, c.refusal }
			})
			e.push("1", testkit.Image(1))
			for _, path := range []string{"/v2/", testkit.ManifestPath("a", "1"), tagsPath("a"), "/v2/_catalog", referrersPath("a", digest.FromString("x"))} {
				r := e.Get(t, path, "Host", testkit.RegistryHost)
				assert.Equal(t, c.message, testkit.AssertOCI(t, r, 401, c.code), path)
				assert.Equal(t, []string{`Basic realm="https://` + testkit.RegistryHost + `/",service="ecr.amazonaws.com"`}, r.Header.Values("WWW-Authenticate"))
			}
			e.asked(t)
		})
	}
}

func testRateOfTheRegistryItself(t *testing.T) {
	exceeded := &pullthrough.Error{Kind: pullthrough.ErrRateLimited, Message: "Rate exceeded", RetryAfter: 3 * time.Second}
	for name, change := range map[string]func(*pullthrough.Proxy){
		"Identify": func(p *pullthrough.Proxy) {
			p.Identify = func(*http.Request) (pullthrough.Identity, error) { return pullthrough.Identity{}, exceeded }
		},
		"Authorize": func(p *pullthrough.Proxy) {
			p.Authorize = func(context.Context, pullthrough.Action, pullthrough.Request) error { return exceeded }
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := startECR(t, pullthroughtest.Config{}, change)
			e.push("1", testkit.Image(1))
			r := e.Get(t, testkit.ManifestPath("a", "1"))
			assert.Equal(t, "Rate exceeded", testkit.AssertOCI(t, r, 429, "TOOMANYREQUESTS"))
			assert.Equal(t, "3", r.Header.Get("Retry-After"))
			e.asked(t)
		})
	}
}

func testUpstreamLimitsTheRate(t *testing.T) {
	img := testkit.Image(1)
	for name, path := range map[string]string{"manifest": testkit.ManifestPath("a", "1"), "blob": testkit.BlobPath("a", img.Layers[0].Digest)} {
		t.Run(name, func(t *testing.T) {
			e := startECR(t, pullthroughtest.Config{})
			e.push("1", img)
			e.Up.Fault(testkit.Status(429, "Retry-After", "3600"))
			r := e.Get(t, path)
			message := testkit.AssertOCI(t, r, 429, "TOOMANYREQUESTS")
			assert.NotEqual(t, "Rate exceeded", message, "that would be our own limit")
			assert.Equal(t, "3600", r.Header.Get("Retry-After"))
			e.Settled(t)
			assert.Equal(t, 1, e.Up.Count("*"))
		})
	}
}

func testUpstreamIsDown(t *testing.T) {
	img := testkit.Image(1)
	for name, c := range testkit.Failures {
		if c.Status == 502 {
			t.Run(name, func(t *testing.T) {
				testkit.CheckFailure(t, c, img, "GET /v2/a/manifests/* 200", testkit.ManifestPath("a", img.Digest.String()))
			})
		}
	}
	t.Run("silent", func(t *testing.T) {
		testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
			w.Up.Fault(pullthroughtest.Fault{Stall: make(chan struct{})})
			_, err := w.Tagged(t, "1")
			status, code, message := pullthrough.OCI(err)
			assert.Equal(t, []any{502, "UNKNOWN", sayUnavailable}, []any{status, code, message})
			synctest.Wait()
		})
	})
}

func testErrorsAreOneDocument(t *testing.T) {
	e, _ := startRepoECR(t, []string{"a"})
	r := e.Get(t, testkit.ManifestPath("a", "1"))
	assert.JSONEq(t, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"Requested image not found"}]}`, string(r.Content))
	assert.Equal(t, "registry/2.0", r.Header.Get("Docker-Distribution-Api-Version"))
}
