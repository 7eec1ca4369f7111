package pullthrough

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/quota"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

const (
	maxSizes    = 16384
	maxVerified = 4096
	maxMissing  = 4096
)

// running is what a Proxy keeps in memory. It is made on first use.
type running struct {
	upstream     *upstream
	checks       *checks
	flights      flight.Set
	manifests    flight.Group[objectKey, *Manifest]
	blobs        flight.Group[objectKey, *fill]
	imports      flight.Group[objectKey, struct{}] // in the background
	heads        flight.Group[objectKey, int64]
	probes       flight.Group[objectKey, struct{}] // of rules, see ValidateRule
	referrers    flight.Group[objectKey, *ocispec.Index]
	lists        *lru.Cache[objectKey, referrerList] // where the Store keeps none
	sizes        *lru.Cache[objectKey, int64]        // of blobs, as manifests or upstream told them
	children     *lru.Cache[objectKey, struct{}]     // manifests that an index was seen to refer to
	missing      *lru.Cache[objectKey, time.Time]    // manifests that upstream does not have, and since when
	listed       *lru.Cache[objectKey, time.Time]    // repositories whose stored tags were looked at for children, and when
	orphans      orphanage
	files        *spool.Files
	space        *quota.Quota                      // of SpoolBytes
	bodies       *lru.Cache[routeID, *quota.Quota] // downloads of one rule at a time
	spools       sync.Map                          // of *spool.Spool to Download: all that hold content
	lookUps      *quota.Quota                      // calls of the host by kind
	manifestPuts *quota.Quota
	blobPuts     *quota.Quota
	verified     *lru.Cache[digest.Digest, verified] // manifests of the Store
}

// objectKey is what may be shared between requests: the same object of the
// same repository by the same rule.
type objectKey struct {
	rule routeID
	repo string
	ref  string
}

// String names the object, for people.
func (k objectKey) String() string { return ocipath.Object(k.repo, k.ref) }

func (rt *route) key(ref string) objectKey { return objectKey{rt.id, rt.repo.Name, ref} }

func (p *Proxy) state() *running {
	p.once.Do(func() {
		p.run = &running{
			upstream: newUpstream(p),
			checks:   newChecks(),
			sizes:    lru.New[objectKey, int64](maxSizes),
			children: lru.New[objectKey, struct{}](maxSizes),
			lists:    lru.New[objectKey, referrerList](maxLists),
			missing:  lru.New[objectKey, time.Time](maxMissing),
			listed:   lru.New[objectKey, time.Time](maxSites),
			files:    spool.NewFiles(openFileLimit() / 4),
			space:    quota.New(p.SpoolBytes),
			bodies:   lru.New[routeID, *quota.Quota](maxSites),
			lookUps:  quota.New(maxLookUps), manifestPuts: quota.New(maxPuts), blobPuts: quota.New(maxPuts),
			verified: lru.New[digest.Digest, verified](maxVerified),
		}
		for name, g := range map[string]interface {
			Join(*flight.Set, string)
		}{
			"manifest": &p.run.manifests, "blob": &p.run.blobs, "import of": &p.run.imports, "size of": &p.run.heads,
			"rule": &p.run.probes, "referrers of": &p.run.referrers, "token": &p.run.upstream.auth.fetches,
		} {
			g.Join(&p.run.flights, name)
		}
		p.run.blobs.Acquire, p.run.blobs.Release = (*fill).retain, (*fill).release
	})
	return p.run
}

// turns bounds the downloads by one rule, so that none waits for another's.
func (run *running) turns(rt *route) *quota.Quota {
	return run.bodies.GetOrPut(rt.id, func() *quota.Quota { return quota.New(int64(rt.policy.maxDownloads())) })
}
