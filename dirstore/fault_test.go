package dirstore_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
)

// task is a change to a store that has the tag "v1" of image 1.
type task struct {
	name string
	run  func(t *testing.T, s *dirstore.Store) error
	// whole checks what must be there after success, and absent what may not be
	// there in part before.
	whole func(t *testing.T, s *dirstore.Store)
}

func tasks() []task {
	layer := noise(11, 70<<10)
	blobIsThere := func(t *testing.T, s *dirstore.Store) {
		assert.Equal(t, layer, readBlob(t, s, repo, digest.FromBytes(layer)))
	}
	moved := func(m *pullthrough.Manifest) task {
		return task{
			run:   func(t *testing.T, s *dirstore.Store) error { return s.PutManifest(t.Context(), repo, m) },
			whole: func(t *testing.T, s *dirstore.Store) { assertStored(t, m, get(t, s, repo, "v1")) },
		}
	}
	image2, foreign, again := moved(manifestOf(image(2), "v1")), moved(manifestOf(artifact("2"), "v1")), manifestOf(image(1), "v1")
	again.Source, again.CheckedAt = pullthrough.SourceRevalidated, checked.AddDate(0, 0, 1)
	recheck := moved(again)
	image2.name, foreign.name, recheck.name = "a tag moves", "a tag moves out of the registry's sight", "a tag is confirmed"
	return []task{image2, foreign, recheck, {
		name: "a blob is put",
		run: func(t *testing.T, s *dirstore.Store) error {
			return s.PutBlob(t.Context(), repo, descriptor(layer), bytes.NewReader(layer))
		},
		whole: blobIsThere,
	}, {
		name: "a stage is committed",
		run: func(t *testing.T, s *dirstore.Store) error {
			stage, err := s.StageBlob(t.Context(), repo, digest.FromBytes(layer))
			if err != nil {
				return err
			}
			if _, err := stage.WriteAt(layer, 0); err != nil {
				return errors.Join(err, stage.Abort())
			}
			return stage.Commit(t.Context(), descriptor(layer))
		},
		whole: blobIsThere,
	}}
}

// steps counts what the task does to the disk.
func (k task) steps(t *testing.T) int {
	s := open(t, scratch(t))
	put(t, s, repo, manifestOf(image(1), "v1"))
	n := 0
	s.SetProbe(func(string, string) error { n++; return nil })
	require.NoError(t, k.run(t, s))
	return n
}

// assertOldOrNew checks what a reader may see of a task that was cut short: the
// state before or after, never something between.
func assertOldOrNew(t *testing.T, s *dirstore.Store) {
	t.Helper()
	m := get(t, s, repo, "v1")
	want := []*pullthrough.Manifest{manifestOf(image(1), "v1"), manifestOf(image(2), "v1"), manifestOf(artifact("2"), "v1")}
	i := slices.IndexFunc(want, func(w *pullthrough.Manifest) bool { return w.Descriptor.Digest == m.Descriptor.Digest })
	if i == 0 && !m.CheckedAt.Equal(checked) {
		want[0].CheckedAt = checked.AddDate(0, 0, 1)
	}
	assertStored(t, want[i], m)
	if b, err := s.Blob(t.Context(), repo, digest.FromBytes(noise(11, 70<<10))); err == nil {
		assert.Equal(t, int64(70<<10), b.Descriptor.Size)
		assert.NoError(t, b.Body.Close())
	} else {
		assert.ErrorIs(t, err, fs.ErrNotExist)
	}
}

// testACrashAtAnyStep lets every task end for good after each of its steps.
func testACrashAtAnyStep(t *testing.T) {
	for _, k := range tasks() {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			for crash := range k.steps(t) {
				dir := scratch(t)
				s := open(t, dir)
				put(t, s, repo, manifestOf(image(1), "v1"))
				step := 0
				s.SetProbe(func(string, string) error {
					step++
					if step > crash {
						return syscall.EIO
					}
					return nil
				})
				_ = k.run(t, s)
				require.NoError(t, s.Close()) // the lock goes, as with the process

				s = open(t, dir)
				assert.Empty(t, staged(t, dir), "leftovers after step %d", crash)
				assertSound(t, dir)
				assertOldOrNew(t, s)
				require.NoError(t, k.run(t, s))
				k.whole(t, s)
				assertSound(t, dir)
			}
		})
	}
}

