package pullthrough

import (
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

// Download is a blob on its way from an upstream registry to its clients, as it
// stood when [Proxy.Downloads] was called.
type Download struct {
	Repo     Repo
	Digest   digest.Digest
	Upstream string    // its host
	Part     bool      // an import has begun it, no client
	Began    time.Time // when upstream answered, by Proxy.Now
	Size     int64     // in bytes; -1: nobody knows yet
	Written  int64     // bytes that have come from upstream
	Readers  []int64   // how far each client has got, the slowest first; of those that a Store's file serves nothing is said
}

// Downloads returns the blobs that are being downloaded, and those that are here
// but that clients still read from the spool, the oldest first. It is made for
// showing them, and costs nothing to downloads. It may be called at any time.
func (p *Proxy) Downloads() []Download {
	all := []Download{}
	p.state().spools.Range(func(key, value any) bool {
		s, d := key.(*spool.Spool), value.(Download)
		d.Size, d.Written, d.Readers = s.Size(), s.Written(), s.Readers()
		slices.Sort(d.Readers)
		all = append(all, d)
		return true
	})
	slices.SortStableFunc(all, func(a, b Download) int { return a.Began.Compare(b.Began) })
	return all
}
