//go:build unix

package dirstore_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// powerPut is one put of a story. What has returned is kept, but for the move of a tag.
type powerPut struct {
	name string
	run  func(t *testing.T, s *dirstore.Store) error
	fail func(step dirstore.Step) error // a step of it fails, and so does the put; nil: none
	kept func(s *dirstore.Store) error
}

func powerManifest(repo pullthrough.Repo, m *pullthrough.Manifest) powerPut {
	return powerPut{
		name: fmt.Sprint("manifest ", m.Tag, " ", m.Descriptor.Digest.Encoded()[:6], " ", m.Source),
		run:  func(t *testing.T, s *dirstore.Store) error { return s.PutManifest(t.Context(), repo, m) },
		kept: func(s *dirstore.Store) error {
			if there, err := s.RepoExists(context.Background(), repo); !there {
				return fmt.Errorf("the repository is not there: %w", err)
			}
			return wantManifest(s, repo, m.Descriptor.Digest.String(), m)
		},
	}
}

func powerBlob(repo pullthrough.Repo, content []byte) powerPut {
	d := digest.FromBytes(content)
	return powerPut{
		name: "blob " + d.Encoded()[:6],
		run: func(t *testing.T, s *dirstore.Store) error {
			return s.PutBlob(t.Context(), repo, descriptor(content), strings.NewReader(string(content)))
		},
		kept: func(s *dirstore.Store) error { return wantBlob(s, repo, d) },
	}
}

func powerStage(repo pullthrough.Repo, content []byte) powerPut {
	p := powerBlob(repo, content)
	p.name = "staged " + p.name
	p.run = func(t *testing.T, s *dirstore.Store) error {
		stage, err := s.StageBlob(t.Context(), repo, digest.FromBytes(content))
		if err == nil {
			_, err = stage.WriteAt(content, 0)
		}
		return errors.Join(err, stage.Commit(t.Context(), descriptor(content)))
	}
	return p
}

// failing is the put, cut short by a disk that fails at the nth step of that kind.
func (p powerPut) failing(op, suffix string, n int) powerPut {
	p.name += " that fails"
	p.fail = func(step dirstore.Step) error {
		if step.Op == op && strings.HasSuffix(step.Name, suffix) {
			if n--; n == 0 {
				return syscall.EIO
			}
		}
		return nil
	}
	return p
}

func wantManifest(s *dirstore.Store, repo pullthrough.Repo, ref string, m *pullthrough.Manifest) error {
	got, err := s.Manifest(context.Background(), repo, ref)
	switch {
	case err != nil:
		return fmt.Errorf("manifest %s: %w", ref, err)
	case string(got.Content) != string(m.Content), got.Origin != m.Origin, got.Descriptor.MediaType != m.Descriptor.MediaType:
		return fmt.Errorf("manifest %s is %s from %q", ref, got.Descriptor.MediaType, got.Origin)
	}
	return nil
}

func wantBlob(s *dirstore.Store, repo pullthrough.Repo, d digest.Digest) error {
	b, err := s.Blob(context.Background(), repo, d)
	if err == nil {
		err = readWhole(b, d)
	}
	return err
}

// powerStories are what a store may do before the power goes.
func powerStories(t testing.TB) map[string][]powerPut {
	img, next := image(1), image(2)
	layer := bytesOf(t, img.Layers[0])
	again := manifestOf(img, "v1")
	again.Source, again.CheckedAt = pullthrough.SourceRevalidated, checked.AddDate(0, 0, 1)
	late := "/_manifests/revisions/sha256"
	return map[string][]powerPut{
		"an image": {powerBlob(repo, layer), powerManifest(repo, manifestOf(img, "v1"))},
		"an index": {
			powerManifest(repo, manifestOf(img, "")),
			powerManifest(repo, manifestOf(pullthroughtest.NewIndex(img), "v1")),
		},
		"a tag that moves, and is confirmed": {
			powerManifest(repo, manifestOf(next, "v1")), powerManifest(repo, manifestOf(img, "v1")), powerManifest(repo, again),
		},
		"a second tag":                {powerManifest(repo, manifestOf(img, "v1")), powerManifest(repo, manifestOf(img, "v2"))},
		"out of the registry's sight": {powerManifest(repo, manifestOf(artifact("1"), "v1"))},
		"a stage, and a blob of two":  {powerStage(repo, layer), powerBlob(other, layer)},
		"a put that failed when the revision had its name": {
			powerManifest(repo, manifestOf(img, "v1")).failing("syncdir", late, 1), powerManifest(repo, manifestOf(img, "v2")),
		},
		"a put that failed when the content had its name": {
			powerManifest(repo, manifestOf(img, "v1")).failing("syncdir", "/"+img.Digest.Encoded()[:2], 1), powerManifest(other, manifestOf(img, "v2")),
		},
		"a blob that failed when it had its name": {
			powerBlob(repo, layer).failing("syncdir", "/"+digest.FromBytes(layer).Encoded()[:2], 1), powerBlob(other, layer),
		},
		"a put that failed when the repository was made": {
			powerManifest(repo, manifestOf(img, "v1")).failing("create", "data", 1), powerManifest(repo, manifestOf(img, "v1")),
		},
	}
}

// tell has a store live through the story, and records it.
func tell(t *testing.T, story []powerPut) *powerLog {
	t.Helper()
	dir := scratch(t)
	l := newPowerLog(dir)
	s, err := dirstore.OpenRecorded(dir, l.record)
	require.NoError(t, err)
	l.opening = false
	for _, p := range story {
		l.fail = p.fail
		err := p.run(t, s)
		if p.fail != nil {
			require.ErrorIs(t, err, syscall.EIO)
			l.ops = append(l.ops, powerOp{kind: "failed"})
			continue
		}
		require.NoError(t, err)
		l.done(p.name)
	}
	require.NoError(t, s.Close())
	return l
}

