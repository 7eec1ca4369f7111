package pullthrough_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestTheRootImportsLittle is the dependency budget: who embeds the package
// takes go-digest and image-spec, and nothing else.
func TestTheRootImportsLittle(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	require.NoError(t, err)
	allowed := []string{
		"github.com/ecr-pullthrough/pullthrough",
		"github.com/opencontainers/go-digest",
		"github.com/opencontainers/image-spec/specs-go",
		"github.com/opencontainers/image-spec/specs-go/v1",
	}
	deps := strings.Fields(string(out))
	assert.Contains(t, deps, allowed[0])
	for _, dep := range deps {
		if !strings.HasPrefix(dep, allowed[0]+"/internal/") {
			assert.True(t, slices.Contains(allowed, dep), "the root package must not depend on %s", dep)
		}
	}
}

// TestThereIsOneWayOut: a client made anywhere else would pass by the redirect
// and credential rules.
func TestThereIsOneWayOut(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", `{{if not .Standard}}{{$d := .Dir}}{{range .GoFiles}}{{$d}}/{{.}} {{end}}{{end}}`, ".").Output()
	require.NoError(t, err)
	made := map[string]int{}
	for _, file := range strings.Fields(string(out)) {
		for _, word := range []string{"http.Client{", "http.DefaultClient", "http.DefaultTransport", "http.Get(", "http.Head(", "http.Post", "new(http.Client)", "http.Transport{", ".RoundTrip("} {
			if n := strings.Count(readFile(t, file), word); n > 0 {
				made[word] += n
			}
		}
	}
	assert.Equal(t, map[string]int{"http.Transport{": 1, ".RoundTrip(": 1}, made)
}
