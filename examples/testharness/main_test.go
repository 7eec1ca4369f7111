package main

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// record fills dir with library/app:1 and its platforms, and returns the index, the
// upstream registry, and what was printed.
func record(t *testing.T, dir string, args ...string) (*pullthroughtest.Image, *pullthroughtest.Upstream, string) {
	t.Helper()
	up := pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	index := pullthroughtest.NewHello()
	up.Push("library/app", "1", index)
	up.Push("library/tool", "latest", pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 3}))
	return index, up, fill(t, dir, up, append(args, "docker-hub/library/app:1", "docker-hub/library/tool")...)
}

// fill is the command line.
func fill(t *testing.T, dir string, up *pullthroughtest.Upstream, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	args = append([]string{"-fill", dir, "-rule", "docker-hub=" + up.URL}, args...)
	require.Equal(t, 0, run(t.Context(), args, &stdout, &stderr), stderr.String())
	assert.Empty(t, stderr.String())
	return stdout.String()
}

// asGitKeepsIt removes the empty directories, which a commit would lose.
func asGitKeepsIt(t *testing.T, dir string) {
	t.Helper()
	var dirs []string
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	}))
	for _, path := range slices.Backward(dirs) {
		_ = os.Remove(path) // those that are not empty stay
	}
}

// files are the names and contents of all files below dir.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		all[path] = string(content)
		return err
	}))
	return all
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	resp, err := http.Get(url)
	require.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(b)
}

func assertPulls(t *testing.T, url string, img *pullthroughtest.Image, ref string) {
	t.Helper()
	status, body := get(t, url+"/v2/docker-hub/library/app/manifests/"+ref)
	assert.Equal(t, http.StatusOK, status)
	assert.Equal(t, string(img.Content), body)
	for _, b := range img.Blobs() {
		status, body := get(t, url+"/v2/docker-hub/library/app/blobs/"+b.Digest.String())
		assert.Equal(t, http.StatusOK, status)
		assert.Equal(t, b.Digest, digest.FromString(body))
	}
	for _, child := range img.Children {
		assertPulls(t, url, child, child.Digest.String())
	}
}

func TestFillOnceTestOffline(t *testing.T) {
	dir := t.TempDir()
	index, up, printed := record(t, dir)
	assert.Equal(t, 2, strings.Count(printed, " requests upstream so far"))
	for _, child := range index.Children {
		assert.Contains(t, printed, child.Layers[0].Digest.String()[:19])
	}
	assert.Equal(t, 1, up.Count("* 401"), "one challenge")
	assert.Equal(t, 2, up.Count("* /token 200"), "one token for each repository")
	assert.Equal(t, 1+4+8, up.Count("GET /v2/library/app/* 200"), "each object once")
	up.Close()
	up.Reset()

	asGitKeepsIt(t, dir)
	before := files(t, dir)
	t.Run("offline", func(t *testing.T) {
		url := startOffline(t, dir)
		for range 2 {
			assertPulls(t, url, index, "1")
			assertPulls(t, url, index, index.Digest.String())
		}
	})
	assert.Empty(t, up.Log())
	assert.Equal(t, before, files(t, dir), "a test leaves no trace in what is committed")
}

func TestWhatIsRecordedIsNotFetchedAgain(t *testing.T) {
	dir := t.TempDir()
	_, up, _ := record(t, dir)
	up.Reset()
	printed := fill(t, dir, up, "docker-hub/library/app:1")
	assert.Contains(t, printed, " 0 requests upstream so far")
	assert.Empty(t, up.Log())
}

// report is a test whose failures are looked at.
type report struct {
	testing.TB
	mu     sync.Mutex
	errors []string
}

func (r *report) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

func (r *report) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() { r.errors = nil }()
	return r.errors
}

func TestWhatIsNotRecordedFailsPlainly(t *testing.T) {
	dir := t.TempDir()
	index, _, _ := record(t, dir, "-platform", "linux/amd64")
	r := &report{TB: t}
	url := startOffline(r, dir)
	assertPulls(t, url, index.Children[0], index.Children[0].Digest.String())
	assert.Empty(t, r.take())

	arm := index.Children[1]
	for ref, path := range map[string]string{
		"docker-hub/library/app:2":                                "docker-hub/library/app/manifests/2",
		"docker-hub/library/app@" + arm.Digest.String():           "docker-hub/library/app/manifests/" + arm.Digest.String(),
		"docker-hub/library/app@" + arm.Layers[0].Digest.String(): "docker-hub/library/app/blobs/" + arm.Layers[0].Digest.String(),
		"no/rule/for-this:latest":                                 "no/rule/for-this/manifests/latest",
	} {
		status, body := get(t, url+"/v2/"+path)
		assert.Equal(t, http.StatusBadGateway, status)
		assert.Contains(t, body, "offline: "+ref+" is not stored")
		said := r.take()
		require.Len(t, said, 1, ref)
		assert.Contains(t, said[0], "offline: "+ref+" is not stored")
		assert.Contains(t, said[0], "go run github.com/ecr-pullthrough/pullthrough/examples/testharness@latest -fill "+dir, "it can be copied into any module, and run there")
	}
}

func TestBadCommandLines(t *testing.T) {
	for want, args := range map[string][]string{
		"want -fill DIR":                 {"docker-hub/library/app"},
		"at least one IMAGE":             {"-fill", t.TempDir()},
		"no rule covers it":              {"-fill", t.TempDir(), "library/app"},
		"want OS/ARCH":                   {"-fill", t.TempDir(), "-platform", "linux", "quay/a/b"},
		"invalid value":                  {"-fill", t.TempDir(), "-rule", "quay", "quay/a/b"},
		"prefixes are docker-hub ecr-pu": {"-fill", t.TempDir(), "hub/a"},
	} {
		var stdout, stderr bytes.Buffer
		assert.Equal(t, 2, run(t.Context(), args, &stdout, &stderr), want)
		assert.Contains(t, stderr.String(), want)
	}
	var stdout, stderr bytes.Buffer
	assert.Equal(t, 0, run(t.Context(), []string{"-help"}, &stdout, &stderr))
	assert.Contains(t, stderr.String(), "-platform")
}

func TestAFailedImportExitsWith1(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	var stdout, stderr bytes.Buffer
	args := []string{"-fill", t.TempDir(), "-rule", "hub=" + up.URL, "hub/none:1"}
	assert.Equal(t, 1, run(t.Context(), args, &stdout, &stderr))
	assert.Contains(t, stderr.String(), "hub/none:1")
	assert.Contains(t, stderr.String(), "not found upstream")
	assert.Equal(t, []string{"GET /v2/none/manifests/1 404"}, up.Log())
}

func TestImagesAreReadAsDockerDoes(t *testing.T) {
	d := digest.FromString("x").String()
	for image, want := range map[string][2]string{
		"hub/a":               {"hub/a", "latest"},
		"hub/a:1":             {"hub/a", "1"},
		"hub/a@" + d:          {"hub/a", d},
		"hub/b/c:v1.2":        {"hub/b/c", "v1.2"},
		"hub/odd:5000/thing":  {"hub/odd:5000/thing", "latest"},
		"hub/odd:5000/thing:": {"hub/odd:5000/thing", ""},
	} {
		r := parseImage(image)
		assert.Equal(t, want, [2]string{r.Repo.Name, r.Ref}, image)
	}
}
