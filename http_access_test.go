package pullthrough_test

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// door is an Authorize that remembers what it was asked and refuses what it
// was told to.
type door struct {
	mu     sync.Mutex
	asked  []pullthrough.Request
	action []pullthrough.Action
	refuse map[pullthrough.Action]error
}

func (d *door) authorize(_ context.Context, a pullthrough.Action, r pullthrough.Request) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked, d.action = append(d.asked, r), append(d.action, a)
	return d.refuse[a]
}

// set changes what is refused from now on, and forgets what was asked.
func (d *door) set(refuse map[pullthrough.Action]error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked, d.action, d.refuse = nil, nil, refuse
}

func (d *door) requests() ([]pullthrough.Request, []pullthrough.Action) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked, d.action
}

func newDoor(t *testing.T, change func(*pullthrough.Proxy)) (*face, *door, *pullthroughtest.Image) {
	t.Helper()
	d := &door{}
	f := newFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Authorize = d.authorize
		if change != nil {
			change(p)
		}
	})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	f.up.Push("a", "v1", img)
	f.up.Reset()
	return f, d, img
}

func TestUnknownCallersAreChallengedAsByECR(t *testing.T) {
	f := newFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Identify = func(r *http.Request) (pullthrough.Identity, error) {
			if r.Header.Get("Authorization") == "" {
				return pullthrough.Identity{}, errors.Join(errors.New("canary"), pullthrough.ErrUnauthorized)
			}
			return pullthrough.Identity{}, nil
		}
	})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	f.up.Push("a", "v1", img)
	f.up.Reset()
	for _, path := range []string{"/v2/", "/v2", manifestPath("a", "v1"), blobPath("a", img.Layers[0].Digest), "/v2/mine/manifests/v1"} {
		for _, host := range []string{registryHost, "localhost:5000"} {
			r := f.get(t, path, "Host", host)
			assert.NotContains(t, assertOCI(t, r, 401, "UNAUTHORIZED"), "canary")
			assert.Equal(t, []string{`Basic realm="https://` + host + `/",service="ecr.amazonaws.com"`}, r.Header.Values("WWW-Authenticate"), path)
		}
	}
	h := f.ask(t, http.MethodHead, manifestPath("a", "v1"))
	assert.Equal(t, 401, h.StatusCode)
	assert.NotEmpty(t, h.Header.Get("WWW-Authenticate"))
	assert.Empty(t, h.content)
	assert.Empty(t, f.up.Log())

	assert.Equal(t, 200, f.get(t, "/v2/", "Authorization", "Basic x").StatusCode)
	assert.Equal(t, 200, f.get(t, manifestPath("a", "v1"), "Authorization", "Basic x").StatusCode)
	assert.Equal(t, []string{upstreamGet(manifestPath("a", "v1"), 200)}, f.up.Log())
}

func TestIdentifyThatFailsOtherwise(t *testing.T) {
	var failure error
	f := newFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Identify = func(*http.Request) (pullthrough.Identity, error) { return pullthrough.Identity{}, failure }
	})
	failure = errors.New("canary: directory is down")
	assert.NotContains(t, assertOCI(t, f.get(t, manifestPath("a", "v1")), 500, "UNKNOWN"), "canary")
	failure = &pullthrough.Error{Kind: pullthrough.ErrDenied, Message: "Your authorization token has expired."}
	assert.Equal(t, "Your authorization token has expired.", assertOCI(t, f.get(t, manifestPath("a", "v1")), 403, "DENIED"))
	assert.Empty(t, f.up.Log())
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
		Repo:   pullthrough.Repo{Account: registryAccount, Region: "eu-west-1", Name: prefix + "/a"},
		Caller: "arn:aws:iam::123456789012:user/ann",
	}
	header := []string{"Host", registryHost, "X-Caller", want.Caller}
	for path, ref := range map[string]string{
		manifestPath("a", "v1"):                "v1",
		blobPath("a", img.Layers[0].Digest):    img.Layers[0].Digest.String(),
		manifestPath("a", img.Digest.String()): img.Digest.String(),
	} {
		want.Ref = ref
		d.set(nil)
		require.Equal(t, 200, f.get(t, path, header...).StatusCode)
		requests, actions := d.requests()
		assert.Subset(t, both, actions)
		assert.Equal(t, pullthrough.ActionPull, actions[0])
		for _, r := range requests {
			assert.Equal(t, want, r)
		}
		f.settled(t)

		d.set(nil)
		require.Equal(t, 200, f.get(t, path, header...).StatusCode)
		requests, actions = d.requests()
		assert.Equal(t, []pullthrough.Action{pullthrough.ActionPull}, actions, "what is stored is not imported")
		assert.Equal(t, []pullthrough.Request{want}, requests)

		d.set(nil)
		require.Equal(t, 200, f.ask(t, http.MethodHead, path, header...).StatusCode)
		requests, _ = d.requests()
		head := want
		head.Head = true
		assert.Equal(t, []pullthrough.Request{head}, requests)
	}
	assert.Equal(t, 1, f.up.Count("GET /v2/a/manifests/v1 200"))
	assert.LessOrEqual(t, len(f.up.Log()), 3, "upstream: %s", f.up.Log())
}

