package filing

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// ReadLink returns the digest in the link in dir; see [layout.ParseLink].
func ReadLink(ctx context.Context, r Reader, dir string, d digest.Digest) (digest.Digest, error) {
	target := digest.Digest("")
	content, err := r.Read(ctx, layout.Link(dir), layout.MaxLink)
	if err == nil {
		target, err = layout.ParseLink(content, d)
	}
	if errors.Is(err, layout.ErrDamaged) {
		r.Discard(layout.Link(dir), func(content []byte) bool {
			_, err := layout.ParseLink(content, d)
			return err == nil
		})
	}
	return target, err
}

// WriteLink makes the link in dir name d.
func WriteLink(ctx context.Context, w Writer, dir string, d digest.Digest) error {
	return w.Write(ctx, layout.Link(dir), []byte(d))
}

// readSidecar returns the sidecar of d in dir. That there is none that can be used
// is no error: then another program stored d there.
func readSidecar(ctx context.Context, r Reader, dir string, d digest.Digest) (side layout.Sidecar, ok bool, err error) {
	content, err := r.Read(ctx, layout.SidecarFile(dir, d), layout.MaxSidecar)
	if errors.Is(err, fs.ErrNotExist) {
		return layout.Sidecar{}, false, nil
	}
	if err != nil {
		return layout.Sidecar{}, false, err
	}
	side, ok = layout.ParseSidecar(content, d)
	return side, ok, nil
}

func writeSidecar(ctx context.Context, w Writer, dir string, side layout.Sidecar) error {
	content, err := side.Encode()
	if err != nil {
		return err
	}
	return w.Write(ctx, layout.SidecarFile(dir, side.Digest), content)
}

// ReadReferrers reads the list of what refers to subject in the repository at.
func ReadReferrers(ctx context.Context, r Reader, at layout.Repository, subject digest.Digest) (*ocispec.Index, time.Time, error) {
	content, err := r.Read(ctx, at.Referrers(subject), layout.MaxReferrers)
	if err != nil {
		return nil, time.Time{}, err
	}
	return layout.ParseReferrers(content)
}
