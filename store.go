package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"time"
	"weak"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/extent"
	"github.com/ecr-pullthrough/pullthrough/internal/fill"
	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/serve"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

const (
	maxVerified = 4096
	// maxManifestPuts is how many manifests are put at a time. They are small, and a Store on
	// a disk waits once for all that come together. Each may have some files open: they
	// have half of the process's descriptors at most.
	maxManifestPuts = 64
	filesOfAPut     = 8
	// lookupPatience is how long a fetch waits for a look-up of the Store. Then it counts
	// as a miss: a client must not come back again and again to a fetch that hangs.
	lookupPatience = 10 * time.Second
)

// guardedStore makes all calls of the host's Store. No call holds a lock of ours.
//
// There are three ways to call it. A look-up on the way of a hit ([guardedStore.manifest]
// and [guardedStore.blob]) is a plain call on the request's own goroutine with the
// request's own context: it costs nothing, and a Store that blocks and does not
// heed the context holds up that one request. Every other look-up runs beside its
// caller, who leaves when its context ends, or does without when it takes too long. A put waits for its turn and then takes
// as long as it takes. In all three a panic is an error, a miss is an error that Is
// fs.ErrNotExist, and any other error is told by an event and harms no pull.
type guardedStore struct {
	host     Store
	tell     func(ctx context.Context, call string, repo Repo, ref string, err error) // of a failure
	lookups  *hostcall.Lookups
	verified *lru.Cache[digest.Digest, verifiedContent]

	deletions *deletions
	scarce    hostcall.Scarce // hits that wait for a file descriptor

	// Manifests do not queue behind blobs.
	manifestPuts, blobPuts hostcall.Puts
}

func newGuardedStore(host Store, tell func(context.Context, string, Repo, string, error)) *guardedStore {
	s := &guardedStore{host: host, tell: tell, lookups: new(hostcall.Lookups), verified: lru.New[digest.Digest, verifiedContent](maxVerified), deletions: newDeletions()}
	s.manifestPuts.Most = int(min(maxManifestPuts, max(hostcall.MaxPuts, spool.OpenFileLimit()/2/filesOfAPut)))
	return s
}

// failed reports a failure of a call, unless the caller has left.
func (s *guardedStore) failed(ctx context.Context, call string, repo Repo, ref string, err error) {
	if err != nil && ctx.Err() == nil {
		s.tell(ctx, call, repo, ref, err)
	}
}

// manifest returns what the Store has for ref, on the way of a hit; nil for a miss.
// A manifest that cannot be right is a failure, and is fetched again: a damaged
// Store heals.
func (s *guardedStore) manifest(ctx context.Context, repo Repo, ref string) (*Manifest, error) {
	m, err := s.verifiedManifest(ctx, repo, ref)
	if spool.IsOutOfFiles(err) {
		m, err = hostcall.Again(ctx, &s.scarce, err, func() (*Manifest, error) { return s.verifiedManifest(ctx, repo, ref) })
	}
	s.failed(ctx, "Store.Manifest", repo, ref, err)
	return m, err
}

// findManifest is manifest for a fetch, which a Store must not hold up. A failure
// counts as a miss.
func (s *guardedStore) findManifest(ctx context.Context, repo Repo, ref string) *Manifest {
	return s.findManifestWithin(ctx, lookupPatience, repo, ref)
}

func (s *guardedStore) findManifestWithin(ctx context.Context, patience time.Duration, repo Repo, ref string) *Manifest {
	soon, cancel := context.WithTimeoutCause(ctx, patience, hostcall.ErrStuck)
	defer cancel()
	m, err := hostcall.Do(soon, s.lookups, "Store.Manifest", nil, func(ctx context.Context) (*Manifest, error) {
		return s.verifiedManifest(ctx, repo, ref)
	})
	s.failed(ctx, "Store.Manifest", repo, ref, err)
	return m
}

func (s *guardedStore) verifiedManifest(ctx context.Context, repo Repo, ref string) (*Manifest, error) {
	m, err := s.askManifest(ctx, repo, ref)
	if err == nil && !s.isVerified(m, ref) {
		if err = checkManifest(m, ref); err == nil {
			s.noteVerified(m)
		}
	}
	switch {
	case err == nil:
		return asHit(m), nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	}
	return nil, err
}