func TestRefusedPullsAreDeniedInTheHostsWords(t *testing.T) {
	f, d, img := newDoor(t, nil)
	say := "User: arn:aws:iam::123456789012:user/bob is not authorized to perform: ecr:BatchGetImage on resource: hub/a"
	refuse := map[pullthrough.Action]error{pullthrough.ActionPull: errors.New(say)}
	paths := []string{manifestPath("a", "v1"), manifestPath("a", img.Digest.String()), blobPath("a", img.Layers[0].Digest)}
	refused := func() {
		t.Helper()
		d.set(refuse)
		for _, path := range paths {
			assert.Equal(t, say, assertOCI(t, f.get(t, path), 403, "DENIED"))
			assert.Equal(t, 403, f.ask(t, http.MethodHead, path).StatusCode)
			_, actions := d.requests()
			assert.NotContains(t, actions, pullthrough.ActionImport)
		}
		_, err := f.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: "v1"})
		assert.ErrorIs(t, err, pullthrough.ErrDenied)
		status, code, message := pullthrough.OCI(err)
		assert.Equal(t, []any{403, "DENIED", say}, []any{status, code, message})
	}
	refused()
	assert.Empty(t, f.up.Log(), "a refused miss asks nobody")

	d.set(nil)
	for _, path := range paths {
		require.Equal(t, 200, f.get(t, path).StatusCode)
	}
	f.settled(t)
	f.up.Reset()
	refused()
	assert.Empty(t, f.up.Log(), "a refusal is for hits as well")

	d.set(nil)
	assert.Equal(t, 200, f.get(t, paths[0]).StatusCode, "a refusal is one caller's, and remembered for nobody")
	assert.Empty(t, f.up.Log())
}

func TestARefusedPullMayHaveACodeOfItsOwn(t *testing.T) {
	f, d, _ := newDoor(t, nil)
	d.set(map[pullthrough.Action]error{pullthrough.ActionPull: &pullthrough.Error{Kind: pullthrough.ErrDenied, Message: "not you"}})
	assert.Equal(t, "not you", assertOCI(t, f.get(t, manifestPath("a", "v1")), 403, "DENIED"))
	assert.Empty(t, f.up.Log())
}

func TestRefusedImportsAreMasked(t *testing.T) {
	f, d, img := newDoor(t, nil)
	refuse := map[pullthrough.Action]error{pullthrough.ActionImport: errors.New("canary")}
	d.set(refuse)
	for _, path := range []string{manifestPath("a", "v1"), manifestPath("a", img.Digest.String()), manifestPath("absent", "v1")} {
		assert.Equal(t, sayNotFound, assertOCI(t, f.get(t, path), 404, "MANIFEST_UNKNOWN"))
		assert.Equal(t, 404, f.ask(t, http.MethodHead, path).StatusCode)
	}
	blob := blobPath("a", img.Layers[0].Digest)
	assert.NotContains(t, assertOCI(t, f.get(t, blob), 404, "BLOB_UNKNOWN"), "canary")
	assert.Equal(t, 404, f.ask(t, http.MethodHead, blob).StatusCode)
	assert.Empty(t, f.up.Log(), "a refused import asks nobody")

	d.set(nil)
	assert.Equal(t, 200, f.get(t, manifestPath("a", "v1")).StatusCode, "a refusal is remembered for nobody")
	assert.Equal(t, []string{upstreamGet(manifestPath("a", "v1"), 200)}, f.up.Log())
}

func TestRefusedImportsAreServedWhatIsStored(t *testing.T) {
	f, d, img := newDoor(t, func(p *pullthrough.Proxy) {
		p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{TagTTL: pullthrough.EveryPull}
		}
	})
	require.Equal(t, 200, f.get(t, manifestPath("a", "v1")).StatusCode)
	require.Equal(t, 200, f.get(t, blobPath("a", img.Layers[0].Digest)).StatusCode)
	f.settled(t)
	f.up.Push("a", "v1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2}))
	f.up.Reset()
	d.set(map[pullthrough.Action]error{pullthrough.ActionImport: errors.New("canary")})
	for _, ref := range []string{"v1", img.Digest.String()} { // the tag is due for a check
		assertManifest(t, f.get(t, manifestPath("a", ref)), http.MethodGet, img, img.Digest)
	}
	assertContent(t, f.get(t, blobPath("a", img.Layers[0].Digest)), img.Layers[0].Digest, octetStream, int(img.Layers[0].Size))
	assert.Empty(t, f.up.Log(), "a refused import asks nobody")
}
