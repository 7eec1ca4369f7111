package upstream_test

import (
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/debug"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// A registry knows what it was told by its token server, and may say it in any word of its
// own that is kept: the rule's password and user, and tokens, also those of other pulls.
func TestSecretsInUpstreamsWords(t *testing.T) {
	basic := base64.StdEncoding.EncodeToString([]byte("me:" + testkit.Canary))
	long := strings.Repeat("0123456789abcdef", 20)
	odd := `{"schemaVersion":2,"mediaType":"application/` + testkit.Canary + `+json","mediaType":""}`
	for name, c := range map[string]struct {
		match string
		fault func(token string) pullthroughtest.Fault
		told  string // what of the words is left; "": nothing need be
		warns bool
	}{
		"a warning with the password":          {"GET /v2/a/manifests/*", warning("your password " + testkit.Canary + " is old"), "your password ... is old", true},
		"a warning with both":                  {"GET /v2/a/manifests/*", warning("Basic " + basic + " is old"), "Basic ... is old", true},
		"a warning with the password, escaped": {"GET /v2/a/manifests/*", warning("see http://x/?p=" + url.QueryEscape(testkit.Canary)), "see http://x/?p=...", true},
		"a warning with the token": {"GET /v2/a/manifests/*", func(token string) pullthroughtest.Fault {
			return warning("the token " + token + " expires")(token)
		}, "the token ... expires", true},
		"a warning of the token server with the token that it gives": {"GET /token", func(token string) pullthroughtest.Fault {
			f := warning("the token " + token + " expires")(token)
			f.Status, f.Body = 200, []byte(`{"token":"`+token+`"}`)
			return f
		}, "the token ... expires", true},
		"a warning of the token server with a long token": {"GET /token", func(string) pullthroughtest.Fault {
			f := warning("the token=" + long + " expires")("")
			f.Status, f.Body = 200, []byte(`{"token":"`+long+`"}`)
			return f
		}, "the token=... expires", false},
		"a refusal": {"GET /v2/a/manifests/*", func(string) pullthroughtest.Fault {
			return pullthroughtest.Fault{Status: 403, Body: []byte(`{"errors":[{"code":"DENIED","message":"` + testkit.Canary + `"}]}`)}
		}, "DENIED", false},
		"a refusal in a code": {"GET /v2/a/manifests/*", func(string) pullthroughtest.Fault {
			return pullthroughtest.Fault{Status: 403, Header: http.Header{"Www-Authenticate": {`Bearer realm="x",error="` + testkit.Canary + `"`}}, Body: []byte(testkit.Canary)}
		}, "", false},
		"a type": {"GET /v2/a/manifests/*", func(string) pullthroughtest.Fault {
			return pullthroughtest.Fault{Header: http.Header{"Content-Type": {"text/" + testkit.Canary}, "Docker-Content-Digest": nil}, Body: []byte("{}")}
		}, "", false},
		"a document": {"GET /v2/a/manifests/*", func(string) pullthroughtest.Fault {
			return pullthroughtest.Fault{Header: http.Header{"Docker-Content-Digest": nil}, Body: []byte(odd)}
		}, "", false},
		"a key": {"GET /v2/a/manifests/*", func(string) pullthroughtest.Fault {
			return pullthroughtest.Fault{Header: http.Header{"Docker-Content-Digest": nil}, Body: []byte(`{"` + testkit.Canary + `":1,"` + testkit.Canary + `":2}`)}
		}, "stands twice", false},
		"the host of a redirect": {"GET /v2/a/manifests/*", func(string) pullthroughtest.Fault {
			return pullthroughtest.Fault{Status: 307, Header: http.Header{"Location": {"http://" + testkit.Canary + ".invalid/x"}}}
		}, "", false},
		"the host of a redirect to an address that is closed": {"GET /v2/a/manifests/*", func(string) pullthroughtest.Fault {
			return pullthroughtest.Fault{Status: 307, Header: http.Header{"Location": {"http://" + testkit.Canary + ".localhost/x"}}}
		}, "", false},
		"the host of a token server": {"GET /v2/a/manifests/*", func(string) pullthroughtest.Fault {
			return pullthroughtest.Fault{Status: 401, Header: http.Header{"Www-Authenticate": {`Bearer realm="http://` + testkit.Canary + `.invalid/token",service="x"`}}}
		}, "", false},
		"the type of a token": {"GET /token", func(string) pullthroughtest.Fault {
			return pullthroughtest.Fault{Status: 200, Header: http.Header{"Content-Type": {"text/" + testkit.Canary}}, Body: []byte("<p>" + testkit.Canary)}
		}, "it is a web page", false},
	} {
		t.Run(name, func(t *testing.T) {
			var told testkit.Events
			page := &debug.Page{}
			f := testkit.NewFace(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, func(p *pullthrough.Proxy) {
				testkit.WithSecret(nil)(p)
				testkit.OneTry(p)
				p.OnEvent = told.On
			})
			f.Layer(100)
			other := testkit.Image(5)
			f.Up.Push("b", "1", other)
			f.Pull(t, "b", "1", other) // the password and a token are sent
			token := tokenOf(t, f.Up)
			if c.match == "GET /token" {
				token = f.Up.IssueToken(time.Minute, "repository:a:pull")
			}
			fault := c.fault(token)
			fault.Match = c.match
			f.Up.Fault(fault)
			answer := f.Get(t, testkit.ManifestPath("a", "1"))
			f.Settled(t)
			_, err := f.Resolve(t.Context(), "1")
			assert.Equal(t, c.warns, err == nil, "%v", err)
			f.Settled(t)
			var texts []string
			for _, e := range told.All() {
				page.Record(t.Context(), e)
				texts = append(texts, e.Warnings...)
				if e.Err != nil {
					texts = append(texts, e.Err.Error())
				}
			}
			texts = append(texts, string(answer.Content), shown(page, "text/html"), shown(page, "application/json"))
			if err != nil {
				texts = append(texts, err.Error())
			}
			said := strings.Join(texts, "\n")
			for _, secret := range []string{testkit.Canary, token, basic, long[:20], strings.ToUpper(testkit.Canary)} {
				assert.NotContains(t, said, secret)
			}
			assert.Contains(t, said, c.told)
		})
	}
}

func warning(text string) func(string) pullthroughtest.Fault {
	return func(string) pullthroughtest.Fault {
		return pullthroughtest.Fault{Header: http.Header{"Warning": {`299 - "` + text + `"`}}}
	}
}

// tokenOf is a token that the registry was sent.
func tokenOf(t *testing.T, up *pullthroughtest.Upstream) string {
	t.Helper()
	for _, r := range up.Requests() {
		if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
			return token
		}
	}
	require.Fail(t, "no token was sent")
	return ""
}

func shown(page *debug.Page, accept string) string {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Accept", accept)
	rec := httptest.NewRecorder()
	page.ServeHTTP(rec, r)
	return rec.Body.String()
}
