package conformance_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/crane"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/handlerstore"
)

// accountOf is an Identify by user name.
func accountOf(r *http.Request) (pullthrough.Identity, error) {
	account, _, ok := r.BasicAuth()
	if !ok {
		return pullthrough.Identity{}, pullthrough.ErrUnauthorized
	}
	return pullthrough.Identity{Account: account, Region: "eu-west-1"}, nil
}

// accounts are two in one registry, each with crane.
type accounts struct {
	host, up string
}

func (*accounts) options(t *testing.T, account string) []crane.Option {
	return append(craneOptions(t), crane.WithAuth(&authn.Basic{Username: account, Password: "x"}))
}

func startAccounts(t *testing.T, inner http.Handler) *accounts {
	t.Helper()
	up := httptest.NewServer(newGGCR())
	store := &handlerstore.Store{Handler: inner, Name: tenantName}
	proxy := &pullthrough.Proxy{
		Store: store, Identify: accountOf, Fill: pullthrough.FillEager, SpoolDir: t.TempDir(),
		Rules: pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: up.URL}},
	}
	host := httptest.NewServer(proxy.Handler(store.Registry(proxy.Identify)))
	t.Cleanup(func() {
		host.Close()
		assert.NoError(t, proxy.Shutdown(context.Background()))
		up.Close()
	})
	return &accounts{host: strings.TrimPrefix(host.URL, "http://"), up: strings.TrimPrefix(up.URL, "http://")}
}

func randomImage(t *testing.T) v1.Image {
	t.Helper()
	img, err := random.Image(5000, 2)
	require.NoError(t, err)
	return img
}

// assertPulled pulls the image by crane as the account.
func (a *accounts) assertPulled(t *testing.T, account, repo string, want v1.Image) {
	t.Helper()
	got, err := crane.Pull(a.host+"/"+repo, a.options(t, account)...)
	require.NoError(t, err)
	assert.NoError(t, validate.Image(got))
	digest, err := want.Digest()
	require.NoError(t, err)
	gotDigest, err := got.Digest()
	require.NoError(t, err)
	assert.Equal(t, digest, gotDigest)
}

// What an account pushes, lists and pulls are the same repositories, and no other's.
func TestAccountsInOneRegistry(t *testing.T) {
	const ann, bob = "111111111111", "222222222222"
	for name, open := range innerRegistries {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := startAccounts(t, open(t))
			images := map[string]v1.Image{ann: randomImage(t), bob: randomImage(t)}
			upstream := randomImage(t)
			require.NoError(t, crane.Push(upstream, a.up+"/base:1"))
			for account, img := range images {
				opts := a.options(t, account)
				require.NoError(t, crane.Push(img, a.host+"/team/app:v1", opts...))
				require.NoError(t, crane.Tag(a.host+"/team/app:v1", "v2", opts...))
				require.NoError(t, crane.Push(img, a.host+"/hub/mine:v1", opts...), "below a covered prefix")
				a.assertPulled(t, account, "hub/base:1", upstream)
			}
			require.NoError(t, crane.Push(images[ann], a.host+"/only/ann:v1", a.options(t, ann)...))
			for account, img := range images {
				opts := a.options(t, account)
				for _, repo := range []string{"team/app:v1", "team/app:v2", "hub/mine:v1"} {
					a.assertPulled(t, account, repo, img)
				}
				tags, err := crane.ListTags(a.host+"/team/app", opts...)
				require.NoError(t, err)
				assert.Equal(t, []string{"v1", "v2"}, tags)
				want := []string{"hub/mine", "team/app"}
				if account == ann {
					want = []string{"hub/mine", "only/ann", "team/app"}
				}
				require.Eventually(t, func() bool { return len(a.catalog(t, account)) == len(want)+1 }, 20*time.Second, 10*time.Millisecond, "hub/base arrives")
				assert.ElementsMatch(t, append(want, "hub/base"), a.catalog(t, account))
			}
			_, err := crane.Pull(a.host+"/only/ann:v1", a.options(t, bob)...)
			assert.Error(t, err)
			_, err = crane.ListTags(a.host + "/team/app")
			assert.Error(t, err, "nobody is known")
		})
	}
}

func (a *accounts) catalog(t *testing.T, account string) []string {
	t.Helper()
	names, err := crane.Catalog(a.host, a.options(t, account)...)
	require.NoError(t, err)
	return names
}
