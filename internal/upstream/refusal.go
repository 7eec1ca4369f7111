package upstream

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/challenge"
	"github.com/ecr-pullthrough/pullthrough/internal/ocierror"
)

const (
	maxRetryAfter = 24 * time.Hour
	maxReason     = 64 // bytes of a challenge's error_description
	maxForm       = 64 << 10
	// minSecret is the length from which on a secret is struck out of texts. A
	// shorter one would strike out half of every text.
	minSecret = 4
)

// statusError says what a refusal means. The status decides. Of the body a
// well-formed error code is kept, or the beginning of what else it is: it is the
// server's text, for logs and never for clients.
func statusError(t *Target, resp *http.Response) *Error {
	e := t.fail(ErrUnavailable, reason(resp))
	e.Status = resp.StatusCode
	if resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= http.StatusInternalServerError {
		e.RetryAfter = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		e.Kind = ErrDenied
	case http.StatusNotFound:
		e.Kind = ErrNotFound
	case http.StatusTooManyRequests:
		e.Kind = ErrRateLimited
	}
	return e
}

// retryAfter reads the header's seconds or date (RFC 9110, section 10.2.3). It
// returns 0 for none and for nonsense.
func retryAfter(v string, now time.Time) time.Duration {
	if v == "" {
		return 0
	}
	if t, err := http.ParseTime(v); err == nil {
		return min(max(0, t.Sub(now)), maxRetryAfter)
	}
	if strings.Trim(v, "0123456789") != "" {
		return 0
	}
	seconds, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return maxRetryAfter // more than a number holds
	}
	return time.Duration(min(seconds, int64(maxRetryAfter/time.Second))) * time.Second
}

// reason is what a server says of its refusal; nil: nothing.
func reason(resp *http.Response) error {
	defer hurry(resp)()
	secrets := secretsOf(resp.Request)
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil {
		return redact(resp.Request.Context(), err)
	}
	text := ocierror.Code(body)
	if text == "" {
		text = ocierror.Excerpt(body, ocierror.MaxExcerpt, secrets)
	}
	if more := bearerError(resp, secrets); more != "" {
		text = strings.TrimPrefix(text+": "+more, ": ")
	}
	if text == "" {
		return nil
	}
	return errors.New(text)
}

// bearerError is why a token was not good enough, "invalid_token (expired)" (RFC
// 6750, section 3); "": the registry does not say.
func bearerError(resp *http.Response, secrets []string) string {
	for _, c := range challenge.Parse(resp.Header.Values("WWW-Authenticate")) {
		if c.Scheme != bearerScheme || c.Params["error"] == "" {
			continue
		}
		text := ocierror.Excerpt([]byte(c.Params["error"]), maxReason, secrets)
		if why := ocierror.Excerpt([]byte(c.Params["error_description"]), maxReason, secrets); why != "" {
			text += fmt.Sprintf(" (%s)", why)
		}
		return text
	}
	return ""
}

// secretsOf are the secrets of a request, in the forms in which an answer may
// repeat them, the longest first, so that none is hidden by a part of it.
func secretsOf(req *http.Request) []string {
	var secrets []string
	add := func(all ...string) {
		for _, s := range all {
			if len(s) >= minSecret {
				secrets = append(secrets, s, url.QueryEscape(s))
			}
		}
	}
	if _, value, ok := strings.Cut(req.Header.Get("Authorization"), " "); ok {
		add(value)
		if plain, err := base64.StdEncoding.DecodeString(value); err == nil {
			user, password, _ := strings.Cut(string(plain), ":")
			add(string(plain), user, password)
		}
	}
	for name, values := range req.URL.Query() {
		if name != "scope" && name != "service" {
			add(values...)
		}
	}
	add(refreshTokenOf(req))
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) })
	return secrets
}

// refreshTokenOf is the identity token in the form of a token request; "": none.
func refreshTokenOf(req *http.Request) string {
	if req.GetBody == nil {
		return ""
	}
	body, err := req.GetBody()
	if err != nil {
		return ""
	}
	sent, _ := io.ReadAll(io.LimitReader(body, maxForm)) // from memory
	form, _ := url.ParseQuery(string(sent))
	return form.Get("refresh_token")
}
