package pullthrough

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// maxWarnings is how many bytes of upstream's warnings one fetch keeps.
const maxWarnings = 4096

// trace is what a fetch costs and finds out on its way. It travels with the
// context, through tokens, redirects and retries, and ends up in the Event. It
// is safe for concurrent use; a nil trace notes nothing.
type trace struct {
	requests    atomic.Int64
	anonymous   atomic.Bool
	wrongDigest atomic.Bool

	mu       sync.Mutex
	warnings []string
	size     int // of warnings
}

type traceKey struct{}

// withTrace returns a context under which everything is noted in a new trace.
func withTrace(ctx context.Context) (context.Context, *trace) {
	t := new(trace)
	return context.WithValue(ctx, traceKey{}, t), t
}

// withTraceOf notes what happens under ctx in the trace of from.
func withTraceOf(ctx, from context.Context) context.Context {
	return context.WithValue(ctx, traceKey{}, traceOf(from))
}

func traceOf(ctx context.Context) *trace {
	t, _ := ctx.Value(traceKey{}).(*trace)
	return t
}

// sent counts a request.
func (t *trace) sent() {
	if t != nil {
		t.requests.Add(1)
	}
}

// answered keeps the warnings of an answer.
func (t *trace) answered(resp *http.Response) {
	if t == nil {
		return
	}
	for _, line := range resp.Header.Values("Warning") {
		if text, ok := warning(line); ok {
			t.warn(text)
		}
	}
}

func (t *trace) warn(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	text = strings.ToValidUTF8(text[:min(len(text), maxWarnings-t.size)], "")
	if text == "" || slices.Contains(t.warnings, text) {
		return
	}
	t.warnings = append(t.warnings, text)
	t.size += len(text)
}

// warning reads the one form that registries may send, `299 - "text"` (OCI
// distribution spec, "Warnings").
func warning(line string) (string, bool) {
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

func (t *trace) markAnonymous() {
	if t != nil {
		t.anonymous.Store(true)
	}
}

func (t *trace) markWrongDigest() {
	if t != nil {
		t.wrongDigest.Store(true)
	}
}

// report completes the event of a fetch.
func (t *trace) report(e *Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.Upstream = int(t.requests.Load())
	e.Anonymous, e.WrongDigest = t.anonymous.Load(), t.wrongDigest.Load()
	e.Warnings = slices.Clone(t.warnings)
}
