package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// The kinds of failure, for errors.Is. An error from a [Proxy] is an [*Error] of
// one of these kinds, an [*Error] around the failure of a Store or callback of
// the host, or the error of the caller's own context.
var (
	// ErrNoRule: nothing is stored and no rule covers the repository. It is no
	// failure: a host goes on with its own 404.
	ErrNoRule = errors.New("no pull through cache rule covers the repository")
	// ErrNotFound: the upstream registry does not have it.
	ErrNotFound = errors.New("not found upstream")
	// ErrDenied: the upstream registry refused us, or [Proxy.Authorize] the caller.
	ErrDenied = errors.New("access denied")
	// ErrUnauthorized: the caller is not known. Hosts return it from [Proxy.Identify].
	ErrUnauthorized = errors.New("not authorized")
	// ErrRateLimited: the upstream registry answered 429; see [Error.RetryAfter].
	ErrRateLimited = errors.New("rate limited by the upstream registry")
	// ErrUnavailable: the upstream registry did not answer, or not as a registry;
	// or there is no room for the download.
	ErrUnavailable = errors.New("upstream registry unavailable")
	// ErrDigest: what the upstream registry sent does not have the digest asked for.
	ErrDigest = errors.New("content does not match its digest")
	// ErrTooLarge: a manifest over 4 MiB, or a blob over the limit.
	ErrTooLarge = errors.New("content too large")
	// ErrInvalid: a name, tag, digest or rule outside its grammar.
	ErrInvalid = errors.New("invalid")
	// ErrImmutable: a [Store] returns it from PutManifest for a tag that must
	// not move; what the Store has is served.
	ErrImmutable = errors.New("tag is immutable")
	// ErrClosed: after [Proxy.Shutdown], for what is not stored.
	ErrClosed = errors.New("proxy is shut down")
)

// Error says what failed, where, and of which kind. It is never changed once
// returned, and it carries no secret: tokens, passwords and the queries of
// presigned URLs are left out.
type Error struct {
	Kind       error         // one of the sentinels above
	Repo       Repo          // zero where the failure is no repository's
	Ref        string        // tag or digest asked for; may be ""
	Host       string        // upstream host; "": no upstream was asked
	Status     int           // upstream's HTTP status; 0: none
	RetryAfter time.Duration // upstream's Retry-After; 0: none
	Code       string        // OCI error code; "": the usual one for Kind
	Message    string        // what a registry client reads; "": the usual sentence for Kind
	Err        error         // the cause; nil: none
}

// Error names the object, the upstream and the cause, for logs. What clients
// read is what [OCI] returns.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("pullthrough: ")
	if e.Repo.Name != "" {
		fmt.Fprintf(&b, "%s: ", objectName(e.Repo.Name, e.Ref))
	}
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

func objectName(name, ref string) string {
	switch {
	case ref == "":
		return name
	case ocipath.IsDigest(ref):
		return name + "@" + ref
	}
	return name + ":" + ref
}

// denial is ECR's sentence for every refusal by an upstream registry.
const denial = "The authentication to the upstream registry failed. Verify that the credentials provided " +
	"in the pull through cache rule are correct, and try again."

// wire is the one table from kinds of failure to what a registry client gets:
// status and code of the OCI distribution specification, ECR's texts where
// they are known.
var wire = []struct {
	kind    error
	status  int
	code    string
	message string
}{
	{errBadRule, http.StatusInternalServerError, "UNKNOWN", "The pull through cache rule is not valid."},
	{errBusy, http.StatusServiceUnavailable, "UNAVAILABLE", "The registry has no room for this download now. Try again later."},
	{ErrNoRule, http.StatusNotFound, "NAME_UNKNOWN", ""}, // message: nameUnknown
	{ErrNotFound, http.StatusNotFound, "MANIFEST_UNKNOWN", "Requested image not found"},
	{ErrDenied, http.StatusForbidden, "DENIED", denial},
	{ErrUnauthorized, http.StatusUnauthorized, "UNAUTHORIZED", "Not Authorized"},
	{ErrRateLimited, http.StatusTooManyRequests, "TOOMANYREQUESTS", "The upstream registry limits the rate of requests. Try again later."},
	{ErrInvalid, http.StatusBadRequest, "NAME_INVALID", "The request is not valid."},
	{ErrDigest, http.StatusBadGateway, "UNKNOWN", "The upstream registry sent content that does not match its digest."},
	{ErrTooLarge, http.StatusBadGateway, "UNKNOWN", "The upstream registry sent content that is too large."},
	{ErrUnavailable, http.StatusBadGateway, "UNKNOWN", "The upstream registry could not be reached or gave no usable answer."},
	{ErrClosed, http.StatusServiceUnavailable, "UNAVAILABLE", "The registry is shutting down."},
	{context.DeadlineExceeded, http.StatusGatewayTimeout, "UNKNOWN", "The request took too long."},
}

// OCI returns what a registry client gets for err: HTTP status, error code of
// the OCI distribution specification ("Error Codes"), and message, with
// Amazon ECR's texts. A nil or unknown error is 500 UNKNOWN without details.
func OCI(err error) (status int, code, message string) {
	status, code, message = http.StatusInternalServerError, "UNKNOWN", "Internal error."
	e, ok := errors.AsType[*Error](err)
	kind := err
	if ok {
		kind = e.Kind // the cause is of another kind, perhaps: a missing secret is no missing image
	} else {
		e = &Error{}
	}
	for _, row := range wire {
		if errors.Is(kind, row.kind) {
			status, code, message = row.status, row.code, row.message
			break
		}
	}
	if e.Code != "" {
		code = e.Code
	}
	if e.Message != "" {
		message = e.Message
	}
	if message == "" {
		message = fmt.Sprintf("The repository with name '%s' does not exist in the registry with id '%s'", e.Repo.Name, e.Repo.Account)
	}
	return status, code, message
}

// invalid turns a grammar error into the typed error for a client.
func invalid(repo Repo, ref string, err error) *Error {
	e := &Error{Kind: ErrInvalid, Repo: repo, Ref: ref, Err: err}
	if bad, ok := errors.AsType[*ocipath.Error](err); ok {
		e.Message = bad.Error()
		switch bad.Part {
		case ocipath.Name:
			e.Code = "NAME_INVALID"
		case ocipath.Tag:
			e.Code = "TAG_INVALID"
		case ocipath.Digest:
			e.Code = "DIGEST_INVALID"
		}
	}
	return e
}

// at gives err the repository and reference that it is about. When the caller's
// own context has ended, its error stays as it is.
func at(ctx context.Context, err error, repo Repo, ref string) error {
	if _, typed := errors.AsType[*Error](err); err != nil && !typed && ctx.Err() != nil {
		return err
	}
	return locate(err, repo, ref)
}

// locate makes err an Error about the repository and reference.
func locate(err error, repo Repo, ref string) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		located := *e
		located.Repo, located.Ref = repo, ref
		return &located
	}
	kind := errInternal
	switch {
	case errors.Is(err, flight.ErrClosed):
		return &Error{Kind: ErrClosed, Repo: repo, Ref: ref}
	case errors.Is(err, ErrUnauthorized):
		kind = ErrUnauthorized
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		kind = ErrUnavailable // ours, not the caller's
	}
	return &Error{Kind: kind, Repo: repo, Ref: ref, Err: err}
}

// errInternal is the kind of what should not happen: a Store or callback that
// failed or panicked.
var errInternal = errors.New("internal error")

// errBadRule is an ErrInvalid that is the host's doing, not the client's.
var errBadRule = fmt.Errorf("pull through cache rule: %w", ErrInvalid)
