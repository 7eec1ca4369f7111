package dirstore

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/extent"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/shelf"
)

// StageBlob implements [pullthrough.BlobStager].
func (s *Store) StageBlob(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (pullthrough.Stage, error) {
	at, err := s.owner().LocateDigest(ctx, repo, d)
	if err != nil {
		return nil, err
	}
	f, name, err := s.newContent()
	if err != nil {
		return nil, during(err, "stage blob", repo, d.String())
	}
	s.staged.add(at, d, 1)
	return &stage{file: f, store: s, repo: repo, at: at, digest: d, temp: name}, nil
}

// stage is a staging file on its way to become a blob.
type stage struct {
	store  *Store
	repo   pullthrough.Repo
	at     layout.Repository
	digest digest.Digest
	file   *os.File

	done sync.Once

	mu      sync.Mutex
	temp    string
	aborted bool
	item    *shelf.Item   // what it is on the shelf; nil: it is not there
	key     string        // under which it is to be there; "": nowhere, or it is
	size    int64         // of all
	bytes   int64         // that have come while it was not on the shelf
	came    []extent.Span // where
}

// end says that the download is over, however it went.
func (t *stage) end() {
	t.done.Do(func() {
		t.store.staged.add(t.at, t.digest, -1)
		t.store.sweeper.nudge(t.store.shrink) // its image may go now
	})
}

// WriteAt implements [pullthrough.Stage].
func (t *stage) WriteAt(p []byte, off int64) (int, error) {
	if err := t.store.disk.before(step{op: "write", name: t.name()}); err != nil {
		return 0, err
	}
	n, err := t.file.WriteAt(p, off)
	if n > 0 {
		t.wrote(off, int64(n))
	}
	return n, err
}

// Sparse says that content may come in any order: see [pullthrough.Stage].
func (t *stage) Sparse() bool { return true }

// ReadAt implements [pullthrough.Stage]. It goes on after Commit, which closes
// the file: slow clients read on.
func (t *stage) ReadAt(p []byte, off int64) (int, error) {
	n, err := t.file.ReadAt(p, off)
	if !errors.Is(err, fs.ErrClosed) {
		return n, err
	}
	f, openErr := t.Open()
	if openErr != nil {
		return n, errors.Join(err, openErr)
	}
	defer func() { _ = f.Close() }()
	m, err := f.ReadAt(p[n:], off+int64(n))
	return n + m, err
}

// Open implements [pullthrough.Stage]. It opens the file by the one of its two
// names that it has at the moment.
func (t *stage) Open() (*os.File, error) {
	t.mu.Lock() // the name does not change meanwhile
	defer t.mu.Unlock()
	f, err := t.store.disk.open(t.temp)
	if !errors.Is(err, fs.ErrNotExist) || t.aborted {
		return f, err
	}
	return t.store.disk.open(layout.Registry.Data(t.digest))
}

func (t *stage) name() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.temp
}

// Commit implements [pullthrough.Stage]. When it fails, the staging file is
// gone: nobody calls Abort any more.
func (t *stage) Commit(ctx context.Context, desc ocispec.Descriptor) error {
	defer t.end()
	err := ctx.Err()
	if err == nil && desc.Digest != t.digest {
		err = errors.New("staged for another digest")
	}
	if err == nil {
		err = t.commit(ctx, desc)
	}
	if err != nil {
		err = errors.Join(err, t.Abort())
	}
	return during(err, "commit blob", t.repo, t.digest.String())
}

func (t *stage) commit(ctx context.Context, desc ocispec.Descriptor) error {
	info, err := t.file.Stat()
	if err == nil {
		err = layout.CheckWritten(info.Size(), desc.Size)
	}
	if err != nil {
		return err
	}
	here, _, err := t.store.have(ctx, t.at, desc)
	if err != nil {
		return err
	}
	if here { // what is dropped need not be synced
		err = t.store.attach(ctx, t.at, desc, "")
		if err == nil {
			_ = t.drop() // it is scratch by now, and swept if it stays
		}
		if !errors.Is(err, errSwept) {
			return err
		}
	}
	if err := t.unshelve(); err != nil {
		return err
	}
	if err := t.store.finish(t.file, nil); err != nil {
		return err
	}
	return t.store.attach(ctx, t.at, desc, t.name())
}

// Abort implements [pullthrough.Stage].
func (t *stage) Abort() error {
	defer t.end()
	t.mu.Lock()
	t.aborted = true
	t.mu.Unlock()
	return t.drop()
}

// drop removes the file.
func (t *stage) drop() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.key = ""
	var err error
	if t.item != nil {
		t.item.Drop()
	} else {
		err = t.store.disk.removeTree(path.Dir(t.temp))
	}
	if closeErr := t.file.Close(); !errors.Is(closeErr, fs.ErrClosed) {
		err = errors.Join(closeErr, err)
	}
	return err
}
