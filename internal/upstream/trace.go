package upstream

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// maxWarnings is how many bytes of a registry's warnings one trace keeps.
const maxWarnings = 4096

// Trace notes what the work under one context costs and finds out on its way. It
// travels with the context through tokens, redirects and retries. The zero Trace is
// ready for use. It is safe for concurrent use.
type Trace struct {
	requests    atomic.Int64
	resumes     atomic.Int64
	anonymous   atomic.Bool
	wrongDigest atomic.Bool

	mu       sync.Mutex
	warnings []string
	size     int      // of warnings
	known    *secrets // of the registry that has warned
}

// Facts is what a [Trace] has noted.
type Facts struct {
	Requests    int      // sent, those to token servers and redirect targets included
	Resumes     int      // how often a body has broken off, or had not begun again, and its rest was asked for
	Anonymous   bool     // the credential was refused, and the content was had without it
	WrongDigest bool     // the registry named a digest that is not its manifest's, and has nothing under that
	Warnings    []string // of the registry (OCI distribution spec, "Warnings"), each once
}

type traceKey struct{}

// Attach returns a context under which everything is noted in t. A token request
// that serves several callers counts for the caller that began it.
func (t *Trace) Attach(ctx context.Context) context.Context {
	return context.WithValue(ctx, traceKey{}, t)
}

// Facts returns what has been noted so far. There are no secrets in it.
func (t *Trace) Facts() Facts {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := Facts{
		Requests:    int(t.requests.Load()),
		Resumes:     int(t.resumes.Load()),
		Anonymous:   t.anonymous.Load(),
		WrongDigest: t.wrongDigest.Load(),
	}
	for _, text := range t.warnings {
		f.Warnings = append(f.Warnings, t.known.strike(text)) // also what has become known since
	}
	return f
}

// withTraceOf notes what happens under ctx in the trace of from.
func withTraceOf(ctx, from context.Context) context.Context {
	return context.WithValue(ctx, traceKey{}, traceOf(from))
}

// traceOf returns the context's trace. nil, for none, notes nothing.
func traceOf(ctx context.Context) *Trace {
	t, _ := ctx.Value(traceKey{}).(*Trace)
	return t
}

// countRequest notes that a request is sent.
func (t *Trace) countRequest() {
	if t != nil {
		t.requests.Add(1)
	}
}

// countResume notes that the rest of a body is asked for.
func (t *Trace) countResume() {
	if t != nil {
		t.resumes.Add(1)
	}
}

// keepWarnings keeps the warnings of an answer, without the secrets that are known.
func (t *Trace) keepWarnings(resp *http.Response, known *secrets) {
	if t == nil {
		return
	}
	for _, line := range resp.Header.Values("Warning") {
		if text, ok := parseWarning(line); ok {
			t.addWarning(known.strike(text, queryOf(resp.Request.URL)...), known)
		}
	}
}

func (t *Trace) addWarning(text string, known *secrets) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known = known
	text = strings.ToValidUTF8(text[:min(len(text), maxWarnings-t.size)], "")
	if text == "" || slices.Contains(t.warnings, text) {
		return
	}
	t.warnings = append(t.warnings, text)
	t.size += len(text)
}

// parseWarning reads the one form that registries may send, `299 - "text"` (OCI
// distribution spec, "Warnings").
func parseWarning(line string) (string, bool) {
	quoted, ok := strings.CutPrefix(line, `299 - "`)
	if !ok {
		return "", false
	}
	var b strings.Builder
	for i := 0; i < len(quoted); i++ {
		switch c := quoted[i]; {
		case c == '"':
			return b.String(), i == len(quoted)-1
		case c == '\\' && i+1 < len(quoted):
			i++
			b.WriteByte(quoted[i])
		case c < ' ' || c == 0x7f:
			return "", false
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}

func (t *Trace) markAnonymous() {
	if t != nil {
		t.anonymous.Store(true)
	}
}

func (t *Trace) markWrongDigest() {
	if t != nil {
		t.wrongDigest.Store(true)
	}
}
