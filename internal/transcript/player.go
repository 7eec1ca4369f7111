package transcript

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Player is an [http.RoundTripper] that answers as the hosts of a transcript do. It plays
// each exchange once, and fails the test if a request is not as in the transcript. It
// plays sections one after the other. The exchanges of one section may come in any order,
// so several clients may send requests at a time. It is safe for concurrent use.
type Player struct {
	t        testing.TB
	sections []Section

	mu       sync.Mutex
	text     map[string]string // texts of the placeholders
	tokens   int
	queue    []exchange // exchanges of the sections given to Play
	requests []*http.Request
}

// New returns a Player for a file. The Player calls Done when the test ends.
func New(t testing.TB, file string) *Player {
	t.Helper()
	sections, err := Read(file)
	if err != nil {
		t.Fatal(err)
	}
	p := &Player{t: t, sections: sections, text: map[string]string{}}
	t.Cleanup(p.Done)
	return p
}

// Set sets the text of {{name}} for sections that are given to Play later.
func (p *Player) Set(name, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text[name] = text
}

// Play adds sections, which are played after those that are not used up yet.
func (p *Player) Play(names ...string) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text["now"] = time.Now().UTC().Format(time.RFC3339)
	for _, name := range names {
		i := slices.IndexFunc(p.sections, func(s Section) bool { return s.Name == name })
		if i < 0 {
			p.t.Fatalf("there is no section %q", name)
		}
		for _, e := range p.sections[i].exchanges {
			e.url, e.form, e.sent = p.fill(e.url), p.fill(e.form), p.fillAll(e.sent)
			if strings.Contains(e.body, "{{token}}") {
				p.tokens++
				p.text["token"] = fmt.Sprintf("token-%d-of-the-transcript", p.tokens)
			}
			e.header, e.body = p.fillAll(e.header), p.fill(strings.Trim(e.body, "\n"))
			p.queue = append(p.queue, e)
		}
	}
}

var placeholder = regexp.MustCompile(`{{.*?}}`)

func (p *Player) fill(text string) string {
	return placeholder.ReplaceAllStringFunc(text, func(name string) string {
		text, ok := p.text[strings.Trim(name, "{}")]
		if !ok {
			p.t.Errorf("nobody has said what %s is", name)
		}
		return text
	})
}

func (p *Player) fillAll(fields []field) (filled []field) {
	for _, f := range fields {
		filled = append(filled, field{f.name, p.fill(f.value)})
	}
	return filled
}

// Done fails the test for each exchange that was given to Play and not used.
func (p *Player) Done() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.queue {
		if !e.used {
			p.t.Errorf("%s: nobody has asked for %s %s", e.place, e.method, e.url)
		}
	}
	p.queue = nil
}

// Requests returns the requests so far. Their bodies have been read.
func (p *Player) Requests() []*http.Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.requests)
}

// RoundTrip implements [http.RoundTripper]. It answers a request that is not in the
// transcript with 501.
func (p *Player) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
		_ = r.Body.Close() // it has been read
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return p.play(r, string(body)), nil
}

func (p *Player) play(r *http.Request, body string) *http.Response {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests = append(p.requests, r.Clone(r.Context()))
	open := "" // the first section that is not used up
	for i := range p.queue {
		e := &p.queue[i]
		if e.used {
			continue
		}
		if open == "" {
			open = e.section
		}
		if open != e.section {
			break
		}
		if e.matches(r) {
			e.used = true
			for _, wrong := range e.check(r, body) {
				p.t.Errorf("%s: %s %s: %s", e.place, e.method, e.url, wrong)
			}
			return e.answer(r)
		}
	}
	p.t.Errorf("%s %s %q is not in the transcript, where %q is open", r.Method, r.URL, r.Header, open)
	return (&exchange{status: http.StatusNotImplemented}).answer(r)
}

// matches reports whether r has the method and the URL of the exchange's request.
func (e *exchange) matches(r *http.Request) bool {
	want, err := url.Parse(e.url)
	return err == nil && r.Method == e.method && r.URL.Scheme == want.Scheme && r.URL.Host == want.Host &&
		r.URL.EscapedPath() == want.EscapedPath() && r.URL.Query().Encode() == want.Query().Encode()
}

// check returns what is wrong with the header and the body of r.
func (e *exchange) check(r *http.Request, body string) (wrong []string) {
	listed := slices.Clone(Harmless)
	for _, f := range e.sent {
		name := strings.TrimPrefix(f.name, "!")
		listed = append(listed, http.CanonicalHeaderKey(name))
		want := f.value
		if user, ok := strings.CutPrefix(want, "Basic "); ok {
			want = "Basic " + base64.StdEncoding.EncodeToString([]byte(user))
		}
		if got := r.Header.Values(name); strings.Join(got, ", ") != want || name != f.name && got != nil {
			wrong = append(wrong, fmt.Sprintf("%s is %q, not %q", name, got, want))
		}
	}
	for name, values := range r.Header {
		if !slices.Contains(listed, name) {
			wrong = append(wrong, fmt.Sprintf("%s is not in the transcript: %q", name, values))
		}
	}
	got, _ := url.ParseQuery(body) // a body that is not a form is not equal
	want, _ := url.ParseQuery(e.form)
	if got.Encode() != want.Encode() || r.Host != "" && r.Host != r.URL.Host {
		wrong = append(wrong, fmt.Sprintf("the body is %q, not %q, to the Host %q", body, e.form, r.Host))
	}
	return wrong
}

// answer returns the exchange's answer to r as a transport does.
func (e *exchange) answer(r *http.Request) *http.Response {
	resp := &http.Response{
		Status: http.StatusText(e.status), StatusCode: e.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, ContentLength: int64(len(e.body)), Request: r, Body: http.NoBody,
	}
	for _, f := range e.header {
		resp.Header.Add(f.name, f.value)
	}
	if n, err := strconv.ParseInt(resp.Header.Get("Content-Length"), 10, 64); err == nil {
		resp.ContentLength = n
	}
	resp.Header.Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	if r.Method != http.MethodHead {
		resp.Body = io.NopCloser(io.MultiReader(strings.NewReader(e.body), broken(resp.ContentLength-int64(len(e.body)))))
	}
	return resp
}

// broken is a connection that breaks with this many bytes outstanding.
type broken int64

func (b broken) Read([]byte) (int, error) {
	if b > 0 {
		return 0, io.ErrUnexpectedEOF
	}
	return 0, io.EOF
}
