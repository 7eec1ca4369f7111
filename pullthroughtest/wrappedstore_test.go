package pullthroughtest_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
)

// immutable is a Store whose tags do not move.
type immutable struct{ *plainStore }

func (s immutable) PutManifest(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	have, err := s.Manifest(ctx, repo, m.Tag)
	if m.Tag != "" && err == nil && m.Source != pullthrough.SourceRevalidated && have.Descriptor.Digest != m.Descriptor.Digest {
		return fmt.Errorf("%s is there: %w", m.Tag, pullthrough.ErrImmutable)
	}
	return s.plainStore.PutManifest(ctx, repo, m)
}

// oneTenant is a Store for one account in one Region, and for what is common.
type oneTenant struct{ pullthrough.Store }

func (s oneTenant) check(repo pullthrough.Repo, ref string) error {
	if repo.Account != "111122223333" || repo.Region != "us-east-1" || len(repo.Name) > 200 || len(ref) > 128 {
		return fmt.Errorf("%w: not here", pullthrough.ErrInvalid)
	}
	return nil
}

func (s oneTenant) Manifest(ctx context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	if err := s.check(repo, ref); err != nil {
		return nil, err
	}
	return s.Store.Manifest(ctx, repo, ref)
}

func (s oneTenant) PutManifest(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	if err := s.check(repo, string(m.Descriptor.Digest)); err != nil {
		return err
	}
	return s.Store.PutManifest(ctx, repo, m)
}

func (s oneTenant) Blob(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	if err := s.check(repo, string(d)); err != nil {
		return nil, err
	}
	return s.Store.Blob(ctx, repo, d)
}

func (s oneTenant) PutBlob(ctx context.Context, repo pullthrough.Repo, desc ocispec.Descriptor, r io.ReadSeeker) error {
	if err := s.check(repo, string(desc.Digest)); err != nil {
		return err
	}
	return s.Store.PutBlob(ctx, repo, desc, r)
}

// writesItself is a Store whose bodies write their answers.
type writesItself struct{ *plainStore }

func (s writesItself) Blob(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	b, err := s.plainStore.Blob(ctx, repo, d)
	if err == nil {
		b.Body = writingBody{b.Body, &pullthrough.Blob{Descriptor: b.Descriptor, Body: b.Body}}
	}
	return b, err
}

type writingBody struct {
	io.ReadCloser
	blob *pullthrough.Blob
}

func (b writingBody) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	pullthrough.WriteBlob(w, r, b.blob)
}

// oneTenantsLists is a Store for one account in one Region that keeps lists, too,
// of what has a sha256.
type oneTenantsLists struct {
	oneTenant
	lists *plainStore
}

func (s oneTenantsLists) Tags(ctx context.Context, repo pullthrough.Repo) ([]string, error) {
	if err := s.check(repo, ""); err != nil {
		return nil, err
	}
	return s.lists.Tags(ctx, repo)
}

func (s oneTenantsLists) Repos(ctx context.Context, account, region string) ([]string, error) {
	if err := s.check(pullthrough.Repo{Account: account, Region: region}, ""); err != nil {
		return nil, err
	}
	return s.lists.Repos(ctx, account, region)
}

func (s oneTenantsLists) RepoExists(ctx context.Context, repo pullthrough.Repo) (bool, error) {
	if err := s.check(repo, ""); err != nil {
		return false, err
	}
	return s.lists.RepoExists(ctx, repo)
}

func (s oneTenantsLists) CreateRepo(ctx context.Context, repo pullthrough.Repo, rule pullthrough.Rule, r pullthrough.Request) error {
	if err := s.check(repo, ""); err != nil {
		return err
	}
	return s.lists.CreateRepo(ctx, repo, rule, r)
}

func (s oneTenantsLists) Referrers(ctx context.Context, repo pullthrough.Repo, subject digest.Digest) (*ocispec.Index, time.Time, error) {
	if err := s.check(repo, string(subject)); err != nil {
		return nil, time.Time{}, err
	}
	return s.lists.Referrers(ctx, repo, subject)
}

func (s oneTenantsLists) PutReferrers(ctx context.Context, repo pullthrough.Repo, subject digest.Digest, list *ocispec.Index, checked time.Time) error {
	if err := s.check(repo, string(subject)); err != nil {
		return err
	}
	return s.lists.PutReferrers(ctx, repo, subject, list, checked)
}
