package pullthroughtest_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
)

func (s *plainStore) Blob(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	if err := ctx.Err(); err != nil {
		if s.has("treats any error as a miss") {
			return nil, s.miss()
		}
		return nil, err
	}
	s.enter()
	defer s.leave()
	content, ok := s.blobLocked(repo, d)
	if !ok || s.has("an empty blob is a miss") && len(content) == 0 {
		return nil, s.missLocked()
	}
	b := pullthrough.NewBlob(d, content)
	switch s.bug {
	case "one offset for all readers":
		b.Body = s.sharedLocked(d, b.Body)
	case "seeks from the start only":
		b.Body = fromStart{b.Body.(io.ReadSeekCloser)}
	case "a closed body takes the blob away":
		b.Body = &takesAway{b.Body, func() { s.drop(repo, d) }}
	}
	return b, nil
}

func (s *plainStore) blobLocked(repo pullthrough.Repo, d digest.Digest) ([]byte, bool) {
	if s.has("a blob is seen everywhere") {
		for _, r := range s.repos {
			if content, ok := r.blobs[d]; ok {
				return content, true
			}
		}
	}
	r := s.repos[s.key(repo)]
	if r == nil {
		return nil, false
	}
	content, ok := r.blobs[d]
	return content, ok
}

func (s *plainStore) sharedLocked(d digest.Digest, body io.ReadCloser) io.ReadCloser {
	if s.bodies == nil {
		s.bodies = map[digest.Digest]io.ReadCloser{}
	}
	if s.bodies[d] == nil {
		s.bodies[d] = body
	}
	return s.bodies[d]
}

func (s *plainStore) drop(repo pullthrough.Repo, d digest.Digest) {
	s.enter()
	defer s.leave()
	delete(s.repoLocked(repo).blobs, d)
}

type fromStart struct{ io.ReadSeekCloser }

func (b fromStart) Seek(offset int64, _ int) (int64, error) {
	return b.ReadSeekCloser.Seek(offset, io.SeekStart)
}

type takesAway struct {
	io.ReadCloser
	take func()
}

func (b *takesAway) Close() error {
	b.take()
	return b.ReadCloser.Close()
}

func (s *plainStore) PutBlob(_ context.Context, repo pullthrough.Repo, desc ocispec.Descriptor, r io.ReadSeeker) error {
	switch s.bug {
	case "holds its lock while it reads":
		s.enter()
		defer s.leave()
		content, err := s.read(desc, r)
		if err == nil {
			s.repoLocked(repo).blobs[desc.Digest] = content
		}
		return err
	case "does not unlock with defer":
		s.enter()
		content, err := s.read(desc, r)
		if err == nil {
			s.repoLocked(repo).blobs[desc.Digest] = content
		}
		s.leave()
		return err
	case "reads in the background":
		go func() { _, _ = s.read(desc, r) }()
		return nil
	case "refuses a second put at once":
		if !s.claim(desc.Digest) {
			return errors.New("busy")
		}
		defer s.unclaim(desc.Digest)
		s.await(func() bool { return s.refused > 0 })
	case "takes away what it writes anew":
		s.drop(repo, desc.Digest)
		s.await(func() bool { return s.missed > 0 })
	}
	content, err := s.read(desc, r)
	if err == nil && s.has("keeps what it refuses") && desc.Digest.Algorithm().FromBytes(content) != desc.Digest {
		err = pullthrough.ErrDigest
	}
	return s.keepBlob(repo, desc.Digest, content, err)
}

// keepBlob keeps what could be read.
func (s *plainStore) keepBlob(repo pullthrough.Repo, d digest.Digest, content []byte, err error) error {
	s.enter()
	defer s.leave()
	if err != nil && s.has("a put that fails takes away what was there") {
		delete(s.repoLocked(repo).blobs, d)
	}
	if err == nil || s.has("keeps partial blobs") || s.has("keeps what it refuses") && errors.Is(err, pullthrough.ErrDigest) {
		s.repoLocked(repo).blobs[d] = content
	}
	return err
}

func (s *plainStore) read(desc ocispec.Descriptor, r io.Reader) (content []byte, err error) {
	switch s.bug {
	case "reads once":
		content = make([]byte, desc.Size)
		n, err := r.Read(content)
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return content[:n], err
	case "takes a failing reader for one that ends":
		content, _ = io.ReadAll(r)
		return content, nil
	case "takes an ended context for the end of the blob":
		content, err = io.ReadAll(r)
		if errors.Is(err, context.Canceled) {
			err = nil
		}
		return content, err
	case "stops at a NUL":
		content, err = io.ReadAll(io.LimitReader(r, desc.Size))
		content, _, _ = bytes.Cut(content, []byte{0})
		return content, err
	}
	return io.ReadAll(r)
}

func (s *plainStore) await(happened func() bool) {
	s.enter()
	defer s.leave()
	s.awaitLocked(happened)
}

func (s *plainStore) claim(d digest.Digest) bool {
	s.enter()
	defer s.leave()
	if s.busy[d] {
		s.refused++
		return false
	}
	s.busy[d] = true
	return true
}

