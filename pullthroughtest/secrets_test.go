package pullthroughtest_test

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// recorder stands in for the test that a ledger is to fail.
type recorder struct {
	testing.TB

	mu       sync.Mutex
	errors   []string
	cleanups []func()
}

func (r *recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	panic(r)
}

func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }

// end ends the test that r stands for, and returns what it failed with.
func (r *recorder) end() []string {
	for _, f := range slices.Backward(r.cleanups) {
		f()
	}
	return r.errors
}

// vault is a ledger with one secret, which up may see and elsewhere may not.
type vault struct {
	*pullthroughtest.Secrets
	test          *recorder
	up, elsewhere *pullthroughtest.Upstream
	secret        string
}

func newVault(t *testing.T) *vault {
	t.Helper()
	v := &vault{test: &recorder{TB: t}, up: newUpstream(t, pullthroughtest.Config{}), elsewhere: newUpstream(t, pullthroughtest.Config{})}
	v.Secrets = pullthroughtest.NewSecrets(v.test)
	v.Watch(v.up, v.elsewhere)
	v.secret = v.New(v.up)
	return v
}

// assertCaught checks that the test failed once, with all the words and without the secret.
func (v *vault) assertCaught(t *testing.T, words ...string) {
	t.Helper()
	all := v.test.end()
	require.Len(t, all, 1)
	for _, word := range append(words, "secret 1 (made at secrets_test.go:") {
		assert.Contains(t, all[0], word)
	}
	assert.NotContains(t, all[0], v.secret)
	assert.NotContains(t, all[0], v.secret[len("canary-"):])
}

func (v *vault) basic() string {
	return base64.StdEncoding.EncodeToString([]byte("me:" + v.secret))
}

// sends are requests that carry the secret.
var sends = map[string]struct {
	send func(r *http.Request, v *vault)
	part string
}{
	"header":          {func(r *http.Request, v *vault) { r.Header.Set("X-Any", "a "+v.secret) }, "header X-Any"},
	"bearer":          {func(r *http.Request, v *vault) { r.Header.Set("Authorization", "Bearer "+v.secret) }, "header Authorization"},
	"basic password":  {func(r *http.Request, v *vault) { r.SetBasicAuth("me", v.secret) }, "header Authorization"},
	"basic user":      {func(r *http.Request, v *vault) { r.SetBasicAuth(v.secret, "") }, "header Authorization"},
	"base64 anywhere": {func(r *http.Request, v *vault) { r.Header.Set("X-Any", "auth/"+v.basic()+"/x") }, "header X-Any"},
	"hexadecimal":     {func(r *http.Request, v *vault) { r.Header.Set("X-Any", hex.EncodeToString([]byte(v.secret))) }, "header X-Any"},
	"query":           {func(r *http.Request, v *vault) { r.URL.RawQuery = "a=" + v.secret }, "query of GET /v2/"},
	"escaped query": {func(r *http.Request, v *vault) {
		r.URL.RawQuery = "a=" + strings.ReplaceAll(v.secret, "-", "%2d")
	}, "query of GET /v2/"},
	"URL in a query": {func(r *http.Request, v *vault) {
		inner := url.Values{"x": {strings.ReplaceAll(v.secret, "-", "%2d")}}.Encode()
		r.URL.RawQuery = "url=" + url.QueryEscape("http://a/?"+inner)
	}, "query of GET /v2/"},
	"path": {func(r *http.Request, v *vault) { r.URL.Path = "/v2/" + v.secret }, "path of GET ..."},
	"host": {func(r *http.Request, v *vault) { r.Host = v.secret + ".example" }, "host of GET /v2/"},
	"form": {func(r *http.Request, v *vault) {
		r.Method, r.Body = http.MethodPost, io.NopCloser(strings.NewReader("refresh_token="+v.secret))
	}, "body of POST /v2/"},
	"JSON": {func(r *http.Request, v *vault) {
		r.Method, r.Body = http.MethodPost, io.NopCloser(strings.NewReader(`{"password":"`+v.secret+`"}`))
	}, "body of POST /v2/"},
}

func TestSecretsThatUpstreamsMayNotSee(t *testing.T) {
	for name, c := range sends {
		t.Run(name, func(t *testing.T) {
			v := newVault(t)
			for range 2 {
				r := request(t, http.MethodGet, v.elsewhere.URL+"/v2/")
				c.send(r, v)
				do(t, v.elsewhere, r)
				v.elsewhere.Reset()
			}
			assert.Empty(t, v.test.errors, "Allow may come yet")
			v.assertCaught(t, "was sent to "+v.elsewhere.URL, "2 times", "the "+c.part)
		})
		t.Run(name+", allowed", func(t *testing.T) {
			v := newVault(t)
			r := request(t, http.MethodGet, v.up.URL+"/v2/")
			c.send(r, v)
			do(t, v.up, r)
			r = request(t, http.MethodGet, v.elsewhere.URL+"/v2/")
			c.send(r, v)
			do(t, v.elsewhere, r)
			v.Allow(v.secret, v.elsewhere) // after the fact
			assert.Empty(t, v.test.end())
		})
	}
}

