package testkit

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// CodeLines counts the lines of a Go file that are neither empty nor a comment, and that counts reports true for; nil: all
// of them. It is for examples that say how long they are.
func CodeLines(t *testing.T, file string, counts func(line string) bool) (n int) {
	t.Helper()
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	for line := range strings.Lines(string(content)) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "//") && (counts == nil || counts(line)) {
			n++
		}
	}
	return n
}
