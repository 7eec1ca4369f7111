package pullthrough

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// maxListed is how many names one page of a list has at most.
const maxListed = 1000

// serveList answers tags/list and the catalog with what is stored: as in Amazon
// ECR, a list never asks upstream and never creates a repository.
func (p *Proxy) serveList(w http.ResponseWriter, r *http.Request, kind ocipath.Kind, req Request) {
	repo := req.Repo
	limit, err := pageSize(r.URL.Query().Get("n"))
	if err != nil {
		writeErrorCode(w, http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", err.Error())
		return
	}
	names, err := p.names(r.Context(), kind, req)
	switch {
	case errors.Is(err, errNotListed):
		writeErrorCode(w, http.StatusNotFound, "UNSUPPORTED", "This registry does not list "+kind.String()+".")
		return
	case err != nil:
		refuse(w, r, at(r.Context(), err, repo, ""))
		return
	}
	names, more := pageOf(names, r.URL.Query().Get("last"), limit)
	if more {
		next := url.Values{"n": {strconv.Itoa(limit)}, "last": {names[len(names)-1]}}
		w.Header().Set("Link", "<"+r.URL.EscapedPath()+"?"+next.Encode()+`>; rel="next"`)
	}
	if kind == ocipath.Catalog {
		writeJSON(w, http.StatusOK, struct {
			Repositories []string `json:"repositories"`
		}{names})
		return
	}
	writeJSON(w, http.StatusOK, struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{repo.Name, names})
}

var errNotListed = errors.New("the Store does not list this")

// names asks the Store. Who may list tags is who may pull.
func (p *Proxy) names(ctx context.Context, kind ocipath.Kind, req Request) ([]string, error) {
	repo := req.Repo
	tags, listsTags := p.Store.(TagLister)
	repos, listsRepos := p.Store.(RepoLister)
	if kind == ocipath.Tags && !listsTags || kind == ocipath.Catalog && !listsRepos {
		return nil, errNotListed
	}
	if kind == ocipath.Tags {
		if err := p.authorize(ctx, ActionPull, req); err != nil {
			return nil, err
		}
	}
	names, err := found(ctx, p, "the Store's list", func(ctx context.Context) ([]string, error) {
		if kind == ocipath.Tags {
			return tags.Tags(ctx, repo)
		}
		return repos.Repos(ctx, repo.Account, repo.Region)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nameUnknown(&Error{Kind: ErrNotFound, Err: err})
	}
	return names, err
}

// pageOf is the part of names behind last, in order (OCI distribution spec,
// "Listing Tags"). more reports that there is a next one.
func pageOf(names []string, last string, limit int) (part []string, more bool) {
	sorted := slices.Sorted(slices.Values(names))
	from, found := slices.BinarySearch(sorted, last)
	if found {
		from++
	}
	part = sorted[from:]
	if len(part) <= limit {
		return append([]string{}, part...), false
	}
	return part[:limit], limit > 0
}

func pageSize(n string) (int, error) {
	if n == "" {
		return maxListed, nil
	}
	size, err := strconv.Atoi(n)
	if err != nil || size < 0 {
		return 0, errors.New("n must be a number, not negative")
	}
	return min(size, maxListed), nil
}

// serveReferrers answers GET /v2/<name>/referrers/<digest>. Where no rule covers
// the repository nothing is known to refer to anything: an empty list.
func (p *Proxy) serveReferrers(w http.ResponseWriter, r *http.Request, req Request) {
	artifactType := r.URL.Query().Get("artifactType")
	index, err := p.Referrers(r.Context(), req, artifactType)
	if errors.Is(err, ErrNoRule) {
		index, err = emptyIndex(), nil
	}
	if err != nil {
		refuse(w, r, err)
		return
	}
	if artifactType != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	writeJSONAs(w, http.StatusOK, ocispec.MediaTypeImageIndex, index)
}
