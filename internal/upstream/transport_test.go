package upstream_test

import (
	"errors"
	"net/http"
	"testing"

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