// askManifest is on the way of every hit, and so has no closure.
func (s *guardedStore) askManifest(ctx context.Context, repo Repo, ref string) (m *Manifest, err error) {
	defer hostcall.Recover("Store.Manifest", &err)
	return s.host.Manifest(ctx, repo, ref)
}

// verifiedContent is content that had its digest. A Store may return the same bytes
// for every hit, and never changes them; so they are hashed once. The pointer keeps
// nothing alive.
type verifiedContent struct {
	content weak.Pointer[byte]
	size    int
}

// isVerified reports whether these very bytes had their digest before, and are the
// ones asked for.
func (s *guardedStore) isVerified(m *Manifest, ref string) bool {
	if m == nil || len(m.Content) == 0 {
		return false
	}
	seen, ok := s.verified.Get(m.Descriptor.Digest)
	return ok && seen.content == weak.Make(&m.Content[0]) && seen.size == len(m.Content) &&
		(!ocipath.IsDigest(ref) || ref == string(m.Descriptor.Digest))
}

func (s *guardedStore) noteVerified(m *Manifest) {
	if len(m.Content) > 0 {
		s.verified.Put(m.Descriptor.Digest, verifiedContent{weak.Make(&m.Content[0]), len(m.Content)})
	}
}

// asHit returns m as a hit, without writing to what the Store has.
func asHit(m *Manifest) *Manifest {
	if m.Source == SourceHit {
		return m
	}
	hit := *m
	hit.Source = SourceHit
	return &hit
}

func checkManifest(m *Manifest, ref string) error {
	if m == nil {
		return errors.New("no manifest and no error")
	}
	d := m.Descriptor.Digest
	if !ocipath.ValidDigest(string(d)) || d.Algorithm().FromBytes(m.Content) != d {
		return fmt.Errorf("stored manifest does not have its digest %.80q", string(d))
	}
	if ocipath.IsDigest(ref) && d.String() != ref {
		return fmt.Errorf("asked for %s, the Store has %s", ref, d)
	}
	return nil
}

// blob returns the Store's blob with its size, on the way of a hit; nil for a miss.
func (s *guardedStore) blob(ctx context.Context, repo Repo, d digest.Digest) (*Blob, error) {
	b, err := s.sizedBlob(ctx, repo, d)
	if spool.IsOutOfFiles(err) {
		b, err = hostcall.Again(ctx, &s.scarce, err, func() (*Blob, error) { return s.sizedBlob(ctx, repo, d) })
	}
	s.failed(ctx, "Store.Blob", repo, d.String(), err)
	return b, err
}

// hasBlob is blob for a fetch, which a Store must not hold up. A failure counts as a
// miss.
func (s *guardedStore) hasBlob(ctx context.Context, repo Repo, d digest.Digest) bool {
	soon, cancel := context.WithTimeoutCause(ctx, lookupPatience, hostcall.ErrStuck)
	defer cancel()
	b, err := hostcall.Do(soon, s.lookups, "Store.Blob", closeBlob, func(ctx context.Context) (*Blob, error) {
		return s.sizedBlob(ctx, repo, d)
	})
	s.failed(ctx, "Store.Blob", repo, d.String(), err)
	closeBlob(b)
	return b != nil
}

func closeBlob(b *Blob) {
	if b != nil {
		_ = b.Body.Close() // nothing was read
	}
}

func (s *guardedStore) sizedBlob(ctx context.Context, repo Repo, d digest.Digest) (b *Blob, err error) {
	err = hostcall.Guard("Store.Blob", func() (err error) {
		b, err = s.host.Blob(ctx, repo, d)
		if err == nil {
			b, err = withSize(b, d)
		}
		return err
	})
	switch {
	case err == nil:
		return b, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	}
	return nil, err
}

