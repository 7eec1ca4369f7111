package pullthrough_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestAuthorizeTellsClientsWhatItMeansToAndNoMore(t *testing.T) {
	const own = "hunter2" // of the host, which may log and tell itself what it panics with
	secret := "postgres://u:" + own + "@db"
	for name, tc := range map[string]struct {
		authorize func() error
		status    int
	}{
		"a refusal":      {func() error { return errors.New("User: me is not authorized") }, 403},
		"a panic":        {func() error { panic(secret) }, 500},
		"not identified": {func() error { return pullthrough.ErrUnauthorized }, 401},
		"its own error":  {func() error { return &pullthrough.Error{Kind: pullthrough.ErrRateLimited} }, 429},
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				p.Authorize = func(context.Context, pullthrough.Action, pullthrough.Request) error { return tc.authorize() }
			})
			body, status := getBody(t, testkit.Serve(t, w.Proxy).URL+"/v2/hub/a/manifests/1")
			assert.Equal(t, tc.status, status)
			assert.NotContains(t, string(body), own)
			assert.Empty(t, w.Up.Log())
		})
	}
}

func newDoor(t *testing.T, change func(*pullthrough.Proxy)) (*testkit.Face, *testkit.Door, *pullthroughtest.Image) {
	t.Helper()
	d := &testkit.Door{}
	f := testkit.NewFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Authorize = d.Authorize
		if change != nil {
			change(p)
		}
	})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	f.Up.Push("a", "v1", img)
	f.Up.Reset()
	return f, d, img
}

func TestUnknownCallersAreChallengedAsByECR(t *testing.T) {
	f := testkit.NewFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Identify = func(r *http.Request) (pullthrough.Identity, error) {
			if r.Header.Get("Authorization") == "" {
				return pullthrough.Identity{}, errors.Join(errors.New("canary"), pullthrough.ErrUnauthorized)
			}
			return pullthrough.Identity{}, nil
		}
	})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	f.Up.Push("a", "v1", img)
	f.Up.Reset()
	for _, path := range []string{"/v2/", "/v2", testkit.ManifestPath("a", "v1"), testkit.BlobPath("a", img.Layers[0].Digest), "/v2/mine/manifests/v1"} {
		for _, host := range []string{testkit.RegistryHost, "localhost:5000"} {
			r := f.Get(t, path, "Host", host)
			assert.NotContains(t, testkit.AssertOCI(t, r, 401, "UNAUTHORIZED"), "canary")
			assert.Equal(t, []string{`Basic realm="https://` + host + `/",service="ecr.amazonaws.com"`}, r.Header.Values("WWW-Authenticate"), path)
		}
	}
	h := f.Ask(t, http.MethodHead, testkit.ManifestPath("a", "v1"))
	assert.Equal(t, 401, h.StatusCode)
	assert.NotEmpty(t, h.Header.Get("WWW-Authenticate"))
	assert.Empty(t, h.Content)
	assert.Empty(t, f.Up.Log())

	assert.Equal(t, 200, f.Get(t, "/v2/", "Authorization", "Basic x").StatusCode)
	assert.Equal(t, 200, f.Get(t, testkit.ManifestPath("a", "v1"), "Authorization", "Basic x").StatusCode)
	assert.Equal(t, []string{testkit.UpstreamGet(testkit.ManifestPath("a", "v1"), 200)}, f.Up.Log())
}

func TestIdentifyThatFailsOtherwise(t *testing.T) {
	var failure error
	f := testkit.NewFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Identify = func(*http.Request) (pullthrough.Identity, error) { return pullthrough.Identity{}, failure }
	})
	failure = errors.New("canary: directory is down")
	assert.NotContains(t, testkit.AssertOCI(t, f.Get(t, testkit.ManifestPath("a", "v1")), 500, "UNKNOWN"), "canary")
	failure = &pullthrough.Error{Kind: pullthrough.ErrDenied, Message: "Your authorization token has expired."}
	assert.Equal(t, "Your authorization token has expired.", testkit.AssertOCI(t, f.Get(t, testkit.ManifestPath("a", "v1")), 403, "DENIED"))
	assert.Empty(t, f.Up.Log())
}

