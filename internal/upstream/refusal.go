package upstream

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/challenge"
	"github.com/ecr-pullthrough/pullthrough/internal/ocierror"
)

const maxRetryAfter = 24 * time.Hour

// statusError says what a refusal means. The status decides. Of the body a well-formed
// error code is kept, for logs and never for clients.
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
		if e.Err == nil && isText(resp) {
			e.Err = ErrNoRegistry
		}
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

// reason is what a server says of its refusal, in words that are not its own: an error
// code of the OCI distribution specification, and why a token was not good enough, if the
// code is one of RFC 6750; nil: nothing. Its texts are not kept, since they may hold
// anything, a secret for example.
func reason(resp *http.Response) error {
	defer hurry(resp)()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil {
		return redact(resp.Request.Context(), err)
	}
	var codes []string
	if code := ocierror.Code(body); code != "" {
		codes = append(codes, code)
	}
	for _, c := range challenge.Parse(resp.Header.Values("WWW-Authenticate")) {
		if code := c.Params["error"]; c.Scheme == bearerScheme && slices.Contains(bearerErrors, code) {
			codes = append(codes, code)
			break
		}
	}
	if codes == nil {
		return nil
	}
	return errors.New(strings.Join(codes, ": "))
}

// bearerErrors are the codes of RFC 6750, section 3.1.
var bearerErrors = []string{"invalid_request", "invalid_token", "insufficient_scope"}
