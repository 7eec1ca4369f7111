// Package serve writes answers of a registry (OCI distribution spec, "Pull") to
// clients: content with its ranges and entity tags, JSON documents, errors, and
// pages of lists. It knows bytes and headers, and nothing of where they come from.
package serve

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/contentrange"
	"github.com/ecr-pullthrough/pullthrough/internal/recent"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

// MediaTypeBlob is what a registry says of every blob. The blob's real type stands
// in the manifest that refers to it.
const MediaTypeBlob = "application/octet-stream"

// Manifest answers r, a GET or HEAD, with content: 304 where the client has it.
func Manifest(w http.ResponseWriter, r *http.Request, d digest.Digest, mediaType string, content []byte) {
	h := w.Header()
	length := setHeaders(h, d, mediaType, int64(len(content)))
	if matchesETag(r.Header.Values("If-None-Match"), d) {
		h.Del("Content-Type")
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h["Content-Length"] = length
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(content) // a client that has left is nobody's error
	}
}

// Blob answers r, a GET or HEAD, with size bytes of body: 206 for ranges, 304
// where the client has it, always with a Content-Length. It reports whether the
// client got all that the header announced. Where it did not, the caller must cut
// the connection, or a client without a length would take the part for the whole.
//
// Where the first read of an [Unsure] body fails nothing is written, and err is what it
// said.
func Blob(w http.ResponseWriter, r *http.Request, d digest.Digest, size int64, body io.Reader) (complete bool, err error) {
	setHeaders(w.Header(), d, MediaTypeBlob, 0)
	asked := ranges(r)
	cw := &contentWriter{ResponseWriter: w, size: size, asked: asked, body: body}
	if _, ok := body.(Unsure); ok {
		cw.unsure = r.Method != http.MethodHead
	}
	seeker, seekable := body.(io.ReadSeeker)
	parts, several := partsOf(asked, size)
	several = several && len(parts) > 1 && seekable && isUnconditional(r, `"`+d.String()+`"`)
	if len(asked) != 1 {
		r = withoutRange(r)
	}
	switch {
	case several:
		cw.serveParts(seeker, parts)
	case r.Method == http.MethodHead:
		http.ServeContent(cw, r, "", time.Time{}, &emptyContent{size: size})
		return true, nil
	case seekable:
		http.ServeContent(cw, r, "", time.Time{}, seeker)
	default:
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		cw.WriteHeader(http.StatusOK)
		_, _ = io.Copy(cw, body) // cw counts what was sent
	}
	if cw.missing != nil {
		for _, k := range contentHeaders {
			w.Header().Del(k)
		}
		return false, cw.missing
	}
	cw.commit()
	return cw.sent >= cw.expected, nil
}

// contentHeaders are the headers of content, which an error does not have.
var contentHeaders = []string{"Accept-Ranges", "Content-Length", "Content-Range", "Docker-Content-Digest", "Etag"}

// Unsure is a body that may turn out not to be there when it is read.
type Unsure interface{ Unsure() }

// headers are what every answer with some content has. They are shared by answers: a slice
// with one value has no room for another one.
type headers struct {
	digest digest.Digest
	size   int64
	values [6]string
}

// made are the headers of what was sent last: hits are many, and of few objects.
var made = recent.New[headers]()

// setHeaders sets what every answer with content has, and returns the value of its
// Content-Length. It is on the way of every hit: the keys are as net/http spells them.
func setHeaders(h http.Header, d digest.Digest, mediaType string, size int64) (length []string) {
	slot := made.At(string(d))
	m := slot.Load()
	if m == nil || m.digest != d || m.size != size || m.values[0] != mediaType {
		m = makeHeaders(d, mediaType, size)
		slot.Store(m)
	}
	v := &m.values
	h["Content-Type"] = v[0:1:1]
	h["Docker-Content-Digest"] = v[1:2:2]
	h["Docker-Distribution-Api-Version"] = v[2:3:3]
	h["Etag"] = v[3:4:4]
	h["X-Content-Type-Options"] = v[4:5:5]
	return v[5:6:6]
}

func makeHeaders(d digest.Digest, mediaType string, size int64) *headers {
	etag := `"` + string(d) + `"`
	own := etag[1 : len(etag)-1] // what is kept for long has no larger string in memory
	values := [6]string{strings.Clone(mediaType), own, "registry/2.0", etag, "nosniff", strconv.FormatInt(size, 10)}
	return &headers{digest.Digest(own), size, values}
}

// matchesETag reports whether one of the entity tags of If-None-Match is d's
// (RFC 9110, section 13.1.2: weak comparison).
func matchesETag(values []string, d digest.Digest) bool {
	for _, value := range values {
		for tag := range strings.SplitSeq(value, ",") {
			tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
			if tag == "*" || tag == `"`+d.String()+`"` {
				return true
			}
		}
	}
	return false
}

// withoutRange is r without what is not answered with one part.
func withoutRange(r *http.Request) *http.Request {
	if len(r.Header.Values("Range")) == 0 {
		return r
	}
	whole := *r
	whole.Header = r.Header.Clone()
	whole.Header.Del("Range")
	return &whole
}