// testAFullDiskIsSaidAndHarmsNothing has each step fail once, with errors that
// callers tell apart.
func testAFullDiskIsSaidAndHarmsNothing(t *testing.T) {
	errnos := []syscall.Errno{syscall.ENOSPC, syscall.EMFILE, syscall.EACCES, syscall.EDQUOT, syscall.EIO}
	for _, k := range tasks() {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			for broken := range k.steps(t) {
				dir := scratch(t)
				s := open(t, dir)
				put(t, s, repo, manifestOf(image(1), "v1"))
				step, failed, errno := 0, "", errnos[broken%len(errnos)]
				s.SetProbe(func(op, _ string) error {
					step++
					if step == broken+1 {
						failed = op
						return errno
					}
					return nil
				})
				err := k.run(t, s)
				s.SetProbe(nil)
				if err != nil {
					assert.ErrorIs(t, err, errno)
					assert.NotErrorIs(t, err, fs.ErrNotExist)
					assert.Empty(t, staged(t, dir), "leftovers after a failed %s", failed)
				} else {
					assert.Contains(t, []string{"open", "remove", "touch", "count"}, failed, "only tidying up and notes may fail unnoticed")
					k.whole(t, s)
				}
				assertSound(t, dir)
				assertOldOrNew(t, s)
				require.NoError(t, k.run(t, s))
				k.whole(t, s)
			}
		})
	}
}

// testAFailureIsNoMiss: a store out of file descriptors has not lost anything.
func testAFailureIsNoMiss(t *testing.T) {
	dir := scratch(t)
	first := open(t, dir)
	put(t, first, repo, manifestOf(image(1), "v1"))
	d := putBlob(t, first, repo, []byte("layer"))
	manifest := func(ref string) func(*dirstore.Store) error {
		return func(s *dirstore.Store) error {
			_, err := s.Manifest(t.Context(), repo, ref)
			return err
		}
	}
	for name, read := range map[string]func(*dirstore.Store) error{
		"blob": func(s *dirstore.Store) error {
			b, err := s.Blob(t.Context(), repo, d)
			if err == nil {
				err = b.Body.Close()
			}
			return err
		},
		"tag":    manifest("v1"),
		"digest": manifest(image(1).Digest.String()),
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, dir)
			all := steps(s) // of a hit that nothing is known of
			require.NoError(t, read(s))
			assert.Greater(t, all.Load(), int64(2))
			for broken := range int(all.Load()) {
				s := open(t, dir) // it remembers nothing
				step := 0
				s.SetProbe(func(string, string) error {
					step++
					if step == broken+1 {
						return syscall.EMFILE
					}
					return nil
				})
				err := read(s)
				assert.ErrorIs(t, err, syscall.EMFILE)
				assert.NotErrorIs(t, err, fs.ErrNotExist)
			}
		})
	}
}

