package pullthrough_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// shape is a row of testdata/manifests/shapes/README.md, with its document.
type shape struct {
	name, served, becomes             string
	children, blobs, foreign, missing int
	content                           []byte
}

// shapes are all of them, and the blobs that they refer to.
type shapes struct {
	all       []shape
	manifests map[string]shape // by digest
	blobs     map[string]string
}

const shapesDir = "testdata/manifests/shapes"

func readShapes(t *testing.T) *shapes {
	t.Helper()
	s := &shapes{manifests: map[string]shape{}, blobs: map[string]string{}}
	contents, err := os.ReadFile(filepath.Join(shapesDir, "contents.txt"))
	require.NoError(t, err)
	for line := range strings.Lines(string(contents)) {
		line = strings.TrimSuffix(line, "\n")
		s.blobs[digest.FromString(line).String()] = line
		s.blobs[digest.SHA512.FromString(line).String()] = line
	}
	table, err := os.ReadFile(filepath.Join(shapesDir, "README.md"))
	require.NoError(t, err)
	for line := range strings.Lines(string(table)) {
		if cells := strings.Split(line, "|"); len(cells) == 10 && !strings.HasPrefix(line, "| manifest") && !strings.HasPrefix(line, "|--") {
			s.add(t, cells)
		}
	}
	files, err := filepath.Glob(filepath.Join(shapesDir, "*.json"))
	require.NoError(t, err)
	require.Len(t, files, len(s.all), "each file has its row")
	return s
}

func (s *shapes) add(t *testing.T, cells []string) {
	t.Helper()
	for i := range cells {
		cells[i] = strings.TrimSpace(cells[i])
	}
	number := func(cell string) int {
		n, err := strconv.Atoi(cell)
		require.NoError(t, err, cells[1])
		return n
	}
	one := shape{
		name: cells[1], served: cells[3], becomes: cells[4],
		children: number(cells[5]), blobs: number(cells[6]), foreign: number(cells[7]), missing: number(cells[8]),
	}
	var err error
	one.content, err = os.ReadFile(filepath.Join(shapesDir, one.name+".json"))
	require.NoError(t, err)
	if one.served == "" {
		var said struct{ MediaType string }
		require.NoError(t, json.Unmarshal(one.content, &said))
		one.served = said.MediaType
	}
	s.all = append(s.all, one)
	s.manifests[digest.FromBytes(one.content).String()] = one
}

// isForeign reports whether a blob is a layer that only its own URL has.
func isForeign(content string) bool { return strings.HasPrefix(content, "foreign: ") }

// registry answers for one shape, by the tag "1", and for all that it may refer to.
func (s *shapes) registry(tagged shape) pullthroughtest.Config {
	return pullthroughtest.Config{Handler: func(w http.ResponseWriter, r *http.Request) bool {
		_, ref, isManifest := strings.Cut(r.URL.Path, "/manifests/")
		_, d, isBlob := strings.Cut(r.URL.Path, "/blobs/")
		m, ok := s.manifests[ref]
		if ref == "1" {
			m, ok = tagged, true
		}
		b, hasBlob := s.blobs[d]
		hasBlob = hasBlob && !isForeign(b)
		switch {
		case isManifest && ok:
			w.Header().Set("Content-Type", m.served)
			_, _ = w.Write(m.content)
		case isBlob && hasBlob:
			w.Header().Set("Content-Length", strconv.Itoa(len(b)))
			_, _ = w.Write([]byte(b))
		default:
			w.WriteHeader(http.StatusNotFound)
		}
		return true
	}}
}

// What becomes of manifests as other projects make them is told in a table.
func TestShapesOfOtherProjects(t *testing.T) {
	s := readShapes(t)
	for name, mode := range map[string]pullthrough.FillMode{"background": pullthrough.FillBackground, "eager": pullthrough.FillEager} {
		for _, one := range s.all {
			t.Run(name+"/"+one.name, func(t *testing.T) {
				f := testkit.NewFace(t, s.registry(one), func(p *pullthrough.Proxy) { p.Fill = mode })
				got := f.Get(t, testkit.ManifestPath("a", "1"))
				f.Settled(t)
				if status, err := strconv.Atoi(one.becomes); err == nil {
					assert.Equal(t, status, got.StatusCode)
					_, err := f.Stored(t, "1")
					assert.ErrorIs(t, err, fs.ErrNotExist)
					assert.Equal(t, 1, f.Up.Count("*"))
					return
				}
				require.Equal(t, 200, got.StatusCode)
				assert.Equal(t, one.becomes, got.Header.Get("Content-Type"))
				s.assertStored(t, f, one)
				s.assertServed(t, f, one)
			})
		}
	}
}

// assertStored compares the Store, and what upstream was asked for, with the table.
func (s *shapes) assertStored(t *testing.T, f *testkit.Face, one shape) {
	t.Helper()
	own := digest.FromBytes(one.content)
	text, children, blobs := string(one.content), 0, 0
	for d, m := range s.manifests {
		if stored, err := f.Mem.Manifest(t.Context(), testkit.Repo("a"), d); err == nil {
			assert.Equal(t, string(m.content), string(stored.Content))
			if d != own.String() {
				children++
				text += string(m.content)
			}
		}
	}
	foreign := 0
	for d, content := range s.blobs {
		if has(t, f, digest.Digest(d)) {
			blobs++
		}
		if isForeign(content) && strings.Contains(text, d) {
			foreign++
		}
	}
	missing := map[string]bool{}
	for _, r := range f.Up.Requests() {
		if r.Status == http.StatusNotFound && !isForeign(s.blobs[filepath.Base(r.Path)]) {
			missing[r.Path] = true
		}
	}
	want := []int{one.children, one.blobs, one.foreign, one.missing}
	assert.Equal(t, want, []int{children, blobs, foreign, len(missing)}, "children, blobs, foreign, missing")
	asked := map[string]bool{}
	for _, r := range f.Up.Requests() {
		assert.False(t, asked[r.String()], "asked for twice: %s", r)
		asked[r.String()] = true
	}
}

func has(t *testing.T, f *testkit.Face, d digest.Digest) bool {
	b, err := f.Mem.Blob(context.WithoutCancel(t.Context()), testkit.Repo("a"), d)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	require.NoError(t, err)
	require.NoError(t, b.Body.Close())
	return true
}

// assertServed pulls it all again, from here.
func (s *shapes) assertServed(t *testing.T, f *testkit.Face, one shape) {
	t.Helper()
	f.Up.Reset()
	for _, ref := range []string{"1", digest.FromBytes(one.content).String()} {
		got := f.Get(t, testkit.ManifestPath("a", ref))
		require.Equal(t, 200, got.StatusCode)
		assert.Equal(t, string(one.content), string(got.Content))
		assert.Equal(t, one.becomes, got.Header.Get("Content-Type"))
	}
	for d, content := range s.blobs {
		if has(t, f, digest.Digest(d)) {
			got := f.Get(t, testkit.BlobPath("a", digest.Digest(d)))
			require.Equal(t, 200, got.StatusCode)
			assert.Equal(t, content, string(got.Content))
		}
	}
	assert.Empty(t, f.Up.Log())
}
