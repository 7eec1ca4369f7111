package serve

import (
	"cmp"
	"encoding/base64"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/ecr-pullthrough/pullthrough/internal/hostname"
)

const (
	// maxPage is how many names a client may ask for.
	maxPage = 1000
	// usualPage is how many names a page has if the client does not say.
	usualPage = 100
)

// Page is the part of a list that a request asks for (OCI distribution spec,
// "Listing Tags").
type Page struct {
	limit int
	last  string // the name that the page before ended with; "": this is the first
}

// ParsePage reads the query parameters n and last. Without n a page has 100 names, as in
// Amazon ECR, and more than 1,000 are refused in its words. last is the mark of a Link, or
// a name. Where ok is false the request was answered: it asks for no page.
func ParsePage(w http.ResponseWriter, r *http.Request) (p Page, ok bool) {
	query := r.URL.Query()
	p = Page{limit: usualPage, last: query.Get("last")}
	if name, ok := unmark(p.last); ok {
		p.last = name
	}
	n := query.Get("n")
	if n == "" {
		return p, true
	}
	size, err := strconv.ParseUint(n, 10, 64)
	switch {
	case err == nil && size <= maxPage:
		p.limit = int(size)
		return p, true
	case strings.Trim(n, "0123456789") == "":
		Error(w, http.StatusMethodNotAllowed, "UNSUPPORTED",
			"Invalid parameter at 'maxResults' failed to satisfy constraint: 'Member must have value less than or equal to 1000'")
	default:
		Error(w, http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", "n must be a number, not negative")
	}
	return p, false
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
		next := url.Values{"n": {strconv.Itoa(p.limit)}, "last": {mark(part[p.limit-1])}}
		w.Header().Set("Link", "<"+Origin(r)+r.URL.EscapedPath()+"?"+next.Encode()+`>; rel="next"`)
	}
}

// marked stands before a mark. No tag and no name of a repository begins with it.
const marked = "."

// mark is the name that a page ends with, as the Link has it: clients are not to make up
// one of their own.
func mark(name string) string {
	return marked + base64.RawURLEncoding.EncodeToString([]byte(name))
}

func unmark(last string) (name string, ok bool) {
	code, ok := strings.CutPrefix(last, marked)
	if !ok {
		return "", false
	}
	decoded, err := base64.RawURLEncoding.DecodeString(code)
	return string(decoded), err == nil
}

// Origin returns the scheme and the host by which the client of r reached the server,
// "https://127.0.0.1:5000"; "" where that is not known. Without TLS of our own it is not
// known behind a proxy that does not tell the scheme: there may be TLS before it.
func Origin(r *http.Request) string {
	scheme, host := scheme(r), cmp.Or(r.Header.Get("X-Forwarded-Host"), r.Host)
	if scheme == "" || !hostname.Valid(host) {
		return ""
	}
	return scheme + "://" + host
}

func scheme(r *http.Request) string {
	if r.TLS != nil {
		return "https"
	}
	told, _, _ := strings.Cut(r.Header.Get("X-Forwarded-Proto"), ",")
	switch told = strings.ToLower(strings.TrimSpace(told)); {
	case told == "http" || told == "https":
		return told
	case told != "" || isForwarded(r):
		return ""
	}
	return "http"
}

// isForwarded reports whether a proxy seems to be between the client and us: it says so, it
// speaks HTTP/1.0, or the client has named another port than the one it has reached.
func isForwarded(r *http.Request) bool {
	for _, name := range []string{"Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip"} {
		if r.Header.Get(name) != "" {
			return true
		}
	}
	addr, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return !r.ProtoAtLeast(1, 1) || ok && strconv.Itoa(addr.Port) != cmp.Or((&url.URL{Host: r.Host}).Port(), "80")
}
