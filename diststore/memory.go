package diststore

import (
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
)

const (
	// The manifests that were read last are kept in memory: so many tags and
	// digests at most, each of so many bytes, 32 MiB in all. Of blobs only where
	// they are.
	maxKept     = 512
	maxKeptSize = 64 << 10
	maxPlaces   = 4096
	maxRepos    = 4096

	// tagAge is how old what is known of a tag may be: another proxy may have moved
	// it. Nobody moves a digest, but somebody may remove it: that is looked up
	// every linkAge.
	tagAge  = time.Second
	linkAge = time.Minute
)

// memory has manifests that were verified, and what their links said last.
type memory struct {
	kept   *lru.Cache[object, *memo]
	places *lru.Cache[object, place]
	repos  *lru.Cache[layout.Repository, time.Time] // until then

	mu      sync.Mutex
	changes uint64 // of links, by this Store
}

// object is what a client asks for.
type object struct {
	at  layout.Repository
	ref string
}

// memo is a manifest as its links had it until then.
type memo struct {
	m     *pullthrough.Manifest
	home  layout.Repository // of a digest: where its link is
	until time.Time
}

// place is where the content of a blob is, and how much, as its link had it until
// then.
type place struct {
	data  string
	size  int64
	until time.Time
}

func newMemory() *memory {
	return &memory{
		kept: lru.New[object, *memo](maxKept), places: lru.New[object, place](maxPlaces), repos: lru.New[layout.Repository, time.Time](maxRepos),
	}
}

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
func (y *memory) forget(at layout.Repository, refs ...string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.changes++
	for _, ref := range refs {
		y.kept.RemoveIf(object{at, ref}, func(*memo) bool { return true })
	}
}

// place returns where the blob was found a moment ago.
func (y *memory) place(at layout.Repository, d digest.Digest) (place, bool) {
	p, ok := y.places.Get(object{at, string(d)})
	return p, ok && time.Now().Before(p.until)
}

func (y *memory) keepPlace(at layout.Repository, d digest.Digest, p place) {
	p.until = time.Now().Add(linkAge)
	y.places.Put(object{at, string(d)}.clone(), p)
}

func (y *memory) forgetPlace(at layout.Repository, d digest.Digest) {
	y.places.RemoveIf(object{at, string(d)}, func(place) bool { return true })
}

// exists reports whether the repository was there a moment ago.
func (y *memory) exists(at layout.Repository) bool {
	until, ok := y.repos.Get(at)
	return ok && time.Now().Before(until)
}

func (y *memory) keepRepo(at layout.Repository) {
	at.Name = strings.Clone(at.Name)
	y.repos.Put(at, time.Now().Add(linkAge))
}

// clone is the key without the request that it was cut from.
func (o object) clone() object {
	o.at.Name, o.ref = strings.Clone(o.at.Name), strings.Clone(o.ref)
	return o
}
