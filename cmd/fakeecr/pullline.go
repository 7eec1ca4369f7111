package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// write has the line written soon. The time in it is now.
func (p *pulls) write(one *pull) { p.queue.add(one, time.Now()) }

// writeAll writes the lines, and how many more there were.
func (p *pulls) writeAll(some []queued, lost int) {
	if p.lines == nil {
		for i := range some {
			one := &some[i]
			r := slog.NewRecord(one.at, slog.LevelInfo, one.event.Kind, 0)
			r.AddAttrs(one.attrs()...)
			_ = p.log.Handler().Handle(context.Background(), r) // there is nowhere to report an error
		}
	} else {
		for i := range some {
			one := &some[i]
			p.text = append(one.appendText(p.text, one.at), '\n')
		}
		_, _ = p.lines.Write(p.text)
		p.text = p.text[:0]
	}
	if lost > 0 {
		p.log.Warn("pulls are answered faster than their lines are written; some have none", "lost", lost)
	}
}

// attrs returns the pull for programs: in bytes, bytes per second and nanoseconds.
func (one *pull) attrs() []slog.Attr {
	e := one.event
	attrs := []slog.Attr{
		slog.String("method", one.method()), slog.String("repo", e.Request.Repo.Name), slog.String("ref", e.Request.Ref),
		slog.Duration("took", one.took), slog.Int("upstream", one.upstream),
	}
	if e.Kind == pullthrough.EventFetch {
		attrs[0] = slog.String("object", objectOf(e))
	}
	if e.Err != nil {
		status, code, _ := pullthrough.OCI(e.Err)
		return append(attrs, slog.Int("status", status), slog.String("code", code), slog.Any("err", e.Err))
	}
	return append(attrs,
		slog.String("source", e.Source.String()), slog.String("digest", e.Digest), slog.Int64("bytes", e.Bytes),
		slog.Int64("sent", one.sent), slog.Int64("rate", rateOf(one.sent, one.took)), slog.Bool("cut", one.cut))
}

// objectOf is what was fetched. An event without an object is about a whole image, of
// which something is missing.
func objectOf(e pullthrough.Event) string {
	if e.Object == "" {
		return "image"
	}
	return e.Object
}

// appendText appends the pull as a line for people:
//
//	12:03:01.204 fill          27.3 MiB   12.1 MiB/s    2.25s  GET blob docker-hub/library/alpine@sha256:4abcf2066143, 2 upstream requests
func (one *pull) appendText(b []byte, at time.Time) []byte {
	e := &one.event
	b = at.AppendFormat(b, "15:04:05.000 ")
	b = appendPadded(b, one.how(), -11)
	bytes, rate := "-", "-"
	if one.sent > 0 {
		bytes, rate = bytesText(one.sent), rateText(rateOf(one.sent, one.took))
	}
	b = appendPadded(append(b, ' '), bytes, 10)
	b = appendPadded(append(b, ' '), rate, 12)
	b = appendPadded(append(b, ' '), tookText(one.took), 8)
	b = append(append(b, "  "...), one.what()...)
	start := len(b)
	b = appendName(append(b, ' '), &e.Request)
	switch {
	case one.upstream == 1:
		b = append(b, ", 1 upstream request"...)
	case one.upstream > 1:
		b = append(strconv.AppendInt(append(b, ", "...), int64(one.upstream), 10), " upstream requests"...)
	}
	if one.cut {
		b = append(b, ", cut off"...)
	}
	if e.Err != nil && !isLogged(e.Err) {
		b = append(append(b, ": "...), e.Err.Error()...)
	}
	return oneLine(b, start)
}

// isLogged reports whether the proxy's own log says why a pull has failed: then there is a line
// about that, which is not older than a minute.
func isLogged(err error) bool {
	status, _, _ := pullthrough.OCI(err)
	e, ok := errors.AsType[*pullthrough.Error](err)
	return status >= http.StatusInternalServerError || ok && e.Host != "" && status != http.StatusNotFound
}

// what is the object of the pull.
func (one *pull) what() string {
	if one.event.Kind == pullthrough.EventFetch {
		return objectOf(one.event)
	}
	return one.method() + " " + one.event.Kind
}

// how is where the answer came from, or the status of a failure.
func (one *pull) how() string {
	e := &one.event
	switch {
	case e.Err != nil:
		status, _, _ := pullthrough.OCI(e.Err)
		return strconv.Itoa(status)
	case e.Kind == pullthrough.EventFetch:
		return "import"
	}
	return e.Source.String()
}

// appendPadded fills s up with blanks before it, or after it if width is negative.
func appendPadded(b []byte, s string, width int) []byte {
	const blanks = "            "
	fill := blanks[:min(max(max(width, -width)-utf8.RuneCountInString(s), 0), len(blanks))]
	if width < 0 {
		return append(append(b, s...), fill...)
	}
	return append(append(b, fill...), s...)
}

func (one *pull) method() string {
	if one.event.Request.Head {
		return http.MethodHead
	}
	return http.MethodGet
}

// appendName appends the image as clients write it, with a short digest.
func appendName(b []byte, r *pullthrough.Request) []byte {
	b = append(b, r.Repo.Name...)
	algorithm, hex, isDigest := strings.Cut(r.Ref, ":")
	switch {
	case isDigest && ocipath.ValidDigest(r.Ref):
		return append(append(append(append(b, '@'), algorithm...), ':'), hex[:12]...)
	case isDigest:
		return append(append(b, '@'), r.Ref...)
	}
	return append(append(b, ':'), r.Ref...)
}

// oneLine replaces what is not printable in b[start:]. An upstream's error could move the
// cursor otherwise.
func oneLine(b []byte, start int) []byte {
	for _, c := range b[start:] {
		if c < ' ' || c > '~' {
			return append(b[:start], strings.Map(orReplacement, string(b[start:]))...)
		}
	}
	return b
}

func orReplacement(r rune) rune {
	if !unicode.IsPrint(r) {
		return unicode.ReplacementChar
	}
	return r
}
