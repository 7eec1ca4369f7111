package pullthroughtest

import (
	"net/http"
	"slices"
	"sync"
)

// Fault changes how matching requests are answered. Its fields can be combined: one fault can change the status, slow
// the body down and cut it off. Offsets count the bytes of the answer's body from 0, even if the body is a range of a
// blob; write them as new(int64(100)). The zero Fault matches every request and changes nothing.
//
// At most one fault applies to a request. It is the first one, in the order of installation, that matches, has skipped
// Skip requests and is not used up. So faults that are installed one after the other are a script:
//
//	up.Fault(Fault{Match: "GET /v2/*/manifests/*", Times: 2, Status: 503})
//	up.Fault(Fault{Match: "GET /v2/*/manifests/*", Times: 1, Status: 429, Header: http.Header{"Retry-After": {"2"}}})
//
// A fault is chosen at the moment when the registry would begin its answer, so its pattern can name the status of that
// answer: "GET /v2/*/blobs/* 200" neither changes nor counts the 401 before it.
type Fault struct {
	Match string // pattern as in Upstream.Count; empty: every request
	Skip  int    // how many matching requests pass by first, perhaps to a later fault; 0: none
	Times int    // how many matching requests the fault applies to; 0: all until it is removed

	// Status replaces the real status. A Status of 300 or more drops the headers of the real answer. Unless there is a
	// Body, it also replaces the real body with an OCI error document. 401 has the usual challenge. 0: the real status.
	Status int

	// Header replaces headers of the answer after all else has been decided. An empty list of values, or a single empty
	// value, deletes the header. A Content-Length is sent as it is, even if it is wrong or given twice. Nil: no header is
	// replaced.
	Header http.Header

	Body     []byte // replaces the body; nil: the real body; empty but not nil: an empty body
	Redirect string // Location of the answer, in which {path} is the request's path; Status 0 then means 307; empty: none

	// NoLength sends no Content-Length: HTTP/1.1 answers are chunked. False: the length is sent if it is known.
	NoLength bool

	// CloseDelimited answers like an HTTP/1.0 server: there is no Content-Length, and the end of the connection ends the
	// body. On HTTP/2 it is NoLength. False: HTTP/1.1.
	CloseDelimited bool

	// CutAfter closes the connection at this offset, before the declared length is reached or the last chunk is sent. A
	// negative offset closes it before the answer begins; Go's transport then silently repeats a GET if it had used the
	// connection before. An offset past the end changes nothing. Nil: never.
	CutAfter *int64
	// Reset makes CutAfter reset the TCP connection, which may discard bytes in transit. False: a plain close.
	Reset bool

	// Flip flips the lowest bit of the byte at this offset, from the end if negative. Nil: none.
	Flip *int64
	// Truncate omits this many bytes at the end and keeps the declared length. With NoLength or CloseDelimited the answer
	// then looks complete. 0: none.
	Truncate int64
	// Extend appends this many zero bytes and keeps the declared length. On HTTP/2 it works only together with NoLength.
	// math.MaxInt64 appends without end. 0: none.
	Extend int64

	// Stall holds the answer until the channel is closed or the client has gone. Nil: no stall.
	Stall <-chan struct{}
	// StallAfter is the offset at which Stall holds the answer. Nil: before the header.
	StallAfter *int64

	Rate int64 // the most bytes of body per second, sent in small portions; 0: no limit

	// HeaderRate is the most bytes of the header per second on HTTP/1.1, sent in small portions. The body of such an
	// answer is never chunked. On HTTP/2 a header is sent in one piece. 0: no limit.
	HeaderRate int64

	// Raw is written to the connection as it is, bypassing HTTP but inside TLS. It may be an HTTP/2 frame such as
	// [GoAway], an unsolicited answer, or noise. On HTTP/2 it is written between two frames, perhaps one byte of body
	// early, as long as no other answer is being sent on the same connection. It works only with a listener of the
	// registry's own or with DialPipe. Nil: nothing.
	Raw []byte
	// RawAfter is the offset at which Raw is written, before a stall or a cut at the same offset. Nil: before the header.
	RawAfter *int64
}

// Fault installs a fault for future requests, behind the faults that are installed already. The function it returns
// removes the fault and may be called more than once. Answers that have begun are not affected. The Fault's contents
// must not be changed while it is installed.
func (u *Upstream) Fault(f Fault) (heal func()) {
	planned := &plannedFault{Fault: f}
	u.faults.add(planned)
	return func() { u.faults.remove(planned) }
}

// Heal removes all faults. It does not affect answers that have begun, not even those held by a Stall.
func (u *Upstream) Heal() { u.faults.clear() }

// faults are the installed faults, in order. Safe for concurrent use.
type faults struct {
	mu      sync.Mutex
	planned []*plannedFault
}

// plannedFault is an installed Fault and the number of requests that have matched it. faults' mu guards it.
type plannedFault struct {
	Fault
	met int
}

func (f *faults) add(p *plannedFault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.planned = append(f.planned, p)
}

func (f *faults) remove(p *plannedFault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.planned = slices.DeleteFunc(f.planned, func(other *plannedFault) bool { return other == p })
}

// unmet are the patterns of the faults that have applied to nothing.
func (f *faults) unmet() (matches []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.planned {
		if p.met <= p.Skip {
			matches = append(matches, p.Match)
		}
	}
	return matches
}

func (f *faults) clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.planned = nil
}

// pick returns the fault for a request whose answer is about to begin; nil if there is none.
func (f *faults) pick(request Request) *Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.planned {
		if !request.matches(p.Match) || p.Times > 0 && p.met >= p.Skip+p.Times {
			continue
		}
		p.met++
		if p.met > p.Skip {
			return &p.Fault
		}
	}
	return nil
}
