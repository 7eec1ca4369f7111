package pullthroughtest_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestStoresThatAreRight(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) pullthrough.Store{
		"MemStore":                func(*testing.T) pullthrough.Store { return memstore.New() },
		"a MemStore with a limit": func(*testing.T) pullthrough.Store { return &memstore.Store{MaxBytes: 64 << 20} },
		"a plain Store":           func(t *testing.T) pullthrough.Store { return newPlainStore(t, "") },
		"immutable":               func(t *testing.T) pullthrough.Store { return immutable{newPlainStore(t, "")} },
		"one tenant's":            func(t *testing.T) pullthrough.Store { return oneTenant{newPlainStore(t, "")} },
		"one tenant's with lists": func(t *testing.T) pullthrough.Store {
			s := newPlainStore(t, "")
			return oneTenantsLists{oneTenant{s}, s}
		},
		"written": func(t *testing.T) pullthrough.Store { return writesItself{newPlainStore(t, "")} },
	} {
		t.Run(name, func(t *testing.T) { pullthroughtest.TestStore(t, open) })
	}
}

// planted are bugs, each with the checks that must find it.
var planted = map[string][]string{
	"misses are errors of its own": {"what was not put is a miss", "a blob is seen where it was put"},
	"a miss is no error":           {"what was not put is a miss"},
	"serves layers as manifests":   {"what was not put is a miss"},
	"treats any error as a miss":   {"a look-up whose context has ended is no miss"},

	"encodes manifests anew":                         {"manifests of every kind come back byte for byte"},
	"keeps manifests as text":                        {"manifests of every kind come back byte for byte"},
	"forgets the media type":                         {"an image comes back by tag and by digest", "manifests of every kind come back byte for byte"},
	"forgets the origin":                             {"what is known of a manifest comes back"},
	"forgets the time":                               {"what is known of a manifest comes back"},
	"no time is 1970":                                {"what is known of a manifest comes back"},
	"changes what is put":                            {"what is put is not changed"},
	"shares what it changes":                         {"what was returned does not change", "lists of referrers do not change"},
	"an untagged put is latest":                      {"a manifest needs no tag"},
	"repeated puts are errors":                       {"puts can be repeated", "a stage becomes a blob"},
	"one tag for each digest":                        {"a second tag changes nothing of the first", "tags are listed"},
	"a tag that moves takes its digest away":         {"a tag moves and its old digest stays"},
	"a check changes all tags of the digest":         {"a check changes the time only"},
	"a check stores anew":                            {"a check that comes late moves no tag"},
	"guesses the media type":                         {"content has one type, by each tag and by digest"},
	"knows sha256 only":                              {"a tag has a digest of either kind"},
	"a tag moves in two steps":                       {"readers while a tag moves"},
	"loses what others put":                          {"puts of manifests at once"},
	"tags without case":                              {"names are told apart"},
	"cuts long names":                                {"names are told apart", "the longest names are kept or refused"},
	"forgets the account":                            {"tenants are told apart"},
	"forgets the Region":                             {"tenants are told apart"},
	"joins account, Region and name":                 {"tenants are told apart"},
	"one room for all repositories":                  {"a blob is seen where it was put", "repositories are made", "lists of referrers come back", "what was not put is a miss"},
	"a blob is seen everywhere":                      {"a blob is seen where it was put", "tenants are told apart"},
	"an empty blob is a miss":                        {"blobs come back byte for byte"},
	"stops at a NUL":                                 {"blobs come back byte for byte"},
	"one offset for all readers":                     {"readers of one blob are independent"},
	"seeks from the start only":                      {"a body that seeks seeks right"},
	"a closed body takes the blob away":              {"a body may be closed early"},
	"reads once":                                     {"a reader may be slow and stubborn"},
	"keeps partial blobs":                            {"a reader that fails leaves nothing"},
	"takes a failing reader for one that ends":       {"a reader that fails leaves nothing"},
	"a put that fails takes away what was there":     {"a reader that fails leaves what was there", "a put that fails beside one that does not"},
	"keeps what it refuses":                          {"content without its digest"},
	"holds its lock while it reads":                  {"a reader that calls the Store"},
	"does not unlock with defer":                     {"a reader that panics leaves nothing and no lock"},
	"reads in the background":                        {"blobs come back byte for byte"},
	"takes an ended context for the end of the blob": {"a put whose context has ended keeps nothing"},
	"refuses a second put at once":                   {"puts of one blob at once"},
	"takes away what it writes anew":                 {"readers while a blob is put again"},

	"a commit ignores its context":         {"a commit whose context has ended keeps nothing"},
	"a stage is seen before its commit":    {"a stage becomes a blob"},
	"a stage keeps the caller's buffer":    {"a stage becomes a blob"},
	"has no stages to lend":                {"a stage becomes a blob"},
	"a stage's files share their offset":   {"a stage can be read before, during and after"},
	"a sparse stage appends":               {"a stage that is sparse takes any order"},
	"what is kept has holes":               {"a stage that is kept goes on"},
	"the end is kept, too":                 {"a stage that is kept goes on"},
	"any key gets what is kept":            {"a stage that is kept goes on"},
	"what was kept stays after its commit": {"a stage that is kept goes on"},
	"a stage's files end with it":          {"a stage can be read before, during and after"},
	"an abort keeps what came so far":      {"a stage that is aborted leaves nothing"},
	"an abort takes away what was there":   {"a stage that is aborted leaves what was there"},
	"one place for all stages of a blob":   {"stages of one blob at once"},
	"tags of nothing":                      {"tags are listed"},
	"one page of tags":                     {"a thousand tags are listed"},
	"lists everybody's repositories":       {"repositories are listed"},
	"a repository is made once":            {"repositories are made"},
	"finds no repository":                  {"repositories are found", "repositories are made"},
	"an empty list is a miss":              {"lists of referrers come back"},
	"tagged manifests only":                {"manifests are listed"},
	"a tag goes with its image":            {"a tag is deleted"},
	"tags outlive their image":             {"an image is deleted"},
	"what is below goes, too":              {"a repository is deleted"},
	"a put beside a deletion is lost":      {"deletions and puts at once"},
}

