// Package dirstore is a [pullthrough.Store] that keeps images in a directory. Several
// processes on one machine may share it.
//
//	store, err := dirstore.Open("/var/lib/images")
//	if err != nil {
//		return err
//	}
//	proxy := &pullthrough.Proxy{Store: store, Rules: rules}
//	... serve ...
//	err = errors.Join(proxy.Shutdown(ctx), store.Close())
//
// # The format
//
// The directory has the on-disk format of the CNCF distribution registry, so
// that `registry serve` serves it and `registry garbage-collect` runs over it
// (stop the proxy for that, as the registry wants it for itself):
//
//	docker/registry/v2/blobs/ALG/XX/HEX/data                       content, once
//	docker/registry/v2/repositories/NAME/_layers/ALG/HEX/link      who may see it
//	docker/registry/v2/repositories/NAME/_manifests/revisions/...  the same for manifests
//	docker/registry/v2/repositories/NAME/_manifests/tags/TAG/...   current/link, index/.../link
//	pullthrough/                                                   ours alone
//
// NAME is ACCOUNT/REGION/NAME for all but the store's own account. Beside the
// links of manifests stands a JSON file of ours with what the registry does not
// keep: media type, origin, time of the last check. The registry overlooks it.
// Manifests that the registry cannot read, which would end its garbage
// collection, and repositories with names too long for it are below pullthrough/.
//
// The page docs/layout.md tells the whole format.
//
// # What can be relied on
//
// A file gets its name when it is complete and synced, so nothing partial is
// ever seen, whatever crashes. A power failure may take the last moves of tags with it.
// Puts that come together wait for the disk together. Up to 512 directories stay open, with
// an eighth of the process's file descriptors at most.
// An unreadable link, a link to nothing and content that is not its digest's are
// misses; they are removed, and the next put heals them. Manifests are checked when
// they are read. Beside the link of a blob stands its size: a file of another length is
// a miss. A blob whose size nobody has noted is read in full, once. With
// [Store.VerifyBlobs] all are.
//
// The manifests that were asked for last are in memory, 32 MiB of them at most.
// Their links are read again after a second, so a change by another process is seen
// after a second. With [Store.MaxBytes] the images used least recently make room.
package dirstore

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/filing"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
	"github.com/ecr-pullthrough/pullthrough/internal/shelf"
	"github.com/ecr-pullthrough/pullthrough/internal/verify"
)

// Store is a [pullthrough.Store] in a directory, with all that a Store may also
// be: [pullthrough.BlobStager], [pullthrough.RepoCreator], [pullthrough.TagLister],
// [pullthrough.RepoLister], [pullthrough.ReferrerStore]. It is safe for concurrent
// use, and several processes on one machine may share the directory. Errors of the
// file system are wrapped: errors.Is finds syscall.ENOSPC and the like. The fields
// must not change after the first use.
type Store struct {
	// Account and Region are those whose repositories stand in the directory
	// under their plain names; all others need both. Empty: the plain names are
	// those of a [pullthrough.Repo] without account and Region.
	Account, Region string

	// MaxBytes is how many bytes of blobs, manifests and lists of referrers are kept, about.
	// When a put takes the directory past it, the images that were asked for least
	// recently go, in the background, until a tenth of it is free: see [Store.Sweep].
	// 0: all is kept.
	MaxBytes int64

	// VerifyBlobs has each blob read in full when this Store opens it for the first
	// time. Meanwhile its last 64 KiB are held back: see [Store.Blob]. A damaged blob is
	// removed, and is a miss from then on. Damage that comes afterwards is found by the
	// next process. What was read is known of the last 16,384 blobs. false: a blob is
	// read only if nobody knows which length its file must have, or if its manifest says
	// another one. Manifests are always checked when they are read.
	VerifyBlobs bool

	// Logger is told of damage and of sweeps. nil: [slog.Default].
	Logger *slog.Logger

	disk      disk
	group     group
	commits   commits
	safe      *lru.Cache[string, bool] // directories that are there; true: and cannot be lost
	staging   string                   // this Store's own directory for files without a name yet
	lock      *os.File                 // holds staging for as long as the process lives; nil: we may not write
	manifests *filing.Manifests
	sizes     *filing.Sizes
	reads     *verify.Reads
	small     *verify.Reads // of content of up to [verify.Small], which does not wait for larger
	seen      *lru.Cache[digest.Digest, seen]
	staged    stagedSet
	shelf     *shelf.Shelf // what downloads that ended early have left
	sweeper   *sweeper
	empty     *lru.Cache[filing.Object, emptyList] // lists of referrers
	created   *lru.Cache[layout.Repository, struct{}]
}

