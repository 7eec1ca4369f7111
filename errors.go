package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/ecr"
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
		fmt.Fprintf(&b, "%s: ", ocipath.Object(e.Repo.Name, e.Ref))
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

// denial is ECR's sentence for every refusal by an upstream registry.
const denial = "The authentication to the upstream registry failed. Verify that the credentials provided " +
	"in the pull through cache rule are correct, and try again."

const (
	codeNameUnknown     = "NAME_UNKNOWN"
	codeManifestUnknown = "MANIFEST_UNKNOWN"
	codeBlobUnknown     = "BLOB_UNKNOWN"
	sayNotFound         = "Requested image not found"
)

// wireRow is what clients get for one kind of failure. A registry client: status
// and code of the OCI distribution specification. A caller of Amazon ECR's JSON
// API: from BatchGetImage the failureCode of the one image, if the kind has one,
// else an exception. Texts are ECR's where they are known.
type wireRow struct {
	kind      error
	status    int
	code      string
	message   string // "": the repository is not known
	failure   string
	exception string // or one of the words that ecr.Name explains
}

// wire is the one table of them.
var wire = []wireRow{
	{errBadRule, http.StatusInternalServerError, "UNKNOWN", "The pull through cache rule is not valid.", "", ecr.Server},
	{errBusy, http.StatusServiceUnavailable, "UNAVAILABLE", "The registry has no room for this download now. Try again later.", "", ecr.Server},
	{errSecret, http.StatusForbidden, "DENIED", denial, "", ecr.UpstreamTrouble},
	{ErrNoRule, http.StatusNotFound, codeNameUnknown, "", "", "RepositoryNotFoundException"},
	{ErrNotFound, http.StatusNotFound, codeManifestUnknown, sayNotFound, "ImageNotFound", ecr.NotThere},
	{ErrDenied, http.StatusForbidden, "DENIED", denial, "UpstreamAccessDenied", ecr.UpstreamTrouble},
	{ErrUnauthorized, http.StatusUnauthorized, "UNAUTHORIZED", "Not Authorized", "", "UnrecognizedClientException"},
	{ErrRateLimited, http.StatusTooManyRequests, "TOOMANYREQUESTS", "The upstream registry limits the rate of requests. Try again later.", "UpstreamTooManyRequests", ecr.UpstreamTrouble},
	{ErrInvalid, http.StatusBadRequest, "NAME_INVALID", "The request is not valid.", "", ecr.InvalidParameter},
	{ErrDigest, http.StatusBadGateway, "UNKNOWN", "The upstream registry sent content that does not match its digest.", "UpstreamUnavailable", ecr.UpstreamTrouble},
	{ErrTooLarge, http.StatusBadGateway, "UNKNOWN", "The upstream registry sent content that is too large.", "UpstreamUnavailable", ecr.UpstreamTrouble},
	{ErrUnavailable, http.StatusBadGateway, "UNKNOWN", "The upstream registry could not be reached or gave no usable answer.", "UpstreamUnavailable", ecr.UpstreamTrouble},
	{ErrClosed, http.StatusServiceUnavailable, "UNAVAILABLE", "The registry is shutting down.", "", ecr.Server},
	{context.DeadlineExceeded, http.StatusGatewayTimeout, "UNKNOWN", "The request took too long.", "UpstreamUnavailable", ecr.UpstreamTrouble},
}

// errSecret is an ErrDenied that comes from the rule's secret: the upstream
// registry was not asked.
var errSecret = errors.New("credentials of the rule")

// errNotListed says that the Store does not list tags, or repositories.
var errNotListed = errors.New("the Store does not list this")

// errBusy is an ErrUnavailable that is our own doing.
var errBusy = fmt.Errorf("no room for the download: %w", ErrUnavailable)

// wireOf finds the row of err. Beside it stands the *Error that err is, or an
// empty one: what that says counts more than the row.
func wireOf(err error) (wireRow, *Error) {
	e, ok := errors.AsType[*Error](err)
	kind := err
	switch {
	case !ok:
		e = &Error{}
	case errors.Is(e.Kind, ErrDenied) && errors.Is(e.Err, errSecret):
		kind = errSecret
	case e.Code == codeNameUnknown:
		kind = ErrNoRule // to a client it is the same: there is no such repository
	default:
		kind = e.Kind // the cause is of another kind, perhaps: a missing secret is no missing image
	}
	for _, row := range wire {
		if errors.Is(kind, row.kind) {
			return row, e
		}
	}
	return wireRow{status: http.StatusInternalServerError, code: "UNKNOWN", message: "Internal error.", exception: ecr.Server}, e
}

// OCI returns what a registry client gets for err: HTTP status, error code of
// the OCI distribution specification ("Error Codes"), and message, with
// Amazon ECR's texts. A nil or unknown error is 500 UNKNOWN without details.
// [AWS] is the same for ECR's JSON API.
func OCI(err error) (status int, code, message string) {
	row, e := wireOf(err)
	if e.Code != "" {
		row.code = e.Code
	}
	return row.status, row.code, row.says(e)
}

