package upstream_test

import (
	"net/url"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
)

// FuzzRealm: a token server that may have the secret is, by a reading of its own,
// in the target's set.
func FuzzRealm(f *testing.F) {
	for _, seed := range []string{
		"https://auth.docker.io/token", "https://registry-1.docker.io:8443/t", "http://registry-1.docker.io/t", "https://evil.example/t",
		"https://auth.docker.io.evil.example/", "https://auth.docker.io@evil.example/", "https://u:p@auth.docker.io/", "https://auth.docker.io#x", "https://auth.docker.io#",
		"//auth.docker.io/t", "https:auth.docker.io", "https://", "ftp://auth.docker.io/", "https://AUTH.docker.io/t?service=x&scope=y;z",
		"https://named.example:444/t", "https://named.example/t", "https://auth.docker.io\r\n/", "https://auth.docker.io%2f@evil.example/", `https://auth.docker.io\@evil.example/`,
	} {
		f.Add(seed)
	}
	plain := regexp.MustCompile(`^(?i:(https)://(registry-1\.docker\.io(?::[0-9]*)?|auth\.docker\.io(?::[0-9]*)?|named\.example(?::[0-9]*)?))(?:[/?][!-~]*)?$`)
	f.Fuzz(func(t *testing.T, realm string) {
		if !upstream.RealmMayHaveCredentials("https://registry-1.docker.io", realm, []string{"named.example"}) {
			return
		}
		m := plain.FindStringSubmatch(realm)
		require.NotNil(t, m, "%q", realm)
		u, err := url.Parse(realm)
		require.NoError(t, err)
		assert.True(t, upstream.RealmMayHaveCredentials("https://registry-1.docker.io", u.String(), []string{"named.example"}), "stable under print and parse")
	})
}

func TestRealmsThatMayHaveTheCredential(t *testing.T) {
	const hub = "https://registry-1.docker.io"
	for realm, ok := range map[string]bool{
		"https://auth.docker.io/token":        true,
		"https://registry-1.docker.io:8443/t": true,
		"https://named.example:444/t":         true,
		"http://auth.docker.io/token":         false,
		"https://gitlab.com/jwt/auth":         false, // the partner of another registry
		"https://auth.docker.io@evil.test/":   false,
		"https://u:p@auth.docker.io/":         false,
		"https://auth.docker.io#x":            false,
		"//auth.docker.io/t":                  false,
		"":                                    false,
	} {
		assert.Equal(t, ok, upstream.RealmMayHaveCredentials(hub, realm, []string{"named.example"}), realm)
	}
}
