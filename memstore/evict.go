package memstore

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
)

// Eviction. In a Store with a limit, a hit only records its place in the order of all
// pulls. That costs one atomic write under the read lock. When a put exceeds the limit,
// one sweep over everything decides what to remove. A sweep frees an eighth of the
// limit, which keeps sweeps rare.

// touch records that the manifest or blob was used now.
func (s *Store) touch(used *atomic.Int64) {
	if s.MaxBytes > 0 {
		used.Store(s.clock.Add(1))
	}
}

// fits returns an error for content that exceeds the limit even in an empty Store.
func (s *Store) fits(size int64) error {
	if s.MaxBytes > 0 && size > s.MaxBytes {
		return fmt.Errorf("%d bytes do not fit into a memstore.Store of %d: %w", size, s.MaxBytes, pullthrough.ErrTooLarge)
	}
	return nil
}

// references returns the digests that m refers to. It returns none for a manifest that
// cannot be parsed.
func (s *Store) references(m *pullthrough.Manifest) (refs []digest.Digest) {
	if s.MaxBytes <= 0 {
		return nil
	}
	info, err := manifest.Inspect(m.Descriptor.MediaType, m.Content, manifest.Stored)
	if err != nil {
		return nil
	}
	for _, d := range slices.Concat(info.Manifests, info.Blobs) {
		refs = append(refs, d.Digest)
	}
	return refs
}

// memObject is a manifest or a blob in one repository.
type memObject struct {
	repo   pullthrough.Repo
	digest digest.Digest
	blob   bool
	used   int64 // when it, or an image that needs it, was last pulled
	depth  int   // orders objects used at the same time; smaller than the depth of what it refers to
}

// evictLocked makes room if the limit is exceeded. It does not remove the object put in
// repo.
func (s *Store) evictLocked(repo pullthrough.Repo, put digest.Digest) {
	if s.MaxBytes <= 0 || s.bytes <= s.MaxBytes {
		return
	}
	var all []memObject
	for name, r := range s.repos {
		all = r.objects(all, name)
	}
	slices.SortFunc(all, func(a, b memObject) int {
		// A manifest is removed before the objects that it refers to.
		return cmp.Or(cmp.Compare(a.used, b.used), cmp.Compare(a.depth, b.depth))
	})
	changed := make(map[pullthrough.Repo]struct{})
	for _, o := range all {
		if s.bytes <= s.MaxBytes-s.MaxBytes/8 {
			break
		}
		if o.repo == repo && o.digest == put {
			continue
		}
		s.removeLocked(o)
		changed[o.repo] = struct{}{}
	}
	for repo := range changed {
		s.tidyLocked(repo)
	}
}

// objects appends all objects of r to all. An object counts as used when the most
// recently used image that needs it was used.
func (r *memRepo) objects(all []memObject, name pullthrough.Repo) []memObject {
	m := &memMarks{r, make(map[digest.Digest]int64, len(r.manifests)), make(map[digest.Digest]int64, len(r.blobs)), make(map[digest.Digest]int, len(r.manifests))}
	roots := slices.Collect(maps.Keys(r.manifests))
	slices.SortFunc(roots, func(a, b digest.Digest) int { // the latest first, so that no object is marked twice
		return cmp.Compare(r.manifests[b].used.Load(), r.manifests[a].used.Load())
	})
	for d, link := range r.blobs {
		m.blobs[d] = link.used.Load()
	}
	for _, d := range roots {
		m.mark(d, r.manifests[d].used.Load())
	}
	for d, used := range m.manifests {
		all = append(all, memObject{name, d, false, used, -m.done[d]})
	}
	for d, used := range m.blobs {
		all = append(all, memObject{name, d, true, used, 1})
	}
	return all
}

// memMarks records when each manifest and blob of a repository was last used.
type memMarks struct {
	*memRepo
	manifests, blobs map[digest.Digest]int64
	done             map[digest.Digest]int // the order in which manifests were marked: children before parents
}

// mark records that d, and everything that it refers to, was used at that time or later.
func (m *memMarks) mark(d digest.Digest, at int64) {
	if used, ok := m.blobs[d]; ok {
		m.blobs[d] = max(used, at)
	}
	have := m.memRepo.manifests[d]
	if have == nil || m.manifests[d] >= at {
		return
	}
	m.manifests[d] = at
	for _, ref := range have.refs {
		m.mark(ref, at)
	}
	m.done[d] = len(m.done) + 1
}

func (s *Store) removeLocked(o memObject) {
	r := s.repos[o.repo]
	if !o.blob {
		s.bytes -= r.manifests[o.digest].size()
		delete(r.manifests, o.digest)
		return
	}
	delete(r.blobs, o.digest)
	s.bytes -= entryBytes
	b := s.blobs[o.digest]
	if b.links--; b.links == 0 {
		s.bytes -= int64(len(b.content))
		delete(s.blobs, o.digest)
	}
}

// untagLocked removes a tag, if there is one.
func (s *Store) untagLocked(r *memRepo, tag string) {
	old := r.tags[tag]
	if old == nil {
		return
	}
	delete(r.tags, tag)
	if m := r.manifests[old.Descriptor.Digest]; m != nil {
		m.tags--
		s.bytes -= entryBytes
	}
}

// keepOneTagLocked removes the tags of m other than m.Tag.
func (s *Store) keepOneTagLocked(r *memRepo, m *pullthrough.Manifest) {
	for tag, other := range r.tags {
		if tag != m.Tag && other.Descriptor.Digest == m.Descriptor.Digest {
			s.untagLocked(r, tag)
		}
	}
}

// tidyLocked removes tags whose manifest is gone, and the repository if it is empty.
func (s *Store) tidyLocked(repo pullthrough.Repo) {
	r := s.repos[repo]
	for tag, m := range r.tags {
		if r.manifests[m.Descriptor.Digest] == nil {
			delete(r.tags, tag)
		}
	}
	if len(r.manifests) == 0 && len(r.blobs) == 0 {
		delete(s.repos, repo)
	}
}
