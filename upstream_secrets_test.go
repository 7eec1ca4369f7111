package pullthrough_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// secrets are all that upstream and token server are told, or tell. Each has
// the canary in it.
var (
	secrets    = pullthrough.Credential{Username: "me", AccessToken: testkit.Canary, IdentityToken: testkit.Canary + "-identity"}
	byPassword = pullthrough.Credential{Username: "me", AccessToken: testkit.Canary}
	byIdentity = pullthrough.Credential{IdentityToken: testkit.Canary + "-identity"}
	withTokens = pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}
)

const (
	secretToken = testkit.Canary + "-token"
	secretQuery = "X-Amz-Signature=" + testkit.Canary + "-signature&X-Amz-Security-Token=" + testkit.Canary
)

// diary is a log that may be written and read at any time.
type diary struct {
	mu   sync.Mutex
	text strings.Builder
}

func (d *diary) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.text.Write(p)
}

func (d *diary) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.text.String()
}

// spelled is err and all that it wraps, in all the ways it may be printed.
func spelled(err error) string {
	if err == nil {
		return ""
	}
	text := fmt.Sprintf("%v %+v %#v %q\n", err, err, err, err)
	switch e := err.(type) {
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			text += spelled(inner)
		}
	default:
		text += spelled(errors.Unwrap(err))
	}
	return text
}

// parrot answers with status and all secrets of the request.
func parrot(w http.ResponseWriter, r *http.Request, status int) {
	_ = r.ParseForm()
	user, password, _ := r.BasicAuth()
	all := fmt.Sprintf("%s %s:%s %s %v", r.Header.Get("Authorization"), user, password, r.URL.RawQuery, r.Form)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":%q,"detail":{"request":%q}}]}`, all, all)
}

// parrots answer the requests whose path begins so and that carry a secret.
func parrots(path string, status int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if path != "/token" && r.URL.Path == "/token" {
			_, _ = fmt.Fprintf(w, `{"token":%q,"refresh_token":%q}`, secretToken, testkit.Canary+"-rotated")
			return true
		}
		if !strings.HasPrefix(r.URL.Path, path) || r.Header.Get("Authorization") == "" && r.Method != http.MethodPost {
			return false
		}
		parrot(w, r, status)
		return true
	}
}

func testSecretsAreRepeatedToNobody(t *testing.T) {
	for _, status := range []int{400, 401, 403, 404, 429, 500} {
		for name, c := range map[string]struct {
			path string
			auth pullthroughtest.Auth
			cred pullthrough.Credential
		}{
			"a registry told a password":            {"/v2/", pullthroughtest.Basic, byPassword},
			"a registry told a token":               {"/v2/", pullthroughtest.Bearer, byPassword},
			"a registry told a token, for another":  {"/v2/", pullthroughtest.Bearer, secrets},
			"a token server told a password":        {"/token", pullthroughtest.Bearer, byPassword},
			"a token server told an identity token": {"/token", pullthroughtest.Bearer, byIdentity},
			"a token server told both":              {"/token", pullthroughtest.Bearer, secrets},
		} {
			t.Run(fmt.Sprintf("%s says it again with %d", name, status), func(t *testing.T) {
				config := pullthroughtest.Config{Auth: c.auth, Users: testkit.Users, Handler: parrots(c.path, status)}
				keepsSecrets(t, config, c.cred, func(*testing.T, *pipeworks) {})
			})
		}
	}
	t.Run("odd token servers", testTokenSecretsAreRepeatedToNobody)
	t.Run("redirects", testPresignedURLsAreRepeatedToNobody)
	t.Run("what is no HTTP", testSecretsInWhatIsNoHTTP)
	t.Run("all is well", func(t *testing.T) {
		keepsSecrets(t, withTokens, secrets, nil)
	})
}

func testTokenSecretsAreRepeatedToNobody(t *testing.T) {
	for name, body := range map[string]string{
		"a token under another name": `{"tokn":"` + secretToken + `"}`,
		"a token in plain text":      secretToken,
		"a token with a space":       `{"token":"` + secretToken + ` x"}`,
		"a token of another kind":    `{"token":{"value":"` + secretToken + `"}}`,
		"a token that never ends":    `{"token":"` + secretToken + strings.Repeat("x", 100<<10) + `"}`,
		"a token that is cut":        `{"token":"` + secretToken,
		"a lifetime":                 `{"token":"x","expires_in":"` + secretToken + `"}`,
	} {
		t.Run("a token server answers with "+name, func(t *testing.T) {
			keepsSecrets(t, withTokens, byPassword, func(_ *testing.T, p *pipeworks) {
				p.Up.Fault(pullthroughtest.Fault{Match: "GET /token", Status: 200, Body: []byte(body)})
			})
		})
	}
	for name, realm := range map[string]string{
		"at a closed port": "http://127.0.0.1:1/token?" + secretQuery,
		"that is no URL":   "http://127.0.0.1:port/token?" + secretQuery,
		"with userinfo":    "http://u:" + testkit.Canary + "@127.0.0.1/token",
		"on another host":  "http://registry.example/token?" + secretQuery,
	} {
		t.Run("a token server "+name, func(t *testing.T) {
			config := withTokens
			config.Realm = realm
			keepsSecrets(t, config, byPassword, func(*testing.T, *pipeworks) {})
		})
	}
}