// AWS returns what a caller of Amazon ECR's JSON API gets for err from the
// operation op, "BatchGetImage" for example: the exception of the whole call, or a
// failureCode for the one image that err is about. One of the two is empty, the
// message never is. err comes from a [Proxy] or from [Rule.Validate]; a nil or
// unknown error is ServerException without details, as is one that op cannot say.
// See [OCI] for registry clients, and the errors of [BatchGetImage].
//
// An operation that lists referrers answers an [ErrNotFound] with an empty list,
// and does not ask.
//
// [BatchGetImage]: https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_BatchGetImage.html
func AWS(err error, op string) (exception, failureCode, message string) {
	if r, ok := errors.AsType[*ecr.Exception](err); ok {
		return r.During(op), "", r.Message
	}
	row, e := wireOf(err)
	message = row.says(e)
	switch {
	case row.kind == errSecret:
		message = sayBadSecret
	case row.kind == ErrDenied && e.Message != "" && e.Host == "":
		return "AccessDeniedException", "", message // Proxy.Authorize refused the caller
	}
	if op == "BatchGetImage" {
		if failureCode = row.failureOf(e); failureCode != "" {
			return "", failureCode, message
		}
	}
	return ecr.Name(row.exception, op), "", message
}

// sayBadSecret is our own sentence (upstream-exception-texts). The other kinds of
// trouble with an upstream are told in the words that registry clients get.
const sayBadSecret = "The credentials of the pull through cache rule could not be used. Verify that the secret exists, " +
	"can be read and decrypted, and consists of username and accessToken."

// failureOf is BatchGetImage's code for one image; "": the whole call fails.
func (row wireRow) failureOf(e *Error) string {
	if row.kind == ErrInvalid {
		switch e.Code {
		case "TAG_INVALID":
			return "InvalidImageTag"
		case "DIGEST_INVALID":
			return "InvalidImageDigest"
		}
	}
	return row.failure
}

// says is the message for a client.
func (row wireRow) says(e *Error) string {
	switch {
	case e.Message != "":
		return e.Message
	case row.message == "":
		in := "this registry" // of a host that has one account, and does not say which
		if e.Repo.Account != "" {
			in = "the registry with id '" + e.Repo.Account + "'"
		}
		return "The repository with name '" + e.Repo.Name + "' does not exist in " + in
	}
	return row.message
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

// outcome is what was found out about a request on its way to an error. The words of
// the error depend on it.
type outcome struct {
	blob       bool     // a blob was asked for, no manifest
	hideDenied bool     // Policy.HideDenied of the rule by which upstream was asked
	repository presence // as far as the Store tells
	entered    bool     // nothing is stored, and this caller may ask upstream: no error is a refusal of ours
	admitted   bool     // of a list of referrers: a rule covers the repository, and this caller may pull from it
	told       bool     // the log says already why the request fails
	advice     string   // for a client whose image upstream does not have, or refuses
	uncovered  bool     // no rule covers the repository: so the rules say, and not the error of a function of the host's
}

// presence says whether a repository is there.
type presence int

const (
	unknown presence = iota
	present
	absent
)

// words is the one place where an error that leaves the proxy gets its kind, its
// object, and what a client may know of it. ctx is the caller's: when it has ended,
// and err is nothing but that, err stays as it is.
func (o outcome) words(ctx context.Context, repo Repo, ref string, err error) error {
	if err == nil {
		return nil
	}
	if _, typed := errors.AsType[*Error](err); !typed && ctx.Err() != nil {
		return err
	}
	e := errorOf(err)
	e.Repo, e.Ref = repo, ref
	o.mask(e)
	o.name(e)
	return e
}

// mask hides a refusal: a name that upstream keeps to itself reads like one that does
// not exist. errors.Is still finds the refusal.
func (o outcome) mask(e *Error) {
	if o.hideDenied && e.Kind == ErrDenied {
		original := *e
		e.Kind, e.Err = ErrNotFound, &original
	}
}

// name says what of the registry is missing: the repository, the image or the blob.
func (o outcome) name(e *Error) {
	switch {
	case e.Kind == ErrNotFound && o.repository == absent:
		e.Code, e.Message = codeNameUnknown, ""
	case e.Kind == ErrNoRule && o.repository == present:
		e.Code, e.Message = codeManifestUnknown, sayNotFound
	}
	if o.blob && (e.Kind == ErrNotFound && e.Code == "" || e.Code == codeManifestUnknown) {
		e.Code, e.Message = codeBlobUnknown, "The blob '"+e.Ref+"' was not found in the repository with name '"+e.Repo.Name+"'"
	}
	if o.advice != "" && e.Status != 0 && (e.Kind == ErrNotFound || e.Kind == ErrDenied) {
		row, _ := wireOf(e)
		e.Message = strings.TrimSuffix(row.says(e), ".") + ". " + o.advice
	}
}

// errorOf returns a copy of the Error that err is or has in it, or a new one around
// any other error.
func errorOf(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		own := *e
		return &own
	}
	kind := errInternal
	switch {
	case errors.Is(err, flight.ErrClosed):
		return &Error{Kind: ErrClosed}
	case errors.Is(err, ErrUnauthorized):
		kind = ErrUnauthorized
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		kind = ErrUnavailable // the end of our own context, not of the caller's
	}
	return &Error{Kind: kind, Err: err}
}

// errInternal is the kind of what should not happen: a Store or callback that
// failed or panicked.
var errInternal = errors.New("internal error")

// errBadRule is an ErrInvalid that is the host's doing, not the client's.
var errBadRule = fmt.Errorf("pull through cache rule: %w", ErrInvalid)
