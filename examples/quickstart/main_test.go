package main

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestPrintedLog(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, run(&out))
	first, second, ok := strings.Cut(out.String(), "Second pull")
	require.True(t, ok, out.String())

	for _, c := range []struct {
		name, line    string
		first, second int
	}{
		{"challenge", `401  GET /v2/library/hello/manifests/latest`, 1, 0},
		{"token", `200  GET /token`, 1, 0},
		{"manifest", `200  GET /v2/library/hello/manifests/latest`, 1, 0},
		{"config and layers", `200  GET /v2/library/hello/blobs/sha256:[0-9a-f]{12}…`, 4, 0},
		{"any request", `[0-9]{3}  [A-Z]+ .*`, 7, 0},
		{"nothing", `nothing`, 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			line := regexp.MustCompile(`(?m)^ +` + c.line + `$`)
			assert.Len(t, line.FindAllString(first, -1), c.first, first)
			assert.Len(t, line.FindAllString(second, -1), c.second, second)
		})
	}
}

func TestLogRepeatsNoObject(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, run(&out))
	seen := map[string]bool{}
	for _, line := range regexp.MustCompile(`(?m)^ +[0-9].*$`).FindAllString(out.String(), -1) {
		assert.False(t, seen[line], line)
		seen[line] = true
	}
}
