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

// Error is code and message.
func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Is reports whether target is the same exception, whatever its message:
// errors.Is(err, &ecrapi.Error{Code: "TemplateNotFoundException"}).
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// status is the HTTP status: there is no other for what clients do wrong.
func (e *Error) status() int {
	if e.Code == serverException {
		return http.StatusInternalServerError
	}
	return http.StatusBadRequest
}

// The exceptions of more than one place. What breaks the model is an
// invalidParameter, not a ValidationException (invalid-vs-validation).
const (
	serverException  = "ServerException"
	invalidParameter = "InvalidParameterException"
	limitExceeded    = "LimitExceededException"
	accessDenied     = "AccessDeniedException"
	serialization    = "SerializationException"
	unknownOperation = "UnknownOperationException"
)

// fails says that a request breaks the model if one of the checks has failed: the
// first counts.
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

// asError is what the caller of op reads for err.
func asError(err error, op string) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	code, failure, message := pullthrough.AWS(err, op)
	if failure != "" { // of one image, but the whole call has failed
		code = serverException
	}
	return &Error{code, message}
}
