package handlerstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/serve"
)

// Registry returns the registry as each account sees it, for clients: the names in
// requests are mapped by Name, as those of the Store's own requests are, and the answers
// show the client's names again. So pushes, tag lists and pulls of an account mean the
// same repositories, and the catalog has those of the account alone. It is made to be the
// next handler of [pullthrough.Proxy.Handler] where a registry has several accounts:
//
//	proxy.Handler(store.Registry(proxy.Identify))
//
// identify is the Proxy's own; nil is the zero Identity. Callers whom it refuses are
// answered 401, also at /v2/, so that clients log in. Name must put something before or
// behind the name, or both; the catalog leaves out what is named in another way. A blob
// is mounted from a repository of the same account only. The registry still sees the
// client's headers, and a token that it wants is one for its own name of a repository.
//
// The handler serves the paths of a registry and answers every other with 404. It is safe
// for concurrent use.
func (s *Store) Registry(identify func(*http.Request) (pullthrough.Identity, error)) http.Handler {
	return &tenantView{s, identify}
}

type tenantView struct {
	store    *Store
	identify func(*http.Request) (pullthrough.Identity, error) // nil: nobody is known
}

func (v *tenantView) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, err := ocipath.Split(r.URL)
	if err != nil {
		serve.Error(w, http.StatusNotFound, "UNSUPPORTED", "This is not a path of the registry API.")
		return
	}
	var id pullthrough.Identity
	if v.identify != nil {
		err = hostcall.Guard("Identify", func() (err error) { id, err = v.identify(r); return err })
	}
	repo := pullthrough.Repo{Account: id.Account, Region: id.Region, Name: path.Name}
	switch {
	case err != nil:
	case path.Kind == ocipath.Base:
		v.store.Handler.ServeHTTP(w, r)
	case path.Kind == ocipath.Catalog:
		err = v.catalog(w, r, repo)
	default:
		err = v.repository(w, r, path, repo)
	}
	if err != nil {
		pullthrough.WriteError(w, err)
	}
}

// repository passes on a request of one repository.
func (v *tenantView) repository(w http.ResponseWriter, r *http.Request, path ocipath.Path, repo pullthrough.Repo) error {
	name, err := v.store.nameOf(repo)
	if err != nil {
		return err
	}
	path.Name = name
	inner := v.request(r, path.String(), r.URL.RawQuery)
	if r.Method == http.MethodPost {
		inner.URL.RawQuery = v.mount(r.URL.Query(), repo).Encode()
		inner.RequestURI = inner.URL.RequestURI()
	}
	if path.Kind == ocipath.Tags && r.Method == http.MethodGet {
		return v.tags(w, inner, name, repo.Name)
	}
	out := serve.NewSieve(w, func(status int, h http.Header) bool {
		if status/100 == 2 { // a redirect is signed, perhaps
			rename(h, name, repo.Name)
		}
		return true
	})
	v.store.Handler.ServeHTTP(out, inner)
	out.End()
	return nil
}

// request is r for another path.
func (v *tenantView) request(r *http.Request, path, query string) *http.Request {
	inner := r.Clone(r.Context())
	inner.URL.Path, inner.URL.RawPath, inner.URL.RawQuery = path, "", query
	inner.RequestURI = inner.URL.RequestURI()
	return inner
}

// mount maps the repository from which a push wants to mount a blob. Without one that the
// account may have, the push goes on as any other.
func (v *tenantView) mount(query url.Values, repo pullthrough.Repo) url.Values {
	repo.Name = query.Get("from")
	if from, err := v.store.nameOf(repo); err == nil {
		query.Set("from", from)
		return query
	}
	query.Del("mount")
	query.Del("from")
	return query
}

// rename puts the client's name of the repository into the URLs of an answer.
func rename(h http.Header, inner, outer string) {
	for _, key := range []string{"Location", "Link"} {
		for i, value := range h[key] {
			path, query, found := strings.Cut(value, "?")
			path = strings.Replace(path, "/v2/"+inner+"/", "/v2/"+outer+"/", 1)
			if found {
				path += "?" + query
			}
			h[key][i] = path
		}
	}
}

