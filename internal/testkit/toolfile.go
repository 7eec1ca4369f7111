package testkit

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// toolFile is a file of a tool in docs/tools.md: its name, and what is in it.
var toolFile = regexp.MustCompile("(?m)^<!-- file (\\S+) -->\n```\\w+\n((?:.*\n)*?)```$")

// toolHost is what docs/tools.md calls the registry.
const toolHost = "localhost:5000"

// ToolFiles are the files in docs/tools.md, by their names there, for a registry at host.
func ToolFiles(t testing.TB, host string) map[string]string {
	t.Helper()
	text := readToolsDocument(t)
	files := map[string]string{}
	for _, found := range toolFile.FindAllStringSubmatch(text, -1) {
		require.NotContains(t, files, found[1])
		files[found[1]] = strings.ReplaceAll(found[2], toolHost, host)
	}
	require.Len(t, files, strings.Count(text, "<!-- file "), "a file is followed by its block")
	return files
}

// readToolsDocument finds the document from any module of the repository.
func readToolsDocument(t testing.TB) string {
	t.Helper()
	for up := ""; len(up) < 20; up += "../" {
		if text, err := os.ReadFile(up + "docs/tools.md"); err == nil {
			return string(text)
		}
	}
	require.FailNow(t, "there is no docs/tools.md")
	return ""
}
