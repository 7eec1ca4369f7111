package history_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
)

// The calls of a Store that can go wrong.
var storeCalls = []string{"Manifest", "Blob", "PutManifest", "PutBlob", "StageBlob", "WriteAt", "Commit", "RepoExists", "CreateRepo", "Referrers", "PutReferrers"}

// storeFault is how the next calls go wrong.
type storeFault struct {
	call  string
	times int
	kind  int // of the next three
	stall time.Duration
}

const (
	storeFails = iota
	storePanics
	storeStalls
	storeFaults
)

var errStore = errors.New("the Store of the test fails")

// faultyStore is a Store that fails, panics, waits and loses content, as it is told. It
// notes what the proxy puts.
type faultyStore struct {
	w     *world
	inner pullthrough.Store

	mu     sync.Mutex
	faults []*storeFault
	lost   map[name]bool       // digests
	puts   map[name][]interval // of tags, by the proxy
	failed map[place]int       // puts that have failed since the act began
}

// interval is the time of a put.
type interval struct{ start, end time.Time }

func newFaultyStore(w *world, inner pullthrough.Store) *faultyStore {
	return &faultyStore{w: w, inner: inner, lost: map[name]bool{}, puts: map[name][]interval{}, failed: map[place]int{}}
}

// fail makes the next calls go wrong.
func (s *faultyStore) fail(f storeFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &f)
}

// heal ends all faults.
func (s *faultyStore) heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// before is what goes wrong with a call before it is made.
func (s *faultyStore) before(call string, n name) error {
	s.mu.Lock()
	var fault *storeFault
	for _, f := range s.faults {
		if f.call == call && f.times > 0 {
			f.times--
			fault = f
			break
		}
	}
	s.mu.Unlock()
	if fault == nil {
		return nil
	}
	s.w.note(n.String(), "Store.%s: fault %d", call, fault.kind)
	switch fault.kind {
	case storePanics:
		panic(errStore)
	case storeStalls:
		time.Sleep(fault.stall)
		return nil
	}
	return errStore
}

// put makes a put of the proxy. Its failure must be told by an event. home is where the
// content comes from, from.name "" if that is not known.
func (s *faultyStore) put(call string, n name, from home, do func() error) (err error) {
	s.w.checkPut(n, from)
	failed := true
	defer func() {
		if failed && call != "PutReferrers" {
			s.mu.Lock()
			s.failed[n.place]++
			s.mu.Unlock()
		}
	}()
	if err = s.before(call, n); err == nil {
		err = do()
	}
	failed = errors.Is(err, errStore) // what the inner Store says may be an answer
	s.w.note(n.String(), "Store.%s: %v", call, err)
	return err
}

// takeFailed are the puts that have failed since it was called last.
func (s *faultyStore) takeFailed() map[place]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	failed := s.failed
	s.failed = map[place]int{}
	return failed
}

// lose makes a manifest or blob vanish until it is put again.
func (s *faultyStore) lose(n name) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost[n] = true
}

func (s *faultyStore) found(n name) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.lost, n)
}

func (s *faultyStore) isLost(n name) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost[n]
}

// putsOf are the puts of a tag by the proxy.
func (s *faultyStore) putsOf(n name) []interval {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]interval(nil), s.puts[n]...)
}

func miss(n name) error { return &fs.PathError{Op: "open", Path: n.String(), Err: fs.ErrNotExist} }

// look is Manifest without faults, for the checks.
func (s *faultyStore) look(ctx context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	m, err := s.inner.Manifest(ctx, repo, ref)
	if err == nil && s.isLost(name{placeOf(repo), m.Descriptor.Digest.String()}) {
		return nil, miss(name{placeOf(repo), ref})
	}
	return m, err
}

// has is Blob without faults, for the checks.
func (s *faultyStore) has(ctx context.Context, repo pullthrough.Repo, d digest.Digest) bool {
	if s.isLost(name{placeOf(repo), d.String()}) {
		return false
	}
	b, err := s.inner.Blob(ctx, repo, d)
	if err != nil {
		return false
	}
	_ = b.Body.Close() // nothing was read
	return true
}

// Manifest implements pullthrough.Store.
func (s *faultyStore) Manifest(ctx context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	if err := s.before("Manifest", name{placeOf(repo), ref}); err != nil {
		return nil, err
	}
	return s.look(ctx, repo, ref)
}

// PutManifest implements pullthrough.Store.
func (s *faultyStore) PutManifest(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	d := name{placeOf(repo), m.Descriptor.Digest.String()}
	tag := name{d.place, m.Tag}
	start := time.Now()
	store := func() error {
		err := s.inner.PutManifest(ctx, repo, m)
		if err == nil {
			s.found(d)
			s.w.repoThere(d.place)
		}
		return err
	}
	if m.Origin == "" {
		return store() // the host's own push
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.puts[tag] = append(s.puts[tag], interval{start, time.Now()})
	}()
	from := home{}
	if m.Source == pullthrough.SourceFill {
		from = s.w.model.objects[m.Descriptor.Digest].home
	}
	err := s.put("PutManifest", d, from, store)
	s.w.note(tag.String(), "Store has %s: %v", d.ref, err)
	return err
}