// withSize returns the Store's blob as a hit whose size is known.
func withSize(b *Blob, d digest.Digest) (*Blob, error) {
	if b == nil || b.Body == nil {
		return nil, errors.New("no blob and no error")
	}
	hit := &Blob{Descriptor: b.Descriptor, Body: b.Body}
	hit.Descriptor.Digest, hit.Descriptor.MediaType = d, serve.MediaTypeBlob
	if _, ok := b.Body.(http.Handler); ok {
		return hit, nil // it answers by itself
	}
	size, err := sizeOf(b)
	if err == nil && size == 0 && d != d.Algorithm().FromString("") {
		err = fmt.Errorf("stored blob %s is empty", d)
	}
	if err != nil {
		return nil, errors.Join(err, b.Body.Close())
	}
	hit.Descriptor.Size = size
	return hit, nil
}

// sizeOf is how long the content is. That must be what the Store says it is, since a
// file that was cut must not become a short answer that looks complete.
func sizeOf(b *Blob) (int64, error) {
	seeker, ok := b.Body.(io.Seeker)
	if !ok {
		return b.Descriptor.Size, nil
	}
	size, err := seeker.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = seeker.Seek(0, io.SeekStart)
	}
	if err == nil && b.Descriptor.Size != 0 && b.Descriptor.Size != size {
		err = fmt.Errorf("stored blob has %d bytes instead of %d", size, b.Descriptor.Size)
	}
	return size, err
}

// putManifest stores m, in its turn, unless it was deleted since its fetch began: then the
// error Is errDeleted.
func (s *guardedStore) putManifest(ctx context.Context, b beginning, m *Manifest) error {
	return s.manifestPuts.Do(ctx, "Store.PutManifest", func(ctx context.Context, _ func()) error {
		return s.deletions.put(b, [2]string{m.Tag, m.Descriptor.Digest.String()}, func() error {
			return s.host.PutManifest(ctx, b.repo, m)
		})
	})
}

// deletes reports whether the Store is an ImageDeleter.
func (s *guardedStore) deletes() bool {
	_, ok := s.host.(ImageDeleter)
	return ok
}

// delete has an ImageDeleter delete what ref names, or the repository if ref is "".
func (s *guardedStore) delete(ctx context.Context, repo Repo, ref string) error {
	return hostcall.Guard("Store.DeleteImage", func() error {
		if ref == "" {
			return s.host.(ImageDeleter).DeleteRepo(ctx, repo)
		}
		return s.host.(ImageDeleter).DeleteImage(ctx, repo, ref)
	})
}

// putBlob stores the verified content of r, in its turn. As for errDeleted, see
// putManifest.
func (s *guardedStore) putBlob(ctx context.Context, b beginning, desc ocispec.Descriptor, r io.ReadSeeker) error {
	return s.blobPuts.Do(ctx, "Store.PutBlob", func(ctx context.Context, progress func()) error {
		return s.deletions.put(b, [2]string{}, func() error {
			return s.host.PutBlob(ctx, b.repo, desc, hostcall.NewBody(ctx, r, desc.Size, progress))
		})
	})
}

// blobKeeper and keptStage are what [BlobStager] says of Stores that keep downloads.
type (
	blobKeeper interface {
		ResumeBlob(ctx context.Context, repo Repo, d digest.Digest, key string) (Stage, error)
	}
	keptStage interface {
		Stage
		KeepAs(key string, size int64)
		Have() (size int64, have [][2]int64)
		Keep() error
	}
)

// stage asks a BlobStager for a place; nil: the Store is none.
func (s *guardedStore) stage(ctx context.Context, repo Repo, d digest.Digest) (*stagePlace, error) {
	stager, ok := s.host.(BlobStager)
	if !ok {
		return nil, nil
	}
	abort := func(p *stagePlace) { p.Abort(); p.Close() }
	return s.borrow(ctx, "Store.StageBlob", abort, func() (Stage, error) { return stager.StageBlob(ctx, repo, d) })
}

