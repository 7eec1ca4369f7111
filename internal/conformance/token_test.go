package conformance_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/stretchr/testify/require"
)

const (
	tokenService = "registry.conformance.test"
	tokenIssuer  = "issuer.conformance.test"
	tokenKeyID   = "conformance"
)

// guest may log in with the same password, and may pull nothing.
const guest = "guest"

// tokenServer issues the tokens that a registry with authBearer trusts, to
// the right users, and remembers who asked for what.
type tokenServer struct {
	server *httptest.Server
	key    *ecdsa.PrivateKey
	host   string // the host name in the realm

	mu   sync.Mutex
	seen []tokenRequest
}

// tokenRequest is what a test may know of one request for a token.
type tokenRequest struct {
	Method, User, Service, Scope string
	Status                       int
}

// access is one entry of a token's access claim.
type access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// startTokenServer listens on 127.0.0.1, whatever the realm calls it.
func startTokenServer(t testing.TB, realmHost string) *tokenServer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	s := &tokenServer{key: key, host: realmHost}
	s.server = httptest.NewServer(s)
	t.Cleanup(s.stop)
	return s
}

func (s *tokenServer) stop() { s.server.Close() }

// realm is the URL that the registry's challenge names.
func (s *tokenServer) realm() string {
	return strings.Replace(s.server.URL, "127.0.0.1", s.host, 1) + "/token"
}

// jwks is the public half, as the registry reads it from a file.
func (s *tokenServer) jwks(t testing.TB) []byte {
	t.Helper()
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		{Key: s.key.Public(), KeyID: tokenKeyID, Algorithm: string(jose.ES256), Use: "sig"},
	}})
	require.NoError(t, err)
	return b
}

// take returns the requests since the last take.
func (s *tokenServer) take() []tokenRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.seen
	s.seen = nil
	return seen
}

func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, pass, _ := r.BasicAuth()
	req := tokenRequest{
		Method:  r.Method,
		User:    user,
		Service: r.URL.Query().Get("service"),
		Scope:   strings.Join(r.URL.Query()["scope"], " "),
		Status:  http.StatusOK,
	}
	if user != puller && user != guest || pass != password {
		req.Status = http.StatusUnauthorized
	}
	s.mu.Lock()
	s.seen = append(s.seen, req)
	s.mu.Unlock()

	if req.Status != http.StatusOK {
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"wrong user or password"}]}`, req.Status)
		return
	}
	granted := grants(req.Scope)
	if user == guest {
		granted = []access{}
	}
	token, err := s.issue(user, req.Service, granted)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"token": token, "expires_in": 300, "issued_at": time.Now().UTC().Format(time.RFC3339),
	})
}

// issue signs a token as distribution wants it: issuer, audience, access.
func (s *tokenServer) issue(user, service string, granted []access) (string, error) {
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: s.key, KeyID: tokenKeyID}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", err
	}
	now := time.Now()
	return jwt.Signed(signer).
		Claims(jwt.Claims{
			Issuer:    tokenIssuer,
			Subject:   user,
			Audience:  jwt.Audience{service},
			IssuedAt:  jwt.NewNumericDate(now),
			NotBefore: jwt.NewNumericDate(now.Add(-time.Minute)),
			Expiry:    jwt.NewNumericDate(now.Add(5 * time.Minute)),
			ID:        rand.Text(),
		}).
		Claims(map[string]any{"access": granted}).
		Serialize()
}

// grants gives pull, and nothing else, on each repository in scope.
func grants(scope string) []access {
	granted := []access{}
	for s := range strings.FieldsSeq(scope) {
		kind, rest, _ := strings.Cut(s, ":")
		if i := strings.LastIndex(rest, ":"); kind == "repository" && i > 0 {
			granted = append(granted, access{Type: kind, Name: rest[:i], Actions: []string{"pull"}})
		}
	}
	return granted
}
