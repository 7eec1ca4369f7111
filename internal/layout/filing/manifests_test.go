package filing_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/filing"
)

var (
	repo    = pullthrough.Repo{Name: "app"}
	checked = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
)

// shelf is a store in a map that notes what is done to it.
type shelf struct {
	files  map[string]string
	steps  []string
	fail   int  // the how manieth step fails; 0: none
	plants bool // a directory comes in one step
	folds  bool // upper and lower case are one: a name is as it was first written
}

// nameOf is the name that the file has, or would have.
func (s *shelf) nameOf(name string) string {
	if !s.folds {
		return name
	}
	found := ""
	for part := range strings.SplitSeq(name, "/") {
		found = path.Join(found, part)
		for file := range s.files {
			if len(file) >= len(found) && strings.EqualFold(file[:len(found)], found) && (len(file) == len(found) || file[len(found)] == '/') {
				found = file[:len(found)]
				break
			}
		}
	}
	return found
}

var errFull = errors.New("full")

func (s *shelf) step(op, name string) error {
	if s.steps = append(s.steps, strings.TrimSpace(op+" "+name)); len(s.steps) == s.fail {
		return errFull
	}
	return nil
}

func (s *shelf) Read(_ context.Context, name string, _ int64) ([]byte, error) {
	content, ok := s.files[s.nameOf(name)]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return []byte(content), nil
}

func (s *shelf) Content(ctx context.Context, name string, d digest.Digest) ([]byte, time.Time, error) {
	content, err := s.Read(ctx, name, 0)
	if err == nil {
		err = layout.CheckContent(content, d)
	}
	return content, time.Now(), err
}

func (s *shelf) Touch(_ context.Context, name string) error { return s.step("touch", name) }

func (s *shelf) Lists(_ context.Context, dir, name string) (bool, error) {
	for file := range s.files {
		if below, ok := strings.CutPrefix(file, s.nameOf(dir)+"/"); ok && strings.HasPrefix(below, name+"/") {
			return true, nil
		}
	}
	return false, nil
}

func (s *shelf) Discard(name string, good func([]byte) bool) {
	if !good([]byte(s.files[name])) {
		delete(s.files, name)
	}
}

func (s *shelf) Write(_ context.Context, name string, content []byte) error {
	if err := s.step("write", name); err != nil {
		return err
	}
	s.files[s.nameOf(name)] = string(content)
	return nil
}

func (s *shelf) Note(ctx context.Context, name string, content []byte) error {
	return s.Write(ctx, name, content)
}

func (s *shelf) WriteContent(ctx context.Context, _ layout.Repository, name string, m *pullthrough.Manifest) error {
	return s.Write(ctx, name, m.Content)
}

func (s *shelf) Remove(_ context.Context, name string) error {
	delete(s.files, s.nameOf(name))
	return s.step("remove", name)
}

func (s *shelf) Plant(_ context.Context, tree filing.Tree) (bool, error) {
	if !s.plants {
		return false, nil
	}
	for name := range s.files {
		if strings.HasPrefix(name, s.nameOf(tree.Dir)+"/") {
			return false, nil
		}
	}
	if err := s.step("plant", tree.Dir); err != nil {
		return true, err
	}
	for _, f := range tree.Files {
		s.files[s.nameOf(path.Join(tree.Dir, f.Name))] = string(f.Content)
	}
	return true, nil
}

func (s *shelf) Reuse(ctx context.Context, v filing.Revision) error { return s.Touch(ctx, v.Data) }

func (s *shelf) Name() error { return s.step("name", "") }

func (s *shelf) Sync() error { return s.step("sync", "") }

func manifest(content, tag string) *pullthrough.Manifest {
	content = `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `","annotations":{"x":"` + content + `"}}`
	m := &pullthrough.Manifest{Content: []byte(content), Tag: tag, CheckedAt: checked, Origin: "registry.example"}
	m.Descriptor = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(content), Size: int64(len(content))}
	return m
}

// world is a shelf with what reads and writes it.
type world struct {
	*shelf
	all *filing.Manifests
	at  layout.Repository
}

func newWorld(files map[string]string) world {
	return world{&shelf{files: files}, filing.NewManifests(time.Second, time.Minute, filing.NewSizes()), layout.NewRepository(repo.Name)}
}

func (w world) put(m *pullthrough.Manifest) error {
	return w.all.Write(context.Background(), w.shelf, w.at, repo, m)
}

func (w world) get(ref string) (*pullthrough.Manifest, error) {
	return w.all.Read(context.Background(), w.shelf, w.at, filing.Object{Repo: repo, Ref: ref})
}

