package filing

import (
	"context"
	"errors"
	"io/fs"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// HaveBlob reports whether the content of the blob is here, in full, and whether
// the repository at has a link to it. The function size returns the size of a file; it
// is told whether there is a link to it.
func HaveBlob(ctx context.Context, r Reader, at layout.Repository, desc ocispec.Descriptor, size func(ctx context.Context, name string, linked bool) (int64, error)) (here, linked bool, err error) {
	target, err := ReadLink(ctx, r, at.Layer(desc.Digest), desc.Digest)
	switch {
	case err == nil:
		linked = true
	case errors.Is(err, fs.ErrNotExist):
		target = desc.Digest
	default:
		return false, false, err
	}
	have, err := size(ctx, layout.Registry.Data(target), linked)
	if errors.Is(err, fs.ErrNotExist) {
		have, err = -1, nil
	}
	here = err == nil && have == desc.Size
	if !here && target != desc.Digest { // an alias of what is gone
		linked = false
	}
	return here, linked, err
}

// WriteBlobLink makes the blob, whose content is here and verified, the repository's. It
// notes the size first: who reads the link finds the note.
func WriteBlobLink(ctx context.Context, w Writer, at layout.Repository, desc ocispec.Descriptor) error {
	return plant(ctx, w, Tree{at.Layer(desc.Digest), []File{
		{Name: layout.BlobSize(""), Content: layout.EncodeBlobSize(desc.Size), Note: true},
		{Name: layout.Link(""), Content: []byte(desc.Digest)},
	}})
}
