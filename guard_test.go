package pullthrough_test

import (
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

func getBody(t *testing.T, url string) ([]byte, int) {
	t.Helper()
	resp, err := http.Get(url)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return body, resp.StatusCode
}
