package pullthrough_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// block is a block of Go in a document: a file, declarations, or statements. A
// comment right before it says what it does not:
//
//	<!-- from FILE -->   each of its paragraphs stands in that file, whatever the indentation
//	<!-- go DECLARATIONS -->   what it takes for granted
//
// One without the first is compiled.
type block struct {
	doc   string // its file
	line  int    // of its first line of code
	from  string // "": it is compiled
	given string // declarations
	code  string
}

var blockPattern = regexp.MustCompile("(?ms)(?:^<!-- (from|go)\\s+([^>]*?)-->\n)?^```go\n(.*?)^```$")

// blocksOf are the blocks of Go in a document.
func blocksOf(doc, text string) (all []block) {
	for _, at := range blockPattern.FindAllStringSubmatchIndex(text, -1) {
		b := block{doc: doc, line: 1 + strings.Count(text[:at[6]], "\n"), code: text[at[6]:at[7]]}
		if at[2] >= 0 {
			said := strings.TrimSpace(text[at[4]:at[5]])
			if text[at[2]:at[3]] == "from" {
				b.from = said
			} else {
				b.given = said
			}
		}
		all = append(all, b)
	}
	return all
}

// documents are the texts of README.md and its neighbours, and of docs/.
func documents(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	neighbours, err := filepath.Glob("*.md")
	require.NoError(t, err)
	texts := map[string]string{}
	for _, name := range append(names, neighbours...) {
		texts[name] = readFile(t, name)
	}
	require.Contains(t, texts, "README.md")
	require.Greater(t, len(texts), 3)
	return texts
}

// TestReadmeTakesTwoMinutes: what is longer belongs into docs/.
func TestReadmeTakesTwoMinutes(t *testing.T) {
	assert.LessOrEqual(t, len(strings.Fields(readFile(t, "README.md"))), 900, "words")
}

// TestTheGateRunsWhatReadmeSays: the commands that README.md gives for a fresh clone.
func TestTheGateRunsWhatReadmeSays(t *testing.T) {
	readme, gate := readFile(t, "README.md"), readFile(t, ".ci/run")
	for _, command := range []string{"go run ./examples/quickstart", "go test ./..."} {
		assert.Contains(t, readme, command)
		assert.Regexp(t, `(?m)^(time )?`+regexp.QuoteMeta(command)+`$`, gate)
	}
}

func TestTheGoOfTheDocumentsCompiles(t *testing.T) {
	var compiled []block
	for doc, text := range documents(t) {
		blocks := blocksOf(doc, text)
		assert.Len(t, blocks, strings.Count(text, "```go"), "%s has blocks that are not looked at", doc)
		for _, b := range blocks {
			if b.from != "" {
				assert.NoError(t, b.standsIn(readFile(t, b.from)))
				continue
			}
			compiled = append(compiled, b)
		}
	}
	require.NotEmpty(t, compiled)
	assert.NoError(t, compile(t, compiled))
}

func TestAWrongBlockIsFound(t *testing.T) {
	text := strings.Join([]string{
		"# Title", "```go", "x := http.Foo()", "```",
		"<!-- go var proxy *pullthrough.Proxy -->", "```go", "proxy.Store = 7", "```",
		"<!-- from docs_test.go -->", "```go", "func thisIsNoWhere() {}", "```",
	}, "\n")
	all := blocksOf("docs/none.md", text)
	require.Len(t, all, 3)
	err := compile(t, all[:2])
	assert.ErrorContains(t, err, "docs/none.md:3: undefined: http.Foo")
	assert.ErrorContains(t, err, "docs/none.md:7: cannot use 7")
	assert.ErrorContains(t, all[2].standsIn("package x"), `docs/none.md:11: not in docs_test.go: "func thisIsNoWhere() {}"`)
	assert.NoError(t, all[2].standsIn("\t// what:\n\tfunc thisIsNoWhere() {}\n"))
}

// standsIn looks for each paragraph of the block in the source it is from. Neither
// indentation counts, nor being a comment's example.
func (b *block) standsIn(source string) error {
	source = "\n" + flat(source) + "\n"
	line := b.line
	var missing []error
	for part := range strings.SplitSeq(b.code, "\n\n") {
		if !strings.Contains(source, "\n"+flat(strings.Trim(part, "\n"))+"\n") {
			first, _, _ := strings.Cut(strings.Trim(part, "\n"), "\n")
			missing = append(missing, fmt.Errorf("%s:%d: not in %s: %q", b.doc, line, b.from, first))
		}
		line += strings.Count(part, "\n") + 2
	}
	return errors.Join(missing...)
}

func flat(code string) string {
	lines := strings.Split(code, "\n")
	for i, line := range lines {
		lines[i] = strings.TrimLeft(strings.TrimPrefix(strings.TrimLeft(line, "\t"), "//\t"), "\t")
	}
	return strings.Join(lines, "\n")
}

// compile builds the blocks, each as a package below docs/ that is on no disk. What
// the compiler says has the document's lines.
func compile(t *testing.T, blocks []block) error {
	t.Helper()
	root, err := os.Getwd()
	require.NoError(t, err)
	dir := t.TempDir()
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	args := []string{"build", "-o", os.DevNull, "-overlay", filepath.Join(dir, "overlay.json")}
	for i, b := range blocks {
		source, err := b.source(root)
		if err != nil {
			return err
		}
		file := filepath.Join(dir, fmt.Sprintf("block%d.go", i))
		require.NoError(t, os.WriteFile(file, []byte(source), 0o600))
		overlay.Replace[filepath.Join(root, "docs", fmt.Sprintf("block%d", i), "block.go")] = file
		args = append(args, fmt.Sprintf("./docs/block%d", i))
	}
	text, err := json.Marshal(overlay)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "overlay.json"), text, 0o600))
	out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// source is the block as a file.
