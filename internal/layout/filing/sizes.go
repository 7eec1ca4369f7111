package filing

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
)

// maxSizes is of how many blobs a store knows the size without asking, at most.
const maxSizes = 16 << 10

// Verdict is what the length of stored content says about it.
type Verdict int

const (
	Sound    Verdict = iota // it has the length that it had when it was verified
	Doubtful                // nobody knows which length it must have
	Wrong                   // it has another length
	Damaged                 // it was read in full, and is not the digest's
)

// Sizes is what a store knows of the sizes of blobs. A digest has one size for ever, so
// what is known is never too old. It is safe for concurrent use.
type Sizes struct {
	known *lru.Cache[digest.Digest, size]
	mu    sync.Mutex // held while an entry is changed
}

// size is what is known of one blob; -1 is for what is not known.
type size struct {
	verified int64 // when the blob was stored, or when it was read in full
	declared int64 // by the manifest that was read last
	read     bool  // it was read in full: what manifests say makes no difference
	damaged  int64 // the length of what was read in full, and is wrong and still there
}

// NewSizes returns Sizes that know nothing.
func NewSizes() *Sizes { return &Sizes{known: lru.New[digest.Digest, size](maxSizes)} }

func (z *Sizes) get(d digest.Digest) size {
	if known, ok := z.known.Get(d); ok {
		return known
	}
	return size{verified: -1, declared: -1, damaged: -1}
}

func (z *Sizes) change(d digest.Digest, f func(*size)) {
	z.mu.Lock()
	defer z.mu.Unlock()
	known := z.get(d)
	f(&known)
	z.known.Put(digest.Digest(strings.Clone(string(d))), known)
}

// Note remembers that the blob had n bytes when it was verified.
func (z *Sizes) Note(d digest.Digest, n int64) {
	z.change(d, func(known *size) {
		if known.damaged = -1; !known.read {
			known.verified = n
		}
	})
}

// NoteRead remembers that the blob was read in full, and has its digest and n bytes.
func (z *Sizes) NoteRead(d digest.Digest, n int64) {
	z.change(d, func(known *size) { known.verified, known.read, known.damaged = n, true, -1 })
}

// NoteDamage remembers that the content of the blob, n bytes, is not the digest's, and
// could not be removed. The next Note takes that back.
func (z *Sizes) NoteDamage(d digest.Digest, n int64) {
	z.change(d, func(known *size) { known.damaged = n })
}

// WasRead reports whether the blob was read in full, and has n bytes.
func (z *Sizes) WasRead(d digest.Digest, n int64) bool {
	known := z.get(d)
	return known.read && known.verified == n
}

// declare remembers what a manifest says about the sizes of what it refers to. It may
// be wrong, so it only casts doubt.
func (z *Sizes) declare(manifest []byte) {
	for _, ref := range layout.Descriptors(manifest) {
		if ref.Size <= 0 {
			continue
		}
		z.change(ref.Digest, func(known *size) { known.declared = ref.Size })
	}
}

// Judge says what to think of n bytes as the content of the blob d, whose link is in
// dir. It reads the note of the size where memory does not have it.
func (z *Sizes) Judge(ctx context.Context, r Reader, dir string, d digest.Digest, n int64) (Verdict, error) {
	known := z.get(d)
	if known.verified < 0 && known.damaged != n {
		noted, err := ReadSize(ctx, r, dir)
		if errors.Is(err, fs.ErrNotExist) {
			return Doubtful, nil
		}
		if err != nil {
			return Doubtful, err
		}
		z.change(d, func(known *size) { known.verified = noted })
		known.verified = noted
	}
	return known.judge(n), nil
}

// JudgeByMemory is Judge without the note: what nobody has said anything about is sound.
func (z *Sizes) JudgeByMemory(d digest.Digest, n int64) Verdict {
	known := z.get(d)
	if known.verified < 0 {
		known.verified = n
	}
	return known.judge(n)
}

func (s size) judge(n int64) Verdict {
	switch {
	case s.damaged == n:
		return Damaged
	case s.verified != n:
		return Wrong
	case !s.read && s.declared >= 0 && s.declared != n:
		return Doubtful
	}
	return Sound
}

// ReadSize reads the note of a size in dir.
func ReadSize(ctx context.Context, r Reader, dir string) (int64, error) {
	content, err := r.Read(ctx, layout.BlobSize(dir), layout.MaxBlobSize)
	if err != nil {
		return 0, err
	}
	return layout.ParseBlobSize(content)
}
