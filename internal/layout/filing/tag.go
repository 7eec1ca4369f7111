package filing

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// errOtherName is for a tag that is there under another name: the file system does not
// tell upper case from lower case. It is a miss.
var errOtherName = fmt.Errorf("a tag whose name differs in case only has this name here: %w", fs.ErrNotExist)

// ReadTag returns what the tag names, and the sidecar about it. The sidecar
// is zero if the registry moved the tag.
func (f *Manifests) ReadTag(ctx context.Context, r Reader, at layout.Repository, tag string) (digest.Digest, layout.Sidecar, error) {
	d, side, err := readTag(ctx, r, at.Tag(tag))
	if err == nil {
		err = f.isNamed(ctx, r, at, tag, side)
	}
	if err != nil {
		return "", layout.Sidecar{}, err
	}
	return d, side, nil
}

// readTag reads the tag in dir. A sidecar also goes when the tag moves on, so its absence
// counts only once the link has been read again.
func readTag(ctx context.Context, r Reader, dir string) (digest.Digest, layout.Sidecar, error) {
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

// isNamed refuses a tag that has another name. The sidecar says so. Where it does not,
// and the file system tells no cases apart, the list of the tags does. A store finds out
// once which kind of system it is on: on the one kind a tag's directory can be found under
// a name that nobody gave it.
func (f *Manifests) isNamed(ctx context.Context, r Reader, at layout.Repository, tag string, side layout.Sidecar) error {
	switch {
	case side.Tag != tag && strings.EqualFold(side.Tag, tag):
		return errOtherName
	case side.Tag != "":
		return nil
	}
	folds := f.folds.Load()
	if folds == nil {
		_, err := r.Read(ctx, layout.Link(at.TagInUpperCase(tag)), layout.MaxLink)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		folds = new(err == nil)
		f.folds.Store(folds)
	}
	if !*folds {
		return nil
	}
	named, err := r.Lists(ctx, at.Tags(), tag)
	if err == nil && !named {
		err = errOtherName
	}
	return err
}

// writeTag makes the tag side.Tag name side.Digest. There is no moment at which its link
// is without its sidecar: a new tag comes in one step, and of one that moves the sidecar
// is written first. That the tag has moved may be lost: then it is what it was before.
func (f *Manifests) writeTag(ctx context.Context, w Writer, at layout.Repository, side layout.Sidecar) error {
	tag, dir, d := side.Tag, at.Tag(side.Tag), side.Digest
	old, have, err := f.ReadTag(ctx, w, at, tag)
	if errors.Is(err, errOtherName) {
		err = fmt.Errorf("tag %s cannot be stored beside one whose name differs in case only: the file system does not tell them apart", tag)
		return cmp.Or(w.Sync(), err)
	}
	if err == nil {
		return moveTag(ctx, w, at, side, old, have)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	content, err := side.Encode()
	if err != nil {
		return err
	}
	current := path.Base(dir)
	planted, err := w.Plant(ctx, Tree{path.Dir(dir), []File{
		{Name: layout.SidecarFile(current, d), Content: content},
		{Name: layout.Link(current), Content: []byte(d)},
	}})
	if err != nil {
		return err
	}
	if planted {
		return w.Name()
	}
	return moveTag(ctx, w, at, side, "", layout.Sidecar{})
}

// moveTag makes a tag that may be there name side.Digest. It was old before, with the
// sidecar have.
func moveTag(ctx context.Context, w Writer, at layout.Repository, side layout.Sidecar, old digest.Digest, have layout.Sidecar) error {
	tag, dir, d := side.Tag, at.Tag(side.Tag), side.Digest
	if have != side {
		if err := writeSidecar(ctx, w, dir, side); err != nil {
			return err
		}
	}
	if old == d {
		return w.Sync()
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
	if old != "" && have.Digest == old {
		if err := w.Sync(); err != nil { // the old link may come back, and would be without its sidecar
			return err
		}
		dropSidecar(ctx, w, dir, old, have)
	}
	if old == "" {
		return nil
	}
	return WriteLink(ctx, w, at.History(tag, old), old) // a note
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
