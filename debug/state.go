package debug

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
)

const (
	// rulesTimeout is how long a view waits for the rules of all registries.
	rulesTimeout = 2 * time.Second
	// maxShownRules is how many rules of one registry are shown.
	maxShownRules = 200
)

// state is everything that the page shows. It is also the page's JSON document.
type state struct {
	Title         string          `json:"title"`
	Filter        string          `json:"filter,omitempty"` // what names of repositories contain
	At            time.Time       `json:"at"`
	Since         time.Time       `json:"since"` // of the counters
	Totals        totals          `json:"totals"`
	Downloads     []download      `json:"downloads"`
	MoreDownloads int             `json:"moreDownloads"` // how many are not shown
	Pending       []pending       `json:"pending"`
	MorePending   int             `json:"morePending"`
	Chart         shownChart      `json:"chart"`
	Answers       []answers       `json:"answers"`
	Failures      []failureCount  `json:"failures"` // only kinds that have occurred
	Fetches       []fetches       `json:"fetches"`
	Registries    []registryRules `json:"registries"`
	Events        []entry         `json:"events"` // the newest first
}

// totals are the sums at the top of the page.
type totals struct {
	Running       int   `json:"running"` // downloads that have bytes left to fetch
	Readers       int   `json:"readers"`
	Requests      int64 `json:"requests"`
	Heads         int64 `json:"heads"` // HEAD requests among them
	Failed        int64 `json:"failed"`
	Stored        int64 `json:"stored"` // requests that were answered with what the Store had
	Shared        int64 `json:"shared"` // requests that joined a fetch
	Filled        int64 `json:"filled"` // requests whose answer needed a new fetch
	Sent          int64 `json:"sent"`   // bytes that connections of clients have taken
	Bytes         int64 `json:"bytes"`  // the length of the content of all answers, whole
	Fetches       int64 `json:"fetches"`
	FailedFetches int64 `json:"failedFetches"`
	FetchedBytes  int64 `json:"fetchedBytes"`
	Upstream      int64 `json:"upstream"` // requests
	StoreFailures int64 `json:"storeFailures"`
	Warnings      int64 `json:"warnings"`
	Anonymous     int64 `json:"anonymous"`
	WrongDigests  int64 `json:"wrongDigests"`
}

// answers are the requests that were answered from one source.
type answers struct {
	Source    string `json:"source"`
	Manifests int64  `json:"manifests"`
	Blobs     int64  `json:"blobs"`
	Referrers int64  `json:"referrers"`
	Bytes     int64  `json:"bytes"`
}

// failureCount counts the failures of one kind.
type failureCount struct {
	Kind     string `json:"kind"`
	Requests int64  `json:"requests"`
	Fetches  int64  `json:"fetches"`
}

// fetches are the fetches of all rules with one prefix, in all registries.
type fetches struct {
	Rule       string `json:"rule"`
	Fetched    int64  `json:"fetched"`
	Failed     int64  `json:"failed"`
	Upstream   int64  `json:"upstream"` // requests
	Bytes      int64  `json:"bytes"`
	MeanMicros int64  `json:"meanMicros"`
}

// registryRules are the rules of one registry.
type registryRules struct {
	Account string `json:"account,omitempty"`
	Region  string `json:"region,omitempty"`
	Rules   []rule `json:"rules"`
	More    int    `json:"more"`            // how many rules are not shown
	Error   string `json:"error,omitempty"` // why no rules could be read
}

type rule struct {
	Prefix         string `json:"prefix"`
	Upstream       string `json:"upstream"`
	UpstreamPrefix string `json:"upstreamPrefix,omitempty"`
	Credential     bool   `json:"credential"`
}

func (p *Page) serveJSON(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(p.state(r)) // it fails only if the client has gone
}

// state returns what the page shows to r. Its parameter repo picks downloads, what waits,
// and events.
func (p *Page) state(r *http.Request) *state {
	now, filter := p.now(), clean(r.URL.Query().Get("repo"), maxName)
	all, registries := p.downloads(), p.registries(r.Context())
	s := &state{Title: p.title(), Filter: filter, At: now.UTC(), Since: p.since, Registries: registries}
	s.Pending, s.MorePending = p.pending(filter)
	s.Downloads, s.MoreDownloads = p.showDownloads(all, filter, now)
	p.mu.Lock()
	c, events := p.counters.copy(), p.events.latest()
	s.Chart = p.chart.latest(now)
	p.mu.Unlock()
	s.Totals = c.totals()
	s.Totals.Running, s.Totals.Readers = inFlight(all)
	s.Totals.Sent = p.sent()
	s.Answers, s.Failures, s.Fetches = c.answersBySource(), c.failuresByKind(), c.fetchesByRule()
	s.Events = slices.DeleteFunc(events, func(e entry) bool { return !strings.Contains(e.Repo, filter) })
	return s
}

