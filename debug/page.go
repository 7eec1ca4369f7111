// Package debug shows what a pull through cache is doing, the way
// net/http/pprof shows a program: a [Page] is an http.Handler for
// /debug/pullthrough.
//
//	page := &debug.Page{Proxy: proxy}
//	proxy.OnEvent = page.Record
//	mux.Handle("/debug/pullthrough", page)
//	mux.Handle("/debug/pullthrough/", page)
//
// There a browser finds rules, running downloads with their readers, counters
// and the last events. The same is JSON for clients that accept nothing else,
// or with ?format=json. Prometheus finds its text format (version 0.0.4) at
// /debug/pullthrough/metrics.
//
// The page has no access control of its own: it tells whoever can reach it the
// names of accounts, repositories, tags and upstream hosts. Mount it where only
// operators get, as you would net/http/pprof. It shows no credential, no ARN
// and no caller, and leaves user information and queries out of URLs.
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
	// maxRegistries is how many registries are remembered that events have named.
	maxRegistries = 16
)

// Page remembers what happened and shows it. It is a struct to fill in: the
// zero value of every field is documented. Fields must not change after first
// use. A Page is safe for concurrent use and must not be copied after first
// use. Its memory is bounded, whatever clients and upstreams send.
type Page struct {
	// Proxy is the one whose rules and downloads are shown. nil: events and
	// counters only.
	Proxy *pullthrough.Proxy
	// Title stands above the page. "": "pullthrough".
	Title string
	// Registries are those whose rules are shown in any case; beside them those
	// of the last 16 that pulls have succeeded in. nil: the one without account
	// and Region.
	Registries []Registry
	// Credential says whether the rule's upstream is told a secret, for hosts
	// whose [pullthrough.Proxy.Credentials] looks at more than ARNs. It is called
	// for each rule on each view and should read nothing. nil: whether the rule
	// names a CredentialARN.
	Credential func(pullthrough.Rule) bool
	// Events is how many events are kept, of at most 4 KiB each. 0: 200.
	// Negative: none, only counters.
	Events int
	// Now is the clock that stamps events. nil: the Proxy's, else time.Now.
	Now func() time.Time

	once sync.Once

	mu       sync.Mutex
	seen     []Registry // that pulls have succeeded in, the latest last
	since    time.Time  // of the first use
	counters counters
	events   ring
	tracks   map[trackKey]*track
}

// Registry is one private registry.
type Registry struct {
	Account string // "": the host has one account
	Region  string // "": the host has one Region
}

// Record takes note of what happened; it is made for [pullthrough.Proxy.OnEvent].
// It keeps nothing of e alive.
func (p *Page) Record(_ context.Context, e pullthrough.Event) {
	p.start()
	entry := newEntry(e, p.now())
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.Err == nil {
		// Pulls that fail name any account that a client has thought of.
		p.noteLocked(Registry{entry.Account, entry.Region})
	}
	p.counters.count(e, entry.ErrorKind)
	p.events.add(entry)
}

// noteLocked remembers the registry, in place of the one not seen for longest.
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

// ServeHTTP answers GET and HEAD with the page as HTML, as JSON or, where the
// path ends with /metrics, as Prometheus text. The parameter format (html, json,
// prometheus) wins over the path, and the path over Accept. It works wherever it
// is mounted, with and without a slash at the end.
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