// linkAge is how old what is known of a link may be: another process may have
// changed it.
const linkAge = time.Second

// Open opens the store in dir, and makes dir if it is not there. It does not scan
// the content. It removes the half-written files of processes that have died. A
// directory that may not be written, or is on a disk that is full, is served as it is. For a directory of a newer
// format the error is a [*FormatError].
func Open(dir string) (*Store, error) { return open(dir, nil) }

func open(dir string, probe func(step) error) (*Store, error) {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, fmt.Errorf("dirstore: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("dirstore: %w", err)
	}
	sizes := filing.NewSizes()
	s := &Store{
		disk: disk{root, probe, newKeptDirs(mostKept())}, safe: lru.New[string, bool](maxSafe), manifests: filing.NewManifests(linkAge, linkAge, sizes), sweeper: newSweeper(),
		sizes: sizes, reads: verify.New(), small: verify.New(), seen: lru.New[digest.Digest, seen](maxSeen),
		empty: lru.New[filing.Object, emptyList](maxEmpty), created: lru.New[layout.Repository, struct{}](maxCreated),
	}
	s.shelf = &shelf.Shelf{Root: root, Dir: layout.Partial, Limit: s.maxKept}
	if err := s.prepare(); err != nil {
		return nil, fmt.Errorf("dirstore: %s: %w", dir, errors.Join(err, s.letGo()))
	}
	return s, nil
}

// prepare makes what the registry wants to find even when nothing is stored. It
// touches nothing before it knows the format.
func (s *Store) prepare() error {
	noted, err := s.readFormat()
	if err != nil {
		return err
	}
	for _, dir := range []string{layout.Registry.Blobs(), layout.Registry.Repositories()} {
		if err := s.makeRoot(dir); err != nil {
			return err
		}
	}
	err = s.makeRoot(layout.Staging)
	if err == nil {
		s.sweepStaging()
		err = s.claim()
	}
	if err == nil {
		s.shelf.Tidy()
	}
	if isReadOnly(err) {
		s.staging = path.Join(layout.Staging, "none") // what is to be written there fails
		return nil
	}
	if err != nil || noted {
		return err
	}
	return s.writeFormat()
}

// makeRoot makes one of the directories that all others are in. One that is there
// is good to read even if we may not write.
func (s *Store) makeRoot(dir string) error {
	err := s.disk.before(step{op: "mkdir", name: dir})
	if err == nil {
		err = s.disk.root.MkdirAll(dir, dirMode)
	}
	if isReadOnly(err) {
		if _, statErr := s.disk.stat(dir); statErr == nil {
			return nil
		}
	}
	return err
}

// isReadOnly reports whether err says that we may not or cannot write here.
func isReadOnly(err error) bool {
	return errors.Is(err, errReadOnly) || errors.Is(err, fs.ErrPermission) || errors.Is(err, errFull)
}

// Close releases the directory, and ends the sweep and the full reads that are under
// way. Bodies and files that were handed out stay readable, but for the ends of those
// that nobody has verified yet; everything else fails with [os.ErrClosed] from then on.
func (s *Store) Close() error {
	s.sweeper.stop()
	s.reads.Stop()
	s.small.Stop()
	s.manifests.Stop()
	// It is empty unless a download still runs; the next Open would remove it.
	_ = s.disk.remove(s.staging)
	return s.letGo()
}

// letGo closes what the Store has open.
func (s *Store) letGo() error {
	s.disk.kept.close()
	if s.lock == nil {
		return s.disk.root.Close()
	}
	return errors.Join(s.lock.Close(), s.disk.root.Close())
}

func (s *Store) log() *slog.Logger {
	if s.Logger != nil {
		return s.Logger
	}
	return slog.Default()
}

// owner is whose repositories have plain names.
func (s *Store) owner() layout.Owner { return layout.Owner{Account: s.Account, Region: s.Region} }

// during says what was being done to what. A miss stays a miss.
func during(err error, op string, repo pullthrough.Repo, ref string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("dirstore: %s %s %s: %w", op, repo.Name, ref, err)
}
