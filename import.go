package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
)

const (
	// importWidth is how many blobs or children of one manifest are fetched at a
	// time, maxIndexDepth how many indexes may stand in each other.
	importWidth   = 4
	maxIndexDepth = 4
)

// FillMode says how much of an image a pull brings in.
type FillMode int

const (
	// FillLazy brings in what clients ask for. It is the zero value, and a
	// departure from Amazon ECR.
	FillLazy FillMode = iota
	// FillBackground brings in, after a manifest, all that it refers to, children
	// of every platform included, while nobody waits for it; as Amazon ECR does.
	FillBackground
	// FillEager is FillBackground for Stores that check references: a manifest is
	// put after its children and blobs. Clients do not wait for that.
	FillEager
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

// Import brings the image r.Ref of r.Repo into the Store, with all that it
// refers to, and returns its manifest. What is stored already is not fetched
// again, what is being fetched for a client is shared with it. When it fails,
// what has come so far stays. Errors and permissions are those of [Proxy.Manifest].
func (p *Proxy) Import(ctx context.Context, r Request, o ImportOptions) (*Manifest, error) {
	m, err := p.importImage(ctx, r, o)
	return m, at(ctx, err, r.Repo, r.Ref)
}

func (p *Proxy) importImage(ctx context.Context, r Request, o ImportOptions) (*Manifest, error) {
	rt, err := p.route(ctx, r.Repo)
	if err != nil {
		return nil, err
	}
	m, err := p.manifest(ctx, r)
	if err != nil {
		return nil, err
	}
	// The manifest may have been a hit: what it refers to has its own price.
	if err := p.authorize(ctx, ActionImport, r); err != nil {
		return nil, maskedImport(err)
	}
	o.tell(m.Descriptor, m.Descriptor.Size, true)
	return m, p.importAll(ctx, rt, m, o, 0)
}

// importAll brings in what m refers to. The first failure ends it.
func (p *Proxy) importAll(ctx context.Context, rt *route, m *Manifest, o ImportOptions, depth int) error {
	if depth > maxIndexDepth {
		return rt.error(ErrUnavailable, fmt.Errorf("more than %d indexes in each other", maxIndexDepth))
	}
	info, err := manifest.Inspect(m.Descriptor.MediaType, m.Content)
	if err != nil {
		return rt.error(ErrUnavailable, err)
	}
	children := slices.DeleteFunc(info.Manifests, func(d ocispec.Descriptor) bool { return !o.wants(d) })
	err = each(ctx, children, func(ctx context.Context, d ocispec.Descriptor) error {
		return p.importChild(ctx, rt, d, o, depth+1)
	})
	if err != nil {
		return err
	}
	return each(ctx, info.Blobs, func(ctx context.Context, d ocispec.Descriptor) error {
		return p.importBlob(ctx, rt, d, o)
	})
}

// each calls f for all, a few at a time, and ends with the first failure.
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
			if err := f(ctx, d); err != nil {
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
func (p *Proxy) importChild(ctx context.Context, rt *route, d ocispec.Descriptor, o ImportOptions, depth int) error {
	m, err := p.storedManifest(ctx, rt.repo, d.Digest.String())
	if m == nil {
		o.tell(d, 0, false)
		m, _, err = p.joinManifest(ctx, rt, Request{Repo: rt.repo, Ref: d.Digest.String()}, depth)
	}
	if err != nil {
		return err
	}
	if err := p.importAll(ctx, rt, m, o, depth); err != nil {
		return err
	}
	// The answer was out before the Store had it.
	if err := p.state().manifests.Wait(ctx, rt.key(d.Digest.String())); err != nil {
		return err
	}
	o.tell(d, d.Size, true)
	return nil
}

// importBlob brings in a blob and waits until the Store has it.
func (p *Proxy) importBlob(ctx context.Context, rt *route, d ocispec.Descriptor, o ImportOptions) error {
	if b, _ := p.storedBlob(ctx, rt.repo, d.Digest); b != nil {
		o.tell(d, d.Size, true)
		return b.Body.Close()
	}
	f, _, err := p.join(ctx, rt, d.Digest, true)
	if errors.Is(err, ErrNotFound) && foreign(d.MediaType) {
		return nil // the registry is not meant to have it
	}
	if err != nil {
		return err
	}
	defer f.release()
	if err := f.follow(ctx, d, o); err != nil {
		return err
	}
	select {
	case <-f.ended:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if f.err == nil {
		o.tell(d, d.Size, true)
	}
	return f.err
}

// foreign reports whether layers of the type need not be in any registry.
func foreign(mediaType string) bool {
	return strings.Contains(mediaType, "nondistributable") || strings.Contains(mediaType, ".foreign.")
}

// follow tells of the download's progress until its last byte is there.
func (f *fill) follow(ctx context.Context, d ocispec.Descriptor, o ImportOptions) error {
	if f.spool == nil {
		return nil
	}
	for done := int64(0); ; {
		o.tell(d, done, false)
		written, ended, err := f.spool.Wait(ctx, done)
		if err != nil || ended {
			return err
		}
		done = written
	}
}

type importCall = flight.Call[objectKey, struct{}]

// importInBackground brings in what m refers to, once at a time.
func (p *Proxy) importInBackground(rt *route, m *Manifest) {
	key := rt.key(m.Descriptor.Digest.String())
	_, _, _ = p.state().imports.Do(context.Background(), key, func(call *importCall) (struct{}, error) {
		call.Publish(struct{}{}) // nobody waits for the rest
		if err := p.importAll(call.Context(), rt, m, ImportOptions{}, 0); err != nil {
			p.log().Warn("image could not be imported whole", "repository", rt.repo.Name, "digest", key.ref, "err", err)
		}
		return struct{}{}, nil
	})
}
