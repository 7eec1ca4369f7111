package hostname

import (
	"net/url"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestValid(t *testing.T) {
	for _, s := range []string{"quay.io", "localhost", "127.0.0.1:5000", "[::1]", "[::1]:5000", "REGISTRY.test:65535"} {
		assert.True(t, Valid(s), s)
	}
	for _, s := range []string{"", ":5000", "quay.io:", "quay.io:x", "quay.io:65536", "quay.io/org", "quay.io?a=b", "https://quay.io", "me@quay.io", "quay io"} {
		assert.False(t, Valid(s), s)
	}
}

func TestCanonical(t *testing.T) {
	for host, want := range map[string]string{
		"quay.io":                 "quay.io",
		"Quay.IO:443":             "quay.io:443",
		"https://quay.io":         "quay.io",
		"https://quay.io/org/":    "quay.io",
		"docker.io/library":       "registry-1.docker.io",
		"HTTP://127.0.0.1:7701":   "127.0.0.1:7701",
		"docker.io":               "registry-1.docker.io",
		"https://index.Docker.io": "registry-1.docker.io",
		"registry-1.docker.io":    "registry-1.docker.io",
		"docker.io.test":          "docker.io.test",
	} {
		assert.Equal(t, want, Canonical(host), host)
	}
}

func TestIsAt(t *testing.T) {
	for at, hosts := range map[string][2][]string{
		"https://quay.io":              {{"quay.io", "QUAY.io", "quay.io:443"}, {"quay.io:80", "quay.io:8443", "quay.io.test", "io", ""}},
		"https://quay.io:443":          {{"quay.io", "quay.io:443"}, {"quay.io:80"}},
		"http://quay.io":               {{"quay.io", "quay.io:80"}, {"quay.io:443"}},
		"http://127.0.0.1:5000":        {{"127.0.0.1:5000"}, {"127.0.0.1", "127.0.0.1:80", "localhost:5000"}},
		"https://[::1]:443":            {{"[::1]", "[::1]:443"}, {"[::1]:80"}},
		"https://registry-1.docker.io": {{"docker.io", "index.docker.io", "registry-1.docker.io", "Docker.io:443"}, {"docker.io:80", "hub.docker.com"}},
		"https://docker.io":            {{"docker.io", "index.docker.io", "registry-1.docker.io:443"}, {"quay.io"}},
	} {
		u, err := url.Parse(at)
		require.NoError(t, err)
		for i, want := range []bool{true, false} {
			for _, host := range hosts[i] {
				assert.Equal(t, want, IsAt(u, host), "%s at %s", host, at)
			}
		}
	}
}
