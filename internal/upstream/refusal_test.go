package upstream_test

import (
	"bytes"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestWhatARefusalMeans(t *testing.T) {
	for status, kind := range map[int]error{
		400: upstream.ErrUnavailable, 401: upstream.ErrDenied, 403: upstream.ErrDenied, 404: upstream.ErrNotFound,
		429: upstream.ErrRateLimited, 500: upstream.ErrUnavailable, 503: upstream.ErrUnavailable,
	} {
		w := newWorld(t, pullthroughtest.Config{})
		w.up.Fault(pullthroughtest.Fault{Status: status, Body: []byte("a proxy in between says no"), Header: http.Header{"Retry-After": {"7"}}})
		_, err := w.Manifest(t.Context(), w.target, "1", upstream.Check)
		want := &upstream.Error{Kind: kind, Host: w.up.Host(), Status: status} // and nothing of what it says
		if status == 429 || status >= 500 {
			want.RetryAfter = 7 * time.Second
		}
		if status == 404 {
			want.Err = upstream.ErrNoRegistry // which says it in JSON
		}
		e := err.(*upstream.Error)
		assert.Equal(t, want, e)
		assert.Len(t, w.up.Log(), 1)
	}
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
		d := upstream.RetryAfter(v, now)
		assert.GreaterOrEqual(t, d, time.Duration(0))
		assert.LessOrEqual(t, d, 24*time.Hour)
		if later >= 0 && later < int64(1000*time.Hour) {
			assert.LessOrEqual(t, upstream.RetryAfter(v, now.Add(time.Duration(later))), d, "the later it is, the less there is to wait")
		}
		if digits := regexp.MustCompile(`^[0-9]{1,4}$`); digits.MatchString(v) {
			assert.Equal(t, d, upstream.RetryAfter("0"+v, now))
			assert.LessOrEqual(t, d, upstream.RetryAfter("1"+v, now))
		}
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
	for _, seed := range spoken(f, `{"errors"`) {
		f.Add(400, "", []byte(seed))
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
		text := upstream.ErrorText(resp)
		assert.LessOrEqual(t, len(text), 4<<10)
		assert.Regexp(t, printable, text)
		assert.NotContains(t, text, canary)
		assert.NotContains(t, text, strings.TrimPrefix(req.Header.Get("Authorization"), "Basic "))
	})
}