func TestAuthorizeIsAskedWhoWantsWhat(t *testing.T) {
	f, d, img := newDoor(t, func(p *pullthrough.Proxy) {
		p.Identify = func(r *http.Request) (pullthrough.Identity, error) {
			id, err := pullthrough.HostIdentity(r)
			id.Caller = r.Header.Get("X-Caller")
			return id, err
		}
	})
	both := []pullthrough.Action{pullthrough.ActionPull, pullthrough.ActionImport}
	want := pullthrough.Request{
		Repo:   pullthrough.Repo{Account: testkit.RegistryAccount, Region: "eu-west-1", Name: testkit.Prefix + "/a"},
		Caller: "arn:aws:iam::123456789012:user/ann",
	}
	header := []string{"Host", testkit.RegistryHost, "X-Caller", want.Caller}
	for path, ref := range map[string]string{
		testkit.ManifestPath("a", "v1"):                "v1",
		testkit.BlobPath("a", img.Layers[0].Digest):    img.Layers[0].Digest.String(),
		testkit.ManifestPath("a", img.Digest.String()): img.Digest.String(),
	} {
		want.Ref = ref
		d.Set(nil)
		require.Equal(t, 200, f.Get(t, path, header...).StatusCode)
		requests, actions := d.Requests()
		assert.Subset(t, both, actions)
		assert.Equal(t, pullthrough.ActionPull, actions[0])
		for _, r := range requests {
			assert.Equal(t, want, r)
		}
		f.Settled(t)

		d.Set(nil)
		require.Equal(t, 200, f.Get(t, path, header...).StatusCode)
		requests, actions = d.Requests()
		assert.Equal(t, []pullthrough.Action{pullthrough.ActionPull}, actions, "what is stored is not imported")
		assert.Equal(t, []pullthrough.Request{want}, requests)

		d.Set(nil)
		require.Equal(t, 200, f.Ask(t, http.MethodHead, path, header...).StatusCode)
		requests, _ = d.Requests()
		head := want
		head.Head = true
		assert.Equal(t, []pullthrough.Request{head}, requests)
	}
	assert.Equal(t, 1, f.Up.Count("GET /v2/a/manifests/v1 200"))
	assert.LessOrEqual(t, len(f.Up.Log()), 3, "upstream: %s", f.Up.Log())
}

func TestRefusedPullsAreDeniedInTheHostsWords(t *testing.T) {
	f, d, img := newDoor(t, nil)
	say := "User: arn:aws:iam::123456789012:user/bob is not authorized to perform: ecr:BatchGetImage on resource: hub/a"
	refuse := map[pullthrough.Action]error{pullthrough.ActionPull: errors.New(say)}
	paths := []string{testkit.ManifestPath("a", "v1"), testkit.ManifestPath("a", img.Digest.String()), testkit.BlobPath("a", img.Layers[0].Digest)}
	refused := func() {
		t.Helper()
		d.Set(refuse)
		for _, path := range paths {
			assert.Equal(t, say, testkit.AssertOCI(t, f.Get(t, path), 403, "DENIED"))
			assert.Equal(t, 403, f.Ask(t, http.MethodHead, path).StatusCode)
			_, actions := d.Requests()
			assert.NotContains(t, actions, pullthrough.ActionImport)
		}
		_, err := f.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "v1"})
		assert.ErrorIs(t, err, pullthrough.ErrDenied)
		status, code, message := pullthrough.OCI(err)
		assert.Equal(t, []any{403, "DENIED", say}, []any{status, code, message})
	}
	refused()
	assert.Empty(t, f.Up.Log(), "a refused miss asks nobody")

	d.Set(nil)
	for _, path := range paths {
		require.Equal(t, 200, f.Get(t, path).StatusCode)
	}
	f.Settled(t)
	f.Up.Reset()
	refused()
	assert.Empty(t, f.Up.Log(), "a refusal is for hits as well")

	d.Set(nil)
	assert.Equal(t, 200, f.Get(t, paths[0]).StatusCode, "a refusal is one caller's, and remembered for nobody")
	assert.Empty(t, f.Up.Log())
}

