package diststore

import (
	"context"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/filing"
	"github.com/ecr-pullthrough/pullthrough/internal/verify"
)

// Blob implements [pullthrough.Store]. The Body seeks, and opens the object when
// it is first read. With Redirect it is an [net/http.Handler], too. Where nobody knows
// yet whether the object is right, reads of its last 64 KiB wait until it has been read
// in full, or until ctx ends. An object of up to 1 MiB is read before Blob returns.
func (s *Store) Blob(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	at, err := s.owner().LocateDigest(ctx, repo, d)
	if err != nil {
		return nil, err
	}
	found, verdict, err := s.find(ctx, at, d)
	if err == nil && verdict != filing.Sound {
		err = s.doubt(ctx, at, d, found, verdict)
	}
	if err != nil {
		return nil, during(err, "read blob", repo, d.String())
	}
	b := &pullthrough.Blob{Descriptor: ocispec.Descriptor{MediaType: layout.BlobType, Digest: d, Size: found.size}}
	body := newBody(ctx, s.bucket, found, func() { s.places.forgetBlob(at, d) })
	switch b.Body = body; {
	case verdict != filing.Sound && found.size > verify.Small:
		b.Body = verify.NewBody(body, found.size, func() error { return s.verify(ctx, at, d, found) })
	case s.Redirect:
		b.Body = &redirectBody{body: body, desc: b.Descriptor}
	}
	return b, nil
}

// find reads the link first: without a link the content is not the repository's,
// even if other repositories have it.
func (s *Store) find(ctx context.Context, at layout.Repository, d digest.Digest) (place, filing.Verdict, error) {
	if known, ok := s.places.blob(at, d); ok {
		return known, s.sizes.JudgeByMemory(d, known.size), nil
	}
	target, err := filing.ReadLink(ctx, files{s}, at.Layer(d), d)
	if err != nil {
		return place{}, 0, err
	}
	found := place{data: layout.Registry.Data(target), digest: target}
	if found.size, err = s.bucket.size(ctx, found.data); err == nil {
		err = layout.CheckBlobSize(found.size, target)
	}
	if err != nil {
		return place{}, 0, err
	}
	verdict := s.sizes.JudgeByMemory(d, found.size)
	if s.habits.files {
		verdict, err = s.sizes.Judge(ctx, files{s}, at.Layer(d), d, found.size)
	}
	if err == nil && verdict == filing.Sound {
		s.places.keepBlob(at, d, found)
	}
	return found, verdict, err
}

// PutBlob implements [pullthrough.Store]. It does not read r if the blob is here; a
// small blob that only another repository has is stored once more.
func (s *Store) PutBlob(ctx context.Context, repo pullthrough.Repo, desc ocispec.Descriptor, r io.ReadSeeker) error {
	at, err := s.owner().LocateDigest(ctx, repo, desc.Digest)
	if err != nil {
		return err
	}
	return during(s.putBlob(ctx, at, desc, r), "store blob", repo, desc.Digest.String())
}

func (s *Store) putBlob(ctx context.Context, at layout.Repository, desc ocispec.Descriptor, r io.Reader) error {
	here, linked, err := filing.HaveBlob(ctx, files{s}, at, desc, func(ctx context.Context, name string, linked bool) (int64, error) {
		if !linked && s.sentAtOnce(desc.Size) && !s.habits.files {
			return 0, fs.ErrNotExist // to ask would be as much work as to send it
		}
		return s.bucket.size(ctx, name)
	})
	here = here && s.sizes.JudgeByMemory(desc.Digest, desc.Size) != filing.Damaged
	if err != nil || here && linked {
		return err
	}
	if !here {
		s.places.forgetBlob(at, desc.Digest) // what is known of it is wrong
		if err := s.upload(ctx, layout.Registry.Data(desc.Digest), r, desc.Size); err != nil {
			return err
		}
	}
	if err := filing.WriteBlobLink(ctx, files{s}, at, desc); err != nil {
		return err
	}
	s.sizes.Note(desc.Digest, desc.Size)
	return nil
}
