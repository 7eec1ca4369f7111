package ecrapi_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestImagesAreDescribedAfterARestart(t *testing.T) {
	dir := t.TempDir()
	open := func() (*registry, func()) {
		store, err := dirstore.Open(dir)
		require.NoError(t, err)
		r := newRegistry(t, store, func(r *registry) { r.catalog.File = filepath.Join(dir, "more", "catalog.json") })
		require.NoError(t, r.catalog.Load())
		return r, func() {
			require.NoError(t, r.proxy.Shutdown(context.Background()))
			require.NoError(t, r.catalog.Save())
			require.NoError(t, store.Close())
		}
	}
	before, end := open()
	before.template(t, `"imageTagMutability":"IMMUTABLE","lifecyclePolicy":"{}"`)
	index := pullthroughtest.NewIndex(image(1), image(2))
	before.up.Push("a", "v1", index)
	before.bring(t, "a", "v1")
	before.wait(60e9)
	before.pull(t, "a", "v1")
	var want []string
	for _, op := range []string{"DescribeImages", "ListImages"} {
		_, body := before.send(t, target+op, `{`+hubA+`}`)
		want = append(want, body)
	}
	_, repositories := before.send(t, target+"DescribeRepositories", `{}`)
	settings, err := before.catalog.Repository(t.Context(), repo("a"))
	require.NoError(t, err)
	end()

	after, end := open()
	defer end()
	after.wait(1e12)
	after.ok(t, "DescribeImages", `{`+hubA+`}`, want[0])
	after.ok(t, "ListImages", `{`+hubA+`}`, want[1])
	after.ok(t, "DescribeRepositories", `{}`, repositories)
	again, err := after.catalog.Repository(t.Context(), repo("a"))
	require.NoError(t, err)
	assert.True(t, settings.CreatedAt.Equal(again.CreatedAt))
	assert.Equal(t, "{}", again.LifecyclePolicy)
	assert.Equal(t, epoch.Unix()+60, after.pulledAt(t, index))
	after.pull(t, "a", "v1")
	assert.Empty(t, after.up.Log())
	assert.ErrorIs(t, after.proxy.Store.PutManifest(t.Context(), repo("a"), manifestOf(image(3), "v1")), pullthrough.ErrImmutable)
}

// A change is written at once, those that follow it together.
func TestTheFileIsWrittenWhenSomethingChanges(t *testing.T) {
	file := filepath.Join(t.TempDir(), "catalog.json")
	has := func(img *pullthroughtest.Image) bool {
		written, err := os.ReadFile(file)
		require.NoError(t, err)
		return strings.Contains(string(written), img.Digest.String())
	}
	synctest.Test(t, func(t *testing.T) { // no time passes while it is written
		c := &ecrapi.Catalog{File: file}
		store := c.Around(memstore.New())
		put := func(seed int64) {
			require.NoError(t, store.PutManifest(t.Context(), repo("a"), manifestOf(image(seed), "")))
		}
		put(1)
		assert.True(t, has(image(1)))
		put(2)
		put(3)
		assert.False(t, has(image(2)))
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
		assert.True(t, has(image(2)))
		assert.True(t, has(image(3)))
		put(4)
		assert.False(t, has(image(4)))
		require.NoError(t, c.Save())
		assert.True(t, has(image(4)))
		require.NoError(t, os.Remove(file))
		time.Sleep(time.Hour)
		synctest.Wait()
		assert.NoFileExists(t, file, "there was nothing left to write")
	})
}

