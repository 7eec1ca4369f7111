package history_test

import (
	"encoding/json"
	"flag"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var plantFlag = flag.Bool("history.mutants", false, "plant each of the faults in mutants/, and see whether histories find it")

// moduleRoot is where the files of mutants are named from.
const moduleRoot = "../.."

// mutant is a fault to plant. Its file in mutants/ says what it is, then, below a line
// with the name of a source file, the lines to replace, and below "-- with --" what stands
// in their place:
//
//	What the fault is.
//	-- internal/spool/spool.go --
//		return min(written, size-Withheld)
//	-- with --
//		return written
type mutant struct{ file, old, new string }

var mutantForm = regexp.MustCompile(`(?s)\A[^-].*?\n-- (\S+\.go) --\n(.*?)\n-- with --\n(.*?)\n?\z`)

// readMutant returns the mutant of a file, and the source with the fault in it.
func readMutant(t *testing.T, name string) (m mutant, source string) {
	t.Helper()
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	parts := mutantForm.FindStringSubmatch(string(b))
	require.NotNil(t, parts, "%s: it has another form", name)
	m = mutant{filepath.Join(moduleRoot, parts[1]), parts[2], parts[3]}
	whole, err := os.ReadFile(m.file)
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(whole), m.old), "%s no longer applies: %s must have these lines exactly once:\n%s", name, parts[1], m.old)
	source = strings.Replace(string(whole), m.old, m.new, 1)
	_, err = parser.ParseFile(token.NewFileSet(), m.file, source, parser.SkipObjectResolution)
	require.NoError(t, err, "%s is no Go any more", name)
	return m, source
}

func mutantNames(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob("mutants/*.txt")
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(names), 10)
	return names
}

// TestMutantsApply fails where the lines that a mutant replaces have changed: the mutant
// must follow them, or it plants nothing.
func TestMutantsApply(t *testing.T) {
	for _, name := range mutantNames(t) {
		t.Run(filepath.Base(name), func(t *testing.T) { readMutant(t, name) })
	}
}

// TestMutants plants one fault after the other in a copy of its source, which go test takes
// in place of the file, and expects a violation.
func TestMutants(t *testing.T) {
	if !*plantFlag {
		t.Skip("this takes minutes: -history.mutants runs it")
	}
	for _, name := range mutantNames(t) {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) { plant(t, name) })
	}
}

func plant(t *testing.T, name string) {
	m, source := readMutant(t, name)
	dir := t.TempDir()
	changed, overlay := filepath.Join(dir, "changed.go"), filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(changed, []byte(source), 0o600))
	original, err := filepath.Abs(m.file)
	require.NoError(t, err)
	b, err := json.Marshal(map[string]any{"Replace": map[string]string{original: changed}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(overlay, b, 0o600))

	binary := filepath.Join(dir, "history.test")
	out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", binary, "-overlay", overlay, ".").CombinedOutput()
	require.NoError(t, err, "the fault cannot be planted: %s", out)
	start := time.Now()
	out, err = exec.CommandContext(t.Context(), binary, "-test.run", "^TestHistory$", "-test.timeout", "150s", "-history", "90s", "-history.seed", "1").CombinedOutput()
	found := regexp.MustCompile(`history: violated ([^\n]*)|goroutines or descriptors are left`).FindStringSubmatch(string(out))
	if assert.Error(t, err, "nothing was found in %v", time.Since(start)) && assert.NotNil(t, found, "it fails otherwise: %.2000s", out) {
		t.Logf("found after %v: %s", time.Since(start).Round(100*time.Millisecond), found[0])
	}
}