func TestRequestsWithoutAnAnswerAreWatchedToo(t *testing.T) {
	v := newVault(t)
	v.elsewhere.Fault(pullthroughtest.Fault{CutAfter: new(int64(-1))})
	r := request(t, http.MethodGet, v.elsewhere.URL+"/v2/", "X-Any", v.secret)
	_, err := v.elsewhere.Client().Transport.RoundTrip(r)
	require.Error(t, err)
	v.assertCaught(t, "header X-Any")
}

// reticent is an error that shows its secret in one way only.
type reticent struct {
	plain, plus, sharp, logged string
	Field                      string
	Cause                      error
	wrapped                    []error
}

func (r *reticent) Error() string { return "an error" }

func (r *reticent) Format(f fmt.State, _ rune) {
	text := r.plain
	if f.Flag('+') {
		text = r.plus
	}
	if f.Flag('#') {
		text = r.sharp
	}
	_, _ = io.WriteString(f, "an error"+text)
}

func (r *reticent) LogValue() slog.Value { return slog.StringValue(r.logged) }
func (r *reticent) Unwrap() []error      { return r.wrapped }

func TestSecretsInValues(t *testing.T) {
	type event struct {
		Err  error
		Next *event
	}
	secret := errors.New
	for name, value := range map[string]func(s string) any{
		"a string":                    func(s string) any { return s },
		"quoted":                      func(s string) any { return fmt.Sprintf("%q", []string{s}) },
		"bytes":                       func(s string) any { return []byte(s) },
		"an error":                    func(s string) any { return secret(s) },
		"a wrapped error":             func(s string) any { return fmt.Errorf("a: %w", secret(s)) },
		"a wrapped error not printed": func(s string) any { return &reticent{wrapped: []error{nil, &reticent{wrapped: []error{secret(s)}}}} },
		"joined errors":               func(s string) any { return errors.Join(io.EOF, secret(s)) },
		"a field of an error":         func(s string) any { return &reticent{Cause: secret(s)} },
		"%v":                          func(s string) any { return &reticent{plain: s} },
		"%+v":                         func(s string) any { return &reticent{plus: s} },
		"%#v":                         func(s string) any { return &reticent{sharp: s} },
		"JSON":                        func(s string) any { return &reticent{Field: s} },
		"a log value":                 func(s string) any { return &reticent{logged: s} },
		"a struct":                    func(s string) any { return event{Err: secret(s)} },
		"a pointer to one":            func(s string) any { return &event{Err: &reticent{Cause: secret(s)}} },
		"a struct in it":              func(s string) any { return event{Next: &event{Err: &url.Error{URL: s}}} },
		"a URL": func(s string) any {
			return &url.Error{Op: "Get", URL: "http://a/?x=" + strings.ReplaceAll(s, "-", "%2D"), Err: io.EOF}
		},
		"a request's header": func(s string) any { return http.Header{"Authorization": {s}} },
	} {
		t.Run(name, func(t *testing.T) {
			v := newVault(t)
			v.Check(nil, 5, io.EOF, event{}, (*event)(nil), value("canary"))
			require.Empty(t, v.test.errors)
			v.Check(value(v.secret))
			require.NotEmpty(t, v.test.errors, "at once")
			v.assertCaught(t, " shows in ")
		})
	}
}

func TestSecretsInLogs(t *testing.T) {
	for name, log := range map[string]func(w io.Writer, v *vault){
		"text": func(w io.Writer, v *vault) {
			slog.New(slog.NewTextHandler(w, nil)).Info("x", "err", errors.New("a "+v.secret))
		},
		"JSON": func(w io.Writer, v *vault) { slog.New(slog.NewJSONHandler(w, nil)).Info("x", "a", []string{v.secret}) },
		"JSON of bytes": func(w io.Writer, v *vault) {
			slog.New(slog.NewJSONHandler(w, nil)).Info("x", "a", []byte("123"+v.secret))
		},
		"Basic": func(w io.Writer, v *vault) { slog.New(slog.NewTextHandler(w, nil)).Info("x", "h", "Basic "+v.basic()) },
		"a URL": func(w io.Writer, v *vault) {
			slog.New(slog.NewTextHandler(w, nil)).Info("100%", "u", "?%63"+v.secret[1:])
		},
		"several writes": func(w io.Writer, v *vault) {
			for i := range v.secret {
				_, _ = io.WriteString(w, v.secret[i:i+1])
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVault(t)
			w := v.Writer()
			slog.New(slog.NewTextHandler(w, nil)).Info("nothing to see", "me", "canary")
			require.Empty(t, v.test.errors)
			log(w, v)
			require.NotEmpty(t, v.test.errors, "at once")
			log(w, v)
			v.assertCaught(t, "what was written")
		})
	}
}