// Pulls that change nothing are not written, until the end.
func TestTheFileIsNotWrittenWithEachPull(t *testing.T) {
	file := filepath.Join(t.TempDir(), "catalog.json")
	r := newRegistry(t, memstore.New(), func(r *registry) { r.catalog.File = file })
	assert.NoFileExists(t, file)
	r.up.Push("a", "v1", image(1))
	r.pull(t, "a", "v1")
	require.NoError(t, r.catalog.Save())
	written, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Contains(t, string(written), image(1).Digest.String())
	require.NoError(t, os.Remove(file))
	r.wait(60e9)
	r.pull(t, "a", "v1")
	assert.NoFileExists(t, file, "a pull alone")
	require.NoError(t, r.catalog.Save())
	copied := &ecrapi.Catalog{File: file}
	require.NoError(t, copied.Load())
	require.NoError(t, copied.Save())
	again, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Contains(t, string(again), `"pulledAt": "2000-01-01T`)
	entries, err := os.ReadDir(filepath.Dir(file))
	require.NoError(t, err)
	assert.Len(t, entries, 1, "nothing else is left")
}

func TestFilesThatCannotBeLoaded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "catalog.json")
	require.NoError(t, (&ecrapi.Catalog{File: file}).Load(), "the first time")
	require.NoError(t, (&ecrapi.Catalog{}).Load())
	require.NoError(t, (&ecrapi.Catalog{}).Save())
	for _, content := range []string{"", "{", "[]", `{}`, `{"version":1,"repositories":[{"name":1}]}`} {
		require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
		require.NoError(t, (&ecrapi.Catalog{File: file}).Load(), "a damaged file is set aside")
		aside, err := os.ReadFile(file + ".damaged")
		require.NoError(t, err)
		assert.Equal(t, content, string(aside))
		assert.NoFileExists(t, file)
	}
	newer := []byte(`{"version":2,"repositories":[]}`)
	require.NoError(t, os.WriteFile(file, newer, 0o600))
	assert.Error(t, (&ecrapi.Catalog{File: file}).Load())
	kept, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, newer, kept, "a newer version has written it")
	assert.Error(t, (&ecrapi.Catalog{File: filepath.Dir(file)}).Load())
}

// That the notes cannot be kept is no reason to refuse a pull.
func TestAFileThatCannotBeWritten(t *testing.T) {
	var log bytes.Buffer
	dir := t.TempDir()
	file := filepath.Join(dir, "catalog.json")
	require.NoError(t, os.Mkdir(file, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(file, "in the way"), nil, 0o600))
	r := newRegistry(t, memstore.New(), func(r *registry) {
		r.catalog.File, r.catalog.Logger = file, slog.New(slog.NewTextHandler(&log, nil))
	})
	r.up.Push("a", "v1", image(1))
	r.pull(t, "a", "v1")
	assert.Len(t, r.tagged(t), 1)
	assert.Contains(t, log.String(), "the catalog could not be saved")
	assert.Error(t, r.catalog.Save())
	require.NoError(t, os.RemoveAll(file))
	require.NoError(t, r.catalog.Save())
	assert.FileExists(t, file)
}

func TestManyAtATime(t *testing.T) {
	file := filepath.Join(t.TempDir(), "catalog.json")
	r := newRegistry(t, memstore.New(), func(r *registry) { r.catalog.File = file })
	const n = 24
	for i := range n {
		r.up.Push("a", fmt.Sprint("v", i), pullthroughtest.NewIndex(image(int64(i)), image(int64(i+1))))
	}
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			ref := fmt.Sprint("v", i)
			_, err := r.proxy.Import(context.Background(), pullthrough.Request{Repo: repo("a"), Ref: ref}, pullthrough.ImportOptions{})
			assert.NoError(t, err)
			_, _, err = r.post(context.Background(), target+"DescribeImages", `{`+hubA+`}`)
			assert.NoError(t, err)
			assert.NoError(t, r.catalog.Save())
		})
	}
	all.Wait()
	assert.Len(t, r.tagged(t), n+1)
	assert.Len(t, r.tagged(t)[""], n+1)
	require.NoError(t, r.catalog.Save())
	other := &ecrapi.Catalog{File: file}
	require.NoError(t, other.Load())
	other.Around(r.proxy.Store)
	r.api.Images.Catalog = other
	assert.Len(t, r.tagged(t), n+1)
}
