package pullthrough_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// ofTheHost are fields that a host fills in.
var ofTheHost = []string{
	"fakeecr.Config.Credentials", "fakeecr.Config.RealmHosts", "fakeecr.Config.Secrets", "fakeecr.Config.Endpoints", "fakeecr.Server.secrets",
}

// TestEveryCollectionIsInTheTableOfWhatGrows: the table in docs/security.md says of each
// field that holds any number of values how many they may become, and names tests that
// are there.
func TestEveryCollectionIsInTheTableOfWhatGrows(t *testing.T) {
	fields, tests := readSources(t)
	var told []string
	for _, row := range rowsOf(t, "What grows") {
		require.Len(t, row, 5, "%q", row)
		for _, name := range codeIn(row[3]) {
			assert.Contains(t, fields, name, "no such field")
			assert.NotContains(t, told, name, "it is there twice")
			told = append(told, name)
		}
		assert.NotEmpty(t, codeIn(row[4]), "%s has no test", row[0])
		for _, name := range codeIn(row[4]) {
			assert.True(t, tests[name], "no such test: %s", name)
		}
	}
	for name, isCollection := range fields {
		if isCollection && !slices.Contains(ofTheHost, name) {
			assert.Contains(t, told, name, "docs/security.md does not say how much it may hold")
		}
	}
	assert.Greater(t, len(told), 50)
}

var codePattern = regexp.MustCompile("`([^`]+)`")

// codeIn is what stands in a cell as code.
func codeIn(cell string) (words []string) {
	for _, match := range codePattern.FindAllStringSubmatch(cell, -1) {
		words = append(words, match[1])
	}
	return words
}

// rowsOf are the rows of the table with that title in docs/security.md, without its head.
func rowsOf(t *testing.T, title string) (rows [][]string) {
	t.Helper()
	_, rest, ok := strings.Cut(readFile(t, "docs/security.md"), "<!-- "+title+" -->\n")
	require.True(t, ok)
	table, _, ok := strings.Cut(rest, "<!-- end -->")
	require.True(t, ok)
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(line, "| \n"), " | ")
		rows = append(rows, cells)
	}
	require.Greater(t, len(rows), 2)
	return rows[2:]
}

// readSources reads the packages that run in a host. fields are those of their types, as
// package.Type.field, and whether they hold any number of values; tests are their tests,
// as directory.Test.
func readSources(t *testing.T) (fields, tests map[string]bool) {
	t.Helper()
	fields, tests = map[string]bool{}, map[string]bool{}
	l, own := newLibrary(t)
	dirs := map[string]string{"diststore": "diststore", "pullthrough": "."}
	for _, path := range own {
		if rel := strings.TrimPrefix(path, module+"/"); rel != path && !isTool(rel) {
			dirs[rel] = l.dirs[path]
		}
	}
	for rel, dir := range dirs {
		names, err := filepath.Glob(filepath.Join(dir, "*.go"))
		require.NoError(t, err)
		for _, name := range names {
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
			require.NoError(t, err)
			ast.Inspect(file, func(n ast.Node) bool {
				isTest := strings.HasSuffix(name, "_test.go")
				switch n := n.(type) {
				case *ast.FuncDecl:
					tests[rel+"."+n.Name.Name] = tests[rel+"."+n.Name.Name] || isTest
					return false
				case *ast.TypeSpec:
					if s, ok := n.Type.(*ast.StructType); ok && !isTest {
						addFields(fields, file.Name.Name+"."+n.Name.Name, s)
					}
				}
				return true
			})
		}
	}
	return fields, tests
}

// isTool reports whether a directory has nothing that runs in a host.
func isTool(dir string) bool {
	first, rest, _ := strings.Cut(dir, "/")
	return slices.Contains([]string{"examples", "pullthroughtest", "cmd"}, first) ||
		slices.Contains([]string{"testkit", "bench", "transcript", "doctable", "layout/layouttest"}, rest)
}

func addFields(fields map[string]bool, of string, s *ast.StructType) {
	for _, field := range s.Fields.List {
		for _, name := range field.Names {
			fields[of+"."+name.Name] = holdsAnyNumber(field.Type)
		}
	}
}

// holdsAnyNumber reports whether a field has a map, a list or a cache. Slices are not
// looked at: most are read once.
func holdsAnyNumber(x ast.Expr) (holds bool) {
	ast.Inspect(x, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncType:
			return false
		case *ast.MapType:
			holds = true
		case *ast.SelectorExpr:
			switch p, _ := n.X.(*ast.Ident); {
			case p == nil:
			case p.Name == "lru", p.Name == "list" && n.Sel.Name == "List", p.Name == "sync" && n.Sel.Name == "Map":
				holds = true
			}
		}
		return true
	})
	return holds
}