func (b *block) source(root string) (string, error) {
	at := fmt.Sprintf("//line %s:%d\n", filepath.Join(root, b.doc), b.line)
	if strings.HasPrefix(b.code, "package ") {
		return at + b.code, nil
	}
	body, uses := at+b.code, ""
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "", "package block\n"+b.code, 0)
	if err != nil {
		file, err = parser.ParseFile(fset, "", "package block\nfunc _() {\n"+b.code+"\n}", 0)
		if err != nil {
			return "", fmt.Errorf("%s:%d: neither declarations nor statements: %w", b.doc, b.line, err)
		}
		for _, name := range defined(file.Decls[0].(*ast.FuncDecl).Body) {
			uses += "_ = " + name + "\n" // what a reader would go on with
		}
		body = "func _() {\n" + body + uses + "}\n"
	}
	given, err := parser.ParseFile(fset, "", "package block\n"+b.given, 0)
	if err != nil {
		return "", fmt.Errorf("%s:%d: before the block: %w", b.doc, b.line, err)
	}
	text := "package block\n"
	for _, name := range slices.Sorted(maps.Keys(packagesOf(file, given))) {
		text += fmt.Sprintf("import %s %q\n", name, packages[name])
	}
	return text + b.given + "\n" + body, nil
}

// defined are the variables that a body defines at its top.
func defined(body *ast.BlockStmt) (names []string) {
	for _, stmt := range body.List {
		assign, ok := stmt.(*ast.AssignStmt)
		if !ok || assign.Tok != token.DEFINE {
			continue
		}
		for _, left := range assign.Lhs {
			if id, ok := left.(*ast.Ident); ok && id.Name != "_" {
				names = append(names, id.Name)
			}
		}
	}
	return names
}

// packages are those that documents may use without an import.
var packages = func() map[string]string {
	all := map[string]string{
		"pullthrough": module, "digest": "github.com/opencontainers/go-digest", "ocispec": "github.com/opencontainers/image-spec/specs-go/v1",
		"assert": "github.com/stretchr/testify/assert", "require": "github.com/stretchr/testify/require",
	}
	for _, p := range []string{
		module + "/pullthroughtest", module + "/dirstore", module + "/memstore", module + "/handlerstore", module + "/ecrapi", module + "/debug", "context", "errors", "fmt", "io", "io/fs", "log", "log/slog",
		"net/http", "net/http/httptest", "net/url", "os", "os/signal", "strings", "sync", "syscall", "testing", "testing/fstest", "time",
	} {
		all[path.Base(p)] = p
	}
	return all
}()

const module = "github.com/ecr-pullthrough/pullthrough"

// packagesOf are the packages that files use and do not import.
func packagesOf(files ...*ast.File) map[string]bool {
	used := map[string]bool{}
	for _, file := range files {
		if len(file.Imports) > 0 {
			continue
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if id, ok := s.X.(*ast.Ident); ok && packages[id.Name] != "" {
					used[id.Name] = true
				}
			}
			return true
		})
	}
	return used
}

// filePattern is a file of a tool, whose name stands before its block.
var filePattern = regexp.MustCompile("(?m)^<!-- file (\\S+) -->\n```(\\w+)$")

// Files that tools read are tried by tests of other modules, which have the tools.
func TestTheFilesOfTheDocumentsAreTried(t *testing.T) {
	tests := ""
	for _, pattern := range []string{"internal/conformance/*_test.go", "internal/conformance/containerd/*_test.go"} {
		names, err := filepath.Glob(pattern)
		require.NoError(t, err)
		require.NotEmpty(t, names)
		for _, name := range names {
			tests += readFile(t, name)
		}
	}
	text := readFile(t, "docs/tools.md")
	files := filePattern.FindAllStringSubmatch(text, -1)
	for _, file := range files {
		assert.Contains(t, tests, strconv.Quote(file[1]), "no test names it")
	}
	assert.Len(t, files, strings.Count(text, "\n```")/2-strings.Count(text, "```sh\n"), "a block is commands, or a file with a name")
}

var (
	linkPattern    = regexp.MustCompile(`\]\(([^)#:\s]*)(#[^)\s]*)?\)`)
	headingPattern = regexp.MustCompile(`(?m)^#+ (.*)$`)
	commandPattern = regexp.MustCompile("go run (\\./[^\\s`]+)|" + module + "/([^\\s`]+)@latest")
)

// anchorsOf are the anchors that GitHub gives to the headings of a document.
func anchorsOf(text string) (anchors []string) {
	for _, heading := range headingPattern.FindAllStringSubmatch(text, -1) {
		anchors = append(anchors, "#"+strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsNumber(r):
				return r
			}
			return -1
		}, strings.ToLower(heading[1])))
	}
	return anchors
}

func TestTheLinksOfTheDocumentsLeadSomewhere(t *testing.T) {
	links := 0
	for doc, text := range documents(t) {
		for _, link := range linkPattern.FindAllStringSubmatch(text, -1) {
			links++
			target := doc
			if link[1] != "" {
				target = filepath.Join(filepath.Dir(doc), link[1])
			}
			_, err := os.Stat(target)
			assert.NoError(t, err, doc)
			if link[2] != "" {
				assert.Contains(t, anchorsOf(readFile(t, target)), link[2], "%s: no heading of %s", doc, target)
			}
		}
		for _, command := range commandPattern.FindAllStringSubmatch(text, -1) {
			assert.FileExists(t, filepath.Join(command[1]+command[2], "main.go"), doc)
		}
	}
	assert.Positive(t, links)
}
