package pullthroughtest_test

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestPipesInABubble(t *testing.T) {
	for _, https := range []bool{false, true} {
		up := newUpstream(t, pullthroughtest.Config{TLS: https, Auth: pullthroughtest.Bearer, TokenTTL: time.Hour})
		synctest.Test(t, func(t *testing.T) {
			transport := &http.Transport{
				DialContext:     up.DialPipe,
				TLSClientConfig: &tls.Config{RootCAs: up.Roots()},
			}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport}
			authorization := "Bearer " + up.IssueToken(0, pullScope)
			pull := func(ctx context.Context) (*http.Response, error) {
				r, err := http.NewRequestWithContext(ctx, http.MethodGet, up.URL+layerPath, nil)
				require.NoError(t, err)
				r.Header.Set("Authorization", authorization)
				return client.Do(r)
			}

			up.Fault(pullthroughtest.Fault{Match: "* 200", Times: 1, Rate: 1})
			start := time.Now()
			resp, err := pull(t.Context())
			require.NoError(t, err)
			data, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			assert.Equal(t, layer(t), data)
			assert.InDelta(t, 1024, time.Since(start).Seconds(), 2)

			up.Fault(pullthroughtest.Fault{Match: "* 200", Times: 1, Stall: make(chan struct{})})
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			_, err = pull(ctx)
			assert.ErrorIs(t, err, context.DeadlineExceeded)

			time.Sleep(time.Hour)
			resp, err = pull(t.Context())
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			assert.Equal(t, 401, resp.StatusCode, "the token has expired by the bubble's clock")
		})
	}
}
