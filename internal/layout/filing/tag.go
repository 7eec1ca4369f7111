package filing

import (
	"context"
	"errors"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// ReadTag returns what the tag in dir names, and the sidecar about it. The sidecar
// is zero if the registry moved the tag. A sidecar also goes when the tag moves
// on, so its absence counts only once the link has been read again.
func ReadTag(ctx context.Context, r Reader, dir string) (digest.Digest, layout.Sidecar, error) {
	var before digest.Digest
	for {
		d, err := ReadLink(ctx, r, dir, "")
		if err != nil {
			return "", layout.Sidecar{}, err
		}
		side, ok, err := readSidecar(ctx, r, dir, d)
		if err != nil || ok || d == before {
			return d, side, err
		}
		before = d
	}
}

// writeTag makes the tag name side.Digest. It writes the sidecar first, and the
// link in one step, so there is no moment at which one is without the other.
func writeTag(ctx context.Context, w Writer, at layout.Repository, tag string, side layout.Sidecar) error {
	dir, d := at.Tag(tag), side.Digest
	old, have, err := ReadTag(ctx, w, dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if have != side {
		if err := writeSidecar(ctx, w, dir, side); err != nil {
			return err
		}
	}
	if old == d {
		return w.Sync()
	}
	if err := WriteLink(ctx, w, at.History(tag, d), d); err != nil {
		return err
	}
	if err := w.Sync(); err != nil {
		return err
	}
	if err := WriteLink(ctx, w, dir, d); err != nil {
		return err
	}
	// Somebody who moves the tag away from d at the same moment removes the sidecar.
	if err := keepSidecar(ctx, w, dir, side); err != nil {
		return err
	}
	dropSidecar(ctx, w, dir, old, have)
	return w.Sync()
}

// keepSidecar writes the sidecar if it is gone.
func keepSidecar(ctx context.Context, w Writer, dir string, side layout.Sidecar) error {
	_, ok, err := readSidecar(ctx, w, dir, side.Digest)
	if err == nil && !ok {
		err = writeSidecar(ctx, w, dir, side)
	}
	return err
}

// dropSidecar removes the sidecar of what the tag was before: if the registry
// moves the tag back, upstream has not confirmed that. Somebody else may move the
// tag back at this moment. Either they find the sidecar gone after they have
// written the link, or we find their link.
func dropSidecar(ctx context.Context, w Writer, dir string, old digest.Digest, have layout.Sidecar) {
	if old == "" || have.Digest != old {
		return
	}
	if now, err := ReadLink(ctx, w, dir, ""); err != nil || now == old {
		return
	}
	if w.Remove(ctx, layout.SidecarFile(dir, old)) != nil {
		return
	}
	if now, err := ReadLink(ctx, w, dir, ""); err == nil && now == old {
		_ = keepSidecar(ctx, w, dir, have) // at worst the tag passes for one that was pushed here
	}
}
