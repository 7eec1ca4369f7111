package conformance_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/distribution/distribution/v3/configuration"
	_ "github.com/distribution/distribution/v3/registry/auth/htpasswd"
	_ "github.com/distribution/distribution/v3/registry/auth/token"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/bcrypt"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/handlerstore"
)

// logins are the ways in which distribution asks for one, as parts of its configuration.
var logins = map[string]func(t *testing.T) configuration.Auth{
	"htpasswd": func(t *testing.T) configuration.Auth {
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		require.NoError(t, err)
		file := filepath.Join(t.TempDir(), "htpasswd")
		require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, "%s:%s\n", puller, hash), 0o600))
		return configuration.Auth{"htpasswd": {"realm": "conformance", "path": file}}
	},
	"bearer": func(t *testing.T) configuration.Auth {
		tokens := startTokenServer(t, "localhost") // crane trusts no realm that is a loopback address
		file := filepath.Join(t.TempDir(), "jwks.json")
		require.NoError(t, os.WriteFile(file, tokens.jwks(t), 0o600))
		return configuration.Auth{"token": {
			"realm": tokens.realm(), "service": tokenService, "issuer": tokenIssuer, "jwks": file, "signingalgorithms": []any{"ES256"},
		}}
	},
}

// A registry that wants a login is asked who may pull: the Store has the same registry
// without its door.
func TestARegistryThatWantsALogin(t *testing.T) {
	may := map[string]authn.Authenticator{puller: &authn.Basic{Username: puller, Password: password}}
	for name, login := range logins {
		for _, suffices := range []bool{false, true} {
			mayNot := map[string]authn.Authenticator{"nobody": authn.Anonymous, "wrong password": &authn.Basic{Username: puller, Password: "x"}}
			if !suffices {
				mayNot[guest] = &authn.Basic{Username: guest, Password: password}
			}
			t.Run(fmt.Sprintf("%s, a login suffices: %t", name, suffices), func(t *testing.T) {
				t.Parallel()
				host, up := startBehindLogin(t, login(t), suffices)
				img := randomImage(t)
				require.NoError(t, crane.Push(img, up+"/app:1"))
				for range 2 { // cold, and stored
					for who, auth := range mayNot {
						_, err := crane.Pull(host+"/hub/app:1", append(craneOptions(t), crane.WithAuth(auth))...)
						assert.Error(t, err, who)
						_, err = crane.Manifest(host+"/hub/app:1", append(craneOptions(t), crane.WithAuth(auth))...)
						assert.Error(t, err, who)
					}
					for who, auth := range may {
						got, err := crane.Pull(host+"/hub/app:1", append(craneOptions(t), crane.WithAuth(auth))...)
						if assert.NoError(t, err, who) {
							assert.NoError(t, validate.Image(got))
						}
					}
				}
				resp, err := http.Get("http://" + host + "/v2/hub/app/manifests/1")
				require.NoError(t, err)
				require.NoError(t, resp.Body.Close())
				assert.Equal(t, http.StatusUnauthorized, resp.StatusCode)
				assert.Contains(t, resp.Header.Get("WWW-Authenticate"), "realm=", "the registry's own challenge")
				assert.NotContains(t, resp.Header.Get("WWW-Authenticate"), "ecr.amazonaws.com")
			})
		}
	}
}

func startBehindLogin(t *testing.T, login configuration.Auth, suffices bool) (host, up string) {
	t.Helper()
	dir := t.TempDir()
	storage := func() configuration.Storage { return configuration.Storage{"filesystem": {"rootdirectory": dir}} }
	open := newDistribution(t, storage(), nil)
	closed := newDistribution(t, storage(), func(c *configuration.Configuration) { c.Auth = login })
	upstream := httptest.NewServer(newGGCR())
	proxy := &pullthrough.Proxy{
		Store: &handlerstore.Store{Handler: open}, Fill: pullthrough.FillEager, SpoolDir: t.TempDir(),
		Rules:   pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: upstream.URL}},
		AskNext: true, LoginSuffices: suffices,
	}
	server := httptest.NewServer(proxy.Handler(closed))
	t.Cleanup(func() {
		server.Close()
		assert.NoError(t, proxy.Shutdown(context.Background()))
		upstream.Close()
	})
	return strings.TrimPrefix(server.URL, "http://"), strings.TrimPrefix(upstream.URL, "http://")
}