// resume asks the Store for what an earlier download has left; nil: there is nothing.
func (s *guardedStore) resume(ctx context.Context, repo Repo, d digest.Digest, key string) (*stagePlace, error) {
	keeper, ok := s.host.(blobKeeper)
	if !ok {
		return nil, nil
	}
	p, err := s.borrow(ctx, "Store.ResumeBlob", (*stagePlace).leave, func() (Stage, error) { return keeper.ResumeBlob(ctx, repo, d, key) })
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errors.ErrUnsupported) {
		return nil, nil
	}
	if err == nil && p.Keeper() == nil {
		p.leave()
		return nil, fmt.Errorf("the Stage of %s cannot be kept", d)
	}
	return p, err
}

// borrow makes a place of the Stage that ask returns, which a Store must not hold up. leave
// lets go of one that nobody wants. The Stage may use the context of ask for as long as it
// lives.
func (s *guardedStore) borrow(ctx context.Context, what string, leave func(*stagePlace), ask func() (Stage, error)) (*stagePlace, error) {
	soon, cancel := context.WithTimeoutCause(ctx, lookupPatience, hostcall.ErrStuck)
	defer cancel()
	return hostcall.Do(soon, s.lookups, what, leave, func(context.Context) (*stagePlace, error) {
		stage, err := ask()
		if err == nil && stage == nil {
			err = errors.New("no stage and no error")
		}
		if err != nil {
			return nil, err
		}
		p := &stagePlace{stage: stage}
		_, p.keeps = s.host.(blobKeeper)
		if p.file, err = p.openStage(); err != nil { // without it nobody could read on after the commit
			leave(p)
			return nil, err
		}
		return p, nil
	})
}

// commitStage makes a blob of what was staged, in its turn. The error Is
// [hostcall.ErrNotCalled] or errDeleted where the Stage was not asked to.
func (s *guardedStore) commitStage(ctx context.Context, b beginning, stage Stage, desc ocispec.Descriptor) error {
	return s.blobPuts.Do(ctx, "Stage.Commit", func(ctx context.Context, _ func()) error {
		return s.deletions.put(b, [2]string{}, func() error { return stage.Commit(ctx, desc) })
	})
}

// repository says whether the repository is there, of a RepoCreator. It is unknown where
// the Store makes no difference.
func (s *guardedStore) repository(ctx context.Context, repo Repo) (presence, error) {
	if _, ok := s.host.(RepoCreator); !ok {
		return unknown, nil
	}
	return s.exists(ctx, repo)
}

// repoFinder is what [RepoCreator] says of Stores that make no repositories.
type repoFinder interface {
	RepoExists(ctx context.Context, repo Repo) (bool, error)
}

// exists says whether the repository is there, of any Store that knows. One that fails to
// tell harms no pull: then the repository counts as there.
func (s *guardedStore) exists(ctx context.Context, repo Repo) (presence, error) {
	finder, ok := s.host.(repoFinder)
	if !ok {
		return unknown, nil
	}
	exists, err := hostcall.Do(ctx, s.lookups, "Store.RepoExists", nil, func(ctx context.Context) (bool, error) {
		return finder.RepoExists(ctx, repo)
	})
	switch {
	case err == nil && !exists:
		return absent, nil
	case err != nil && ctx.Err() != nil:
		return unknown, context.Cause(ctx)
	}
	s.failed(ctx, "Store.RepoExists", repo, "", err)
	return present, nil
}

// createRepo has a RepoCreator make the repository.
func (s *guardedStore) createRepo(ctx context.Context, b beginning, rule Rule, r Request) error {
	_, err := hostcall.Do(ctx, s.lookups, "Store.CreateRepo", nil, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, s.deletions.put(b, [2]string{}, func() error {
			return s.host.(RepoCreator).CreateRepo(ctx, b.repo, rule, r)
		})
	})
	_, typed := errors.AsType[*Error](err)
	switch {
	case err == nil, typed:
		return err
	case errors.Is(err, errDeleted):
		return nil // what it was for is served, and not stored
	case ctx.Err() != nil:
		return context.Cause(ctx) // we gave it up: that says nothing of the repository
	}
	return &Error{Kind: ErrNotFound, Code: codeNameUnknown, Err: fmt.Errorf("the repository could not be created: %w", err)}
}

// listsTags reports whether the Store is a TagLister.
func (s *guardedStore) listsTags() bool {
	_, ok := s.host.(TagLister)
	return ok
}

