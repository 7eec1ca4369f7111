package ecrapi_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/doctable"
)

// trait is a line of docs/ecr.md about the control plane, together with the test that
// proves it.
type trait struct {
	id        string // stable, cited by commits: N02, B12
	behaviour string // what Amazon ECR does
	basis     string // how that is known, and in backquotes the names of choices
	outcome   string // what happens here
	test      func(*testing.T)
}

// ecrTables are the tables of the document's control plane, in its order. Each has a
// test of its own that runs its rows.
var ecrTables = []struct {
	title string
	rows  []trait
}{
	{"The API", ecrWire},
	{"Creating rules", ecrCreate},
	{"Rules that are refused", ecrRefusals},
	{"Describing, updating, deleting and validating rules", ecrRules},
	{"Secrets", ecrSecrets},
	{"Creation templates", ecrTemplates},
	{"Recorded pulls and exclusions", ecrPulls},
	{"Settings of repositories and registries", ecrOperations},
	{"Repositories and images", ecrImages},
	{"Images by the API", ecrBatch},
	{"Layers and tokens", ecrLayers},
	{"Referrers by the API", ecrReferrers},
	{"Events", ecrEvents},
	{"Surprises of the control plane", ecrSurprises},
}

func TestECRWire(t *testing.T)       { runRows(t, ecrWire) }
func TestECRCreate(t *testing.T)     { runRows(t, ecrCreate) }
func TestECRRefusals(t *testing.T)   { runRows(t, ecrRefusals) }
func TestECRRules(t *testing.T)      { runRows(t, ecrRules) }
func TestECRSecrets(t *testing.T)    { runRows(t, ecrSecrets) }
func TestECRTemplates(t *testing.T)  { runRows(t, ecrTemplates) }
func TestECRPulls(t *testing.T)      { runRows(t, ecrPulls) }
func TestECROperations(t *testing.T) { runRows(t, ecrOperations) }
func TestECRImages(t *testing.T)     { runRows(t, ecrImages) }
func TestECRBatch(t *testing.T)      { runRows(t, ecrBatch) }
func TestECRLayers(t *testing.T)     { runRows(t, ecrLayers) }
func TestECRReferrers(t *testing.T)  { runRows(t, ecrReferrers) }
func TestECREvents(t *testing.T)     { runRows(t, ecrEvents) }
func TestECRSurprises(t *testing.T)  { runRows(t, ecrSurprises) }

func runRows(t *testing.T, rows []trait) {
	for _, r := range rows {
		t.Run(r.id, r.test)
	}
}

const ecrDocument = "../docs/ecr.md"

func TestECRDocument(t *testing.T) {
	tables := make([]doctable.Table, len(ecrTables))
	for i, s := range ecrTables {
		tables[i].Title = s.title
		for _, r := range s.rows {
			tables[i].Rows = append(tables[i].Rows, doctable.Row{Name: r.id, Cells: []string{r.behaviour, r.basis, r.outcome, r.id}})
		}
	}
	doctable.Check(t, ecrDocument, []string{"Amazon ECR", "Basis", "Here", "Test"}, tables)
}

// What is unknown of Amazon ECR has a name. These are decided where rules are made;
// the others, which the tables about pulls name, where images are pulled.
var choices = []string{
	"ecr-upstream-prefix-echo", "upstream-registry-echo", "china-suffix", "create-error-types", "create-error-tails", "rule-error-texts",
	"invalid-vs-validation", "root-upstream-prefix", "region-error", "describe-order", "token-with-filter",
	"validate-failure-text", "upstream-exception-texts", "template-unknown-prefix", "template-shadowing",
	"event-failure-status", "event-failure-codes",

	"accepted-media-types", "empty-role", "empty-token", "exclusion-quota", "first-update-time", "layer-url", "other-registry", "pull-time",
	"template-quota", "template-update", "untold-refusals",

	"tag-twice", "resource-region", "account-setting-default", "scan-frequency",
}

// TestECRChoicesHaveTheirLine: whoever meets one of them in the code finds it in the
// document, under its name, with what is known.
func TestECRChoicesHaveTheirLine(t *testing.T) {
	doc, err := os.ReadFile(ecrDocument)
	require.NoError(t, err)
	pulls, _, ok := strings.Cut(string(doc), "\n## Control plane\n")
	require.True(t, ok)
	var named []string
	for _, s := range ecrTables {
		for _, r := range s.rows {
			ground, _, _ := strings.Cut(r.basis, ",")
			assert.Contains(t, []string{"documented", "measured", "inferred", "chosen"}, ground, "%s", r.id)
			for _, m := range regexp.MustCompile("`(.+?)`").FindAllStringSubmatch(r.basis, -1) {
				assert.True(t, slices.Contains(choices, m[1]) || strings.Contains(pulls, "`"+m[1]+"`"), "%s: %s is no choice", r.id, m[1])
				named = append(named, m[1])
			}
		}
	}
	code := source(t)
	for _, name := range choices {
		assert.Contains(t, named, name)
		assert.Contains(t, code, name, "the place in the code says its name")
	}
}

// source is the code of this package, of the root and of what both share.
func source(t *testing.T) (code string) {
	t.Helper()
	for _, dir := range []string{".", "..", "../internal/ecr"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		require.NoError(t, err)
		for _, file := range files {
			if !strings.HasSuffix(file, "_test.go") {
				content, err := os.ReadFile(file)
				require.NoError(t, err)
				code += string(content)
			}
		}
	}
	return code
}
