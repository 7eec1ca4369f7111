package debug_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestThePackageImportsLittle: whoever mounts the page takes what the root takes.
func TestThePackageImportsLittle(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	require.NoError(t, err)
	const module = "github.com/ecr-pullthrough/pullthrough"
	allowed := []string{
		module, module + "/debug",
		"github.com/opencontainers/go-digest", "github.com/opencontainers/image-spec/specs-go", "github.com/opencontainers/image-spec/specs-go/v1",
	}
	deps := strings.Fields(string(out))
	assert.Contains(t, deps, allowed[1])
	for _, dep := range deps {
		if !strings.HasPrefix(dep, module+"/internal/") {
			assert.True(t, slices.Contains(allowed, dep), "the package must not depend on %s", dep)
		}
	}
}
