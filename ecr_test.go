package pullthrough_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// trait is a line of docs/ecr.md together with the test that proves it.
type trait struct {
	id        string // stable, cited by commits: F03, L12
	behaviour string // what Amazon ECR does
	basis     string // how that is known, and in backquotes the name of a choice
	outcome   string // what happens here
	test      func(*testing.T)
}

func (r trait) name() string            { return r.id }
func (r trait) cells() []string         { return []string{r.behaviour, r.basis, r.outcome, r.id} }
func (r trait) proof() func(*testing.T) { return r.test }

// ecrTables are the tables of docs/ecr.md but for the control plane, which are
// ecrapi's. Each has a test of its own that runs its rows.
var ecrTables = []section[trait]{
	{"Rules and names", ecrRules},
	{"Freshness", ecrFreshness},
	{"What a pull stores", ecrStored},
	{"Digests and HEAD", ecrDigests},
	{"Lists and referrers", ecrLists},
	{"Errors", ecrErrors},
	{"Permissions", ecrPermissions},
	{"Repositories", ecrRepositories},
	{"Not found is remembered", ecrNotFound},
	{"Surprises", ecrSurprises},
}

func TestECRRules(t *testing.T)        { runRows(t, ecrRules) }
func TestECRFreshness(t *testing.T)    { runRows(t, ecrFreshness) }
func TestECRStored(t *testing.T)       { runRows(t, ecrStored) }
func TestECRDigests(t *testing.T)      { runRows(t, ecrDigests) }
func TestECRLists(t *testing.T)        { runRows(t, ecrLists) }
func TestECRErrors(t *testing.T)       { runRows(t, ecrErrors) }
func TestECRPermissions(t *testing.T)  { runRows(t, ecrPermissions) }
func TestECRRepositories(t *testing.T) { runRows(t, ecrRepositories) }
func TestECRNotFound(t *testing.T)     { runRows(t, ecrNotFound) }
func TestECRSurprises(t *testing.T)    { runRows(t, ecrSurprises) }

func TestECRDocument(t *testing.T) {
	checkDocument(t, "ecr.md", []string{"Amazon ECR", "Basis", "Here", "Test"}, ecrTables)
}

// What is unknown of Amazon ECR, or done otherwise on purpose, has a name. These are
// decided where images are pulled; ecrapi has those that are where rules are made.
var (
	pullChoices = []string{
		"slash-prefix", "nested-prefixes", "cross-account-no-role", "empty-secret", "update-resets-window", "secret-cache",
		"window-basis", "failed-check-window", "failed-check-pause", "fill-mode", "keep-local", "digest-first-pull", "import-timing",
		"blob-before-import", "get-digest-header", "head-counts-pull", "schema1", "archived-pull",
		"referrers-window", "referrers-tag-schema", "referrers-stale",
		"repo-after-404", "wire-429", "wire-unavailable", "import-permission", "template-role-missing", "immutable-refresh", "event-granularity",
	}
	grounds = []string{"documented", "measured", "inferred", "chosen"}
)

// TestECRChoicesHaveTheirLine: whoever meets one of them finds it in the
// document, under its name, with what is known.
func TestECRChoicesHaveTheirLine(t *testing.T) {
	var named []string
	for _, s := range ecrTables {
		for _, r := range s.rows {
			ground, _, _ := strings.Cut(r.basis, ",")
			assert.Contains(t, grounds, ground, "%s", r.id)
			for _, m := range regexp.MustCompile("`(.+?)`").FindAllStringSubmatch(r.basis, -1) {
				assert.True(t, slices.Contains(pullChoices, m[1]), "%s: %s is no choice", r.id, m[1])
				named = append(named, m[1])
			}
		}
	}
	for _, name := range pullChoices {
		assert.Contains(t, named, name)
	}
}