// tags passes on a tag list, whose document has the repository's name.
func (v *tenantView) tags(w http.ResponseWriter, inner *http.Request, name, outer string) error {
	a, err := v.small(inner)
	if err != nil {
		return err
	}
	body := a.body.Bytes()
	if a.status == http.StatusOK {
		var document map[string]json.RawMessage
		if err := json.Unmarshal(body, &document); err != nil {
			return fmt.Errorf("%s: %w", a.call, err)
		}
		document["name"], _ = json.Marshal(outer) // a string can be encoded
		if body, err = json.Marshal(document); err != nil {
			return err
		}
		rename(a.header, name, outer)
	}
	return write(w, a, body)
}

// small asks the registry for a document.
func (v *tenantView) small(inner *http.Request) (*innerAnswer, error) {
	a := &innerAnswer{call: inner.Method + " " + inner.URL.Path, header: make(http.Header)}
	err := v.store.serve(a, inner)
	if a.status == 0 {
		a.status = http.StatusOK
	}
	if err == nil && a.cut {
		err = fmt.Errorf("%s: %w", a.call, pullthrough.ErrTooLarge)
	}
	return a, err
}

// write answers with what the registry has answered, but for the body.
func write(w http.ResponseWriter, a *innerAnswer, body []byte) error {
	maps.Copy(w.Header(), a.header)
	w.Header().Del("Content-Length") // net/http knows it
	w.WriteHeader(a.status)
	_, _ = w.Write(body) // a client that has left is nobody's error
	return nil
}

// maxCatalogPages ends a catalog that has no end.
const maxCatalogPages = 10_000

// catalog answers with the repositories of the account.
func (v *tenantView) catalog(w http.ResponseWriter, r *http.Request, repo pullthrough.Repo) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		serve.Error(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "A catalog can be read only.")
		return nil
	}
	page, ok := serve.ParsePage(w, r)
	if !ok {
		return nil
	}
	names, refused, err := v.repositories(r, repo)
	switch {
	case err != nil:
		return err
	case refused != nil:
		return write(w, refused, refused.body.Bytes())
	}
	names, err = page.Of(w, r, names, nil)
	if err == nil {
		serve.JSON(w, http.StatusOK, "application/json", struct {
			Repositories []string `json:"repositories"`
		}{names})
	}
	return err
}

// repositories reads the registry's catalog to its end. refused is the registry's answer
// if that is no catalog.
func (v *tenantView) repositories(r *http.Request, repo pullthrough.Repo) (names []string, refused *innerAnswer, err error) {
	show := v.showing(repo)
	query := ""
	for range maxCatalogPages {
		inner := v.request(r, "/v2/_catalog", query)
		inner.Method = http.MethodGet
		a, err := v.small(inner)
		if err != nil || a.status != http.StatusOK {
			return nil, a, err
		}
		var document struct{ Repositories []string }
		if err := json.Unmarshal(a.body.Bytes(), &document); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", a.call, err)
		}
		for _, name := range document.Repositories {
			if outer, ok := show(name); ok {
				names = append(names, outer)
			}
		}
		next := nextQuery(a.header.Get("Link"))
		if next == "" || next == query {
			return names, nil, nil
		}
		query = next
	}
	return nil, nil, errors.New("the registry's catalog does not end")
}

// nextQuery is the query of the next page, "" if there is none.
func nextQuery(link string) string {
	target, _, _ := strings.Cut(strings.TrimPrefix(link, "<"), ">")
	u, err := url.Parse(target)
	if err != nil {
		return ""
	}
	return u.RawQuery
}

// probe is a name in which the parts that Name adds can be told from the name.
const probe = "pullthrough-names"

// showing returns a function that turns the registry's names into those of the account,
// for those that are its. Name says what it is to look like, and has the last word.
func (v *tenantView) showing(repo pullthrough.Repo) func(string) (string, bool) {
	repo.Name = probe
	example, err := v.store.nameOf(repo)
	before, after, found := strings.Cut(example, probe)
	return func(name string) (string, bool) {
		rest, hasBefore := strings.CutPrefix(name, before)
		rest, hasAfter := strings.CutSuffix(rest, after)
		if err != nil || !found || !hasBefore || !hasAfter {
			return "", false
		}
		own := repo
		own.Name = rest
		again, err := v.store.nameOf(own)
		return rest, err == nil && again == name
	}
}