// TestTheOrderOfAPut is what makes it safe: each file is there before what leads
// to it, and on the disk before the tag names it.
func TestTheOrderOfAPut(t *testing.T) {
	w := newWorld(map[string]string{})
	one, two := manifest("1", "v1"), manifest("2", "v1")
	d, e := one.Descriptor.Digest, two.Descriptor.Digest
	require.NoError(t, w.put(one))
	assert.Equal(t, []string{
		"write " + layout.Registry.Data(d),
		"write " + layout.SidecarFile(w.at.Revision(d), d),
		"sync",
		"write " + layout.Link(w.at.Revision(d)),
		"write " + layout.SidecarFile(w.at.Tag("v1"), d),
		"sync",
		"write " + layout.Link(w.at.Tag("v1")),
	}, w.steps)
	require.NoError(t, w.put(two))
	assert.Equal(t, []string{
		"write " + layout.SidecarFile(w.at.Tag("v1"), e),
		"sync",
		"write " + layout.Link(w.at.Tag("v1")),
		"sync",
		"remove " + layout.SidecarFile(w.at.Tag("v1"), d),
		"write " + layout.Link(w.at.History("v1", d)),
	}, w.steps[len(w.steps)-6:])

	w.steps = nil
	require.NoError(t, w.put(two))
	assert.Equal(t, []string{"touch " + layout.Registry.Data(e), "sync"}, w.steps)
	w.steps, two.Source, two.CheckedAt = nil, pullthrough.SourceRevalidated, checked.Add(time.Hour)
	require.NoError(t, w.put(two))
	assert.Equal(t, []string{"write " + layout.SidecarFile(w.at.Tag("v1"), e)}, w.steps)
}

// TestTheOrderOfAPutWhereDirectoriesComeInOneStep: a revision does, and a new tag.
func TestTheOrderOfAPutWhereDirectoriesComeInOneStep(t *testing.T) {
	w := newWorld(map[string]string{})
	w.plants = true
	one := manifest("1", "v1")
	d := one.Descriptor.Digest
	require.NoError(t, w.put(one))
	assert.Equal(t, []string{
		"write " + layout.Registry.Data(d),
		"plant " + w.at.Revision(d),
		"plant " + path.Dir(w.at.Tag("v1")),
		"name",
	}, w.steps)
	m, err := w.get("v1")
	require.NoError(t, err)
	assert.Equal(t, one, m)

	w.steps = nil
	require.NoError(t, w.put(manifest("2", "")))
	require.NoError(t, w.put(manifest("1", "v2")))
	assert.Equal(t, []string{"sync", "touch " + layout.Registry.Data(d), "plant " + path.Dir(w.at.Tag("v2")), "name"}, w.steps[2:])
}

// TestAPutThatFailsAtAnyStep leaves the old tag or the new one, and the next put
// heals it.
func TestAPutThatFailsAtAnyStep(t *testing.T) {
	one, two := manifest("1", "v1"), manifest("2", "v1")
	for fail, more := 1, true; more; fail++ {
		w := newWorld(map[string]string{})
		require.NoError(t, w.put(one))
		w.steps, w.fail = nil, fail
		err := w.put(two)
		more = len(w.steps) >= fail
		if err != nil {
			assert.ErrorIs(t, err, errFull)
		}
		m, err := newWorld(w.files).get("v1")
		require.NoError(t, err)
		if m.Descriptor.Digest == one.Descriptor.Digest {
			assert.Equal(t, one, m)
		} else {
			assert.Equal(t, two, m)
		}
		w.fail = 0
		require.NoError(t, w.put(two))
		m, err = newWorld(w.files).get("v1")
		require.NoError(t, err)
		assert.Equal(t, two, m)
	}
}

// TestEachFileMayBeMissing or cut: what was put is found, or is a miss, and the
// next put heals it.
func TestEachFileMayBeMissing(t *testing.T) {
	w := newWorld(map[string]string{})
	m := manifest("1", "v1")
	require.NoError(t, w.put(m))
	for _, name := range slices.Sorted(maps.Keys(w.files)) {
		for _, cut := range []bool{false, true} {
			files := maps.Clone(w.files)
			if delete(files, name); cut {
				files[name] = w.files[name][:len(w.files[name])/2]
			}
			damaged := newWorld(files)
			got, err := damaged.get("v1")
			if err == nil {
				assert.Equal(t, m.Content, got.Content)
			} else {
				assert.ErrorIs(t, err, fs.ErrNotExist, name)
			}
			require.NoError(t, damaged.put(m))
			got, err = damaged.get("v1")
			require.NoError(t, err, name)
			assert.Equal(t, m, got)
		}
	}
}

