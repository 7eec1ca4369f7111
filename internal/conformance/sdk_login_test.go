package conformance_test

import (
	"context"
	"encoding/base64"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecr/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
)

// token asks for an authorization token and looks at what does not depend on the
// host. The endpoint is the ECR itself.
func token(t *testing.T, client *ecr.Client, url string, accounts ...string) (header string) {
	t.Helper()
	out, err := client.GetAuthorizationToken(t.Context(), forRegistries(&ecr.GetAuthorizationTokenInput{}, accounts))
	require.NoError(t, err)
	require.Len(t, out.AuthorizationData, max(1, len(accounts)))
	for i := range out.AuthorizationData {
		data := &out.AuthorizationData[i]
		require.NotNil(t, data.ExpiresAt)
		assert.WithinDuration(t, time.Now().Add(12*time.Hour), *data.ExpiresAt, time.Minute)
		require.NotNil(t, data.AuthorizationToken)
		header, data.ExpiresAt = *data.AuthorizationToken, nil
		assert.Equal(t, types.AuthorizationData{AuthorizationToken: &header, ProxyEndpoint: &url}, *data)
	}
	return header
}

// forRegistries sets a member that AWS has deprecated and that clients still send.
func forRegistries(in *ecr.GetAuthorizationTokenInput, accounts []string) *ecr.GetAuthorizationTokenInput {
	reflect.ValueOf(in).Elem().FieldByName("RegistryIds").Set(reflect.ValueOf(accounts))
	return in
}

// login is what docker login keeps of a token.
func login(t *testing.T, token string) authn.AuthConfig {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(token)
	require.NoError(t, err)
	user, password, ok := strings.Cut(string(raw), ":")
	require.True(t, ok)
	require.Equal(t, "AWS", user)
	require.NotEmpty(t, password)
	return authn.AuthConfig{Username: user, Password: password}
}

// sdkLogin logs in as docker does: the token opens /v2/ and pulls.
func sdkLogin(t *testing.T, log *sdkLog) {
	f, img := startAWS(t, log), testImage(1)
	f.quay.Push(sdkUpstream, "v1", img)
	createQuay(t, f, "quay")
	header := token(t, f.Client, f.url)
	assert.Equal(t, http.StatusOK, status(t, f.url+"/v2/", header))
	digest, err := pullAs(t, f.url, login(t, header))
	require.NoError(t, err)
	assert.Equal(t, img.Digest.String(), digest)
	token(t, f.Client, f.url, sdkAccount)
}

// sdkGuardedLogin has a registry that lets nobody in without the token's password.
func sdkGuardedLogin(t *testing.T, log *sdkLog) {
	const password = "canary-password"
	h := hostECR(t, func(h *host) {
		h.api.Images.Password = func(context.Context, pullthrough.Identity) (string, error) { return password, nil }
		h.proxy.Identify = func(r *http.Request) (id pullthrough.Identity, err error) {
			if user, got, ok := r.BasicAuth(); !ok || user != "AWS" || got != password {
				err = pullthrough.ErrUnauthorized
			}
			return id, err
		}
	})
	header := token(t, log.client(h.url), h.url)
	assert.Equal(t, password, login(t, header).Password)
	assert.Equal(t, http.StatusOK, status(t, h.url+"/v2/", header))
	for _, wrong := range []string{"", base64.StdEncoding.EncodeToString([]byte("AWS:wrong")), base64.StdEncoding.EncodeToString([]byte("me:" + password))} {
		assert.Equal(t, http.StatusUnauthorized, status(t, h.url+"/v2/", wrong))
	}
	_, err := pullAs(t, h.url, login(t, header))
	assertRefused(t, err, http.StatusNotFound, "NAME_UNKNOWN") // it got in
	_, err = pullAs(t, h.url, authn.AuthConfig{Username: "AWS", Password: "wrong"})
	assertRefused(t, err, http.StatusUnauthorized, "UNAUTHORIZED")
}

func pullAs(t *testing.T, url string, as authn.AuthConfig) (digest string, err error) {
	t.Helper()
	_, host, _ := strings.Cut(url, "://")
	return crane.Digest(host+"/"+sdkRepo+":v1", append(craneOptions(t), crane.WithAuth(authn.FromConfig(as)))...)
}

// status is the answer's, for a Basic credential. None: "".
func status(t *testing.T, url, basic string) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	if basic != "" {
		r.Header.Set("Authorization", "Basic "+basic)
	}
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return resp.StatusCode
}
