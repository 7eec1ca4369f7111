package pullthrough_test

import (
	"go/ast"
	"go/doc"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// library is what pkg.go.dev shows of the module and of what it imports.
type library struct {
	dirs   map[string]string // by import path
	files  map[string][]string
	loaded map[string]*doc.Package
}

func newLibrary(t *testing.T) (l *library, own []string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", `{{.ImportPath}}|{{.Dir}}|{{join .GoFiles " "}}`, "./...").Output()
	require.NoError(t, err)
	l = &library{map[string]string{}, map[string][]string{}, map[string]*doc.Package{}}
	for line := range strings.Lines(string(out)) {
		fields := strings.Split(strings.TrimSpace(line), "|")
		require.Len(t, fields, 3)
		l.dirs[fields[0]], l.files[fields[0]] = fields[1], strings.Fields(fields[2])
		if strings.HasPrefix(fields[0], module) && fields[2] != "" { // else it has nothing but tests
			own = append(own, fields[0])
		}
	}
	require.Greater(t, len(own), 10)
	return l, own
}

// load reads a package; nil: it is not there.
func (l *library) load(t *testing.T, path string) *doc.Package {
	t.Helper()
	if p, ok := l.loaded[path]; ok || l.dirs[path] == "" {
		return p
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range l.files[path] {
		file, err := parser.ParseFile(fset, filepath.Join(l.dirs[path], name), nil, parser.ParseComments)
		require.NoError(t, err)
		files = append(files, file)
	}
	p, err := doc.NewFromFiles(fset, files, path)
	require.NoError(t, err)
	l.loaded[path] = p
	return p
}

// dangling looks like a link and is none: a name in brackets.
var dangling = regexp.MustCompile(`(?:^|[\s(])\[(\*?(?:[a-z][\w/]*\.)?[A-Z]\w*(?:\.[A-Z]\w*)?)\](?:$|[\s.,;:)'])`)

func TestDocLinksLeadSomewhere(t *testing.T) {
	l, own := newLibrary(t)
	links := 0
	for _, path := range own {
		p := l.load(t, path)
		for name, text := range documented(p) {
			parsed := p.Parser().Parse(text)
			for _, link := range docLinks(parsed.Content) {
				links++
				assert.True(t, l.has(t, p, link), "%s, doc of %s: %s.%s.%s is nowhere", path, name, link.ImportPath, link.Recv, link.Name)
			}
			plain := string(new(comment.Printer).Text(&comment.Doc{Content: withoutLinks(parsed.Content)}))
			for _, match := range dangling.FindAllStringSubmatch(plain, -1) {
				assert.Fail(t, "a link that is none", "%s, doc of %s: [%s]", path, name, match[1])
			}
		}
	}
	assert.Greater(t, links, 100)
}

// has reports whether the link's name is in its package.
func (l *library) has(t *testing.T, p *doc.Package, link *comment.DocLink) bool {
	t.Helper()
	if link.ImportPath != "" && link.ImportPath != p.ImportPath {
		p = l.load(t, link.ImportPath)
	}
	return p != nil && (link.Name == "" || p.Parser().LookupSym(link.Recv, link.Name))
}

// documented are the comments of a package by what they are about.
func documented(p *doc.Package) map[string]string {
	all := map[string]string{"the package": p.Doc}
	values := func(values []*doc.Value) {
		for _, v := range values {
			all[strings.Join(v.Names, ", ")] = v.Doc + "\n\n" + inside(v.Decl)
		}
	}
	funcs := func(of string, funcs []*doc.Func) {
		for _, f := range funcs {
			all[of+f.Name] = f.Doc
		}
	}
	values(p.Consts)
	values(p.Vars)
	funcs("", p.Funcs)
	for _, typ := range p.Types {
		all[typ.Name] = typ.Doc + "\n\n" + inside(typ.Decl)
		values(typ.Consts)
		values(typ.Vars)
		funcs("", typ.Funcs)
		funcs(typ.Name+".", typ.Methods)
	}
	return all
}

// inside are the comments of fields, methods of interfaces, and single values.
func inside(decl *ast.GenDecl) (text string) {
	ast.Inspect(decl, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			text += n.Doc.Text() + "\n" + n.Comment.Text() + "\n"
		case *ast.ValueSpec:
			text += n.Doc.Text() + "\n" + n.Comment.Text() + "\n"
		}
		return true
	})
	return text
}

func docLinks(blocks []comment.Block) (links []*comment.DocLink) {
	for _, block := range blocks {
		switch block := block.(type) {
		case *comment.Paragraph:
			for _, text := range block.Text {
				if link, ok := text.(*comment.DocLink); ok {
					links = append(links, link)
				}
			}
		case *comment.List:
			for _, item := range block.Items {
				links = append(links, docLinks(item.Content)...)
			}
		}
	}
	return links
}

// withoutLinks is the prose without its links and without code.
func withoutLinks(blocks []comment.Block) (prose []comment.Block) {
	for _, block := range blocks {
		switch block := block.(type) {
		case *comment.Paragraph:
			p := &comment.Paragraph{}
			for _, text := range block.Text {
				if _, ok := text.(*comment.DocLink); !ok {
					p.Text = append(p.Text, text)
				}
			}
			prose = append(prose, p)
		case *comment.List:
			for _, item := range block.Items {
				prose = append(prose, withoutLinks(item.Content)...)
			}
		}
	}
	return prose
}

// TestEveryExportedNameHasADoc: of the packages that others import.
func TestEveryExportedNameHasADoc(t *testing.T) {
	l, own := newLibrary(t)
	for _, path := range own {
		p := l.load(t, path)
		assert.NotEmpty(t, p.Doc, path)
		if strings.Contains(path, "/internal/") || strings.Contains(path, "/examples/") {
			continue
		}
		if p.Name == "main" {
			assert.True(t, strings.HasPrefix(p.Doc, "Command "), path)
			continue
		}
		assert.True(t, strings.HasPrefix(p.Doc, "Package "+p.Name+" "), path)
		for name, text := range documented(p) {
			assert.NotEmpty(t, strings.TrimSpace(text), "%s.%s has no doc", path, name)
		}
	}
}
