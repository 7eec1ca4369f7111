package pullthroughtest

import (
	"net/http"
	"slices"
	"sync"
)

// Fault changes how matching requests are answered. Its fields compose: a fault can answer another status, trickle it
// and cut it off. Offsets count bytes of the answer's body, from 0, whatever range of a blob that is; write them as
// new(int64(100)). The zero Fault matches everything and changes nothing.
//
// A request meets one fault at most: the first to be installed that matches, has skipped what it is to skip and is not
// used up. So faults installed one after the other are a script:
//
//	up.Fault(Fault{Match: "GET /v2/*/manifests/*", Times: 2, Status: 503})
//	up.Fault(Fault{Match: "GET /v2/*/manifests/*", Times: 1, Status: 429, Header: http.Header{"Retry-After": {"2"}}})
//
// A fault is chosen when the registry would begin its answer, so its pattern can name the status of that answer:
// "GET /v2/*/blobs/* 200" leaves the 401 before it alone and does not count it.
type Fault struct {
	Match string // pattern as in Upstream.Count; empty: every request
	Skip  int    // so many matching requests go by first, perhaps to meet a later fault; 0: none
	Times int    // so many matching requests are harmed; 0: all until it is healed

	// Status is answered instead of the real one. From 300 on it drops the headers of the real answer and, unless
	// there is a Body, its body for an OCI error document; 401 has the usual challenge. 0: the real status.
	Status int

	// Header replaces headers of the answer, after all else has been decided; an empty list of values, or an only
	// value that is empty, deletes one. A Content-Length is sent as it is, right, wrong or twice. Nil: none replaced.
	Header http.Header

	Body     []byte // replaces the body; nil: the real one, empty but not nil: an empty one
	Redirect string // Location of the answer, in which {path} is the request's path; Status 0 is then 307; empty: none

	// NoLength sends no Content-Length: HTTP/1.1 answers are chunked. False: the length is sent if it is known.
	NoLength bool

	// CloseDelimited answers like an HTTP/1.0 server: no Content-Length, the body ends where the connection does.
	// On HTTP/2 it is NoLength. False: HTTP/1.1.
	CloseDelimited bool

	// CutAfter closes the connection at this offset, with the body's declared length or the last chunk outstanding;
	// negative: before the answer begins, whereupon Go's transport silently sends a GET again if it had used the
	// connection before. An offset behind the end changes nothing. Nil: never.
	CutAfter *int64
	// Reset makes CutAfter reset the TCP connection, which may take back bytes on their way. False: a plain close.
	Reset bool

	// Flip flips the lowest bit of the byte at this offset, from the end if negative. Nil: none.
	Flip *int64
	// Truncate leaves out so many bytes at the end, but not from the length declared; with NoLength or CloseDelimited
	// the answer then looks complete. 0: none.
	Truncate int64
	// Extend appends so many zero bytes, but not to the length declared; on HTTP/2 only together with NoLength.
	// math.MaxInt64 is for ever. 0: none.
	Extend int64

	// Stall holds the answer until the channel is closed or the client has gone. Nil: no stall.
	Stall <-chan struct{}
	// StallAfter is the offset at which Stall holds the answer. Nil: before its first byte, the header included.
	StallAfter *int64

	Rate int64 // at most so many bytes of body per second, in small portions; 0: as fast as it goes

	// HeaderRate is at most so many bytes of the header per second, in small portions, on HTTP/1.1; the body of such an
	// answer is never chunked. On HTTP/2 a header comes in one piece. 0: as fast as it goes.
	HeaderRate int64

	// Raw is written to the connection as it is, past HTTP but inside TLS: an HTTP/2 frame such as [GoAway], an answer
	// nobody has asked for, noise. On HTTP/2 it comes between two frames, perhaps a byte of body early, as long as no
	// other answer is under way on the same connection. It needs a listener of the registry's own or DialPipe. Nil:
	// nothing.
	Raw []byte
	// RawAfter is the offset at which Raw is written, before a stall or a cut at the same one. Nil: before the first
	// byte of the answer, the header included.
	RawAfter *int64
}

// Fault installs a fault for the requests to come, after those installed already. The function it returns removes
// it; calling that twice is fine. Answers that have begun are not affected. The Fault's contents must not be changed
// while it is installed.
func (u *Upstream) Fault(f Fault) (heal func()) {
	planned := &plannedFault{Fault: f}
	u.faults.add(planned)
	return func() { u.faults.remove(planned) }
}

// Heal removes all faults. Answers that have begun are not affected, those held by a Stall included.
func (u *Upstream) Heal() { u.faults.clear() }

// faults are those installed, in order. Safe for concurrent use.
type faults struct {
	mu      sync.Mutex
	planned []*plannedFault
}

// plannedFault counts the requests that a Fault has met; faults' mu guards it.
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

func (f *faults) clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.planned = nil
}

// pick is the fault for a request that is about to be answered with status. Nil: none.
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
