package pullthrough_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

// FuzzRealm: whoever may have the secret is, by a reading of its own, in the
// rule's set (upstream.md A27, A28).
func FuzzRealm(f *testing.F) {
	for _, seed := range []string{
		"https://auth.docker.io/token", "https://registry-1.docker.io:8443/t", "http://registry-1.docker.io/t", "https://evil.example/t",
		"https://auth.docker.io.evil.example/", "https://auth.docker.io@evil.example/", "https://u:p@auth.docker.io/", "https://auth.docker.io#x", "https://auth.docker.io#",
		"//auth.docker.io/t", "https:auth.docker.io", "https://", "ftp://auth.docker.io/", "https://AUTH.docker.io/t?service=x&scope=y;z",
		"https://named.example:444/t", "https://named.example/t", "https://auth.docker.io\r\n/", "https://auth.docker.io%2f@evil.example/", `https://auth.docker.io\@evil.example/`,
	} {
		f.Add(seed)
	}
	plain := regexp.MustCompile(`^(?i:(https)://(registry-1\.docker\.io(?::[0-9]*)?|auth\.docker\.io(?::[0-9]*)?|named\.example(?::[0-9]*)?))(?:[/?][!-~]*)?$`)
	f.Fuzz(func(t *testing.T, realm string) {
		if !pullthrough.RealmMayHaveCredentials("https://registry-1.docker.io", realm, []string{"named.example"}) {
			return
		}
		m := plain.FindStringSubmatch(realm)
		require.NotNil(t, m, "%q", realm)
		u, err := url.Parse(realm)
		require.NoError(t, err)
		assert.True(t, pullthrough.RealmMayHaveCredentials("https://registry-1.docker.io", u.String(), []string{"named.example"}), "stable under print and parse")
	})
}

// FuzzRetryAfter: never negative, never without end, and more is not less.
func FuzzRetryAfter(f *testing.F) {
	now := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	for _, seed := range []string{
		"", "0", "2", "-1", "1.5", "99999999999999999999", "86400", "86401", "Wed, 21 Oct 2015 07:28:00 GMT", "Mon, 23 Nov 2026 00:00:02 GMT",
		"Sat, 01 Jan 9999 00:00:00 GMT", "Monday, 23-Nov-26 00:00:02 GMT", "Mon Nov 23 00:00:02 2026", "0x10", " 5", "5 ", "+5", "1e3", "\x00",
	} {
		f.Add(seed, int64(0))
	}
	f.Fuzz(func(t *testing.T, v string, later int64) {
		d := pullthrough.RetryAfter(v, now)
		assert.GreaterOrEqual(t, d, time.Duration(0))
		assert.LessOrEqual(t, d, 24*time.Hour)
		if later >= 0 && later < int64(1000*time.Hour) {
			assert.LessOrEqual(t, pullthrough.RetryAfter(v, now.Add(time.Duration(later))), d, "the later it is, the less there is to wait")
		}
		if digits := regexp.MustCompile(`^[0-9]{1,4}$`); digits.MatchString(v) {
			assert.Equal(t, d, pullthrough.RetryAfter("0"+v, now))
			assert.LessOrEqual(t, d, pullthrough.RetryAfter("1"+v, now))
		}
	})
}

// FuzzToken: what comes out can stand in a header, and lives neither for a
// moment nor for ever.
func FuzzToken(f *testing.F) {
	for _, seed := range []string{
		`{"token":"x"}`, `{"access_token":"x","expires_in":300}`, `{"token":"a","access_token":"b","refresh_token":"c","expires_in":"300"}`,
		`{"token":"x\r\ny: z"}`, `{"token":"x","expires_in":1e400}`, `{"token":"x","expires_in":-5}`, `{"token":5}`, `[]`, `null`, `<html>`, `{"token":"é"}`,
		`{"token":"x","expires_in":9223372036854775807}`, `{"Token":"x","TOKEN":"y"}`, `{"token":"x","issued_at":"0001-01-01T00:00:00Z"}`, strings.Repeat("[", 5000),
	} {
		f.Add([]byte(seed))
	}
	printable := regexp.MustCompile(`^[!-~]*$`)
	f.Fuzz(func(t *testing.T, body []byte) {
		token, refresh, life, err := pullthrough.ParseToken(body)
		if err != nil {
			assert.Empty(t, token+refresh)
			assert.Less(t, len(err.Error()), 200)
			return
		}
		assert.True(t, json.Valid(body))
		assert.NotEmpty(t, token)
		for _, s := range []string{token, refresh} {
			assert.Regexp(t, printable, s)
			assert.LessOrEqual(t, len(s), 16<<10)
		}
		assert.GreaterOrEqual(t, life, 54*time.Second, "a minute, less what it is renewed early")
		assert.Less(t, life, 24*time.Hour)
	})
}

