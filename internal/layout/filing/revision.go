package filing

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// Revision is a manifest of a repository, and where it is.
type Revision struct {
	Manifest *pullthrough.Manifest
	Dir      string    // of the link
	Data     string    // the file with the content
	Used     time.Time // as [Reader.Content] says
}

// ReadRevision reads the manifest d of the repository at, and checks its content.
func ReadRevision(ctx context.Context, r Reader, at layout.Repository, d digest.Digest) (v Revision, err error) {
	for _, home := range at.Homes() {
		v, err = readRevisionIn(ctx, r, home, d)
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return v, err
}

func readRevisionIn(ctx context.Context, r Reader, home layout.Repository, d digest.Digest) (Revision, error) {
	v := Revision{Dir: home.Revision(d)}
	target, err := ReadLink(ctx, r, v.Dir, d)
	if err != nil {
		return Revision{}, err
	}
	v.Data = home.Tree.Data(target)
	content, used, err := r.Content(ctx, v.Data, d)
	if errors.Is(err, layout.ErrDamaged) {
		r.Discard(layout.Link(v.Dir), func(content []byte) bool { // the registry must not serve it either
			target, err := layout.ParseLink(content, d)
			return err == nil && !errors.Is(r.Touch(ctx, home.Tree.Data(target)), fs.ErrNotExist) // put again just now
		})
	}
	if err != nil {
		return Revision{}, err
	}
	side, _, err := readSidecar(ctx, r, v.Dir, d)
	if err != nil {
		return Revision{}, err
	}
	v.Used = used
	v.Manifest, err = layout.NewManifest(content, d, side)
	return v, err
}

// writeRevision stores the manifest, unless it is here, and returns the media type
// that it has here. It may be lost until the next sync.
func writeRevision(ctx context.Context, w Writer, at layout.Repository, m *pullthrough.Manifest) (mediaType string, err error) {
	d := m.Descriptor.Digest
	have, err := ReadRevision(ctx, w, at, d)
	if err == nil {
		err = w.Reuse(ctx, have) // an eviction that has seen it unused leaves it alone
	}
	if err == nil {
		return have.Manifest.Descriptor.MediaType, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	home := at.Home(m.Content)
	if err := w.WriteContent(ctx, at, home.Tree.Data(d), m); err != nil {
		return "", err
	}
	side, err := layout.SidecarOf(m, m.Descriptor.MediaType).Encode()
	if err != nil {
		return "", err
	}
	return m.Descriptor.MediaType, plant(ctx, w, Tree{home.Revision(d), []File{
		{Name: layout.SidecarFile("", d), Content: side},
		{Name: layout.Link(""), Content: []byte(d)},
	}})
}
