package dirstore

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/filing"
)

// maxEmpty is how many empty lists of referrers are kept, in memory: a client may
// ask for the referrers of anything.
const maxEmpty = 1024

// emptyList is one of them.
type emptyList struct {
	list    *ocispec.Index
	checked time.Time
}

// Referrers implements [pullthrough.ReferrerStore].
func (s *Store) Referrers(ctx context.Context, repo pullthrough.Repo, subject digest.Digest) (*ocispec.Index, time.Time, error) {
	at, err := s.owner().LocateDigest(ctx, repo, subject)
	if err != nil {
		return nil, time.Time{}, err
	}
	list, checked, err := filing.ReadReferrers(ctx, reader{s}, at, subject)
	if errors.Is(err, fs.ErrNotExist) {
		if known, ok := s.empty.Get(filing.Object{Repo: repo, Ref: string(subject)}); ok {
			return known.list, known.checked, nil
		}
	}
	return list, checked, during(err, "read referrers", repo, subject.String())
}

// PutReferrers implements [pullthrough.ReferrerStore]. The list counts towards MaxBytes. It
// goes with its subject when that is evicted, and before all else if that is not there. An empty one that replaces none is kept in memory
// only, one of the last thousand: there may be one for every digest there is.
func (s *Store) PutReferrers(ctx context.Context, repo pullthrough.Repo, subject digest.Digest, list *ocispec.Index, checked time.Time) error {
	at, err := s.owner().LocateDigest(ctx, repo, subject)
	if err != nil {
		return err
	}
	return during(s.putReferrers(ctx, at, filing.Object{Repo: repo, Ref: string(subject)}, list, checked), "store referrers", repo, subject.String())
}

func (s *Store) putReferrers(ctx context.Context, at layout.Repository, key filing.Object, list *ocispec.Index, checked time.Time) error {
	subject := digest.Digest(key.Ref)
	if len(list.Manifests) == 0 {
		if _, _, err := filing.ReadReferrers(ctx, reader{s}, at, subject); errors.Is(err, fs.ErrNotExist) {
			s.empty.Put(key.Clone(), emptyList{list, checked})
			return nil
		}
	}
	content, err := layout.EncodeReferrers(list, checked)
	if err != nil {
		return err
	}
	return s.put(ctx, func(w *writer) error {
		before, err := s.size(ctx, at.Referrers(subject))
		if ignoreMissing(err) != nil {
			return err
		}
		if err := w.Write(ctx, at.Referrers(subject), content); err != nil {
			return err
		}
		w.added = int64(len(content)) - before
		return nil
	})
}