// FuzzErrorText: what is kept of an error body is short and printable, and none
// of the request's secrets is in it.
func FuzzErrorText(f *testing.F) {
	for _, seed := range []string{
		`{"errors":[{"code":"DENIED","message":"SECRET"}]}`, `{"errors":[{"code":"SECRET"}]}`, `{"errors":null}`, "<html>SECRET</html>", "SECRET", "Basic YTpTRUNSRVQ=",
		"https://x/?sig=SECRET", strings.Repeat("[", 9000), strings.Repeat(" ", 300) + "SECRET", "toomanyrequests: You have reached your pull rate limit", "\x1b[31mSECRET",
	} {
		f.Add(400, "Bearer error=\"invalid_token\",error_description=\"SECRET\"", []byte(seed))
	}
	const canary = "canary-fuzz-secret"
	printable := regexp.MustCompile(`^[ -~]*$`)
	f.Fuzz(func(t *testing.T, status int, challenge string, body []byte) {
		req, err := http.NewRequest(http.MethodGet, "https://r.example/v2/a/manifests/1?sig="+canary+"-query", nil)
		require.NoError(t, err)
		req.SetBasicAuth("me", canary)
		body = bytes.ReplaceAll(body, []byte("SECRET"), []byte(canary))
		challenge = strings.ReplaceAll(challenge, "SECRET", canary)
		resp := &http.Response{StatusCode: status, Header: http.Header{"Www-Authenticate": {challenge}}, Body: io.NopCloser(bytes.NewReader(body)), Request: req}
		text := pullthrough.ErrorText(resp)
		assert.LessOrEqual(t, len(text), 4<<10)
		assert.Regexp(t, printable, text)
		assert.NotContains(t, text, canary)
		assert.NotContains(t, text, strings.TrimPrefix(req.Header.Get("Authorization"), "Basic "))
	})
}

// FuzzRedirects: however an upstream sends us around, the secret stays where it
// belongs and the way has an end.
func FuzzRedirects(f *testing.F) {
	f.Add("http://r.example/x\nhttps://r.example/y\nhttp://r.example:81/z")
	f.Add("/a\n/b\n/c\n/d\n/e\n/f\n/g\n/h\n/i")
	f.Add("//evil.example/x\nhttp://r.example/v2/")
	f.Add("https://evil.example/\nhttps://r.example/\nhttp://r.example/")
	f.Add("http://me:canary@r.example/x")
	f.Add("//canary")
	f.Add("http://R.EXAMPLE:80/x\nhttp://r.example./x\nhttp://[::ffff:169.254.169.254]/\nhttp://0x7f.1/")
	f.Add("ftp://r.example/\n\\\\evil.example\\x\nhttp:evil.example\nhttp:///x\n?q\n#f\n%zz\nhttp://r.example\t@evil.example/")
	f.Fuzz(func(t *testing.T, script string) {
		hops := strings.Split(script, "\n")
		sent := 0
		left := false
		p := &pullthrough.Proxy{
			Store:       memstore.New(),
			Rules:       pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: "http://r.example"}},
			Credentials: constantSecret,
			Policy: func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
				return pullthrough.Policy{Retries: -1}
			},
			Transport: testkit.RoundTripper(func(r *http.Request) (*http.Response, error) {
				sent++
				at := strings.ToLower(r.URL.Scheme + "://" + strings.TrimSuffix(strings.TrimSuffix(r.URL.Host, ":80"), ":"))
				if strings.HasPrefix(r.URL.Path, "/v2/") && sent <= 2 {
					left = false
				}
				left = left || at != "http://r.example"
				if left {
					assert.Empty(t, r.Header.Get("Authorization"), "gone for good at %s", r.URL)
				}
				assert.Empty(t, r.Header.Get("Referer")+r.Header.Get("Cookie"))
				assert.Nil(t, r.URL.User)
				resp := &http.Response{StatusCode: 401, Header: http.Header{"Www-Authenticate": {`Basic realm="x"`}}, Body: http.NoBody, Request: r}
				if r.Header.Get("Authorization") != "" || sent > 1 {
					resp.StatusCode = []int{301, 302, 303, 307, 308}[sent%5]
					resp.Header = http.Header{"Location": {hops[sent%len(hops)]}}
				}
				return resp, nil
			}),
		}
		_, err := p.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
		assert.Error(t, err)
		said := strings.ToLower(fmt.Sprintf("%v %+v", err, err))
		for _, hop := range hops { // hosts may be told, and may be called anything
			if u, err := url.Parse(hop); err == nil && u.Host != "" {
				said = strings.ReplaceAll(said, strings.ToLower(u.Host), "")
			}
		}
		assert.NotContains(t, said, "canary")
		assert.LessOrEqual(t, sent, 10)
		assert.NoError(t, p.Shutdown(context.Background()))
	})
}

func constantSecret(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
	return pullthrough.Credential{Username: "me", AccessToken: "canary-in-redirect"}, nil
}
