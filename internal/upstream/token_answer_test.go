package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// withIdentityToken gives every rule a refresh token, and a password if there
// is one.
func withIdentityToken(token, password string) func(*pullthrough.Proxy) {
	return func(p *pullthrough.Proxy) {
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			c := pullthrough.Credential{IdentityToken: token}
			if password != "" {
				c.Username, c.AccessToken = "me", password
			}
			return c, nil
		}
	}
}

const identityCanary = "canary-refresh"

func testTokenOrAccessToken(t *testing.T) {
	answers := map[string]bool{
		`{"token":"TOKEN"}`:                        true,
		`{"access_token":"TOKEN"}`:                 true,
		`{"token":"wrong","access_token":"TOKEN"}`: true,
		`{"token":"TOKEN","access_token":"TOKEN"}`: true,
		`{"token":"TOKEN","access_token":""}`:      true,
		`{"token":"TOKEN","access_token":null}`:    true,
		`{"token":null,"access_token":"TOKEN"}`:    true,
		`{"expires_in":300}`:                       false,
		`{"token":null}`:                           false,
		`{"token":"","access_token":""}`:           false,
		`{"token":null,"access_token":null}`:       false,
	}
	for grant, credentials := range map[string]func(*pullthrough.Proxy){
		"GET":  testkit.WithSecret(nil),
		"POST": withIdentityToken(identityCanary, ""),
	} {
		for answer, ok := range answers {
			t.Run(grant+" "+answer, func(t *testing.T) {
				w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users, IdentityTokens: []string{identityCanary}}, credentials)
				pushEach(w, "a", "1")
				body := strings.ReplaceAll(answer, "TOKEN", w.Up.IssueToken(time.Hour, "repository:a:pull"))
				w.Up.Fault(pullthroughtest.Fault{Match: grant + " /token 200", Body: []byte(body)})
				err := pullTag(t, w, "a", "1")
				assert.Equal(t, 1, w.Up.Count(grant+" /token 200"))
				if ok {
					assert.NoError(t, err)
					assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/1 200"))
					return
				}
				assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
				assert.Len(t, w.Up.Log(), 2, "nothing is sent in place of a token")
			})
		}
	}
}

// tokensFor is how many tokens are fetched for two pulls so far apart, when the
// token server's answers have the fields beside the token.
func tokensFor(t *testing.T, fields string, apart time.Duration) int {
	t.Helper()
	now := new(testkit.HandClock)
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(p *pullthrough.Proxy) { p.Now = now.Now })
	pushEach(w, "a", "1", "2")
	body := fmt.Sprintf(`{"token":%q%s}`, w.Up.IssueToken(time.Hour, "repository:a:pull"), fields)
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /token 200", Body: []byte(body)})
	require.NoError(t, pullTag(t, w, "a", "1"))
	now.Pass(apart)
	require.NoError(t, pullTag(t, w, "a", "2"))
	assert.Equal(t, 2, w.Up.Count("GET /v2/a/manifests/* 200"))
	assert.Equal(t, 1, w.Up.Count("* 401"), "no token was sent that is too old")
	return w.Up.Count("GET /token 200")
}

func testOddLifetimesOfTokens(t *testing.T) {
	const day = 24 * time.Hour
	for fields, life := range map[string]time.Duration{
		``:                                      time.Minute,
		`,"expires_in":null`:                    time.Minute,
		`,"expires_in":0`:                       time.Minute,
		`,"expires_in":-5`:                      time.Minute,
		`,"expires_in":10`:                      time.Minute,
		`,"expires_in":60`:                      time.Minute,
		`,"expires_in":1.5`:                     time.Minute,
		`,"expires_in":300`:                     5 * time.Minute,
		`,"expires_in":"300"`:                   5 * time.Minute,
		`,"expires_in":86400`:                   day,
		`,"expires_in":1000000000000`:           day,
		`,"expires_in":1e12`:                    day,
		`,"expires_in":9223372036854775808`:     day,
		`,"expires_in":99999999999999999999e99`: day,
	} {
		t.Run(fields, func(t *testing.T) {
			assert.Equal(t, 1, tokensFor(t, fields, life*9/10-time.Second), "it is used until shortly before")
			assert.Equal(t, 2, tokensFor(t, fields, life), "and not longer")
		})
	}
}

