package ecrapi

import (
	"errors"
	"net/http"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/shape"
)

// Error is an exception of ECR's API. It is never changed once returned.
type Error struct {
	Code    string // the exception, "PullThroughCacheRuleNotFoundException"
	Message string // for the caller
}

// Error returns code and message.
func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Is reports whether target is the same exception, whatever its message:
// errors.Is(err, &ecrapi.Error{Code: "TemplateNotFoundException"}).
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// status returns the HTTP status. There are two: one for mistakes of clients, and one for
// failures of the server.
func (e *Error) status() int {
	if e.Code == serverException {
		return http.StatusInternalServerError
	}
	return http.StatusBadRequest
}

// The exceptions that more than one place uses. A request that breaks the API model gets
// invalidParameter, not a ValidationException (invalid-vs-validation).
const (
	serverException  = "ServerException"
	invalidParameter = "InvalidParameterException"
	limitExceeded    = "LimitExceededException"
	accessDenied     = "AccessDeniedException"
	serialization    = "SerializationException"
	unknownOperation = "UnknownOperationException"
)

// fails returns the first error of the checks. It turns a breach of the API model into
// the exception for it.
func fails(checks ...error) error {
	for _, err := range checks {
		if broken, ok := errors.AsType[*shape.Error](err); ok {
			return &Error{invalidParameter, broken.Error()}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// asError returns what the caller of op reads for err.
func asError(err error, op string) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	code, failure, message := pullthrough.AWS(err, op)
	if failure != "" { // such a code is for one image of several, and here the whole call has failed
		code = serverException
	}
	return &Error{code, message}
}
