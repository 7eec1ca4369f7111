package pullthroughtest_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestDialGuard(t *testing.T) {
	for _, address := range []string{"192.0.2.1:80", "example.com:443", "0.0.0.0:80", "[2001:db8::1]:80", "127.0.0.1"} {
		_, err := pullthroughtest.DialLoopback(t.Context(), "tcp", address)
		assert.ErrorContains(t, err, "dial guard")
	}
	_, err := http.DefaultClient.Do(request(t, http.MethodGet, "http://192.0.2.1/"))
	assert.ErrorContains(t, err, "dial guard")
	up := newUpstream(t, pullthroughtest.Config{})
	resp, err := http.DefaultClient.Do(request(t, http.MethodGet, up.URL+"/v2/"))
	require.NoError(t, err)
	assert.NoError(t, resp.Body.Close())
}