func testTokensLiveOnOurClock(t *testing.T) {
	at := func(skew time.Duration) string {
		return fmt.Sprintf(`,"expires_in":300,"issued_at":%q`, new(testkit.HandClock).Now().Add(skew).UTC().Format(time.RFC3339))
	}
	for name, fields := range map[string]string{
		"no issued_at":               `,"expires_in":300`,
		"the same clock":             at(0),
		"a clock that is 10 min off": at(-10 * time.Minute),
		"one that is ahead":          at(10 * time.Minute),
		"years behind":               at(-10 * 365 * 24 * time.Hour),
		"no time":                    `,"expires_in":300,"issued_at":"yesterday"`,
		"a number":                   `,"expires_in":300,"issued_at":1700000000`,
		"null":                       `,"expires_in":300,"issued_at":null`,
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, 1, tokensFor(t, fields, 200*time.Second))
			assert.Equal(t, 2, tokensFor(t, fields, 299*time.Second))
		})
	}
	t.Run("an answer that was long on its way", func(t *testing.T) {
		now := new(testkit.HandClock)
		w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(p *pullthrough.Proxy) { p.Now = now.Now })
		pushEach(w, "a", "1", "2", "3")
		gate := testkit.NewGate(t)
		w.Up.Fault(pullthroughtest.Fault{Match: "GET /token*", Times: 1, Stall: gate.C})
		done := make(chan error, 1)
		go func() { done <- pullTag(t, w, "a", "1") }()
		require.NoError(t, w.Up.Wait(t.Context(), "GET /token*", 1))
		now.Pass(150 * time.Second)
		gate.Open()
		require.NoError(t, <-done)
		now.Pass(200 * time.Second)
		require.NoError(t, pullTag(t, w, "a", "2"))
		assert.Equal(t, 1, w.Up.Count("GET /token*"))
		now.Pass(99 * time.Second)
		require.NoError(t, pullTag(t, w, "a", "3"))
		assert.Equal(t, 2, w.Up.Count("GET /token*"))
	})
}

func testTokenIsRenewedEarly(t *testing.T) {
	for seconds, early := range map[int]int{60: 6, 100: 10, 200: 20, 300: 30, 3600: 30, 43_200: 30, 86_400: 30} {
		t.Run(fmt.Sprint(seconds, " s"), func(t *testing.T) {
			fields := fmt.Sprintf(`,"expires_in":%d`, seconds)
			due := time.Duration(seconds-early) * time.Second
			assert.Equal(t, 1, tokensFor(t, fields, due-time.Second))
			assert.Equal(t, 2, tokensFor(t, fields, due+time.Second))
			assert.Equal(t, 2, tokensFor(t, fields, time.Duration(seconds-4)*time.Second))
		})
	}
}

func testHugeAndOddTokens(t *testing.T) {
	t.Run("a huge answer", testHugeTokenAnswers)
	const most = 16 << 10
	for name, tc := range map[string]struct {
		token string // as JSON has it
		ok    bool
	}{
		"of 16 KiB":         {strings.Repeat("x", most), true},
		"longer":            {strings.Repeat("x", most+1), false},
		"all characters":    {"abcXYZ019-._~+/=", true},
		"a carriage return": {`x\rX-Y: z`, false},
		"a line feed":       {`x\nX-Y: z`, false},
		"a new header":      {`x\r\nX-Y: z`, false},
		"a space":           {`x y`, false},
		"a space before":    {` x`, false},
		"a space behind":    {`x `, false},
		"a tab":             {`x\ty`, false},
		"a NUL":             {`x\u0000`, false},
		"DEL":               {`x\u007f`, false},
		"an accent":         {`x\u00e9`, false},
		"no UTF-8":          {"x\xff", false},
	} {
		t.Run("a token with "+name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			pushEach(w, "a", "1")
			challengeWith(w, "GET /v2/*", 1, "")
			w.Up.Fault(pullthroughtest.Fault{Match: "GET /token 200", Body: []byte(`{"token":"` + tc.token + `"}`)})
			err := pullTag(t, w, "a", "1")
			if tc.ok {
				require.NoError(t, err)
				assert.Equal(t, []string{"", "Bearer " + tc.token}, authorizations(w.Up, "GET /v2/"))
				return
			}
			assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
			assert.Equal(t, []string{"GET /v2/a/manifests/1 401", "GET /token 200"}, w.Up.Log())
		})
	}
}

