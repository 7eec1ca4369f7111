package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestUpstreamTenants(t *testing.T) { testkit.RunRows(t, tenants) }

// tenants are cases in which one account, repository or rule could get at what
// is another's.
var tenants = []row{
	{"T1", "has a private image that another caller has pulled already", "`Proxy.Authorize` decides on every request, hit or miss", testAuthorizeDecidesOnHitsToo},
	{"T2", "does not let an account have a blob that another one has pulled", "that account is refused, though the blob is stored", testBlobOfAnotherAccount},
	{"T3", "lists a digest that only another registry has", "it is asked for at this registry only; other people's content does not answer", testDigestOfAnotherRegistry},
	{"T4", "does not have a digest that somebody else has pulled", "the answer is the same, and takes as long, as for a digest that nobody has", testForeignDigestLooksLikeNone},
	{"T5", "is sending a blob to one account that another may not have", "the other asks for itself, and is refused meanwhile", testRunningDownloadOfAnotherAccount},
	{"T6", "is one host for two rules with two secrets", "each rule has its own tokens, and sends its own secret", testTwoSecretsOfOneHost},
	{"T7", "lacks a name below a prefix that lies in another rule's", "the longest prefix decides; that there is nothing is not remembered for the other rule", testNameBelowAnotherRulesPrefix},
	{"T8", "gets a secret that has been rotated", "the old one, and the tokens that it brought, are not sent again", testRotatedSecret},
	{"T9", "withdraws access to a stored tag, or the tag", "what is stored is served with an event, as by Amazon ECR; a rule can refuse it instead", testWithdrawnAccess},
	{"T10", "has a blob no more that was deleted in one repository and is kept in another", "it is gone from the one, and stays in the other", testDeletedInOneRepository},
	{"T11", "still sends what a rule asked for that has been deleted and made again", "the new rule asks for itself, with its own secret", testRuleDeletedAndMadeAgain},
}

// The secrets of two tenants.
const annsCanary, bobsCanary = "canary-of-ann", "canary-of-bob"

var tenantUsers = map[string]string{"ann": annsCanary, "bob": bobsCanary}

// newTenants is a world whose upstream knows ann and bob. credential says whose
// secret is sent.
func newTenants(t *testing.T, c pullthroughtest.Config, credential func(pullthrough.Repo, pullthrough.Rule) string, change func(*pullthrough.Proxy)) *testkit.World {
	t.Helper()
	c.Users = tenantUsers
	w := testkit.NewWorld(t, c, func(p *pullthrough.Proxy) {
		p.Credentials = func(_ context.Context, r pullthrough.Repo, rule pullthrough.Rule) (pullthrough.Credential, error) {
			user := credential(r, rule)
			return pullthrough.Credential{Username: user, AccessToken: tenantUsers[user]}, nil
		}
		if change != nil {
			change(p)
		}
	})
	allowTenants(w)
	return w
}

func allowTenants(w *testkit.World) {
	w.Secrets.Allow(annsCanary, w.Up)
	w.Secrets.Allow(bobsCanary, w.Up)
}

// byAccount says that an account is its own user.
func byAccount(r pullthrough.Repo, _ pullthrough.Rule) string { return r.Account }

// of is a repository of an account.
func of(account, name string) pullthrough.Repo {
	return pullthrough.Repo{Account: account, Region: "us-east-1", Name: testkit.Prefix + "/" + name}
}

// assertRefused asks for all of an image by digest, in every way, and checks
// that none of it is had.
func assertRefused(t *testing.T, w *testkit.World, r pullthrough.Repo, caller string, img *pullthroughtest.Image, kinds ...error) {
	t.Helper()
	for _, head := range []bool{false, true} {
		m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: r, Ref: img.Digest.String(), Caller: caller, Head: head})
		assert.True(t, m == nil)
		assert.True(t, isOneOf(err, kinds...), "%v", err)
		for _, b := range img.Blobs() {
			blob, err := w.Blob(t.Context(), pullthrough.Request{Repo: r, Ref: b.Digest.String(), Caller: caller, Head: head})
			assert.True(t, blob == nil)
			assert.True(t, isOneOf(err, kinds...), "%v", err)
		}
	}
}

