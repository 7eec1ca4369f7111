package dirstore

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"math"
	"path"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/extent"
	"github.com/ecr-pullthrough/pullthrough/internal/shelf"
)

// keptShare is the part of MaxBytes that downloads may have that ended early.
const keptShare = 10

func (s *Store) maxKept() int64 {
	if s.MaxBytes <= 0 {
		return math.MaxInt64
	}
	return s.MaxBytes / keptShare
}

// ResumeBlob returns the place of a download that ended early, as [pullthrough.BlobStager]
// says. What downloads have left is kept for 24 hours, 4 GiB and a tenth of MaxBytes at
// most, which counts it. Less than 4 MiB of a blob is not kept, and nothing is where the
// file system has no locks.
func (s *Store) ResumeBlob(ctx context.Context, repo pullthrough.Repo, d digest.Digest, key string) (pullthrough.Stage, error) {
	at, err := s.owner().LocateDigest(ctx, repo, d)
	if err != nil {
		return nil, err
	}
	it, err := s.shelf.Take(ctx, key)
	if err != nil {
		if isReadOnly(err) || errors.Is(err, errors.ErrUnsupported) || errors.Is(err, shelf.ErrTaken) {
			err = errors.Join(fs.ErrNotExist, err)
		}
		return nil, during(err, "resume blob", repo, d.String())
	}
	_, _ = s.addSize(-it.Kept()) // what Keep has counted; a sweep sets it right
	s.staged.add(at, d, 1)
	return &stage{file: it.File, store: s, repo: repo, at: at, digest: d, temp: it.Name(), item: it}, nil
}

// KeepAs is what [pullthrough.BlobStager] says of Stages that can be kept.
func (t *stage) KeepAs(key string, size int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.key, t.size = key, size
}

// Have is what [pullthrough.BlobStager] says of Stages that can be kept.
func (t *stage) Have() (size int64, have [][2]int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.item == nil {
		return t.size, nil
	}
	for _, s := range t.item.Have() {
		have = append(have, [2]int64{s.From, s.To})
	}
	return t.item.Size(), have
}

// wrote notes what has come, once it is worth keeping.
func (t *stage) wrote(off, n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.item != nil:
		t.item.Wrote(off, n)
	case t.key != "":
		t.came = extent.Union(append(t.came, extent.Span{From: off, To: off + n}))
		if t.bytes += n; t.bytes >= shelf.Least {
			t.shelveLocked()
		}
	}
}

// shelveLocked has the download survive this process from now on, if that is possible.
func (t *stage) shelveLocked() {
	it, err := t.store.shelf.Put(t.key, path.Dir(t.temp), t.file, t.size)
	if err == nil {
		t.item, t.temp = it, it.Name()
		for _, s := range t.came {
			it.Wrote(s.From, s.Len())
		}
	}
	t.key, t.came = "", nil
}

// Keep is what [pullthrough.BlobStager] says of Stages that can be kept.
func (t *stage) Keep() error {
	t.mu.Lock()
	it := t.item
	t.mu.Unlock()
	if it == nil { // there is not much of it
		return t.Abort()
	}
	defer t.end()
	t.store.grow(it.Keep())
	return t.file.Close()
}

// unshelve brings the content back to where all content is that is about to be stored. It
// has been synced: up to here a process that ends leaves it for the next.
func (t *stage) unshelve() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.key = ""
	if t.item == nil {
		return nil
	}
	dir := path.Join(t.store.staging, rand.Text())
	if err := t.store.disk.sync(t.file); err != nil {
		return err
	}
	err := t.item.Leave(dir)
	t.item, t.temp = nil, path.Join(dir, "data")
	return err
}
