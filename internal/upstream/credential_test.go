package upstream_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
)

func TestACredentialIsNeverPrinted(t *testing.T) {
	var log bytes.Buffer
	for want, c := range map[string]upstream.Credential{
		"anonymous":            {},
		"credential(redacted)": {Username: canary, AccessToken: canary, IdentityToken: canary},
	} {
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "credential", c, "pointer", &c)
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
			assert.Equal(t, want, fmt.Sprintf(verb, c))
		}
	}
	assert.NotContains(t, log.String(), canary)
}