// contentWriter stands between http.ServeContent and the client. It replaces the
// plain text of a 416 by OCI JSON, and it counts what is sent, since ServeContent
// hides the errors of the content.
type contentWriter struct {
	http.ResponseWriter
	size     int64 // of the whole content
	asked    []byteRange
	body     io.Reader
	expected int64 // of the part that is sent
	sent     int64

	unsure  bool   // the header waits for the first bytes
	status  int    // the header that waits; 0: none does
	missing error  // why there are no first bytes
	ahead   []byte // what goes before the next bytes of content; nil: nothing

	refused bool // 416: its body was written already
}

func (w *contentWriter) WriteHeader(status int) {
	if !w.agrees(status) {
		panic(http.ErrAbortHandler) // a file was cut after its size was looked at
	}
	switch status {
	case http.StatusRequestedRangeNotSatisfiable:
		w.refused = true
		w.Header().Del("Etag")
		Error(w.ResponseWriter, status, "RANGE_INVALID", "The range cannot be satisfied.")
		return
	case http.StatusOK:
		// Not the Content-Length: there is none where a Content-Encoding is set.
		w.expected = w.size
	case http.StatusPartialContent:
		first, last, _, _ := contentrange.Parse(w.Header().Get("Content-Range"))
		w.expected = last - first + 1
		w.ask(w.body, []spool.Part{{From: first, To: last + 1, Open: len(w.asked) == 1 && w.asked[0].open}})
	}
	w.begin(status)
}

// begin sends the header, now or with the first bytes.
func (w *contentWriter) begin(status int) {
	if w.unsure && w.expected > 0 {
		w.status = status
		return
	}
	w.ResponseWriter.WriteHeader(status)
}

// agrees reports whether net/http, which asks the content itself, has found the size that
// it had.
func (w *contentWriter) agrees(status int) bool {
	length, part := w.Header().Get("Content-Length"), w.Header().Get("Content-Range")
	size := strconv.FormatInt(w.size, 10)
	switch status {
	case http.StatusOK:
		return length == "" || length == size
	case http.StatusPartialContent:
		return strings.HasSuffix(part, "/"+size)
	case http.StatusRequestedRangeNotSatisfiable: // a range that cannot be read names no size
		return part == "" || strings.HasSuffix(part, "/"+size)
	}
	return true
}

// commit sends the header that waits, if one does.
func (w *contentWriter) commit() {
	if w.status != 0 {
		w.ResponseWriter.WriteHeader(w.status)
		w.status = 0
	}
}

// writeAhead sends what goes before the content.
func (w *contentWriter) writeAhead() error {
	if w.ahead == nil {
		return nil
	}
	n, err := w.ResponseWriter.Write(w.ahead)
	w.sent += int64(n)
	w.ahead = nil
	return err
}

func (w *contentWriter) Write(p []byte) (int, error) {
	if w.refused {
		return len(p), nil
	}
	w.commit()
	if err := w.writeAhead(); err != nil {
		return 0, err
	}
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	return n, err
}

// ReadFrom keeps the kernel's way from a file to the connection open.
func (w *contentWriter) ReadFrom(src io.Reader) (int64, error) {
	if w.refused {
		return io.Copy(io.Discard, src)
	}
	var n int64
	var err error
	if w.status == 0 {
		if err := w.writeAhead(); err != nil {
			return 0, err
		}
	}
	if part, ok := src.(*io.LimitedReader); ok {
		if body, ok := part.R.(*spool.Reader); ok {
			n, err = body.SendTo(w.ResponseWriter, part.N, w.conn())
			w.sent += n
			return n, err
		}
	}
	if w.status != 0 {
		return w.readFirst(src)
	}
	n, err = io.Copy(w.ResponseWriter, src)
	w.sent += n
	return n, err
}

// readFirst is ReadFrom for a body that may be missing: the header goes out when there
// are bytes to follow it.
func (w *contentWriter) readFirst(src io.Reader) (int64, error) {
	buf := copyBuffers.Get().(*[32 << 10]byte)
	defer copyBuffers.Put(buf)
	n, err := io.ReadAtLeast(src, buf[:], 1)
	if err != nil {
		w.missing = err
		return 0, err
	}
	sent, err := w.Write(buf[:n])
	if err != nil {
		return int64(sent), err
	}
	rest, err := w.ReadFrom(src)
	return int64(sent) + rest, err
}

// conn is what the connection can do. A client that waits for the first byte
// sees the header, one that never reads can be cut off.
func (w *contentWriter) conn() spool.Conn {
	c := http.NewResponseController(w.ResponseWriter)
	return spool.Conn{
		Flush:     func() { _ = c.Flush() },
		Interrupt: func() { _ = c.SetWriteDeadline(time.Unix(1, 0)) },
	}
}

// emptyContent has a size and no bytes, for answers without a body.
type emptyContent struct{ size, off int64 }

func (e *emptyContent) Read([]byte) (int, error) { return 0, io.EOF }

func (e *emptyContent) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += e.off
	case io.SeekEnd:
		offset += e.size
	}
	e.off = offset
	return offset, nil
}