// testDamageIsAMissAndHeals has what crashes, other programs and bad disks make
// of the files.
func testDamageIsAMissAndHeals(t *testing.T) {
	layer, img := []byte("layer content"), image(1)
	d, elsewhere := digest.FromBytes(layer), digest.FromString("elsewhere")
	blobLink := func(dir string) string { return layerLink(dir, repo.Name, d) }
	blobData := func(dir string) string { return dataFile(dir, d) }
	revision := func(dir string) string { return revisionLink(dir, repo.Name, img.Digest) }
	data := func(dir string) string { return dataFile(dir, img.Digest) }
	tag := func(dir string) string { return tagLink(dir, repo.Name, "v1") }
	sidecars := func(dir string) string {
		return filepath.Join(filepath.Dir(tag(dir)), "sha256-"+img.Digest.Encoded()+".json")
	}
	const missing = "missing"
	for name, tc := range map[string]struct {
		file          func(dir string) string
		content       string
		blob, gone    bool // the blob is missed, else the manifest; the link is removed
		sidecarDamage bool // no miss: the tag counts as never checked
	}{
		"empty blob link":              {file: blobLink, blob: true, gone: true},
		"half a blob link":             {file: blobLink, content: d.String()[:40], blob: true, gone: true},
		"blob link with a line end":    {file: blobLink, content: d.String() + "\n", blob: true, gone: true},
		"blob link to another digest":  {file: blobLink, content: elsewhere.String(), blob: true, gone: true},
		"blob link out of the store":   {file: blobLink, content: "sha256:../../../../../../../etc/passwd", blob: true, gone: true},
		"long blob link":               {file: blobLink, content: string(make([]byte, 1<<20)), blob: true, gone: true},
		"alias of nothing":             {file: blobLink, content: digest.SHA512.FromBytes(layer).String(), blob: true},
		"no blob link":                 {file: blobLink, content: missing, blob: true},
		"no blob data":                 {file: blobData, content: missing, blob: true},
		"empty blob data":              {file: blobData, blob: true},
		"empty revision link":          {file: revision, gone: true},
		"revision link to another":     {file: revision, content: elsewhere.String(), gone: true},
		"no revision link":             {file: revision, content: missing},
		"empty tag link":               {file: tag, gone: true},
		"tag link that is no digest":   {file: tag, content: "latest", gone: true},
		"tag link to nothing":          {file: tag, content: elsewhere.String()},
		"no tag link":                  {file: tag, content: missing},
		"no manifest data":             {file: data, content: missing},
		"empty manifest data":          {file: data},
		"one wrong byte in a manifest": {file: data, content: string(img.Content[:len(img.Content)-1]) + " "},
		"a huge manifest":              {file: data, content: string(make([]byte, 5<<20))},
		"empty sidecar":                {file: sidecars, sidecarDamage: true},
		"half a sidecar":               {file: sidecars, content: `{"digest":"`, sidecarDamage: true},
		"sidecar of another digest":    {file: sidecars, content: `{"digest":"` + elsewhere.String() + `","mediaType":"a/b","origin":"x"}`, sidecarDamage: true},
		"no sidecar":                   {file: sidecars, content: missing, sidecarDamage: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := open(t, dir)
			fill := func() {
				putBlob(t, s, repo, layer)
				put(t, s, repo, manifestOf(img, "v1"))
			}
			fill()
			require.NoError(t, os.Remove(tc.file(dir)))
			if tc.content != missing {
				write(t, tc.content, tc.file(dir))
			}
			switch {
			case tc.blob:
				assertNoBlob(t, s, repo, d)
				assert.Equal(t, img.Digest, get(t, s, repo, "v1").Descriptor.Digest)
			case tc.sidecarDamage:
				m := get(t, s, repo, "v1")
				assert.Zero(t, m.CheckedAt)
				assert.Empty(t, m.Origin)
				assert.Equal(t, img.MediaType, m.Descriptor.MediaType)
			default:
				assertNoManifest(t, s, repo, "v1")
				readBlob(t, s, repo, d)
			}
			if tc.gone {
				assert.NoFileExists(t, tc.file(dir))
			}
			fill()
			assert.Equal(t, layer, readBlob(t, s, repo, d))
			assertStored(t, manifestOf(img, "v1"), get(t, s, repo, "v1"))
			assertSound(t, dir)
		})
	}
}

// testABlobOfTheWrongSizeIsReplaced: the put knows how long it must be.
func testABlobOfTheWrongSizeIsReplaced(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	d := putBlob(t, s, repo, []byte("layer"))
	write(t, "lay", dataFile(dir, d))
	putBlob(t, s, repo, []byte("layer"))
	assert.Equal(t, "layer", string(readBlob(t, s, repo, d)))
}

func TestOpenOfWhatIsNoDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	write(t, "", file)
	_, err := dirstore.Open(file)
	assert.ErrorIs(t, err, syscall.ENOTDIR)
	_, err = dirstore.Open(filepath.Join(file, "below"))
	assert.ErrorIs(t, err, syscall.ENOTDIR)
}

func testAClosedStoreSaysSo(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	d := putBlob(t, s, repo, []byte("layer"))
	b, err := s.Blob(t.Context(), repo, d)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	_, err = s.Blob(t.Context(), repo, d)
	assert.ErrorIs(t, err, os.ErrClosed)
	_, err = s.Manifest(t.Context(), repo, "v1")
	assert.ErrorIs(t, err, os.ErrClosed)
	assert.ErrorIs(t, s.PutManifest(t.Context(), repo, manifestOf(image(1), "v1")), os.ErrClosed)
	_, err = s.StageBlob(t.Context(), repo, d)
	assert.ErrorIs(t, err, os.ErrClosed)
	assert.NoError(t, b.Body.Close())
	left, err := os.ReadDir(filepath.Join(dir, "pullthrough/staging"))
	require.NoError(t, err)
	assert.Empty(t, left)
}
