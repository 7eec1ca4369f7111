package layout

import (
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// Owner is whose repositories stand under their plain names: one account in one
// Region. All others have both before their names. The zero Owner is for a
// [pullthrough.Repo] without account and Region.
type Owner struct{ Account, Region string }

// Locate is where repo lives. It checks everything that becomes part of a path,
// refs as well, each a tag or a digest. The error is a [*pullthrough.Error] that
// Is [pullthrough.ErrInvalid]. A store calls it first, so a call whose context has
// ended ends here, with the context's error.
func (o Owner) Locate(ctx context.Context, repo pullthrough.Repo, refs ...string) (Repository, error) {
	if err := ctx.Err(); err != nil {
		return Repository{}, err
	}
	name, err := o.PathName(repo)
	for _, ref := range refs {
		if err == nil {
			err = ocipath.CheckRef(ref)
		}
	}
	if err != nil {
		return Repository{}, invalid(repo, err)
	}
	return NewRepository(name), nil
}

// LocateDigest is Locate for where a reference must be a digest: a tag would be
// taken for a path of its own.
func (o Owner) LocateDigest(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (Repository, error) {
	at, err := o.Locate(ctx, repo)
	if err == nil && !ocipath.ValidDigest(string(d)) {
		err = invalid(repo, &ocipath.Error{Part: ocipath.Digest, Value: string(d)})
	}
	return at, err
}

// LocateManifest is Locate for a manifest that is to be stored. It also refuses a
// manifest as [CheckManifest] does.
func (o Owner) LocateManifest(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) (Repository, error) {
	at, err := o.LocateDigest(ctx, repo, m.Descriptor.Digest)
	if err == nil && m.Tag != "" && !ocipath.ValidTag(m.Tag) {
		err = invalid(repo, &ocipath.Error{Part: ocipath.Tag, Value: m.Tag})
	}
	if err == nil {
		err = CheckManifest(m)
	}
	return at, err
}

func invalid(repo pullthrough.Repo, err error) error {
	return &pullthrough.Error{Kind: pullthrough.ErrInvalid, Repo: repo, Err: err}
}

// PathName is the repository's name in the store. Two repositories never share
// one: a plain name that could be read as another account's is given its account,
// too.
func (o Owner) PathName(repo pullthrough.Repo) (string, error) {
	if err := ocipath.CheckName(repo.Name); err != nil {
		return "", err
	}
	if o.plain(repo) {
		return repo.Name, nil
	}
	return withAccount(repo)
}

func (o Owner) plain(repo pullthrough.Repo) bool {
	first, _, _ := strings.Cut(repo.Name, "/")
	return repo.Account == o.Account && repo.Region == o.Region && !IsAccount(first)
}

func withAccount(repo pullthrough.Repo) (string, error) {
	if !IsAccount(repo.Account) {
		return "", fmt.Errorf("%.80q is no account id", repo.Account)
	}
	if !isRegion(repo.Region) {
		return "", fmt.Errorf("%.80q is no Region", repo.Region)
	}
	return path.Join(repo.Account, repo.Region, repo.Name), nil
}

// Repo is the inverse of PathName: false if no repository has that path name.
func (o Owner) Repo(pathName string) (pullthrough.Repo, bool) {
	repo := pullthrough.Repo{Account: o.Account, Region: o.Region, Name: pathName}
	if first, rest, _ := strings.Cut(pathName, "/"); IsAccount(first) {
		region, name, _ := strings.Cut(rest, "/")
		repo = pullthrough.Repo{Account: first, Region: region, Name: name}
	}
	back, err := o.PathName(repo)
	return repo, err == nil && back == pathName
}

// Prefixes are what the path names of one account's repositories in one Region
// may begin with, each a directory below [Tree.Repositories]. "" is the whole
// tree, in which the directories that are accounts are not the owner's.
func (o Owner) Prefixes(account, region string) ([]string, error) {
	own := account == o.Account && region == o.Region
	if own && account == "" && region == "" {
		return []string{""}, nil
	}
	prefix, err := withAccount(pullthrough.Repo{Account: account, Region: region})
	switch {
	case own && err == nil:
		return []string{"", prefix}, nil
	case own:
		return []string{""}, nil
	case err != nil:
		return nil, invalid(pullthrough.Repo{Account: account, Region: region}, err)
	}
	return []string{prefix}, nil
}

// IsAccount reports whether s is 12 digits.
func IsAccount(s string) bool {
	return len(s) == 12 && !strings.ContainsFunc(s, func(r rune) bool { return r < '0' || r > '9' })
}

// isRegion reports whether s can be a Region, and a component of a repository
// name as the registry reads it: lower-case letters, digits, and hyphens within.
func isRegion(s string) bool {
	return ocipath.ValidName(s+"/0") && !strings.ContainsAny(s, "/._")
}
