package pullthrough

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

// brokenError is a connection's failure that another connection may not have.
type brokenError struct{ error }

func (e *brokenError) Unwrap() error { return e.error }

// broken is the failure of a round trip, marked as one that may pass unless it
// will not: net/http keeps the types of its HTTP/2 failures to itself, so the
// exceptions are what can be named.
func broken(err error) error {
	plain := redacted(err)
	_, refused := errors.AsType[*egress.RefusedError](err)
	dns, resolved := errors.AsType[*net.DNSError](err)
	if refused || ofTLS(err) || resolved && dns.IsNotFound || errors.Is(err, syscall.ECONNREFUSED) {
		return plain
	}
	return &brokenError{plain}
}

// ofTLS reports whether the two sides could not agree on TLS.
func ofTLS(err error) bool {
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	_, authority := errors.AsType[x509.UnknownAuthorityError](err)
	_, name := errors.AsType[x509.HostnameError](err)
	_, record := errors.AsType[tls.RecordHeaderError](err)
	op, ok := errors.AsType[*net.OpError](err)
	alert := ok && op.Op == "remote error" // crypto/tls says so of an alert
	return certificate || authority || name || record || alert
}

// redacted is err if nothing of a URL or of upstream's answer is in it, else what
// can be said without: net/http quotes headers that it cannot read, and the query
// of a presigned URL is a secret.
func redacted(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	if speaksPlainly(err) {
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

func speaksPlainly(err error) bool {
	switch err.(type) {
	case *Error, *errRedirect, *egress.RefusedError, *net.OpError, *net.DNSError, syscall.Errno:
		return true
	}
	for _, own := range []error{errNoAnswer, errStalled, errTooSlow, errDeserted, errDrained, context.Canceled, context.DeadlineExceeded, io.EOF, io.ErrUnexpectedEOF} {
		if err == own {
			return true
		}
	}
	timeout, ok := errors.AsType[net.Error](err)
	return ofTLS(err) || ok && timeout.Timeout()
}
