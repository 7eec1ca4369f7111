package upstream_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/egress"
	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// A registry names hosts. It must not lead us to one that it cannot reach itself.
func TestWhereARegistryMayNotLeadUs(t *testing.T) {
	for _, to := range []string{"http://127.0.0.1/x", "http://localhost/x", "http://169.254.169.254/x", "http://0x7f.1/x", "http://10.0.0.1/x"} {
		sent := 0
		c := upstream.New(upstream.Config{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			sent++
			return answer(r, 307, http.Header{"Location": {to}}), nil
		})})
		target := &upstream.Target{Base: mustParse(t, "http://r.example"), Name: "a", Options: upstream.Options{BlockPrivate: true}}
		_, err := c.Manifest(t.Context(), target, "1", upstream.Pull)
		_, refused := errors.AsType[*egress.RefusedError](err)
		assert.True(t, refused, "%s: %v", to, err)
		assert.ErrorIs(t, err, upstream.ErrUnavailable)
		assert.Equal(t, 1, sent)
	}
}

// A host without a scheme means https, which is not what registries on localhost speak.
func TestARegistryThatSpeaksHTTPSaysWhatToWrite(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	target := &upstream.Target{Base: mustParse(t, "https://"+up.Host()), Name: "a"}
	_, err := upstream.New(upstream.Config{}).Manifest(t.Context(), target, "1", upstream.Pull)
	assert.ErrorIs(t, err, upstream.ErrUnavailable)
	assert.ErrorContains(t, err, "write http://"+up.Host())
	assert.Empty(t, up.Log(), "http was not tried")
}

// oddBody is the body of a caller's own RoundTripper.
type oddBody struct {
	io.Reader
	closes func() error
}

func (b *oddBody) Close() error { return b.closes() }

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// A RoundTripper of the caller's may panic where it likes. That is an error of the
// request, whatever was asked for.
func TestATransportThatPanicsIsAnError(t *testing.T) {
	panics := readerFunc(func([]byte) (int, error) { panic("boom") })
	closes := func() error { return nil }
	answering := func(status int, body io.ReadCloser) func(*http.Request) (*http.Response, error) {
		return func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: status, Header: http.Header{"Www-Authenticate": {`Basic realm="r"`}}, Body: body, ContentLength: 1 << 20}, nil
		}
	}
	for name, trip := range map[string]func(*http.Request) (*http.Response, error){
		"in the request":                 func(*http.Request) (*http.Response, error) { panic("boom") },
		"in the body":                    answering(200, &oddBody{panics, closes}),
		"in the middle of the body":      answering(200, &oddBody{io.MultiReader(bytes.NewReader(make([]byte, 99)), panics), closes}),
		"in the end of the body":         answering(200, &oddBody{bytes.NewReader(nil), func() error { panic("boom") }}),
		"in the body of an error":        answering(503, &oddBody{panics, closes}),
		"in the body of a redirect":      answering(307, &oddBody{panics, func() error { panic("boom") }}),
		"in the body of a challenge":     answering(401, &oddBody{panics, func() error { panic("boom") }}),
		"neither an answer nor an error": func(*http.Request) (*http.Response, error) { return nil, nil },
		"an answer without a body":       answering(200, nil),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := upstream.New(upstream.Config{Transport: roundTripper(trip)})
				target := &upstream.Target{Base: mustParse(t, "https://r.example"), Name: "a"}
				d := digest.FromString("x")
				_, err := c.Manifest(t.Context(), target, "1", upstream.Pull)
				assert.Error(t, err)
				_, err = c.Head(t.Context(), target, "1")
				t.Log("of a HEAD there is no body:", err)
				_, err = c.BlobSize(t.Context(), target, d)
				t.Log("the length may do:", err)
				_, _, err = c.Referrers(t.Context(), target, d)
				assert.Error(t, err)
				assert.NotPanics(t, func() { _ = c.Probe(t.Context(), target) })
				body, err := c.Transfer(t.Context(), target, d)
				if err == nil {
					_, err = io.Copy(io.Discard, body)
					_ = body.Close()
				}
				assert.Error(t, err)
			})
		})
	}
}
