package pullthrough

import (
	"encoding/base64"
	"encoding/json"
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
)

const (
	maxRetryAfter = 24 * time.Hour
	maxExcerpt    = 256 // bytes of an error body that is no OCI error
	maxReason     = 64  // bytes of a challenge's error_description
	// Words of people are shorter. What is longer may be a token.
	maxWord = 40
	// What is shorter would strike out half of every text.
	minSecret = 4
)

// statusError says what upstream's refusal means. The status decides; of the
// body a well-formed error code is kept, or the beginning of what else it is: it
// is upstream's text, for logs and never for clients.
func statusError(rt *route, resp *http.Response) error {
	e := rt.error(ErrUnavailable, reason(resp))
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

// retryAfter reads the header's seconds or date (RFC 9110, section 10.2.3); 0 for
// none and for nonsense.
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

// reason is what upstream says of its refusal; nil: nothing.
func reason(resp *http.Response) error {
	defer hurry(resp)()
	secrets := secretsOf(resp.Request)
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil {
		return redacted(err)
	}
	said := errorCode(body)
	if said == "" {
		said = excerpt(body, maxExcerpt, secrets)
	}
	if more := bearerError(resp, secrets); more != "" {
		said = strings.TrimPrefix(said+": "+more, ": ")
	}
	if said == "" {
		return nil
	}
	return errors.New(said)
}

// errorCode is the code of the first error of an OCI error body.
func errorCode(body []byte) string {
	var answer struct {
		Errors []struct {
			Code string `json:"code"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &answer) != nil || len(answer.Errors) == 0 {
		return ""
	}
	code := answer.Errors[0].Code
	if len(code) > 64 || strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "" {
		return ""
	}
	return code
}

// bearerError is why a token was not good enough (RFC 6750, section 3).
func bearerError(resp *http.Response, secrets []string) string {
	for _, c := range challenge.Parse(resp.Header.Values("WWW-Authenticate")) {
		if c.Scheme != bearerScheme || c.Params["error"] == "" {
			continue
		}
		said := excerpt([]byte(c.Params["error"]), maxReason, secrets)
		if why := excerpt([]byte(c.Params["error_description"]), maxReason, secrets); why != "" {
			said += fmt.Sprintf(" (%s)", why)
		}
		return said
	}
	return ""
}

// excerpt is what upstream's text begins with, in one line of printable ASCII,
// without what was secret in the request that it answers, without the queries
// of URLs, and without words that could be tokens.
func excerpt(text []byte, limit int, secrets []string) string {
	plain := string(text)
	for _, secret := range secrets {
		plain = strings.ReplaceAll(plain, secret, " ... ")
	}
	plain = plain[:min(len(plain), maxExcerpt)]
	var b strings.Builder
	for word := range strings.FieldsFuncSeq(plain, func(r rune) bool { return r <= ' ' || r > '~' }) {
		word, _, _ = strings.Cut(word, "?")
		if len(word) > maxWord {
			word = "..."
		}
		if b.Len()+1+len(word) > limit {
			break
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(word)
	}
	return b.String()
}

// secretsOf are the secrets of a request, in the forms in which an answer may
// repeat them.
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
	if req.GetBody != nil {
		if body, err := req.GetBody(); err == nil {
			sent, _ := io.ReadAll(io.LimitReader(body, maxTokenBody)) // from memory
			form, _ := url.ParseQuery(string(sent))
			add(form.Get("refresh_token"))
		}
	}
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) }) // none hides in another
	return secrets
}
