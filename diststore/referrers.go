package diststore

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/filing"
)

// Referrers implements [pullthrough.ReferrerStore].
func (s *Store) Referrers(ctx context.Context, repo pullthrough.Repo, subject digest.Digest) (*ocispec.Index, time.Time, error) {
	at, err := s.owner().LocateDigest(ctx, repo, subject)
	if err != nil {
		return nil, time.Time{}, err
	}
	list, checked, err := filing.ReadReferrers(ctx, files{s}, at, subject)
	return list, checked, during(err, "read referrers", repo, subject.String())
}

// PutReferrers implements [pullthrough.ReferrerStore].
func (s *Store) PutReferrers(ctx context.Context, repo pullthrough.Repo, subject digest.Digest, list *ocispec.Index, checked time.Time) error {
	at, err := s.owner().LocateDigest(ctx, repo, subject)
	if err != nil {
		return err
	}
	content, err := layout.EncodeReferrers(list, checked)
	if err == nil {
		err = s.bucket.put(ctx, at.Referrers(subject), content)
	}
	return during(err, "store referrers", repo, subject.String())
}
