package dirstore

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
	// The manifests that were read last are kept in memory: so many tags and
	// digests at most, each of so many bytes, 32 MiB in all.
	maxKept     = 512
	maxKeptSize = 64 << 10
	// linkAge is how old what is known of a link may be: another process may have
	// moved it.
	linkAge = time.Second
	// markEvery is how often a use is noted on the disk.
	markEvery = time.Hour
)

// memory has manifests that were verified, and what their links said last.
type memory struct {
	kept *lru.Cache[object, *memo]

	closed atomic.Bool

	mu      sync.Mutex
	changes uint64 // of links, by this Store
}

// object is what a client asks for.
type object struct {
	repo pullthrough.Repo
	ref  string
}

// memo is a manifest as its links had it until then.
type memo struct {
	m     *pullthrough.Manifest
	until time.Time
	use   *use // shared by a manifest and its tags
}

// use is when a manifest was asked for last.
type use struct {
	dir, data string // where its link and its content are

	last   atomic.Int64 // nanoseconds since 1970
	marked atomic.Int64 // the same on the disk
}

func newMemory() *memory { return &memory{kept: lru.New[object, *memo](maxKept)} }

// fresh returns the manifest if its links were read less than a second ago.
func (y *memory) fresh(key object) *pullthrough.Manifest {
	known, ok := y.kept.Get(key)
	if !ok || y.closed.Load() {
		return nil
	}
	now := time.Now()
	if !now.Before(known.until) {
		return nil
	}
	known.use.last.Store(now.UnixNano())
	return known.m
}

// stop has everything looked up on the disk, which says that it is closed.
func (y *memory) stop() { y.closed.Store(true) }

// before is called before links are read, and its result handed to keep.
func (y *memory) before() uint64 {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.changes
}

// keep remembers what was read, unless this Store has changed a link meanwhile:
// nobody shall miss what he has put himself.
func (y *memory) keep(before uint64, key object, known *memo) {
	if len(known.m.Content) > maxKeptSize {
		return
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.changes == before {
		y.kept.Put(key.clone(), known)
	}
}

// forget is called after links have changed.
func (y *memory) forget(repo pullthrough.Repo, refs ...string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.changes++
	for _, ref := range refs {
		y.kept.RemoveIf(object{repo, ref}, func(*memo) bool { return true })
	}
}

// known returns what was read of the manifest before, however long ago, without
// counting that as a use.
func (y *memory) known(repo pullthrough.Repo, d digest.Digest) (known *memo) {
	y.kept.RemoveIf(object{repo, string(d)}, func(m *memo) bool { known = m; return false })
	return known
}

// lastUse is when the manifest was asked for last, as far as is known: in
// nanoseconds since 1970, 0 if not.
func (y *memory) lastUse(repo pullthrough.Repo, d digest.Digest) int64 {
	if known := y.known(repo, d); known != nil {
		return known.use.last.Load()
	}
	return 0
}

// clone is the key without the request that it was cut from.
func (o object) clone() object {
	o.repo.Account, o.repo.Region = strings.Clone(o.repo.Account), strings.Clone(o.repo.Region)
	o.repo.Name, o.ref = strings.Clone(o.repo.Name), strings.Clone(o.ref)
	return o
}
