package ecr_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
)

// trait is a line of docs/ecr.md together with the test that proves it.
type trait struct {
	id        string // stable, cited by commits: F03, L12
	behaviour string // what Amazon ECR does
	basis     string // how that is known, and in backquotes the name of a choice
	outcome   string // what happens here
	test      func(*testing.T)
}

func (r trait) Name() string { return r.id }

func (r trait) Cells() []string { return []string{r.behaviour, r.basis, r.outcome, r.id} }

func (r trait) Proof() func(*testing.T) { return r.test }

// ecrTables are the tables of docs/ecr.md but for the control plane, which are
// ecrapi's. Each has a test of its own that runs its rows.
var ecrTables = []testkit.Section[trait]{
	{Title: "Rules and names", Rows: ecrRules},
	{Title: "Freshness", Rows: ecrFreshness},
	{Title: "What a pull stores", Rows: ecrStored},
	{Title: "Digests and HEAD", Rows: ecrDigests},
	{Title: "Lists and referrers", Rows: ecrLists},
	{Title: "Errors", Rows: ecrErrors},
	{Title: "Permissions", Rows: ecrPermissions},
	{Title: "Repositories", Rows: ecrRepositories},
	{Title: "Not found is remembered", Rows: ecrNotFound},
	{Title: "Surprises", Rows: ecrSurprises},
}

func TestECRRules(t *testing.T) { testkit.RunRows(t, ecrRules) }

func TestECRFreshness(t *testing.T) { testkit.RunRows(t, ecrFreshness) }

func TestECRStored(t *testing.T) { testkit.RunRows(t, ecrStored) }

func TestECRDigests(t *testing.T) { testkit.RunRows(t, ecrDigests) }

func TestECRLists(t *testing.T) { testkit.RunRows(t, ecrLists) }

func TestECRErrors(t *testing.T) { testkit.RunRows(t, ecrErrors) }

func TestECRPermissions(t *testing.T) { testkit.RunRows(t, ecrPermissions) }

func TestECRRepositories(t *testing.T) { testkit.RunRows(t, ecrRepositories) }

func TestECRNotFound(t *testing.T) { testkit.RunRows(t, ecrNotFound) }

func TestECRSurprises(t *testing.T) { testkit.RunRows(t, ecrSurprises) }

func TestECRDocument(t *testing.T) {
	testkit.CheckDocument(t, "ecr.md", []string{"Amazon ECR", "Basis", "Here", "Test"}, ecrTables)
}

// What is unknown of Amazon ECR, or done otherwise on purpose, has a name. These are
// decided where images are pulled; ecrapi has those that are where rules are made.
var (
	pullChoices = []string{
		"slash-prefix", "nested-prefixes", "cross-account-no-role", "empty-secret", "update-resets-window", "secret-cache",
		"window-basis", "failed-check-window", "failed-check-pause", "fill-mode", "keep-local", "digest-first-pull", "import-timing",
		"blob-before-import", "get-digest-header", "head-counts-pull", "schema1", "archived-pull",
		"referrers-window", "referrers-tag-schema", "referrers-stale", "list-n-status", "layer-limit", "accept-conversion",
		"repo-after-404", "wire-429", "wire-unavailable", "import-permission", "template-role-missing", "immutable-refresh", "event-granularity",
	}
	grounds = []string{"documented", "measured", "inferred", "chosen"}
)

// TestECRChoicesHaveTheirLine: whoever meets one of them finds it in the
// document, under its name, with what is known.
func TestECRChoicesHaveTheirLine(t *testing.T) {
	var named []string
	for _, s := range ecrTables {
		for _, r := range s.Rows {
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