// TestALossOfPower at any moment, with whatever it takes of what was not synced, leaves a
// directory in which each link leads somewhere, and which has all that was put, but for moves of
// tags. The puts heal the rest: in each state where tests may be long, else in one of five.
func TestALossOfPower(t *testing.T) {
	samples, healed := 4, 5
	if testkit.Long() {
		samples, healed = 60, 1
	}
	for name, story := range powerStories(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, n := tell(t, story), 0
			l.states(l.ops, samples, testkit.Long(), func(s powerState, done []string) bool {
				n++
				err := s.check(t, story, done, n%healed == 0)
				if err != nil {
					assert.NoError(t, err, "%v, then:\n%s", done, s.list())
				}
				return err == nil
			})
			t.Logf("%d operations, %d states", len(l.ops), n)
			assert.Greater(t, n, 20)
		})
	}
}

// TestEachSyncIsNeeded: without any one of them a loss of power does harm.
func TestEachSyncIsNeeded(t *testing.T) {
	for name, story := range powerStories(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := tell(t, story)
			failed := slices.IndexFunc(l.ops, func(op powerOp) bool { return op.kind == "failed" })
			for i, op := range l.ops {
				if op.kind != "sync" || i < failed { // what has failed has left much that has no name
					continue
				}
				without := slices.Delete(slices.Clone(l.ops), i, i+1)
				if failed >= 0 { // nobody knows what is on the disk, and it is synced once more
					without = slices.DeleteFunc(without, func(other powerOp) bool { return other.kind == "sync" && other.node == op.node })
				}
				var found error
				l.statesWithout(without, op.node, i, func(s powerState, done []string) bool {
					found = s.check(t, story, done, false)
					return found == nil
				})
				assert.Error(t, found, "without the sync of %s nothing is lost", op.name)
			}
		})
	}
}

func (s powerState) list() string {
	var b strings.Builder
	for name, content := range s {
		fmt.Fprintf(&b, "%s %q\n", name, content)
	}
	return b.String()
}

// check looks at the state as the registry does, and as a store does. With heal all puts
// are made again, and all must be there then.
func (s powerState) check(t *testing.T, story []powerPut, done []string, heal bool) error {
	if err := s.plain(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(os.Getenv("TMPDIR"), "power")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := s.build(dir); err != nil {
		return err
	}
	store, err := dirstore.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	if err := s.asStore(store); err != nil {
		return err
	}
	for _, p := range story {
		if slices.Contains(done, p.name) {
			if err := p.kept(store); err != nil {
				return fmt.Errorf("%s has returned: %w", p.name, err)
			}
		}
	}
	if !heal {
		return nil
	}
	for _, p := range story {
		if err := errors.Join(p.run(t, store), p.kept(store)); err != nil {
			return fmt.Errorf("%s once more: %w", p.name, err)
		}
	}
	return nil
}

func (s powerState) build(dir string) error {
	for name, content := range s {
		full := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(full, 0o755); err != nil {
				return err
			}
			continue
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(full), 0o755), os.WriteFile(full, []byte(content), 0o644)); err != nil {
			return err
		}
	}
	return nil
}

var powerLink = regexp.MustCompile(`^(docker/registry/v2|pullthrough)/repositories/(.*?)/(_layers|_manifests/revisions|_manifests/tags/([^/]+)/(?:current|index))(?:/(sha256)/([0-9a-f]{64}))?/link$`)

// plain reads the layout as the registry does.
func (s powerState) plain() error {
	for name, content := range s {
		if at := strings.Index(name, "/_manifests/"); at > 0 && strings.HasPrefix(name, "docker/") {
			if _, ok := s[name[:at]+"/_layers/"]; !ok {
				return fmt.Errorf("%s without _layers", name)
			}
		}
		if path.Base(name) == "data" && digest.FromString(content).Encoded() != path.Base(path.Dir(name)) {
			return fmt.Errorf("%s is not whole", name)
		}
		part := powerLink.FindStringSubmatch(name)
		if part == nil {
			if path.Base(name) == "link" {
				return fmt.Errorf("%s: no such link", name)
			}
			continue
		}
		if err := s.leads(part, digest.Digest(content)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (s powerState) leads(part []string, d digest.Digest) error {
	switch {
	case d.Validate() != nil:
		return fmt.Errorf("it says %q", d)
	case strings.HasSuffix(part[3], "/index"):
		return nil
	case strings.HasSuffix(part[3], "/current"):
		for _, tree := range []layout.Tree{layout.Registry, layout.Own} {
			if _, ok := s[layout.Link(layout.Repository{Tree: tree, Name: part[2]}.Revision(d))]; ok {
				return nil
			}
		}
		return errors.New("it leads to no manifest")
	}
	if _, ok := s[layout.Tree(part[1]).Data(d)]; !ok {
		return errors.New("it leads to no content")
	}
	return nil
}

// asStore asks the store for all that has a link.
func (s powerState) asStore(store *dirstore.Store) error {
	for name, content := range s {
		part := powerLink.FindStringSubmatch(name)
		if part == nil {
			continue
		}
		repo, _ := layout.Owner{}.Repo(part[2])
		var err error
		switch {
		case part[3] == "_layers":
			err = wantBlob(store, repo, digest.Digest(content))
		case strings.HasSuffix(part[3], "/index"):
		default:
			ref := content
			if part[4] != "" {
				ref = part[4]
			}
			var m *pullthrough.Manifest
			if m, err = store.Manifest(context.Background(), repo, ref); err == nil && m.Origin == "" {
				err = errors.New("nobody knows where it is from")
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
