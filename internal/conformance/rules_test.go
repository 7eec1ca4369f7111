package conformance_test

import (
	"net/http"
	"testing"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The upstream prefix of a rule stands before the rest of the name.
func TestUpstreamPrefix(t *testing.T) {
	t.Parallel()
	s := newStore(t, single)
	u := startUpstream(t, s, authBearer)
	f := startFakeECR(t, u.url()+"/library", flagsFor(authBearer)...)
	from := ref{host: f.host, repo: prefix + "/single", tag: single.tag}

	want := cranePull(t, s.ref(single), single)
	assert.Equal(t, want, cranePull(t, from, single))
	assertCold(t, u, authBearer, single, want)
}

// A token server with another host name than the registry's gets the secret
// only where the rule names it.
func TestForeignRealm(t *testing.T) {
	t.Parallel()
	s := newStore(t, single)
	for _, allowed := range []bool{false, true} {
		name, flags := "refused", flagsFor(authBearer)
		if allowed {
			name, flags = "allowed", append(flags, "-realm", prefix+"=localhost")
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := startBearerUpstream(t, s, "localhost")
			f := startFakeECR(t, u.url(), flags...)
			_, err := crane.Manifest(f.ref(single).String(), craneOptions(t)...)
			if allowed {
				require.NoError(t, err)
				assertOneToken(t, u, single)
				return
			}
			assert.Error(t, err)
			for _, r := range u.tokens.take() {
				assert.Empty(t, r.User, "the secret went to a foreign realm")
			}
		})
	}
}

// With -tag-ttl 0 each pull asks for the tag, and follows it; without an
// upstream the last answer stands.
func TestTagIsChecked(t *testing.T) {
	t.Parallel()
	s := newStore(t, single)
	u := startUpstream(t, s, authOpen)
	f := startFakeECR(t, u.url(), "-tag-ttl", "0")
	head := line(http.MethodHead, "/v2/"+single.repo+"/manifests/"+single.tag, http.StatusOK)

	first := manifest(t, f.ref(single))
	u.take()
	assert.Equal(t, first, manifest(t, f.ref(single)), "unchanged")
	assert.Equal(t, []string{head}, u.take())

	pushImage(t, s.ref(single), ociImage(t, 99, 1000))
	moved := manifest(t, s.ref(single))
	require.NotEqual(t, first, moved)
	assert.Equal(t, moved, manifest(t, f.ref(single)), "moved")
	assert.Equal(t, []string{head, manifestLine(single, digest.FromString(moved).String(), http.StatusOK)}, u.take())

	u.stop(t)
	assert.Equal(t, moved, manifest(t, f.ref(single)), "stale")
}

func manifest(t testing.TB, from ref) string {
	t.Helper()
	b, err := crane.Manifest(from.String(), craneOptions(t)...)
	require.NoError(t, err)
	return string(b)
}