// Blob implements pullthrough.Store.
func (s *faultyStore) Blob(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	n := name{placeOf(repo), d.String()}
	if err := s.before("Blob", n); err != nil {
		return nil, err
	}
	if s.isLost(n) {
		return nil, miss(n)
	}
	return s.inner.Blob(ctx, repo, d)
}

// PutBlob implements pullthrough.Store.
func (s *faultyStore) PutBlob(ctx context.Context, repo pullthrough.Repo, desc ocispec.Descriptor, r io.ReadSeeker) error {
	n := name{placeOf(repo), desc.Digest.String()}
	return s.put("PutBlob", n, s.w.model.objects[desc.Digest].home, func() error {
		err := s.inner.PutBlob(ctx, repo, desc, r)
		if err == nil {
			s.found(n)
		}
		return err
	})
}

// lister is a faultyStore whose inner one lists tags and repositories.
type lister struct{ *faultyStore }

// Tags implements pullthrough.TagLister.
func (s lister) Tags(ctx context.Context, repo pullthrough.Repo) ([]string, error) {
	return s.inner.(pullthrough.TagLister).Tags(ctx, repo)
}

// Repos implements pullthrough.RepoLister.
func (s lister) Repos(ctx context.Context, account, region string) ([]string, error) {
	return s.inner.(pullthrough.RepoLister).Repos(ctx, account, region)
}

// Manifests implements pullthrough.ManifestLister.
func (s lister) Manifests(ctx context.Context, repo pullthrough.Repo) iter.Seq2[digest.Digest, error] {
	return func(yield func(digest.Digest, error) bool) {
		for d, err := range s.inner.(pullthrough.ManifestLister).Manifests(ctx, repo) {
			if !s.isLost(name{placeOf(repo), d.String()}) && !yield(d, err) {
				return
			}
		}
	}
}

// directory is a lister with all else that a Store may be.
type directory struct{ lister }

// RepoExists implements pullthrough.RepoCreator.
func (s directory) RepoExists(ctx context.Context, repo pullthrough.Repo) (bool, error) {
	if err := s.before("RepoExists", name{placeOf(repo), ""}); err != nil {
		return false, err
	}
	return s.inner.(pullthrough.RepoCreator).RepoExists(ctx, repo)
}

// CreateRepo implements pullthrough.RepoCreator.
func (s directory) CreateRepo(ctx context.Context, repo pullthrough.Repo, rule pullthrough.Rule, r pullthrough.Request) error {
	if err := s.before("CreateRepo", name{placeOf(repo), ""}); err != nil {
		return err
	}
	return s.inner.(pullthrough.RepoCreator).CreateRepo(ctx, repo, rule, r)
}

// Referrers implements pullthrough.ReferrerStore.
func (s directory) Referrers(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (*ocispec.Index, time.Time, error) {
	if err := s.before("Referrers", name{placeOf(repo), d.String()}); err != nil {
		return nil, time.Time{}, err
	}
	return s.inner.(pullthrough.ReferrerStore).Referrers(ctx, repo, d)
}

// PutReferrers implements pullthrough.ReferrerStore.
func (s directory) PutReferrers(ctx context.Context, repo pullthrough.Repo, d digest.Digest, list *ocispec.Index, checked time.Time) error {
	return s.put("PutReferrers", name{placeOf(repo), d.String()}, home{}, func() error {
		return s.inner.(pullthrough.ReferrerStore).PutReferrers(ctx, repo, d, list, checked)
	})
}

// StageBlob implements pullthrough.BlobStager.
func (s directory) StageBlob(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (pullthrough.Stage, error) {
	n := name{placeOf(repo), d.String()}
	if err := s.before("StageBlob", n); err != nil {
		return nil, err
	}
	inner, err := s.inner.(pullthrough.BlobStager).StageBlob(ctx, repo, d)
	if err != nil {
		return nil, err
	}
	return &faultyStage{inner, s, n}, nil
}

// faultyStage is the Stage of a directory.
type faultyStage struct {
	pullthrough.Stage
	s directory
	n name
}

// WriteAt implements io.WriterAt.
func (g *faultyStage) WriteAt(p []byte, off int64) (int, error) {
	if err := g.s.before("WriteAt", g.n); err != nil {
		return 0, err
	}
	return g.Stage.WriteAt(p, off)
}

// Commit implements pullthrough.Stage. One that fails forgets the content.
func (g *faultyStage) Commit(ctx context.Context, desc ocispec.Descriptor) (err error) {
	called := false
	defer func() {
		if !called {
			_ = g.Stage.Abort() // what it says changes nothing
		}
	}()
	return g.s.put("Commit", g.n, g.s.w.model.objects[desc.Digest].home, func() error {
		called = true
		err := g.Stage.Commit(ctx, desc)
		if err == nil {
			g.s.found(g.n)
		}
		return err
	})
}

// Open implements pullthrough.Stage.
func (g *faultyStage) Open() (*os.File, error) { return g.Stage.Open() }

var _ fmt.Stringer = name{}
