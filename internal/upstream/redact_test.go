package upstream_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
)

// What net/http says may quote a secret, so it is shown only where it cannot. Which
// failures are worth another try is told from the same errors.
func TestWhatIsShownOfAConnectionsFailure(t *testing.T) {
	secret := "https://r.example/?sig=" + canary
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	for name, tc := range map[string]struct {
		err   error
		shown string
		tries int
	}{
		"text of anybody":      {errors.New("malformed header " + canary), "the connection failed (*errors.errorString)", 4},
		"a reset, wrapped":     {fmt.Errorf("%s: %w", canary, syscall.ECONNRESET), "connection reset by peer", 4},
		"an end, within a URL": {&url.Error{Op: "Get", URL: secret, Err: io.EOF}, "EOF", 4},
		"a refused connection": {&url.Error{Op: "Get", URL: secret, Err: refused}, "dial tcp: connection refused", 1},
		"no such name":         {&net.DNSError{Err: "no such host", Name: "r.example", IsNotFound: true}, "lookup r.example: no such host", 1},
		"an unknown authority": {x509.UnknownAuthorityError{}, "x509: certificate signed by unknown authority", 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sent := 0
				c := upstream.New(upstream.Config{Transport: roundTripper(func(*http.Request) (*http.Response, error) { sent++; return nil, tc.err })})
				target := &upstream.Target{Base: mustParse(t, "https://r.example"), Name: "a"}
				_, err := c.Manifest(t.Context(), target, "1", upstream.Pull)
				assert.EqualError(t, err, "upstream r.example: upstream registry unavailable: "+tc.shown)
				assert.Equal(t, tc.tries, sent)
			})
		})
	}
}

// The causes of a caller's contexts are the caller's own text.
func TestTheCauseOfACallersContextIsShown(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the caller has had enough")
	c := upstream.New(upstream.Config{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		cancel(why)
		return nil, context.Cause(r.Context())
	})})
	_, err := c.Manifest(ctx, &upstream.Target{Base: mustParse(t, "https://r.example"), Name: "a"}, "1", upstream.Pull)
	assert.ErrorIs(t, err, why)
	assert.ErrorContains(t, err, why.Error())
}
