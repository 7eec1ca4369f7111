package serve

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
)

// MaxPage is how many names one page of a list has at most.
const MaxPage = 1000

// Page is the part of a list that a request asks for (OCI distribution spec,
// "Listing Tags").
type Page struct {
	limit int
	last  string // the name that the page before ended with; "": this is the first
}

// ParsePage reads the query parameters n and last. Without n a page has [MaxPage]
// names.
func ParsePage(query url.Values) (Page, error) {
	p := Page{limit: MaxPage, last: query.Get("last")}
	if n := query.Get("n"); n != "" {
		size, err := strconv.Atoi(n)
		if err != nil || size < 0 {
			return Page{}, errors.New("n must be a number, not negative")
		}
		p.limit = min(size, MaxPage)
	}
	return p, nil
}

// Of returns the page's part of those names that shows says yes to, in order, never nil.
// A nil shows says yes to all. Where more names follow, it sets the Link header of the
// answer to r.
func (p Page) Of(w http.ResponseWriter, r *http.Request, names []string, shows func(name string) (bool, error)) ([]string, error) {
	sorted := slices.Sorted(slices.Values(names))
	from, found := slices.BinarySearch(sorted, p.last)
	if found {
		from++
	}
	part := []string{}
	for _, name := range sorted[from:] {
		if shows != nil {
			if ok, err := shows(name); err != nil {
				return nil, err
			} else if !ok {
				continue
			}
		}
		if len(part) == p.limit {
			p.link(w, r, part)
			break
		}
		part = append(part, name)
	}
	return part, nil
}

// link tells where the page after part is.
func (p Page) link(w http.ResponseWriter, r *http.Request, part []string) {
	if p.limit > 0 {
		next := url.Values{"n": {strconv.Itoa(p.limit)}, "last": {part[p.limit-1]}}
		w.Header().Set("Link", "<"+r.URL.EscapedPath()+"?"+next.Encode()+`>; rel="next"`)
	}
}