func testAuthorizeDecidesOnHitsToo(t *testing.T) {
	var mu sync.Mutex
	asked := map[pullthrough.Action]int{}
	w := newTenants(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(pullthrough.Repo, pullthrough.Rule) string { return "ann" }, func(p *pullthrough.Proxy) {
		p.Authorize = func(_ context.Context, a pullthrough.Action, r pullthrough.Request) error {
			mu.Lock()
			defer mu.Unlock()
			asked[a]++
			if r.Caller == "bob" {
				return errors.New("bob may not")
			}
			return nil
		}
	})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 2})
	w.Up.Push("a", "1", img)
	assertRefused(t, w, of("1", "a"), "bob", img, pullthrough.ErrDenied)
	assert.Empty(t, w.Up.Log(), "on a miss nothing is fetched for him")
	w.FetchImage(t, of("1", "a"), "1", img)
	w.Up.Reset()
	clear(asked)
	assertRefused(t, w, of("1", "a"), "bob", img, pullthrough.ErrDenied)
	_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: of("1", "a"), Ref: "1", Caller: "bob"})
	assert.ErrorIs(t, err, pullthrough.ErrDenied)
	assert.Equal(t, map[pullthrough.Action]int{pullthrough.ActionPull: 2*(1+len(img.Blobs())) + 1}, asked, "every request is judged")
	clear(asked)
	w.FetchImage(t, of("1", "a"), "1", img)
	assert.Equal(t, map[pullthrough.Action]int{pullthrough.ActionPull: 1 + len(img.Blobs())}, asked)
	assert.Empty(t, w.Up.Log())
}

func testBlobOfAnotherAccount(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 2})
	onlyAnn := func(user, _ string) bool { return user == "ann" }
	for auth, name := range map[pullthroughtest.Auth]string{pullthroughtest.Basic: "Basic", pullthroughtest.Bearer: "Bearer"} {
		t.Run(name+", another account", func(t *testing.T) {
			w := newTenants(t, pullthroughtest.Config{Auth: auth, Allow: onlyAnn}, byAccount, nil)
			w.Up.Push("a", "1", img)
			w.FetchImage(t, of("ann", "a"), "1", img)
			w.Up.Reset()
			assertRefused(t, w, of("bob", "a"), "", img, pullthrough.ErrDenied)
			assert.False(t, w.Up.Saw(annsCanary))
			assert.Positive(t, w.Up.Count("GET /v2/a/*"), "upstream was asked, as bob")
			assert.Zero(t, w.Up.Count("GET /v2/a/* 200"))
			w.Up.Reset()
			w.FetchImage(t, of("ann", "a"), "1", img)
			assert.Empty(t, w.Up.Log(), "and ann has what she had")
		})
	}
	t.Run("another repository", func(t *testing.T) {
		w := newTenants(t, pullthroughtest.Config{}, byAccount, nil)
		w.Up.Push("a", "1", img)
		w.Up.Push("b", "1", afterwards)
		w.FetchImage(t, of("ann", "a"), "1", img)
		assertRefused(t, w, of("ann", "b"), "", img, pullthrough.ErrNotFound)
		assert.Positive(t, w.Up.Count("GET /v2/b/* 404"))
	})
	t.Run("another Region", func(t *testing.T) {
		w := newTenants(t, pullthroughtest.Config{}, byAccount, nil)
		w.Up.Push("a", "1", img)
		w.FetchImage(t, of("ann", "a"), "1", img)
		w.Up.Delete("a", "")
		elsewhere := of("ann", "a")
		elsewhere.Region = "eu-west-1"
		assertRefused(t, w, elsewhere, "", img, pullthrough.ErrNotFound)
		assert.Positive(t, w.Up.Count("GET /v2/a/* 404"))
	})
}

