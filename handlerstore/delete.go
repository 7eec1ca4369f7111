package handlerstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// DeleteImage implements [pullthrough.ImageDeleter] as the OCI distribution spec says
// ("Deleting tags", "Deleting manifests"). Not all registries delete, and some delete
// manifests only: the error Is [errors.ErrUnsupported] then. Of a manifest the tags go
// first, if the registry lists them.
func (s *Store) DeleteImage(ctx context.Context, repo pullthrough.Repo, ref string) error {
	at, err := s.locate(ctx, repo, ref)
	if err != nil {
		return err
	}
	if !ocipath.IsDigest(ref) {
		return s.delete(ctx, at, ref)
	}
	tags, err := s.listTags(ctx, at)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) && !isMiss(err) {
		return err
	}
	if err := s.deleteTags(ctx, at, tags, func(d digest.Digest) bool { return d == digest.Digest(ref) }); err != nil {
		return err
	}
	return s.delete(ctx, at, ref)
}

// DeleteRepo implements [pullthrough.ImageDeleter]. The OCI distribution spec knows no
// deletion of repositories: DeleteRepo deletes all tags that the registry lists, and the
// manifests that they name. Manifests without a tag, blobs and the repository's name stay
// for the registry to remove.
func (s *Store) DeleteRepo(ctx context.Context, repo pullthrough.Repo) error {
	name, err := s.nameOf(repo)
	if err != nil {
		return err
	}
	at := innerRepo{repo, name}
	tags, err := s.listTags(ctx, at)
	if err == nil && len(tags) == 0 {
		err = missError(repo, "")
	}
	if err != nil {
		return err
	}
	named := map[digest.Digest]struct{}{}
	err = s.deleteTags(ctx, at, tags, func(d digest.Digest) bool { named[d] = struct{}{}; return true })
	if err != nil {
		return err
	}
	for d := range named {
		if err := s.delete(ctx, at, d.String()); err != nil && !isMiss(err) {
			return err
		}
	}
	return nil
}

// deleteTags deletes those of the tags that name what match accepts, if the registry deletes
// tags.
func (s *Store) deleteTags(ctx context.Context, at innerRepo, tags []string, match func(digest.Digest) bool) error {
	for _, tag := range tags {
		d, err := s.digestOf(ctx, at, tag)
		if err == nil && match(d) {
			err = s.delete(ctx, at, tag)
		}
		if err != nil && !isMiss(err) && !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	return nil
}

func (s *Store) digestOf(ctx context.Context, at innerRepo, tag string) (digest.Digest, error) {
	m, err := s.manifest(ctx, at, tag)
	if err != nil {
		return "", err
	}
	return m.Descriptor.Digest, nil
}

// delete deletes one tag or manifest.
func (s *Store) delete(ctx context.Context, at innerRepo, ref string) error {
	a, err := s.do(ctx, innerRequest{method: http.MethodDelete, target: at.path("manifests", ref)})
	switch {
	case err != nil:
		return err
	case a.status == http.StatusNotFound:
		return missError(at.Repo, ref)
	case a.isUnsupported():
		return fmt.Errorf("%w: %w", errors.ErrUnsupported, a.refusal())
	case !a.isSuccess():
		return a.refusal()
	}
	s.noteCache().RemoveIf(noteKey{at.name, ref}, func(note) bool { return true })
	return nil
}

// isUnsupported reports whether the registry does not do what it was asked for. The spec
// wants 405 or 400 of one that deletes no tags; 501 is used, too.
func (a *innerAnswer) isUnsupported() bool {
	return slices.Contains([]int{http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotImplemented}, a.status)
}

// listTags reads the registry's list of tags to its end. A repository that is not there Is
// [fs.ErrNotExist], and a registry that does not list tags Is [errors.ErrUnsupported].
func (s *Store) listTags(ctx context.Context, at innerRepo) (tags []string, err error) {
	query := ""
	for range maxCatalogPages {
		a, err := s.do(ctx, innerRequest{method: http.MethodGet, target: "/v2/" + at.name + "/tags/list" + query})
		switch {
		case err != nil:
			return nil, err
		case a.status == http.StatusNotFound:
			return nil, &fs.PathError{Op: "list", Path: at.Name, Err: fs.ErrNotExist}
		case a.isUnsupported():
			return nil, fmt.Errorf("%w: %w", errors.ErrUnsupported, a.refusal())
		case a.status != http.StatusOK:
			return nil, a.refusal()
		}
		var page struct{ Tags []string }
		if err := json.Unmarshal(a.body.Bytes(), &page); err != nil {
			return nil, fmt.Errorf("%s: %w", a.call, err)
		}
		for _, tag := range page.Tags {
			if ocipath.ValidTag(tag) {
				tags = append(tags, tag)
			}
		}
		next := nextQuery(a.header.Get("Link"))
		if next == "" || "?"+next == query {
			return tags, nil
		}
		query = "?" + next
	}
	return nil, errors.New("the registry's list of tags does not end")
}
