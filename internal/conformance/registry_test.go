package conformance_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/bcrypt"
)

// auth is how a registry asks for credentials.
type auth string

const (
	authOpen   auth = "open"
	authBasic  auth = "basic"
	authBearer auth = "bearer"
)

// The one user whom every registry and token server of ours lets in.
const (
	puller   = "puller"
	password = "correct-horse"
)

// registryReady finds the address in distribution's own log line.
var registryReady = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)\D`)

// registry is distribution's registry, running as its own process.
type registry struct {
	*process
	addr string // host:port
}

// startRegistry serves storage, which several registries may share. Only a
// writable one takes pushes. tokens is needed for authBearer.
func startRegistry(t testing.TB, storage string, writable bool, a auth, tokens *tokenServer) *registry {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	yaml := fmt.Sprintf(`version: 0.1
log:
  level: info
  accesslog: {disabled: true}
storage:
  filesystem: {rootdirectory: %q}
  maintenance:
    uploadpurging: {enabled: false}
    readonly: {enabled: %t}
http:
  addr: 127.0.0.1:0
  secret: only-for-tests
`, storage, !writable)
	require.NoError(t, os.WriteFile(config, []byte(yaml+authConfig(t, dir, a, tokens)), 0o600))

	p, addr := start(t, registryReady, registryBin, "serve", config)
	r := &registry{process: p, addr: addr}
	requirePing(t, r.addr, a)
	return r
}

// requirePing proves that the registry asks for what the test is about.
func requirePing(t testing.TB, addr string, a auth) {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/v2/")
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	challenge := resp.Header.Get("WWW-Authenticate")
	if a == authOpen {
		require.Equal(t, http.StatusOK, resp.StatusCode)
		return
	}
	require.Equal(t, http.StatusUnauthorized, resp.StatusCode)
	scheme, _, _ := strings.Cut(challenge, " ")
	require.Equal(t, string(a), strings.ToLower(scheme), challenge)
}

// authConfig is the auth section of the registry's configuration; its files
// are written to dir.
func authConfig(t testing.TB, dir string, a auth, tokens *tokenServer) string {
	t.Helper()
	switch a {
	case authBasic:
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		require.NoError(t, err)
		file := filepath.Join(dir, "htpasswd")
		require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, "%s:%s\n", puller, hash), 0o600))
		return fmt.Sprintf("auth:\n  htpasswd: {realm: conformance, path: %q}\n", file)
	case authBearer:
		file := filepath.Join(dir, "jwks.json")
		require.NoError(t, os.WriteFile(file, tokens.jwks(t), 0o600))
		return fmt.Sprintf("auth:\n  token: {realm: %q, service: %q, issuer: %q, jwks: %q, signingalgorithms: [ES256]}\n",
			tokens.realm(), tokenService, tokenIssuer, file)
	}
	return ""
}
