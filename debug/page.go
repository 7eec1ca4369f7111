// Package debug shows what a pull through cache is doing, as net/http/pprof does
// for a program. A [Page] is an http.Handler for /debug/pullthrough.
//
//	page := &debug.Page{Proxy: proxy}
//	proxy.OnEvent = page.Record
//	mux.Handle("/debug/pullthrough", page)
//	mux.Handle("/debug/pullthrough/", page)
//
// A browser gets a page with the rules, the running downloads with their readers,
// what waits for its next try, the counters, a chart of the last five minutes and the
// last events. A client that accepts JSON but not HTML gets the same as JSON, and so
// does any client with ?format=json. The parameter repo picks the downloads, fetches
// and events of repositories whose names contain its value. Prometheus scrapes
// /debug/pullthrough/metrics in its text format, version 0.0.4.
//
// The page has no access control of its own. It shows the names of accounts,
// repositories, tags and upstream hosts to every client that can reach it. Mount it
// where only operators have access, as you would net/http/pprof. It shows no
// credentials, no ARNs and no callers, and it removes user information and queries
// from URLs.
package debug

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
)

const (
	defaultTitle  = "pullthrough"
	defaultEvents = 200
	// maxRegistries is how many registries named by events are remembered.
	maxRegistries = 16
)

// Page records events and shows them. All fields are optional. They must not change
// after the first use. A Page is safe for concurrent use and must not be copied
// after the first use. Its memory is bounded, whatever clients and upstreams send.
type Page struct {
	// Proxy is the proxy whose rules and downloads are shown. nil: events and
	// counters only.
	Proxy *pullthrough.Proxy
	// Title is the heading of the page. "": "pullthrough".
	Title string
	// Registries are the registries whose rules are always shown. The page also shows
	// the rules of the last 16 registries in which pulls have succeeded. nil: the
	// registry without account and Region.
	Registries []Registry
	// Credential reports whether the rule's upstream gets a credential. Set it if
	// [pullthrough.Proxy.Credentials] uses more than ARNs. It is called for each rule
	// on each view, so it should do no I/O. nil: whether the rule has a CredentialARN.
	Credential func(pullthrough.Rule) bool
	// Events is how many events are kept, of at most 4 KiB each. 0: 200.
	// Negative: none, only counters.
	Events int
	// Now is the clock that stamps events. nil: the Proxy's, else time.Now.
	Now func() time.Time

	once sync.Once

	mu       sync.Mutex
	seen     []Registry // registries in which pulls have succeeded, the latest last
	since    time.Time  // time of the first use
	counters counters
	chart    chart
	events   ring
	tracks   map[trackKey]*track
}

// Registry is one private registry.
type Registry struct {
	Account string // "": the host has one account
	Region  string // "": the host has one Region
}

// Record records an event. Use it as [pullthrough.Proxy.OnEvent]. It keeps nothing
// of e in memory.
func (p *Page) Record(_ context.Context, e pullthrough.Event) {
	p.start()
	entry := newEntry(e, p.now())
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.Err == nil {
		// A pull that fails may name an account that a client has made up.
		p.noteLocked(Registry{entry.Account, entry.Region})
	}
	p.counters.count(e, entry.ErrorKind, p.chart.at(entry.At))
	p.events.add(entry)
}

// noteLocked remembers the registry. If there are too many, it forgets the one that was
// least recently seen.
func (p *Page) noteLocked(r Registry) {
	if i := slices.Index(p.seen, r); i >= 0 {
		p.seen = slices.Delete(p.seen, i, i+1)
	}
	if len(p.seen) >= maxRegistries {
		p.seen = slices.Delete(p.seen, 0, 1)
	}
	p.seen = append(p.seen, r)
}

func (p *Page) start() {
	p.once.Do(func() {
		p.since = p.now().UTC()
		p.counters.rules = map[string]*ruleCounters{}
		p.tracks = map[trackKey]*track{}
		p.events.max = cmp.Or(p.Events, defaultEvents)
	})
}

func (p *Page) now() time.Time {
	switch {
	case p.Now != nil:
		return p.Now()
	case p.Proxy != nil && p.Proxy.Now != nil:
		return p.Proxy.Now()
	}
	return time.Now()
}

// ServeHTTP answers GET and HEAD with the page as HTML or JSON, or with the metrics as
// Prometheus text if the path ends with /metrics. The parameter format (html, json,
// prometheus) takes precedence over the path, and the path over Accept. The page works
// under any path, with and without a trailing slash.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.start()
	setHeaders(w.Header())
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	switch formatOf(r) {
	case formatJSON:
		p.serveJSON(w, r)
	case formatMetrics:
		p.serveMetrics(w)
	case formatHTML:
		p.serveHTML(w, r)
	default:
		http.Error(w, "format must be html, json or prometheus", http.StatusBadRequest)
	}
}
