package filing

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
)

const (
	// A memory has at most so many tags and digests, each with a manifest of at most
	// so many bytes. That is 32 MiB in all.
	maxKept     = 512
	maxKeptSize = 64 << 10
)

// Object is what a client asks for: a tag or a digest in a repository.
type Object struct {
	Repo pullthrough.Repo
	Ref  string
}

// Clone returns the same object without the request that its strings were cut
// from.
func (o Object) Clone() Object {
	return Object{
		pullthrough.Repo{Account: strings.Clone(o.Repo.Account), Region: strings.Clone(o.Repo.Region), Name: strings.Clone(o.Repo.Name)},
		strings.Clone(o.Ref),
	}
}

// memory has the manifests that were read last, verified, with what their links
// said.
type memory struct {
	kept   *lru.Cache[Object, *memo]
	closed atomic.Bool

	mu      sync.Mutex
	changes uint64 // of links, by this store
}

// memo is a manifest. Its links said so when they were read, and are believed for
// some time.
type memo struct {
	m     *pullthrough.Manifest
	until time.Time
	use   *use // a manifest shares it with its tags
}

// use is where a manifest is, and when it was asked for last.
type use struct {
	dir, data string // where its link and its content are

	last   atomic.Int64 // nanoseconds since 1970
	marked atomic.Int64 // the same as the store has noted it
}

// fresh returns what need not be read again, or nil.
func (y *memory) fresh(o Object) *memo {
	known, ok := y.kept.Get(o)
	if !ok || y.closed.Load() {
		return nil
	}
	now := time.Now()
	if !now.Before(known.until) {
		return nil
	}
	known.use.last.Store(now.UnixNano())
	return known
}

// known returns what was read of the manifest before, however long ago, without
// counting that as a use.
func (y *memory) known(repo pullthrough.Repo, d digest.Digest) (known *memo) {
	y.kept.RemoveIf(Object{repo, string(d)}, func(m *memo) bool { known = m; return false })
	return known
}

// before is called before links are read, and its result is handed to keep.
func (y *memory) before() uint64 {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.changes
}

// keep remembers what was read, unless this store has changed a link meanwhile: a
// client must find what it has just put.
func (y *memory) keep(before uint64, o Object, known *memo) {
	if len(known.m.Content) > maxKeptSize {
		return
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.changes == before {
		y.kept.Put(o.Clone(), known)
	}
}

// forgetAll is called after any number of links has changed.
func (y *memory) forgetAll() {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.changes++
	y.kept.Clear()
}

// forget is called after links have changed.
func (y *memory) forget(repo pullthrough.Repo, refs ...string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.changes++
	for _, ref := range refs {
		y.kept.RemoveIf(Object{repo, ref}, func(*memo) bool { return true })
	}
}