func (p *Page) sent() int64 {
	if p.Proxy == nil {
		return 0
	}
	return p.Proxy.Sent()
}

func (p *Page) title() string {
	if p.Title == "" {
		return defaultTitle
	}
	return clean(p.Title, maxName)
}

func (p *Page) downloads() []pullthrough.Download {
	if p.Proxy == nil {
		return nil
	}
	return p.Proxy.Downloads()
}

// inFlight returns the number of running downloads, and of the readers of all downloads.
func inFlight(all []pullthrough.Download) (downloads, readers int) {
	for _, d := range all {
		if isRunning(d) {
			downloads++
		}
		readers += len(d.Readers)
	}
	return downloads, readers
}

// registries returns the rules of the registries. It calls the host's code, so it must
// not hold a lock.
func (p *Page) registries(ctx context.Context) []registryRules {
	shown := []registryRules{}
	if p.Proxy == nil || p.Proxy.Rules == nil {
		return shown
	}
	ctx, cancel := context.WithTimeout(ctx, rulesTimeout)
	defer cancel()
	named := p.Registries
	if named == nil {
		named = []Registry{{}}
	}
	for _, registry := range named {
		shown = append(shown, p.rulesOf(ctx, registry))
	}
	p.mu.Lock()
	seen := slices.Clone(p.seen)
	p.mu.Unlock()
	slices.SortFunc(seen, func(a, b Registry) int {
		return strings.Compare(a.Account+" "+a.Region, b.Account+" "+b.Region)
	})
	for _, registry := range seen {
		if !slices.Contains(named, registry) {
			shown = append(shown, p.rulesOf(ctx, registry))
		}
	}
	return shown
}

func (p *Page) rulesOf(ctx context.Context, registry Registry) registryRules {
	shown := registryRules{Account: clean(registry.Account, maxName), Region: clean(registry.Region, maxName), Rules: []rule{}}
	rules, err := p.Proxy.Rules.Rules(ctx, registry.Account, registry.Region)
	if err != nil {
		shown.Error = cleanText(err.Error(), maxText)
		return shown
	}
	for _, r := range rules[:min(len(rules), maxShownRules)] {
		shown.Rules = append(shown.Rules, rule{
			Prefix: clean(r.Prefix, maxName), Upstream: cleanURL(r.UpstreamURL), UpstreamPrefix: clean(r.UpstreamPrefix, maxName),
			Credential: p.hasCredential(r),
		})
	}
	shown.More = len(rules) - len(shown.Rules)
	return shown
}

func (p *Page) hasCredential(r pullthrough.Rule) bool {
	if p.Credential != nil {
		return p.Credential(r)
	}
	return r.CredentialARN != ""
}

func (c *counters) totals() (t totals) {
	for object := range objects {
		failed := sum(c.failed[object][:])
		t.Failed += failed
		t.Requests += failed + sum(c.answers[object][:])
		t.Heads += c.heads[object]
		t.Bytes += sum(c.bytes[object][:])
		t.Filled += c.answers[object][pullthrough.SourceFill]
		t.Shared += c.answers[object][pullthrough.SourceShared]
	}
	t.Stored = t.Requests - t.Failed - t.Filled - t.Shared
	for _, f := range c.fetchesByRule() {
		t.Fetches += f.Fetched + f.Failed
		t.FailedFetches += f.Failed
		t.FetchedBytes += f.Bytes
		t.Upstream += f.Upstream
	}
	t.StoreFailures, t.Warnings, t.Anonymous, t.WrongDigests = c.store, c.warnings, c.anon, c.wrong
	return t
}

func (c *counters) answersBySource() []answers {
	all := []answers{}
	for i, source := range sources {
		a := answers{Source: source.String(), Manifests: c.answers[0][i], Blobs: c.answers[1][i], Referrers: c.answers[2][i]}
		for object := range objects {
			a.Bytes += c.bytes[object][i]
		}
		all = append(all, a)
	}
	return all
}

func (c *counters) failuresByKind() []failureCount {
	all := []failureCount{}
	for i, f := range failures {
		n := failureCount{Kind: f.name}
		for object := range objects {
			n.Requests += c.failed[object][i]
			for _, r := range c.rules {
				n.Fetches += r.failed[object][i]
			}
		}
		if n.Requests+n.Fetches > 0 {
			all = append(all, n)
		}
	}
	return all
}

func (c *counters) fetchesByRule() []fetches {
	all := []fetches{}
	for _, prefix := range c.prefixes() {
		r := c.rules[prefix]
		f := fetches{Rule: prefix, Fetched: sum(r.fetched[:]), Failed: r.failures(), Upstream: r.requests, Bytes: sum(r.bytes[:])}
		f.MeanMicros = r.took.Microseconds() / max(f.Fetched+f.Failed, 1)
		all = append(all, f)
	}
	return all
}

func (r *ruleCounters) failures() (total int64) {
	for object := range objects {
		total += sum(r.failed[object][:])
	}
	return total
}
