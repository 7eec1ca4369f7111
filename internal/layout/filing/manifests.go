package filing

import (
	"cmp"
	"context"
	"errors"
	"hash/maphash"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// MarkEvery is how often the use of content is noted.
const MarkEvery = time.Hour

// Manifests reads and writes the manifests of a store, and remembers those that
// were read last. It is safe for concurrent use.
type Manifests struct {
	tagAge, linkAge time.Duration
	memory          memory
	sizes           *Sizes
	seed            maphash.Seed
	tags            [4096]sync.Mutex     // by the hash of a tag's directory: held while the tag moves
	folds           atomic.Pointer[bool] // nil: nobody has looked; see [Manifests.isNamed]
}

// NewManifests returns the manifests of a store. What a tag's link said is
// believed for tagAge, and that a digest's link is there for linkAge: another
// process may have changed it. What the manifests say of sizes is told to sizes.
func NewManifests(tagAge, linkAge time.Duration, sizes *Sizes) *Manifests {
	return &Manifests{
		tagAge: tagAge, linkAge: linkAge, memory: memory{kept: lru.New[Object, *memo](maxKept)}, sizes: sizes,
		seed: maphash.MakeSeed(),
	}
}

// Fresh returns a manifest whose links were read a moment ago, or nil. It reads
// nothing.
func (f *Manifests) Fresh(o Object) *pullthrough.Manifest {
	if known := f.memory.fresh(o); known != nil {
		return known.m
	}
	return nil
}

// LastUse is when the manifest was asked for last, in nanoseconds since 1970: 0 if
// that is not known.
func (f *Manifests) LastUse(repo pullthrough.Repo, d digest.Digest) int64 {
	if known := f.memory.known(repo, d); known != nil {
		return known.use.last.Load()
	}
	return 0
}

// Forget is called after the links of the tags and digests refs have changed.
func (f *Manifests) Forget(repo pullthrough.Repo, refs ...string) { f.memory.forget(repo, refs...) }

// Stop has everything read from now on: a store that is closed says so.
func (f *Manifests) Stop() { f.memory.closed.Store(true) }

// Read returns the manifest o of the repository at.
func (f *Manifests) Read(ctx context.Context, r Reader, at layout.Repository, o Object) (*pullthrough.Manifest, error) {
	known, err := f.read(ctx, r, at, o)
	if err != nil {
		return nil, err
	}
	return known.m, nil
}

func (f *Manifests) read(ctx context.Context, r Reader, at layout.Repository, o Object) (known *memo, err error) {
	if known = f.memory.fresh(o); known != nil {
		return known, nil
	}
	before := f.memory.before()
	if ocipath.IsDigest(o.Ref) {
		known, err = f.readDigest(ctx, r, at, o)
	} else {
		known, err = f.readTag(ctx, r, at, o)
	}
	if err != nil {
		return nil, err
	}
	f.memory.keep(before, o, known)
	return known, nil
}

// readTag reads the manifest that the tag names.
func (f *Manifests) readTag(ctx context.Context, r Reader, at layout.Repository, o Object) (*memo, error) {
	until := time.Now().Add(f.tagAge)
	d, side, err := f.ReadTag(ctx, r, at, o.Ref)
	if err != nil {
		return nil, err
	}
	known, err := f.read(ctx, r, at, Object{o.Repo, string(d)})
	if err != nil {
		return nil, err
	}
	// What is known of the manifest says nothing of the tag: the registry may
	// have moved it there.
	m := *known.m
	m.Tag, m.CheckedAt, m.Origin = o.Clone().Ref, side.CheckedAt, side.Origin
	if known.until.Before(until) {
		until = known.until
	}
	return &memo{&m, until, known.use}, nil
}

// readDigest reads the manifest only if memory does not have it. Otherwise it
// looks whether the link is still there.
func (f *Manifests) readDigest(ctx context.Context, r Reader, at layout.Repository, o Object) (*memo, error) {
	now, d := time.Now(), digest.Digest(o.Ref)
	known := f.memory.known(o.Repo, d)
	if known != nil {
		_, err := ReadLink(ctx, r, known.use.dir, d)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err != nil {
			known = nil // it may be in another place now
		}
	}
	if known == nil {
		v, err := ReadRevision(ctx, r, at, d)
		if err != nil {
			return nil, err
		}
		f.sizes.declare(v.Manifest.Content)
		known = &memo{m: v.Manifest, use: &use{dir: v.Dir, data: v.Data}}
		known.use.marked.Store(v.Used.UnixNano())
	}
	known.use.last.Store(now.UnixNano())
	if err := mark(ctx, r, known.use, now); err != nil {
		f.memory.forget(o.Repo, o.Ref)
		return nil, err
	}
	return &memo{known.m, now.Add(f.linkAge), known.use}, nil
}

// mark has the store note the use, once an hour. It fails only if the content is
// not there any more.
func mark(ctx context.Context, r Reader, u *use, now time.Time) error {
	if age := now.Sub(time.Unix(0, u.marked.Load())); age.Abs() < MarkEvery {
		return nil
	}
	u.marked.Store(now.UnixNano())
	if err := r.Touch(ctx, u.data); errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil // a store that we may not write is still good to read
}

// Write stores the manifest m, which [layout.CheckManifest] has accepted, in the
// repository at. The tag moves when all else is stored.
func (f *Manifests) Write(ctx context.Context, w Writer, at layout.Repository, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	defer func() { f.memory.forget(repo, m.Tag, string(m.Descriptor.Digest)) }()
	if m.Source == pullthrough.SourceRevalidated {
		if done, err := f.recheck(ctx, w, at, repo, m); done {
			return err
		}
	}
	f.sizes.declare(m.Content)
	mediaType, err := writeRevision(ctx, w, at, m)
	if err != nil {
		return err
	}
	if m.Tag == "" {
		return w.Sync()
	}
	// Of two puts of a tag in this process, one of which must not move what the other
	// has pushed, one is first.
	defer f.lockTag(at, m.Tag)()
	if m.KeepLocal {
		_, side, err := f.ReadTag(ctx, w, at, m.Tag)
		if err == nil && side.Origin == "" {
			return cmp.Or(w.Sync(), pullthrough.ErrImmutable)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return f.writeTag(ctx, w, at, layout.TagSidecarOf(m, mediaType))
}

// recheck notes that upstream has confirmed the tag. A tag that has moved since
// stays where it is. A tag that is not here is for the caller to store. Nothing is
// synced: after a power failure the tag is checked once more.
func (f *Manifests) recheck(ctx context.Context, w Writer, at layout.Repository, repo pullthrough.Repo, m *pullthrough.Manifest) (done bool, err error) {
	if m.Tag == "" {
		return false, nil
	}
	d, side, err := f.ReadTag(ctx, w, at, m.Tag)
	if err == nil && d != m.Descriptor.Digest {
		return true, nil
	}
	var known *memo
	if err == nil {
		known, err = f.read(ctx, w, at, Object{repo, string(d)})
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	side.Digest, side.MediaType = d, known.m.Descriptor.MediaType
	side.CheckedAt, side.Tag = layout.SidecarOf(m, "").CheckedAt, m.Tag
	return true, writeSidecar(ctx, w, at.Tag(m.Tag), side)
}
