package pullthrough

import "errors"

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
	if r, ok := errors.AsType[*apiError](err); ok {
		return r.during(op), "", r.message
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
	return row.exceptionOf(op), "", message
}

// sayBadSecret is our own sentence (upstream-exception-texts). The other kinds of
// trouble with an upstream are told in the words that registry clients get.
const sayBadSecret = "The credentials of the pull through cache rule could not be used. Verify that the secret exists, " +
	"can be read and decrypted, and consists of username and accessToken."

const serverException = "ServerException"

// Each operation that reaches upstream registries has its own exceptions for
// trouble with one, and for what is not there.
const (
	upstreamTrouble = "upstream trouble"
	notThere        = "not there"
)

var upstreamOperations = map[string]struct{ trouble, notThere string }{
	"BatchGetImage":          {"UnableToGetUpstreamImageException", "ImageNotFoundException"},
	"GetDownloadUrlForLayer": {"UnableToGetUpstreamLayerException", "LayersNotFoundException"},
	"ListImageReferrers":     {"UnableToListUpstreamImageReferrersException", "UnableToListUpstreamImageReferrersException"},
	"":                       {serverException, "ImageNotFoundException"}, // the others
}

func (row wireRow) exceptionOf(op string) string {
	own, ok := upstreamOperations[op]
	if !ok {
		own = upstreamOperations[""]
	}
	switch row.exception {
	case upstreamTrouble:
		return own.trouble
	case notThere:
		return own.notThere
	}
	return row.exception
}

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

// during is the exception that op declares: UpdatePullThroughCacheRule has none
// for upstreams that do not take the credential.
func (e *apiError) during(op string) string {
	if e.exception == unsupportedUpstream && op == "UpdatePullThroughCacheRule" {
		return invalidParameter
	}
	return e.exception
}
