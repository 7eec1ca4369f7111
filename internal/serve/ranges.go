package serve

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"

	"github.com/ecr-pullthrough/pullthrough/internal/contentrange"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

// maxRanges is how many ranges one answer may have.
const maxRanges = 16

// byteRange is one range of a Range header (RFC 9110, section 14.1).
type byteRange struct {
	from, to int64 // to is excluded
	open     bool  // bytes=N-: to means nothing
	suffix   int64 // bytes=-N; 0: it is none
}

// ranges are the ranges of r that can be answered by parts. There are none, and all is
// sent, for units other than bytes, for what is no range, for more than maxRanges, and for
// a HEAD. RFC 9110, section 14.2, lets a server ignore any.
func ranges(r *http.Request) (all []byteRange) {
	v := r.Header.Values("Range")
	if len(v) != 1 || r.Method != http.MethodGet {
		return nil
	}
	specs, ok := strings.CutPrefix(v[0], "bytes=")
	if !ok {
		return nil
	}
	for spec := range strings.SplitSeq(specs, ",") {
		one, ok := parseRange(strings.TrimSpace(spec))
		if !ok || len(all) == maxRanges {
			return nil
		}
		all = append(all, one)
	}
	return all
}

// parseRange reads N-, N-M or -N with numbers that http.ServeContent gets right.
func parseRange(spec string) (one byteRange, ok bool) {
	first, last, dash := strings.Cut(spec, "-")
	n, okFirst := contentrange.Digits(first)
	m, okLast := contentrange.Digits(last)
	switch {
	case !dash:
		return one, false
	case first == "":
		return byteRange{suffix: m}, okLast && m > 0
	case last == "":
		return byteRange{from: n, open: true}, okFirst
	}
	return byteRange{from: n, to: max(m, m+1)}, okFirst && okLast
}

// Wanted is the part that r asks for of a blob whose length is not known: the bytes from
// from to to, to excluded, 0 for the end, or the last ones. Where it asks for several
// parts it is the first. All is zero where r asks for the whole.
func Wanted(r *http.Request) (from, to, suffix int64) {
	all := ranges(r)
	if len(all) == 0 {
		return 0, 0, 0
	}
	return all[0].from, all[0].to, all[0].suffix
}

// partsOf are the ranges of content of that size. ok is false where they are not in
// order, overlap, or lie behind the end.
func partsOf(all []byteRange, size int64) (parts []spool.Part, ok bool) {
	var end int64
	for _, one := range all {
		p := spool.Part{From: one.from, To: min(one.to, size), Open: one.open}
		switch {
		case one.suffix > 0:
			p.From, p.To = max(0, size-one.suffix), size
		case one.open:
			p.To = size
		}
		if p.From < end || p.From >= p.To {
			return nil, false
		}
		end = p.To
		parts = append(parts, p)
	}
	return parts, true
}

// isUnconditional reports whether r may be answered by parts without a look at what else
// it has.
func isUnconditional(r *http.Request, etag string) bool {
	for _, k := range []string{"If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"} {
		if r.Header.Get(k) != "" {
			return false
		}
	}
	condition := r.Header.Values("If-Range")
	return len(condition) == 0 || len(condition) == 1 && condition[0] == etag
}

// serveParts answers with several parts (RFC 9110, section 14.6). Unlike ServeContent it
// has no goroutine and no pipe, so that files are sent by the kernel here, too.
func (w *contentWriter) serveParts(body io.ReadSeeker, parts []spool.Part) {
	if end, err := body.Seek(0, io.SeekEnd); err != nil || end != w.size {
		panic(http.ErrAbortHandler) // a file was cut after its size was looked at
	}
	var buf bytes.Buffer
	mw := multipart.NewWriter(&buf)
	heads := make([][]byte, 0, len(parts)+1)
	for _, p := range parts {
		_, _ = mw.CreatePart(textproto.MIMEHeader{ // into memory
			"Content-Type":  {MediaTypeBlob},
			"Content-Range": {fmt.Sprintf("bytes %d-%d/%d", p.From, p.To-1, w.size)},
		})
		heads = append(heads, bytes.Clone(buf.Bytes()))
		w.expected += p.To - p.From + int64(buf.Len())
		buf.Reset()
	}
	_ = mw.Close()
	w.expected += int64(buf.Len())
	h := w.Header()
	h.Set("Accept-Ranges", "bytes")
	h.Set("Content-Type", "multipart/byteranges; boundary="+mw.Boundary())
	h.Set("Content-Length", strconv.FormatInt(w.expected, 10))
	w.ask(body, parts)
	w.begin(http.StatusPartialContent)
	for i, p := range parts {
		if _, err := body.Seek(p.From, io.SeekStart); err != nil {
			return
		}
		w.ahead = heads[i]
		n := p.To - p.From
		if sent, err := w.ReadFrom(&io.LimitedReader{R: body, N: n}); err != nil || sent < n {
			return
		}
	}
	_, _ = w.Write(buf.Bytes()) // w counts what is sent
}

// ask tells a download that runs what its client wants.
func (w *contentWriter) ask(body io.Reader, parts []spool.Part) {
	if r, ok := body.(*spool.Reader); ok {
		r.Ask(parts)
	}
}
