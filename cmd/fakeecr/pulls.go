package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
)

const (
	// fetchWait is how long a line waits for the cost of its fetch. The cost is known when
	// the Store has everything, and clients have their answer before that.
	fetchWait = 2 * time.Second
	// maxFetches bounds the notes on fetches, and the lines that wait for a fetch.
	maxFetches = 1024
)

// pulls writes one line for each request when its answer has ended, and one line for each
// fetch that no client has asked for. A nil pulls writes none.
type pulls struct {
	log   *slog.Logger
	lines io.Writer // gets lines of text; nil: the log gets attributes instead
	queue queue     // of lines, for writeAll
	text  []byte    // of writeAll; its memory is used again

	mu     sync.Mutex
	closed bool
	ended  map[fetchKey]fetchCost
	held   map[fetchKey][]*pull // lines that wait
}

func newPulls(log *slog.Logger, lines io.Writer) *pulls {
	p := &pulls{log: log, lines: lines}
	p.queue.write = p.writeAll
	return p
}

// fetchKey tells the pull of an object from the pulls of others.
type fetchKey struct {
	kind string
	repo pullthrough.Repo
	ref  string
}

// fetchCost is what a fetch has cost.
type fetchCost struct {
	at       time.Time
	upstream int
	told     bool // in a line
}

// pull is a request that has been answered, or a fetch that no client has asked for.
type pull struct {
	event    pullthrough.Event
	began    time.Time
	took     time.Duration // until the last byte was sent
	sent     int64         // bytes of content
	upstream int           // requests to upstream that it has caused
	cut      bool          // the answer was not complete
	late     *time.Timer   // ends the wait
}

// pullKey is a context's key for the *pull of a request, or of a connection whose requests
// come one after the other.
type pullKey struct{}

// seat fits [http.Server.ConnContext]: a connection has one place for the pull that it
// carries, so that a pull that is a hit costs no memory.
func (p *pulls) seat(ctx context.Context, _ net.Conn) context.Context {
	return context.WithValue(ctx, pullKey{}, new(pull))
}

// around returns next with a line for each pull. A request of ECR's API is no pull, but
// it may cause pulls: record is told about them.
func (p *pulls) around(next http.Handler) http.Handler {
	if p == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !pullthrough.IsRegistryRequest(r) {
			next.ServeHTTP(w, r)
			return
		}
		p.serve(w, r, next)
	})
}

// serve answers r by next. It does not wrap w, so that files can go from the disk to the
// connection without a copy. It learns from the header how much was sent.
func (p *pulls) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	one, seated := r.Context().Value(pullKey{}).(*pull)
	if !seated || r.ProtoMajor != 1 { // requests by HTTP/2 share their connection
		one = new(pull)
		r = r.WithContext(context.WithValue(r.Context(), pullKey{}, one))
	}
	one.began, one.cut = time.Now(), true
	defer func() { *one = pull{} }() // nobody else's event is this pull's
	defer func() {
		if one.event.Kind == "" {
			return // it was no pull
		}
		one.took = time.Since(one.began)
		if r.Method == http.MethodGet && one.event.Err == nil && !one.cut {
			// A 304 has no length, and a 206 has the length of its part.
			one.sent, _ = strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64)
		}
		p.finish(one)
	}()
	next.ServeHTTP(w, r)
	one.cut = false
}

// record fits [fakeecr.Config.OnEvent].
func (p *pulls) record(ctx context.Context, e pullthrough.Event) {
	switch e.Kind {
	case pullthrough.EventManifest, pullthrough.EventBlob, pullthrough.EventReferrers:
		if one, ok := ctx.Value(pullKey{}).(*pull); ok && !one.began.IsZero() {
			one.event = e
			return
		}
		p.finish(&pull{event: e, began: time.Now().Add(-e.Duration), took: e.Duration}) // BatchGetImage
	case pullthrough.EventFetch:
		if e.Part {
			p.write(&pull{event: e, took: e.Duration, sent: e.Bytes, upstream: e.Upstream})
			return
		}
		p.recordFetch(e)
	}
}

// recordFetch writes the lines that wait for this fetch. The first one shows the cost.
func (p *pulls) recordFetch(e pullthrough.Event) {
	key := fetchKey{e.Object, e.Request.Repo, e.Request.Ref}
	p.mu.Lock()
	waiting := p.held[key]
	delete(p.held, key)
	if p.ended == nil || len(p.ended) >= maxFetches {
		p.ended = map[fetchKey]fetchCost{}
	}
	p.ended[key] = fetchCost{time.Now(), e.Upstream, len(waiting) > 0}
	p.mu.Unlock()
	for i, one := range waiting {
		if i == 0 {
			one.upstream = e.Upstream
		}
		one.late.Stop()
		p.write(one)
	}
}

// finish writes the line, or makes it wait for its fetch. The pull stays the caller's.
func (p *pulls) finish(one *pull) {
	if !p.hold(one) {
		p.queue.add(one, one.began.Add(one.took))
	}
}

// hold makes the line wait for its fetch. It reports false if there is nothing to wait
// for.
func (p *pulls) hold(one *pull) bool {
	if one.event.Err == nil && one.event.Source == pullthrough.SourceHit {
		return false // upstream was not asked
	}
	key := one.key()
	p.mu.Lock()
	defer p.mu.Unlock()
	if f, ok := p.ended[key]; ok && !f.at.Before(one.began) {
		if !f.told {
			one.upstream = f.upstream
			f.told = true
			p.ended[key] = f
		}
		return false
	}
	if p.closed || !one.fetches() || len(p.held) >= maxFetches {
		return false
	}
	if p.held == nil {
		p.held = map[fetchKey][]*pull{}
	}
	held := new(*one)
	p.held[key] = append(p.held[key], held)
	held.late = time.AfterFunc(fetchWait, func() {
		if p.letGo(held) {
			p.write(held)
		}
	})
	return true
}

// letGo ends the wait of the line. It reports whether the line still waited.
func (p *pulls) letGo(one *pull) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := one.key()
	i := slices.Index(p.held[key], one)
	if i < 0 {
		return false
	}
	p.held[key] = slices.Delete(p.held[key], i, i+1)
	if len(p.held[key]) == 0 {
		delete(p.held, key)
	}
	return true
}

// close writes the lines that still wait. It must be called after the end of the proxy.
func (p *pulls) close() {
	if p == nil {
		return
	}
	p.mu.Lock()
	held := p.held
	p.held, p.closed = nil, true
	p.mu.Unlock()
	for _, waiting := range held {
		for _, one := range waiting {
			one.late.Stop()
			p.write(one)
		}
	}
	p.queue.flush()
}

func (one *pull) key() fetchKey {
	return fetchKey{one.event.Kind, one.event.Request.Repo, one.event.Request.Ref}
}

// fetches reports whether the pull has caused a fetch of its own whose cost will be known.
// A HEAD of a blob fetches nothing. When a pull fails, its fetch has ended before.
func (one *pull) fetches() bool {
	e := one.event
	if e.Err != nil || e.Request.Head && e.Kind == pullthrough.EventBlob {
		return false
	}
	return e.Source == pullthrough.SourceFill || e.Source == pullthrough.SourceRevalidated
}