func (s *plainStore) unclaim(d digest.Digest) {
	s.enter()
	defer s.leave()
	delete(s.busy, d)
}

func (s *plainStore) StageBlob(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (pullthrough.Stage, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.has("has no stages to lend") {
		return nil, errors.New("not now")
	}
	var f *os.File
	var err error
	if s.has("one place for all stages of a blob") {
		f, err = os.OpenFile(s.dir+"/"+d.Encoded(), os.O_RDWR|os.O_CREATE, 0o600)
	} else {
		f, err = os.CreateTemp(s.dir, "stage-*")
	}
	if err == nil && s.has("a stage is seen before its commit") {
		err = s.keepBlob(repo, d, nil, nil)
	}
	return &plainStage{s: s, repo: repo, digest: d, f: f}, err
}

// plainStage is a file that becomes a blob.
type plainStage struct {
	s      *plainStore
	repo   pullthrough.Repo
	digest digest.Digest
	f      *os.File

	mu     sync.Mutex
	pieces [][]byte // what a careless stage keeps
	key    string   // under which it may be kept
	size   int64    // of the whole blob
	came   [][2]int64
}

func (st *plainStage) WriteAt(p []byte, off int64) (int, error) {
	if st.s.has("a sparse stage appends") {
		return st.f.Write(p)
	}
	if st.s.has("a stage keeps the caller's buffer") {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.pieces = append(st.pieces, p)
		return len(p), nil
	}
	st.mu.Lock()
	st.came = append(st.came, [2]int64{off, off + int64(len(p))})
	st.mu.Unlock()
	return st.f.WriteAt(p, off)
}

// Sparse is true of a plain file, and of one that appends whatever it is given.
func (st *plainStage) Sparse() bool { return !st.s.has("a stage keeps the caller's buffer") }

func (st *plainStage) ReadAt(p []byte, off int64) (int, error) { return st.f.ReadAt(p, off) }

func (st *plainStage) Open() (*os.File, error) {
	if st.s.has("a stage's files share their offset") {
		return st.f, nil
	}
	return os.Open(st.f.Name())
}

func (st *plainStage) Commit(ctx context.Context, desc ocispec.Descriptor) error {
	defer st.end()
	if err := ctx.Err(); err != nil && !st.s.has("a commit ignores its context") {
		return err
	}
	st.s.enter()
	_, have := st.s.repoLocked(st.repo).blobs[desc.Digest]
	st.s.leave()
	if have && st.s.has("repeated puts are errors") {
		return fs.ErrExist
	}
	content, err := st.content(desc.Size)
	if err != nil {
		return err
	}
	return st.s.keepBlob(st.repo, desc.Digest, content, nil)
}

func (st *plainStage) content(size int64) ([]byte, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.pieces != nil {
		return bytes.Join(st.pieces, nil), nil
	}
	content := make([]byte, size)
	_, err := io.ReadFull(io.NewSectionReader(st.f, 0, size), content)
	return content, err
}

func (st *plainStage) Abort() error {
	defer st.end()
	switch st.s.bug {
	case "an abort keeps what came so far":
		info, err := st.f.Stat()
		if err != nil {
			return err
		}
		content, err := st.content(info.Size())
		return errors.Join(err, st.s.keepBlob(st.repo, st.digest, content, nil))
	case "an abort takes away what was there":
		st.s.drop(st.repo, st.digest)
	}
	return nil
}

// end removes the place. Files that are open stay as they are.
func (st *plainStage) end() {
	if st.s.has("a stage's files end with it") || st.s.has("one place for all stages of a blob") {
		_ = st.f.Truncate(0)
	}
	_ = st.f.Close()
	_ = os.Remove(st.f.Name())
}

// ResumeBlob returns what Keep has left, in this process.
func (s *plainStore) ResumeBlob(_ context.Context, _ pullthrough.Repo, _ digest.Digest, key string) (pullthrough.Stage, error) {
	s.enter()
	defer s.leave()
	for kept, st := range s.kept {
		if kept == key || s.has("any key gets what is kept") {
			if !s.has("what was kept stays after its commit") {
				delete(s.kept, kept)
			}
			return st, nil
		}
	}
	return nil, fs.ErrNotExist
}

func (st *plainStage) KeepAs(key string, size int64) { st.key, st.size = key, size }

func (st *plainStage) Have() (size int64, have [][2]int64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.s.has("what is kept has holes") {
		return st.size, [][2]int64{{0, st.size - 64<<10}}
	}
	slices.SortFunc(st.came, func(a, b [2]int64) int { return cmp.Compare(a[0], b[0]) })
	for _, span := range st.came {
		if !st.s.has("the end is kept, too") {
			span[1] = min(span[1], st.size-64<<10)
		}
		have = append(have, span)
	}
	return st.size, have
}

func (st *plainStage) Keep() error {
	st.s.enter()
	defer st.s.leave()
	if st.s.kept == nil {
		st.s.kept = make(map[string]*plainStage)
	}
	st.s.kept[st.key] = st
	return nil
}
