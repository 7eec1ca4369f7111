package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
)

const (
	// importWidth is how many blobs or children of one manifest are fetched at a
	// time, maxIndexDepth how many indexes may stand in each other.
	importWidth   = 4
	maxIndexDepth = 4
)

// ImportOptions choose what [Proxy.Import] brings in. The zero value is the
// whole image.
type ImportOptions struct {
	// Platforms picks children of an index by OS and architecture, and by variant
	// if that is set. nil: all children, attestations included.
	Platforms []ocispec.Platform
	// Progress is told of each object when it begins, as it grows and when it is
	// stored. It is called by several goroutines, must be safe for that, and must
	// not block for long. nil: nobody is told.
	Progress func(ImportProgress)
}

// ImportProgress is how far one manifest or blob is.
type ImportProgress struct {
	Descriptor ocispec.Descriptor
	Done       int64 // bytes that are here
	Total      int64 // bytes in all
	Stored     bool  // the Store has it
}

// importer brings in whole images. An image is imported by fetching manifests and
// blobs, and fetching a manifest may import an image: so it is the importer that tells
// the resolver how.
type importer struct {
	*core
	manifests *resolver
	blobs     *blobs
	later     flight.Group[objectKey, struct{}] // in the background
}

func newImporter(re *resolver, bl *blobs, flights *flight.Set) *importer {
	im := &importer{core: re.core, manifests: re, blobs: bl}
	im.later.Join(flights, "import of")
	re.importLater = im.importLater
	re.importParts = func(ctx context.Context, rt *route, m *Manifest, depth int) error {
		return im.importParts(ctx, rt, m, ImportOptions{}, depth)
	}
	return im
}

// pull brings in the image r.Ref, and returns its manifest.
func (im *importer) pull(ctx context.Context, r Request, o ImportOptions) (*Manifest, outcome, error) {
	m, out, err := im.manifests.pull(ctx, r)
	if err != nil {
		return nil, out, err
	}
	// The manifest may have been a hit: what it refers to has its own price.
	if err := im.mayImport(ctx, r); err != nil {
		return nil, outcome{}, err
	}
	rt, err := im.router.routeBeside(ctx, r.Repo)
	if err != nil {
		return nil, outcome{}, err
	}
	// What was found out about the manifest says nothing of its parts: by now the
	// repository is there.
	if err := im.importParts(ctx, rt, m, o, 0); err != nil {
		return m, outcome{}, err
	}
	// The manifest's answer was out before the Store had it.
	if err := im.manifests.stored(ctx, rt, r.Ref); err != nil {
		return m, outcome{}, err
	}
	if err := im.manifests.stored(ctx, rt, r.Ref); err != nil {
		return nil, out, err
	}
	o.tell(m.Descriptor, m.Descriptor.Size, true)
	return m, outcome{}, nil
}

// importParts brings in what m refers to. The first failure ends it.
func (im *importer) importParts(ctx context.Context, rt *route, m *Manifest, o ImportOptions, depth int) error {
	if depth > maxIndexDepth {
		return rt.error(ErrUnavailable, fmt.Errorf("more than %d indexes in each other", maxIndexDepth))
	}
	info, err := manifest.Inspect(m.Descriptor.MediaType, m.Content, manifest.Stored)
	if err != nil {
		return rt.error(ErrUnavailable, err)
	}
	children := slices.DeleteFunc(info.Manifests, func(d ocispec.Descriptor) bool { return !o.wants(d) })
	err = each(ctx, children, func(ctx context.Context, d ocispec.Descriptor) error {
		return im.importChild(ctx, rt, d, o, depth+1)
	})
	if err != nil {
		return err
	}
	return each(ctx, info.Blobs, func(ctx context.Context, d ocispec.Descriptor) error {
		return im.importBlob(ctx, rt, d, o)
	})
}

// each calls f for all, a few at a time, and ends with the first failure. A panic, of
// a Progress for example, is one: here it would end the process.
func each(ctx context.Context, all []ocispec.Descriptor, f func(context.Context, ocispec.Descriptor) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	slots := make(chan struct{}, importWidth)
	for _, d := range all {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		running.Go(func() {
			defer func() { <-slots }()
			if err := hostcall.Guard("the import", func() error { return f(ctx, d) }); err != nil {
				cancel(err)
			}
		})
	}
	running.Wait()
	return context.Cause(ctx)
}

func (o ImportOptions) wants(d ocispec.Descriptor) bool {
	if o.Platforms == nil {
		return true
	}
	return d.Platform != nil && slices.ContainsFunc(o.Platforms, func(p ocispec.Platform) bool {
		return p.OS == d.Platform.OS && p.Architecture == d.Platform.Architecture && (p.Variant == "" || p.Variant == d.Platform.Variant)
	})
}

func (o ImportOptions) tell(d ocispec.Descriptor, done int64, stored bool) {
	if o.Progress != nil {
		o.Progress(ImportProgress{Descriptor: d, Done: done, Total: d.Size, Stored: stored})
	}
}

// importChild brings in a manifest of an index, and what that refers to.
func (im *importer) importChild(ctx context.Context, rt *route, d ocispec.Descriptor, o ImportOptions, depth int) error {
	m, err := im.manifests.child(ctx, rt, d.Digest, depth, func() { o.tell(d, 0, false) })
	if err != nil {
		return err
	}
	if err := im.importParts(ctx, rt, m, o, depth); err != nil {
		return err
	}
	if err := im.manifests.stored(ctx, rt, d.Digest.String()); err != nil {
		return err
	}
	o.tell(d, d.Size, true)
	return nil
}

// importBlob brings in a blob and waits until the Store has it.
func (im *importer) importBlob(ctx context.Context, rt *route, d ocispec.Descriptor, o ImportOptions) error {
	if im.blobs.isStored(ctx, rt, d.Digest) {
		o.tell(d, d.Size, true)
		return nil
	}
	f, err := im.blobs.part(ctx, rt, d.Digest)
	if errors.Is(err, ErrNotFound) && manifest.IsForeign(d.MediaType) {
		return nil // the registry is not meant to have it
	}
	if err != nil {
		return err
	}
	defer f.Release()
	if err := f.Follow(ctx, func(done int64) { o.tell(d, done, false) }); err != nil {
		return err
	}
	err = f.Wait(ctx)
	if err == nil {
		o.tell(d, d.Size, true)
	}
	return err
}

// importLater brings in what m refers to while nobody waits, once at a time.
func (im *importer) importLater(rt *route, m *Manifest) {
	key := rt.key(m.Descriptor.Digest.String())
	_, _, _ = im.later.Do(context.Background(), key, func(call *flight.Call[objectKey, struct{}]) (struct{}, error) {
		call.Publish(struct{}{}) // nobody waits for the rest
		if err := im.importParts(call.Context(), rt, m, ImportOptions{}, 0); err != nil {
			im.log.Warn("image could not be imported whole", "repository", rt.repo.Name, "digest", key.ref, "err", err)
		}
		return struct{}{}, nil
	})
}
