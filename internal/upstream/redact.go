package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"syscall"

	"github.com/ecr-pullthrough/pullthrough/internal/egress"
)

// An error of net/http may quote what a server sent, and it quotes the URL that was
// asked for, whose query may be a secret. So only those errors are shown that are
// known to quote neither. An error that was made on this side of the connection is
// shown, too: by this package, or by its caller. The caller's errors come as the cause
// of a context or as an interruption, so no list of them is needed.

// interruption is why an answer was ended from this side while it was under way,
// although another answer may do better. The cause is shown as it is.
type interruption struct{ cause error }

// Error is the cause's text.
func (e *interruption) Error() string { return e.cause.Error() }

// Unwrap returns the cause.
func (e *interruption) Unwrap() error { return e.cause }

// brokenError is a connection's failure that another connection may not have.
type brokenError struct{ error }

// Unwrap returns the failure.
func (e *brokenError) Unwrap() error { return e.error }

// markBroken is the failure of a round trip, marked as one that may pass unless it
// will not. net/http keeps the types of its HTTP/2 failures to itself, so the
// exceptions are what can be named.
func markBroken(ctx context.Context, err error) error {
	plain := redact(ctx, err)
	_, refused := errors.AsType[*egress.RefusedError](err)
	dns, resolved := errors.AsType[*net.DNSError](err)
	if refused || isTLSError(err) || resolved && dns.IsNotFound || errors.Is(err, syscall.ECONNREFUSED) {
		return plain
	}
	return &brokenError{plain}
}

// isTLSError reports whether the two sides could not agree on TLS.
func isTLSError(err error) bool {
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	_, authority := errors.AsType[x509.UnknownAuthorityError](err)
	_, name := errors.AsType[x509.HostnameError](err)
	_, record := errors.AsType[tls.RecordHeaderError](err)
	op, ok := errors.AsType[*net.OpError](err)
	alert := ok && op.Op == "remote error" // crypto/tls says so of an alert
	return certificate || authority || name || record || alert
}

// redact is err if nothing of a URL or of a server's answer is in it, else what can
// be said without. ctx is the context of the request that failed.
func redact(ctx context.Context, err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	if err == context.Cause(ctx) || isPlain(err) {
		return err
	}
	if cause := plainCause(err); cause != nil {
		return cause
	}
	return fmt.Errorf("the connection failed (%T)", err)
}

// plainCause is the part of err that may be shown; nil: none.
func plainCause(err error) error {
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return e
	}
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, e) {
			return e
		}
	}
	return nil
}

// isPlain reports whether err may be shown as it is. Only err itself counts: what
// is wrapped around a plain error may quote anything.
func isPlain(err error) bool {
	switch err.(type) {
	case *Error, *RedirectError, *interruption, *egress.RefusedError, *net.OpError, *net.DNSError, syscall.Errno:
		return true
	}
	switch err {
	case errDrained, context.Canceled, context.DeadlineExceeded, io.EOF, io.ErrUnexpectedEOF:
		return true
	}
	timeout, ok := errors.AsType[net.Error](err)
	return isTLSError(err) || ok && timeout.Timeout()
}
