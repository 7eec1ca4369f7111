package fill

import (
	"errors"
	"fmt"
	"time"
)

// The kinds of an [Error].
var (
	// ErrBusy: there is no room, in SpoolBytes or in the job's lane.
	ErrBusy = errors.New("no room for the blob")
	// ErrDigest: the source sent something else than the blob of that digest.
	ErrDigest = errors.New("content does not match its digest")
	// ErrTooLarge: the blob is larger than the job allows.
	ErrTooLarge = errors.New("content too large")
	// ErrBroken: the body ended too early, or the fill itself ended it.
	ErrBroken = errors.New("body is not complete")
	// ErrSpool: no disk takes the content. The source has no part in that.
	ErrSpool = errors.New("content cannot be kept")
)

// Error is a failure of the fill itself. Failures of a job's own funcs and of its
// source stay what they are.
type Error struct {
	Kind       error         // one of the kinds above
	RetryAfter time.Duration // when another try may find room; 0: nobody knows
	Err        error         // the cause
}

// Error names the kind and the cause.
func (e *Error) Error() string { return fmt.Sprintf("%v: %v", e.Kind, e.Err) }

// Unwrap makes errors.Is find the kind and the cause.
func (e *Error) Unwrap() []error { return []error{e.Kind, e.Err} }

func newError(kind error, format string, args ...any) *Error {
	return &Error{Kind: kind, Err: fmt.Errorf(format, args...)}
}