func testDigestOfAnotherRegistry(t *testing.T) {
	private := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 3000})
	hostile := pullthroughtest.New(t, pullthroughtest.Config{})
	w := newTenants(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(_ pullthrough.Repo, rule pullthrough.Rule) string {
		return map[string]string{"hub": "ann"}[rule.Prefix]
	}, nil)
	w.Rules = pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: w.Up.URL}, {Prefix: "evil", UpstreamURL: hostile.URL}}
	w.Secrets.Watch(hostile)
	w.Up.Push("a", "1", private)
	w.FetchImage(t, of("1", "a"), "1", private)
	w.Up.Reset()

	layer := private.Layers[0]
	evil := pullthrough.Repo{Account: "1", Region: "us-east-1", Name: "evil/x"}
	hostile.Push("x", "1", &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageManifest, Content: []byte(sized(layer.Digest, layer.Size))})
	_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: evil, Ref: "1"})
	require.NoError(t, err)
	get := func() error {
		b, err := w.Blob(t.Context(), pullthrough.Request{Repo: evil, Ref: layer.Digest.String()})
		if err == nil {
			testkit.AssertBody(t, layer.Digest, b)
		}
		w.Settled(t)
		return err
	}
	assert.ErrorIs(t, get(), pullthrough.ErrNotFound, "it does not have what it lists")
	heal := hostile.Fault(pullthroughtest.Fault{Match: "GET /v2/x/blobs/*", Status: 200, Body: make([]byte, layer.Size)})
	assert.ErrorIs(t, get(), pullthrough.ErrDigest, "nor does it get away with other bytes")
	heal()
	_, err = w.Manifest(t.Context(), pullthrough.Request{Repo: evil, Ref: private.Digest.String()})
	assert.ErrorIs(t, err, pullthrough.ErrNotFound)
	assert.Empty(t, w.Up.Log(), "whose content it is was not asked")
	hostile.PushBlob("x", testkit.BlobContent(t, layer))
	hostile.Reset()
	assert.NoError(t, get(), "whoever has the bytes may have them")
	assert.Equal(t, []string{"GET /v2/x/blobs/" + layer.Digest.String() + " 200"}, hostile.Log())
}

func testForeignDigestLooksLikeNone(t *testing.T) {
	up, enter := testkit.Piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		w.Policy = policyOf(pullthrough.Policy{NotFoundTTL: -1}) // what somebody has asked for himself he may know
		held := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 3000})
		up.Push("mine", "1", held)
		up.Push("theirs", "1", afterwards)
		w.Pull(t, "mine", "1", held)
		nobody := digest.FromString("nobody has this")
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			for _, path := range []string{"blobs", "manifests"} {
				known := map[string]digest.Digest{"blobs": held.Layers[0].Digest, "manifests": held.Digest}[path]
				answers := map[digest.Digest]string{}
				for _, d := range []digest.Digest{known, nobody, known} {
					up.Reset()
					start := time.Now()
					answer := httptest.NewRecorder()
					w.ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), method, "/v2/hub/theirs/"+path+"/"+d.String(), nil))
					said := fmt.Sprint(answer.Code, answer.Header(), answer.Body, up.Log(), time.Since(start))
					answers[d] = strings.ReplaceAll(said, d.String(), "DIGEST")
					assert.Equal(t, http.StatusNotFound, answer.Code)
				}
				assert.Equal(t, answers[nobody], answers[known], "nothing tells who has it")
				assert.NotContains(t, answers[known], "X-Cache")
			}
		}
	})
}

