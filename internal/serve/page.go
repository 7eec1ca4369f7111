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

// Of returns the page's part of names, in order, never nil. Where more names
// follow, it sets the Link header of the answer to r.
func (p Page) Of(w http.ResponseWriter, r *http.Request, names []string) []string {
	sorted := slices.Sorted(slices.Values(names))
	from, found := slices.BinarySearch(sorted, p.last)
	if found {
		from++
	}
	part := append([]string{}, sorted[from:]...)
	if len(part) <= p.limit {
		return part
	}
	part = part[:p.limit]
	if p.limit > 0 {
		next := url.Values{"n": {strconv.Itoa(p.limit)}, "last": {part[p.limit-1]}}
		w.Header().Set("Link", "<"+r.URL.EscapedPath()+"?"+next.Encode()+`>; rel="next"`)
	}
	return part
}