// keepsSecrets pulls what cannot be pulled after spoil, and looks into everything
// that is said about it. Without spoil it can be pulled, and upstream gives a new
// identity token.
func keepsSecrets(t *testing.T, c pullthroughtest.Config, cred pullthrough.Credential, spoil func(*testing.T, *pipeworks)) {
	t.Helper()
	var log diary
	var told testkit.Events
	change := func(p *pullthrough.Proxy) {
		testkit.WithCredential(cred)(p)
		p.OnEvent = told.On
		p.Logger = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	fails := spoil != nil
	inTime(t, c, change, func(t *testing.T, p *pipeworks) {
		layer := p.Layer(1000)
		if spoil == nil {
			answer := fmt.Sprintf(`{"token":%q,"refresh_token":%q}`, p.Up.IssueToken(0, "repository:a:pull"), testkit.Canary+"-rotated")
			spoil = func(*testing.T, *pipeworks) {
				p.Up.Fault(pullthroughtest.Fault{Match: "POST /token", Status: 200, Body: []byte(answer)})
			}
		}
		spoil(t, p)
		var said strings.Builder
		_, err := p.Resolve(t.Context(), "1")
		said.WriteString(spelled(err))
		assert.Equal(t, fails, err != nil, err)
		err = p.Whole(t.Context(), layer.Digest)
		said.WriteString(spelled(err))
		assert.Equal(t, fails, err != nil, err)
		for _, path := range []string{testkit.ManifestPath("a", "1"), testkit.BlobPath("a", layer.Digest)} {
			rec := httptest.NewRecorder()
			p.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
			assert.Equal(t, fails, rec.Code != 200)
			require.NoError(t, rec.Result().Write(&said))
		}
		p.Settled(t)
		for _, e := range told.All() {
			_, _ = fmt.Fprintf(&said, "%+v %s\n", e, spelled(e.Err))
		}
		all := said.String() + log.String()
		assert.NotContains(t, all, testkit.Canary)
		assert.NotContains(t, all, base64.StdEncoding.EncodeToString([]byte("me:"+testkit.Canary)))
		assert.Positive(t, p.Up.Count("*"))
		if c.Auth != pullthroughtest.Open && c.Realm == "" {
			assert.True(t, p.Up.Saw(testkit.Canary), "or there is nothing to be said")
		}
	})
}

func testPresignedURLsAreRepeatedToNobody(t *testing.T) {
	cdn := pullthroughtest.New(t, pullthroughtest.Config{Handler: func(w http.ResponseWriter, r *http.Request) bool {
		parrot(w, r, http.StatusForbidden)
		return true
	}})
	for name, location := range map[string]string{
		"to a host that says it again": cdn.URL + "/x?" + secretQuery,
		"to a closed port":             "http://127.0.0.1:1/x?" + secretQuery,
		"to what is no port":           "https://cdn.example:port/x?" + secretQuery,
		"to what is no host":           "https://[cdn/x?" + secretQuery,
		"with userinfo":                "https://u:" + testkit.Canary + "@cdn.example/x",
		"to ftp":                       "ftp://cdn.example/x?" + secretQuery,
		"to a bad escape":              "/%zz?" + secretQuery,
		"to nothing":                   "://" + testkit.Canary,
		"to itself":                    "{path}?" + secretQuery,
	} {
		t.Run(name, func(t *testing.T) {
			keepsSecrets(t, pullthroughtest.Config{}, pullthrough.Credential{}, func(_ *testing.T, p *pipeworks) {
				p.others = []*pullthroughtest.Upstream{cdn}
				p.Up.Fault(pullthroughtest.Fault{Redirect: location})
			})
		})
	}
	t.Run("that end in the middle", func(t *testing.T) {
		body := pullthroughtest.New(t, pullthroughtest.Config{})
		body.Push("a", "1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1000, LayerSize: 1000}))
		body.Fault(pullthroughtest.Fault{Match: "* 200", CutAfter: new(int64(10))})
		body.Fault(pullthroughtest.Fault{Match: "* 206", Status: 403, Body: []byte(testkit.Canary)})
		keepsSecrets(t, pullthroughtest.Config{}, pullthrough.Credential{}, func(_ *testing.T, p *pipeworks) {
			p.others = []*pullthroughtest.Upstream{body}
			p.Up.Fault(pullthroughtest.Fault{Redirect: body.URL + "{path}?" + secretQuery})
		})
		assert.True(t, body.Saw(testkit.Canary))
	})
	assert.True(t, cdn.Saw(testkit.Canary))
}

// testSecretsInWhatIsNoHTTP: net/http puts what it cannot read into its errors. A token server
// that leaves out an empty line, say, has its token read as a header.
func testSecretsInWhatIsNoHTTP(t *testing.T) {
	for name, raw := range map[string]string{
		"a line":              secretToken + "\r\n\r\n",
		"a status":            "HTTP/1.1 " + secretToken + "\r\n\r\n",
		"a version":           "HTTP/" + secretToken + " 200 OK\r\n\r\n",
		"a header":            "HTTP/1.1 200 OK\r\n" + secretToken + "\r\n\r\n",
		"a length":            "HTTP/1.1 200 OK\r\nContent-Length: " + secretToken + "\r\n\r\n",
		"a transfer encoding": "HTTP/1.1 200 OK\r\nTransfer-Encoding: " + secretToken + "\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			keepsSecrets(t, pullthroughtest.Config{}, pullthrough.Credential{}, func(_ *testing.T, p *pipeworks) {
				p.Up.Fault(pullthroughtest.Fault{Raw: []byte(raw), CutAfter: new(int64(-1))})
			})
		})
	}
}
