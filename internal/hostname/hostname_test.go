package hostname

import (
	"testing"

	"github.com/stretchr/testify/assert"
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