// TestEachCheckFindsWhatItIsFor plants one bug at a time.
func TestEachCheckFindsWhatItIsFor(t *testing.T) {
	found := map[string]bool{}
	for bug, checks := range planted {
		for _, check := range checks {
			found[check] = true
			t.Run(bug+"/"+check, func(t *testing.T) {
				store := newPlainStore(t, bug)
				t.Cleanup(store.release)
				complaints := pullthroughtest.CheckStore(t, check, store, time.Second)
				assert.NotEmpty(t, complaints, "nothing was found")
				for _, c := range complaints {
					assert.Regexp(t, `(?s)^.+\n\trule \(pullthrough\.\w+\): .+\n\tremedy: .+$`, c)
				}
				for _, c := range complaints[:min(len(complaints), 2)] {
					t.Log(c)
				}
			})
		}
	}
	for _, check := range pullthroughtest.StoreChecks() {
		assert.True(t, found[check], "no bug is planted for %q", check)
	}
}

// What a complaint says, of the mistakes that are made most.
func TestAComplaintSaysWhatWasSeenTheRuleAndTheRemedy(t *testing.T) {
	for bug, c := range map[string]struct{ check, seen, rule, remedy string }{
		"forgets the account": {
			"tenants are told apart", "account 444455556666", "Account, Region and Name are one key", "errors.ErrUnsupported",
		},
		"misses are errors of its own": {
			"a blob is seen where it was put", `returned "no such key"`, "A miss is an error that Is io/fs.ErrNotExist.", "return fs.ErrNotExist",
		},
		"forgets the time": {
			"what is known of a manifest comes back", "it was checked at 0001-01-01", "when upstream last confirmed Tag", "keep CheckedAt",
		},
		"encodes manifests anew": {
			"what is known of a manifest comes back", "its content is", "never encoded again", "as []byte",
		},
		"a check stores anew": {
			"a check that comes late moves no tag", "has moved the tag", "With m.Source == SourceRevalidated only the tag's CheckedAt changes", "begin PutManifest with",
		},
		"holds its lock while it reads": {
			"a reader that calls the Store", "another call of the Store takes more than 1s", "holds no lock while it reads r", "read the blob before you take the lock",
		},
		"keeps partial blobs": {
			"a reader that fails leaves nothing", "after its put has failed", "A put that fails keeps nothing", "read all of r first",
		},
		"one tag for each digest": {
			"a second tag changes nothing of the first", "which was put", "Content that is stored already keeps all", "only if its digest is new",
		},
		"a blob is seen everywhere": {
			"a blob is seen where it was put", "returned something, want a miss", "a blob that only another repository has is a miss", "key blobs by repository and digest",
		},
	} {
		t.Run(bug, func(t *testing.T) {
			store := newPlainStore(t, bug)
			t.Cleanup(store.release)
			all := strings.Join(pullthroughtest.CheckStore(t, c.check, store, time.Second), "\n")
			for _, part := range []string{c.seen, c.rule, c.remedy} {
				assert.Contains(t, all, part)
			}
		})
	}
}

// The rules are what the documentation says, word for word.
func TestTheRulesStandInTheDocumentation(t *testing.T) {
	source, err := os.ReadFile("../cache.go")
	require.NoError(t, err)
	text := regexp.MustCompile(`\s*\n\s*//\s*`).ReplaceAllString(string(source), " ")
	file, err := parser.ParseFile(token.NewFileSet(), "storerules.go", nil, 0)
	require.NoError(t, err)
	rules := 0
	ast.Inspect(file, func(n ast.Node) bool {
		if list, ok := n.(*ast.CompositeLit); ok && len(list.Elts) == 3 {
			says, err := strconv.Unquote(list.Elts[1].(*ast.BasicLit).Value)
			require.NoError(t, err)
			assert.Contains(t, text, says)
			rules++
		}
		return true
	})
	assert.Greater(t, rules, 30)
}