func TestARefusedPullMayHaveACodeOfItsOwn(t *testing.T) {
	f, d, _ := newDoor(t, nil)
	d.Set(map[pullthrough.Action]error{pullthrough.ActionPull: &pullthrough.Error{Kind: pullthrough.ErrDenied, Message: "not you"}})
	assert.Equal(t, "not you", testkit.AssertOCI(t, f.Get(t, testkit.ManifestPath("a", "v1")), 403, "DENIED"))
	assert.Empty(t, f.Up.Log())
}

func TestRefusedImportsAreMasked(t *testing.T) {
	f, d, img := newDoor(t, nil)
	refuse := map[pullthrough.Action]error{pullthrough.ActionImport: errors.New("canary")}
	d.Set(refuse)
	for _, path := range []string{testkit.ManifestPath("a", "v1"), testkit.ManifestPath("a", img.Digest.String()), testkit.ManifestPath("absent", "v1")} {
		assert.Equal(t, testkit.SayNotFound, testkit.AssertOCI(t, f.Get(t, path), 404, "MANIFEST_UNKNOWN"))
		assert.Equal(t, 404, f.Ask(t, http.MethodHead, path).StatusCode)
	}
	blob := testkit.BlobPath("a", img.Layers[0].Digest)
	assert.NotContains(t, testkit.AssertOCI(t, f.Get(t, blob), 404, "BLOB_UNKNOWN"), "canary")
	assert.Equal(t, 404, f.Ask(t, http.MethodHead, blob).StatusCode)
	assert.Empty(t, f.Up.Log(), "a refused import asks nobody")

	d.Set(nil)
	assert.Equal(t, 200, f.Get(t, testkit.ManifestPath("a", "v1")).StatusCode, "a refusal is remembered for nobody")
	assert.Equal(t, []string{testkit.UpstreamGet(testkit.ManifestPath("a", "v1"), 200)}, f.Up.Log())
}

func TestRefusedImportsAreServedWhatIsStored(t *testing.T) {
	f, d, img := newDoor(t, func(p *pullthrough.Proxy) {
		p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{TagTTL: pullthrough.EveryPull}
		}
	})
	require.Equal(t, 200, f.Get(t, testkit.ManifestPath("a", "v1")).StatusCode)
	require.Equal(t, 200, f.Get(t, testkit.BlobPath("a", img.Layers[0].Digest)).StatusCode)
	f.Settled(t)
	f.Up.Push("a", "v1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2}))
	f.Up.Reset()
	d.Set(map[pullthrough.Action]error{pullthrough.ActionImport: errors.New("canary")})
	for _, ref := range []string{"v1", img.Digest.String()} { // the tag is due for a check
		testkit.AssertManifest(t, f.Get(t, testkit.ManifestPath("a", ref)), http.MethodGet, img, img.Digest)
	}
	testkit.AssertContent(t, f.Get(t, testkit.BlobPath("a", img.Layers[0].Digest)), img.Layers[0].Digest, testkit.OctetStream, int(img.Layers[0].Size))
	assert.Empty(t, f.Up.Log(), "a refused import asks nobody")
}

func getBody(t *testing.T, url string) ([]byte, int) {
	t.Helper()
	resp, err := http.Get(url)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return body, resp.StatusCode
}

func TestCredentialsDoNotPrint(t *testing.T) {
	c := pullthrough.Credential{Username: "me", AccessToken: testkit.Canary}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		assert.NotContains(t, fmt.Sprintf(verb, c), testkit.Canary)
		assert.NotContains(t, fmt.Sprintf(verb, []any{c, &c}), testkit.Canary)
	}
	assert.NotContains(t, c.LogValue().String(), testkit.Canary)
}