func TestSecretsOfOddLetters(t *testing.T) {
	const odd = "päss\"w\\rd<&>\n+%41/="
	for name, text := range map[string]string{
		"plain": odd, "quoted": fmt.Sprintf("%q", odd), "escaped": url.QueryEscape(odd), "a path": url.PathEscape(odd),
		"JSON": string(must(json.Marshal(odd))), "a header": "Basic " + base64.StdEncoding.EncodeToString([]byte("x:"+odd)),
		"base64 for URLs": base64.URLEncoding.EncodeToString([]byte("xy" + odd + "z")),
	} {
		t.Run(name, func(t *testing.T) {
			test := &recorder{TB: t}
			s := pullthroughtest.NewSecrets(test)
			s.Allow(odd)
			s.Check("before " + text + " behind")
			require.Len(t, test.end(), 1)
			assert.Contains(t, test.errors[0], "secret 1 (named at secrets_test.go:")
			assert.NotContains(t, test.errors[0], text)
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestTokensAreSecretsOfThoseThatTakeThem(t *testing.T) {
	issuer := newUpstream(t, pullthroughtest.Config{})
	taker := newUpstream(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Issuer: issuer})
	elsewhere := newUpstream(t, pullthroughtest.Config{})
	early := issuer.IssueToken(0, "repository:a/b:pull")
	test := &recorder{TB: t}
	s := pullthroughtest.NewSecrets(test)
	s.Watch(taker, elsewhere)
	asked := decode[map[string]any](t, get(t, issuer, "/token?scope=repository:a/b:pull"))["token"].(string)
	for _, token := range []string{early, asked} {
		get(t, taker, "/v2/a/b/manifests/latest", "Authorization", "Bearer "+token)
		get(t, issuer, "/v2/", "Authorization", "Bearer "+token)
		get(t, elsewhere, "/v2/", "Authorization", "Bearer "+token)
	}
	all := test.end()
	require.Len(t, all, 2)
	for i, token := range []string{early, asked} {
		assert.Contains(t, all[i], "a token of "+issuer.URL)
		assert.Contains(t, all[i], "was sent to "+elsewhere.URL)
		assert.NotContains(t, all[i], token)
	}
}

func TestOldTokensAreForgotten(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{})
	test := &recorder{TB: t}
	s := pullthroughtest.NewSecrets(test)
	s.Watch(up)
	var tokens []string
	for range 1001 {
		tokens = append(tokens, up.IssueToken(0, "repository:a/b:pull"))
	}
	s.Check(tokens[0])
	assert.Empty(t, test.errors)
	s.Check(tokens[1])
	s.Check(tokens[1000])
	assert.Len(t, test.end(), 2)
}

func TestALedgerIsDoneWhenItsTestIs(t *testing.T) {
	v := newVault(t)
	w := v.Writer()
	require.Empty(t, v.test.end())
	get(t, v.elsewhere, "/v2/", "X-Any", v.secret)
	v.Check(v.secret)
	_, err := io.WriteString(w, v.secret)
	assert.NoError(t, err)
	assert.Empty(t, v.test.errors, "a test that has ended must not be failed")
}

func TestWhatWasThereBeforeIsNotWatched(t *testing.T) {
	v := newVault(t)
	late := newUpstream(t, pullthroughtest.Config{})
	get(t, late, "/v2/", "X-Any", v.secret)
	v.Watch(late)
	assert.Empty(t, v.test.errors)
	get(t, late, "/v2/", "X-Any", v.secret)
	v.assertCaught(t, "1 times")
}

func TestSecretsAreUnlikeEachOtherAndLong(t *testing.T) {
	v := newVault(t)
	assert.NotEqual(t, v.secret, v.New())
	assert.Greater(t, len(v.secret), 30)
	assert.Panics(t, func() { v.Allow("1234567", v.up) })
	require.Len(t, v.test.end(), 1)
	assert.NotContains(t, v.test.errors[0], "1234567")
}

func TestLedgersForManyAtOnce(t *testing.T) {
	v := newVault(t)
	w := v.Writer()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			own := v.New()
			v.Allow(own, v.elsewhere)
			v.Watch(v.up)
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, v.elsewhere.URL+"/v2/", nil)
			if !assert.NoError(t, err) {
				return
			}
			r.Header["X-Any"] = []string{own, v.secret}
			resp, err := v.elsewhere.Client().Do(r)
			if assert.NoError(t, err) {
				assert.NoError(t, resp.Body.Close())
			}
			v.Check(errors.New(own))
			_, err = io.WriteString(w, own)
			assert.NoError(t, err)
		})
	}
	wg.Wait()
	all := v.test.end()
	assert.Len(t, all, 41, "each in a value and in the log, and one at the wrong upstream")
	assert.Contains(t, all[40], "20 times")
}