// TestHowLongLinksAreBelieved: a tag for a second, a digest for a minute.
func TestHowLongLinksAreBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(map[string]string{})
		one, two := manifest("1", "v1"), manifest("2", "v1")
		require.NoError(t, w.put(one))
		_, err := w.get("v1")
		require.NoError(t, err)
		require.NoError(t, newWorld(w.files).put(two)) // another process
		m, err := w.get("v1")
		require.NoError(t, err)
		assert.Equal(t, one, m)
		time.Sleep(time.Second)
		m, err = w.get("v1")
		require.NoError(t, err)
		assert.Equal(t, two, m)
		assert.NotZero(t, w.all.LastUse(repo, two.Descriptor.Digest))

		clear(w.files)
		_, err = w.get(string(two.Descriptor.Digest))
		assert.NoError(t, err)
		time.Sleep(time.Minute)
		_, err = w.get(string(two.Descriptor.Digest))
		assert.ErrorIs(t, err, fs.ErrNotExist)
		assert.Nil(t, w.all.Fresh(filing.Object{Repo: repo, Ref: "v1"}))
	})
}

// TestAUseIsNotedOnceAnHour, and content that is gone by then is a miss.
func TestAUseIsNotedOnceAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(map[string]string{})
		m := manifest("1", "")
		require.NoError(t, w.put(m))
		w.steps = nil
		for range 180 {
			_, err := w.get(string(m.Descriptor.Digest))
			require.NoError(t, err)
			time.Sleep(time.Minute)
		}
		assert.Len(t, w.steps, 2)
	})
}

// TestATagIsBelievedNoLongerThanItsManifest: what is removed is seen after
// linkAge, by tag too.
func TestATagIsBelievedNoLongerThanItsManifest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(map[string]string{})
		w.all = filing.NewManifests(time.Second, time.Second, filing.NewSizes())
		m := manifest("1", "v1")
		require.NoError(t, w.put(m))
		_, err := w.get(string(m.Descriptor.Digest))
		require.NoError(t, err)
		time.Sleep(900 * time.Millisecond)
		_, err = w.get("v1")
		require.NoError(t, err)
		delete(w.files, layout.Link(w.at.Revision(m.Descriptor.Digest)))
		time.Sleep(100 * time.Millisecond)
		_, err = w.get("v1")
		assert.ErrorIs(t, err, fs.ErrNotExist)
	})
}

// TestATagThatMovesWhileItIsRead is not remembered as it was.
func TestATagThatMovesWhileItIsRead(t *testing.T) {
	w := newWorld(map[string]string{})
	one, two := manifest("1", "v1"), manifest("2", "v1")
	require.NoError(t, w.put(one))
	slow := slowShelf{w.shelf, func() { require.NoError(t, w.put(two)) }}
	_, err := w.all.Read(t.Context(), slow, w.at, filing.Object{Repo: repo, Ref: "v1"})
	require.NoError(t, err)
	m, err := w.get("v1")
	require.NoError(t, err)
	assert.Equal(t, two, m)
}

// slowShelf has something happen while content is read.
type slowShelf struct {
	*shelf
	meanwhile func()
}

func (s slowShelf) Content(ctx context.Context, name string, d digest.Digest) ([]byte, time.Time, error) {
	s.meanwhile()
	return s.shelf.Content(ctx, name, d)
}

// TestTagsThatDifferInCaseOnly are two tags, or the second one is an error: never one.
func TestTagsThatDifferInCaseOnly(t *testing.T) {
	one, two := manifest("1", "v1"), manifest("2", "V1")
	for name, prepare := range map[string]func(w world){
		"the sidecar has the name": func(world) {},
		"an old sidecar": func(w world) {
			file := layout.SidecarFile(w.at.Tag("v1"), one.Descriptor.Digest)
			w.files[file] = strings.Replace(w.files[file], `,"tag":"v1"`, "", 1)
		},
		"no sidecar": func(w world) { delete(w.files, layout.SidecarFile(w.at.Tag("v1"), one.Descriptor.Digest)) },
	} {
		for _, folds := range []bool{true, false} {
			t.Run(fmt.Sprint(name, ", folds=", folds), func(t *testing.T) {
				w := newWorld(map[string]string{})
				w.folds = folds
				require.NoError(t, w.put(one))
				prepare(w)
				w.all = newWorld(nil).all // another process
				_, err := w.get("V1")
				require.ErrorIs(t, err, fs.ErrNotExist)
				err = w.put(two)
				assert.Equal(t, folds, err != nil)
				assert.NotErrorIs(t, err, fs.ErrNotExist)
				again := *two
				again.Source = pullthrough.SourceRevalidated
				assert.Equal(t, folds, w.put(&again) != nil)

				w.all = newWorld(nil).all
				m, err := w.get("v1")
				require.NoError(t, err)
				assert.Equal(t, one.Content, m.Content)
				m, err = w.get("V1")
				if folds {
					assert.ErrorIs(t, err, fs.ErrNotExist)
				} else if assert.NoError(t, err) {
					assert.Equal(t, two, m)
				}
				require.NoError(t, w.put(one))
				m, err = w.get("v1")
				require.NoError(t, err)
				assert.Equal(t, one, m)
			})
		}
	}
}