// metered counts what is read of a body.
type metered struct {
	io.ReadCloser
	read *atomic.Int64
}

func (m metered) Read(p []byte) (int, error) {
	n, err := m.ReadCloser.Read(p)
	m.read.Add(int64(n))
	return n, err
}

func testHugeTokenAnswers(t *testing.T) {
	const most = 64 << 10
	for name, tc := range map[string]struct {
		size   int
		length bool
	}{
		"64 KiB":                  {most, true},
		"64 KiB without a length": {most, false},
		"a byte more":             {most + 1, true},
		"10 MB":                   {10_000_000, true},
		"10 MB without a length":  {10_000_000, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			var read atomic.Int64
			w.Transport = testkit.RoundTripper(func(r *http.Request) (*http.Response, error) {
				resp, err := w.Up.Client().Transport.RoundTrip(r)
				if err == nil && r.URL.Path == "/token" {
					resp.Body = metered{resp.Body, &read}
				}
				return resp, err
			})
			pushEach(w, "a", "1")
			challengeWith(w, "GET /v2/*", 1, "")
			body := `{"token":"x","y":""}`
			body = `{"token":"x","y":"` + strings.Repeat("y", tc.size-len(body)) + `"}`
			w.Up.Fault(pullthroughtest.Fault{Match: "GET /token 200", Body: []byte(body), NoLength: !tc.length})
			err := pullTag(t, w, "a", "1")
			if tc.size <= most {
				assert.NoError(t, err)
				return
			}
			assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
			assert.LessOrEqual(t, read.Load(), int64(most+1))
			assert.Equal(t, 1, w.Up.Count("GET /token*"))
			assert.Equal(t, 1, w.Up.Count("GET /v2/*"))
		})
	}
}

func testWebPageAsTokenIsNamed(t *testing.T) {
	for name, tc := range map[string]struct{ contentType, body, said string }{
		"a page to log in":     {"text/html; charset=utf-8", "<html>\n<title>Log in</title> " + strings.Repeat("x", 4096) + " far away", "it is a web page"},
		"a page that is JSON":  {"text/html", `["x"]`, ""},
		"text":                 {"text/plain", "ok", ""},
		"nothing":              {"application/json", "", ""},
		"an array":             {"application/json", `["x"]`, ""},
		"a string":             {"application/json", `"x"`, ""},
		"a number as token":    {"application/json", `{"token":5}`, ""},
		"JSON and more":        {"application/json", `{"token":"x"}{"token":"y"}`, ""},
		"JSON that is cut off": {"application/json", `{"token":"x"`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			issuer := pullthroughtest.New(t, pullthroughtest.Config{})
			w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Issuer: issuer}, nil)
			pushEach(w, "a", "1")
			issuer.Fault(pullthroughtest.Fault{Match: "GET /token 200", Body: []byte(tc.body), Header: http.Header{"Content-Type": {tc.contentType}}})
			err := pullTag(t, w, "a", "1")
			require.ErrorIs(t, err, pullthrough.ErrUnavailable)
			e, ok := errors.AsType[*pullthrough.Error](err)
			require.True(t, ok)
			assert.Equal(t, issuer.Host(), e.Host)
			assert.Contains(t, err.Error(), tc.contentType)
			assert.Contains(t, err.Error(), tc.said)
			assert.NotContains(t, err.Error(), "Log in", "what it says is not kept")
			assert.NotContains(t, err.Error(), "\n")
			status, _, message := pullthrough.OCI(err)
			assert.Equal(t, http.StatusBadGateway, status)
			assert.NotContains(t, message, "Log in", "clients do not read upstream's text")
			assert.Equal(t, 1, issuer.Count("GET /token 200"))
			assert.Equal(t, 1, w.Up.Count("*"))
		})
	}
}
