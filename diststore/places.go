package diststore

import (
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
)

const (
	// maxPlaces and maxRepos are how many blobs and repositories are known at most.
	maxPlaces = 4096
	maxRepos  = 4096

	// tagAge is how old what is known of a tag may be: another proxy may have moved
	// it. Nobody moves a digest, but somebody may remove it: that is looked up
	// every linkAge.
	tagAge  = time.Second
	linkAge = time.Minute
)

// places are where blobs and repositories were a moment ago.
type places struct {
	blobs *lru.Cache[blobKey, place]
	repos *lru.Cache[layout.Repository, time.Time] // until then
}

type blobKey struct {
	at     layout.Repository
	digest digest.Digest
}

// place is where the content of a blob is, and how much, as its link had it until
// then.
type place struct {
	data   string
	digest digest.Digest // the content's own
	size   int64
	until  time.Time
}

func newPlaces() places {
	return places{lru.New[blobKey, place](maxPlaces), lru.New[layout.Repository, time.Time](maxRepos)}
}

// blob returns where the blob was found a moment ago.
func (y *places) blob(at layout.Repository, d digest.Digest) (place, bool) {
	p, ok := y.blobs.Get(blobKey{at, d})
	return p, ok && time.Now().Before(p.until)
}

func (y *places) keepBlob(at layout.Repository, d digest.Digest, p place) {
	p.until = time.Now().Add(linkAge)
	y.blobs.Put(blobKey{clone(at), digest.Digest(strings.Clone(string(d)))}, p)
}

func (y *places) forgetBlob(at layout.Repository, d digest.Digest) {
	y.blobs.RemoveIf(blobKey{at, d}, func(place) bool { return true })
}

// clear forgets all: a repository was removed.
func (y *places) clear() {
	y.blobs.Clear()
	y.repos.Clear()
}

// exists reports whether the repository was there a moment ago.
func (y *places) exists(at layout.Repository) bool {
	until, ok := y.repos.Get(at)
	return ok && time.Now().Before(until)
}

func (y *places) keepRepo(at layout.Repository) {
	y.repos.Put(clone(at), time.Now().Add(linkAge))
}

// clone is the key without the request that its name was cut from.
func clone(at layout.Repository) layout.Repository {
	at.Name = strings.Clone(at.Name)
	return at
}