// tags lists the tags of a repository.
func (s *guardedStore) tags(ctx context.Context, repo Repo) ([]string, error) {
	lister, ok := s.host.(TagLister)
	if !ok {
		return nil, errNotListed
	}
	names, err := hostcall.Do(ctx, s.lookups, "Store.Tags", nil, func(ctx context.Context) ([]string, error) {
		return lister.Tags(ctx, repo)
	})
	return names, hostcall.Named("Store.Tags", err)
}

// repos lists the repositories of an account in a Region.
func (s *guardedStore) repos(ctx context.Context, account, region string) ([]string, error) {
	lister, ok := s.host.(RepoLister)
	if !ok {
		return nil, errNotListed
	}
	names, err := hostcall.Do(ctx, s.lookups, "Store.Repos", nil, func(ctx context.Context) ([]string, error) {
		return lister.Repos(ctx, account, region)
	})
	return names, hostcall.Named("Store.Repos", err)
}

// stagePlace is a Stage as the place of a fill. It keeps a file of its own on the
// content, since a Stage need not be readable once it is committed, and clients read
// on.
type stagePlace struct {
	stage Stage
	file  *os.File
	keeps bool // the Store gives back what a Stage has kept
}

func (s *stagePlace) WriteAt(p []byte, off int64) (n int, err error) {
	defer hostcall.Recover("Stage.WriteAt", &err)
	return s.stage.WriteAt(p, off)
}

func (s *stagePlace) ReadAt(p []byte, off int64) (int, error) { return s.file.ReadAt(p, off) }

// Sparse reports whether the Stage says that it takes content in any order.
func (s *stagePlace) Sparse() bool {
	sparse, ok := s.stage.(interface{ Sparse() bool })
	return ok && hostcall.Guard("Stage.Sparse", func() error {
		if !sparse.Sparse() {
			return errors.ErrUnsupported
		}
		return nil
	}) == nil
}

// Open opens the content once more: by way of our own file, since the Stage may be
// gone, or by the Stage where the system cannot do that.
func (s *stagePlace) Open() (*os.File, error) {
	if f, err := spool.Reopen(s.file); err == nil {
		return f, nil
	}
	return s.openStage()
}

func (s *stagePlace) openStage() (f *os.File, err error) {
	defer hostcall.Recover("Stage.Open", &err)
	return s.stage.Open()
}

// Abort forgets what was staged. What it says changes nothing: nothing of it is
// visible. A nil place has nothing to forget.
func (s *stagePlace) Abort() {
	if s != nil {
		_ = hostcall.Guard("Stage.Abort", s.stage.Abort)
	}
}

// Keeper implements the fill's optional interface.
func (s *stagePlace) Keeper() fill.Keeper {
	if _, ok := s.stage.(keptStage); !ok || !s.keeps {
		return nil
	}
	return s
}

// KeepAs implements [fill.Keeper].
func (s *stagePlace) KeepAs(key string, size int64) {
	_ = hostcall.Guard("Stage.KeepAs", func() error { s.stage.(keptStage).KeepAs(key, size); return nil })
}

// Have implements [fill.Keeper].
func (s *stagePlace) Have() (size int64, have []extent.Span) {
	var all [][2]int64
	_ = hostcall.Guard("Stage.Have", func() error { size, all = s.stage.(keptStage).Have(); return nil })
	for _, one := range all {
		have = append(have, extent.Span{From: one[0], To: one[1]})
	}
	return size, extent.Clip(extent.Union(have), size-spool.Withheld)
}

// Keep implements [fill.Keeper]. What it says changes nothing: what is not kept comes anew.
func (s *stagePlace) Keep() { _ = hostcall.Guard("Stage.Keep", s.stage.(keptStage).Keep) }

// leave lets go of a place that was kept.
func (s *stagePlace) leave() {
	if s.Keeper() != nil {
		s.Keep()
	} else {
		s.Abort()
	}
	s.Close()
}

// Close ends our own reading.
func (s *stagePlace) Close() {
	_ = s.file.Close() // it was only read
}