func testRunningDownloadOfAnotherAccount(t *testing.T) {
	for name, theirs := range map[string]pullthrough.Repo{
		"another account":    of("bob", "a"),
		"another repository": of("ann", "b"),
		"another rule":       {Account: "ann", Region: "us-east-1", Name: "other/a"},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.Baseline(t)
			up, enter := testkit.Piped(t, pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: tenantUsers, Allow: func(user, repo string) bool { return user == "ann" && repo == "a" }})
			synctest.Test(t, func(t *testing.T) {
				w := enter(t)
				allowTenants(w)
				w.Rules = pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: up.URL}, {Prefix: "other", UpstreamURL: up.URL}}
				w.Credentials = func(_ context.Context, r pullthrough.Repo, rule pullthrough.Rule) (pullthrough.Credential, error) {
					user := map[bool]string{true: "ann", false: "bob"}[r.Account == "ann" && rule.Prefix == testkit.Prefix]
					return pullthrough.Credential{Username: user, AccessToken: tenantUsers[user]}, nil
				}
				img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 3 << 20})
				up.Push("a", "1", img)
				over := make(chan struct{})
				up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/* 200", Stall: over, StallAfter: new(int64(100))})
				meanwhile(func() { w.FetchImage(t, of("ann", "a"), "1", img) }, func() {
					assert.Zero(t, elapsed(func() { assertRefused(t, w, theirs, "", img, pullthrough.ErrDenied) }), "nobody waits for ann's")
					close(over)
				})
				up.Heal()
				assert.Zero(t, elapsed(func() { assertRefused(t, w, theirs, "", img, pullthrough.ErrDenied) }))
				assert.Equal(t, 1+len(img.Blobs()), up.Count("GET /v2/a/* 200"), "ann's pull was one")
			})
		})
	}
}

func testNameBelowAnotherRulesPrefix(t *testing.T) {
	inner := pullthroughtest.New(t, pullthroughtest.Config{})
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	outside := pullthrough.Rule{Prefix: "x", UpstreamURL: w.Up.URL}
	inside := pullthrough.Rule{Prefix: "x/private", UpstreamURL: inner.URL}
	var mu sync.Mutex
	rules := []pullthrough.Rule{outside, inside}
	w.Rules = pullthrough.RuleSourceFunc(func(context.Context, string, string) ([]pullthrough.Rule, error) {
		mu.Lock()
		defer mu.Unlock()
		return rules, nil
	})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	in := func(name string) pullthrough.Repo { return pullthrough.Repo{Name: name} }
	inner.Push("a", "1", img)
	w.Up.Push("private/b", "1", img)
	w.Up.Push("privates/a", "1", img)

	w.FetchImage(t, in("x/private/a"), "1", img)
	assert.Empty(t, w.Up.Log(), "the longest prefix decides")
	w.FetchImage(t, in("x/privates/a"), "1", img)
	assert.Zero(t, inner.Count("*privates*"), "of whole components")
	assertRefused(t, w, in("x/private/b"), "", img, pullthrough.ErrNotFound)
	assert.Zero(t, w.Up.Count("GET /v2/private/b/*"), "who lacks it is not asked elsewhere")

	mu.Lock()
	rules = []pullthrough.Rule{outside}
	mu.Unlock()
	w.FetchImage(t, in("x/private/b"), "1", img)
	assert.Equal(t, 1+len(img.Blobs()), w.Up.Count("GET /v2/private/b/* 200"), "that the other rule had found nothing is forgotten")
}

// forgetful is a Store from which blobs and manifests can be deleted by
// repository.
type forgetful struct {
	*memstore.Store
	mu   sync.Mutex
	gone map[pullthrough.Repo]bool
}

func (s *forgetful) lacks(r pullthrough.Repo) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone[r] {
		return fs.ErrNotExist
	}
	return nil
}

func (s *forgetful) Manifest(ctx context.Context, r pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	if err := s.lacks(r); err != nil {
		return nil, err
	}
	return s.Store.Manifest(ctx, r, ref)
}

func (s *forgetful) Blob(ctx context.Context, r pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	if err := s.lacks(r); err != nil {
		return nil, err
	}
	return s.Store.Blob(ctx, r, d)
}

func testDeletedInOneRepository(t *testing.T) {
	store := &forgetful{Store: memstore.New(), gone: map[pullthrough.Repo]bool{}}
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store = store })
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 2})
	for _, name := range []string{"a", "b"} {
		w.Up.Push(name, "1", img)
		w.FetchImage(t, of("1", name), "1", img)
	}
	w.Up.Delete("a", "")
	w.Up.Reset()
	store.mu.Lock()
	store.gone[of("1", "a")] = true
	store.mu.Unlock()
	assertRefused(t, w, of("1", "a"), "", img, pullthrough.ErrNotFound)
	assert.Positive(t, w.Up.Count("GET /v2/a/* 404"))
	w.Up.Reset()
	w.FetchImage(t, of("1", "b"), "1", img)
	assert.Empty(t, w.Up.Log(), "the other repository still has it")
}
