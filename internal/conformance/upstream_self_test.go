package conformance_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"oras.land/oras-go/v2"
	orasauth "oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// The upstreams themselves, without fakeecr: each lets the right user in, and
// nobody else, also behind the recorder.
func TestUpstreamsAskForCredentials(t *testing.T) {
	t.Parallel()
	s := newStore(t, single)
	for _, a := range []auth{authOpen, authBasic, authBearer} {
		t.Run(string(a), func(t *testing.T) {
			t.Parallel()
			u := startUpstream(t, s, a)
			host := u.server.Listener.Addr().String()
			pull := func(pass string) error {
				repo := orasRepository(t, ref{host: host, repo: single.repo})
				client := orasClient(t)
				client.Credential = orasauth.StaticCredential(host, orasauth.Credential{Username: puller, Password: pass})
				repo.Client = client
				_, _, err := oras.FetchBytes(t.Context(), repo, single.tag, oras.DefaultFetchBytesOptions)
				return err
			}

			require.NoError(t, pull(password))
			log := u.take()
			assert.Equal(t, manifestLine(single, single.tag, http.StatusOK), log[len(log)-1])
			if a == authOpen {
				return
			}
			assertOneToken(t, u, single)
			var refusal *errcode.ErrorResponse
			require.ErrorAs(t, pull("wrong"), &refusal)
			assert.Equal(t, http.StatusUnauthorized, refusal.StatusCode)
		})
	}
}
