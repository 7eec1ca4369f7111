package upstream

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// The kinds of failure, for errors.Is.
var (
	// ErrNotFound: the registry does not have it.
	ErrNotFound = errors.New("not found upstream")
	// ErrDenied: the registry or its token server refused us, or the token server
	// may not have the credential.
	ErrDenied = errors.New("access denied")
	// ErrRateLimited: the registry answered 429; see [Error.RetryAfter].
	ErrRateLimited = errors.New("rate limited by the upstream registry")
	// ErrUnavailable: the registry did not answer, or not as a registry.
	ErrUnavailable = errors.New("upstream registry unavailable")
	// ErrDigest: what the registry sent does not have the digest asked for.
	ErrDigest = errors.New("content does not match its digest")
	// ErrTooLarge: a manifest over 4 MiB, or a list of referrers without end.
	ErrTooLarge = errors.New("content too large")
)

// ErrNoRegistry is a cause of an [Error]: what answers seems to be no registry.
var ErrNoRegistry = errors.New("the answer is a web server's, and no registry's")

// Error says what failed, where, and of which kind. It is never changed once
// returned, and it carries no secret: tokens, passwords and the queries of
// presigned URLs are left out.
type Error struct {
	Kind       error         // one of the sentinels of this package
	Host       string        // of the registry, token server or redirect target that failed; "": none was asked
	Status     int           // the HTTP status of its answer; 0: there was none, or it is not to blame
	RetryAfter time.Duration // its Retry-After; 0: none
	Err        error         // the cause; nil: none
}

// Error names the host, the kind and the cause, for logs.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Host != "" {
		fmt.Fprintf(&b, "upstream %s: ", e.Host)
	}
	fmt.Fprint(&b, e.Kind)
	if e.Status != 0 {
		fmt.Fprintf(&b, " (status %d)", e.Status)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	return b.String()
}

// Unwrap makes errors.Is find the kind and the cause.
func (e *Error) Unwrap() []error { return []error{e.Kind, e.Err} }

// RedirectError is the cause of an [Error] for a redirect that was not followed,
// because it was one too many or led where the request must not go.
type RedirectError struct {
	Reason string // names at most the origin of the target, never its path or query
}

// Error returns the reason.
func (e *RedirectError) Error() string { return e.Reason }
