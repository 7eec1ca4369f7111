package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
)

func (p *pulls) write(one *pull) {
	if p.lines != nil {
		_, _ = io.WriteString(p.lines, one.text(time.Now())+"\n") // there is nowhere to report an error
		return
	}
	p.log.LogAttrs(context.Background(), slog.LevelInfo, string(one.event.Kind), one.attrs()...)
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
	return string(e.Object)
}

// text returns the pull as a line for people:
//
//	12:03:01.204 fill          27.3 MiB   12.1 MiB/s    2.25s  GET blob docker-hub/library/alpine@sha256:4abcf2066143, 2 upstream requests
func (one *pull) text(now time.Time) string {
	e := one.event
	what, how := one.method()+" "+string(e.Kind), e.Source.String()
	if e.Kind == pullthrough.EventFetch {
		what, how = objectOf(e), "import"
	}
	if e.Err != nil {
		status, _, _ := pullthrough.OCI(e.Err)
		how = fmt.Sprint(status)
	}
	bytes, rate := "-", "-"
	if one.sent > 0 {
		bytes, rate = bytesText(one.sent), rateText(rateOf(one.sent, one.took))
	}
	line := fmt.Sprintf("%s %-11s %10s %12s %8s  %s %s", now.Format("15:04:05.000"), how, bytes, rate, tookText(one.took), what, name(e.Request))
	switch {
	case one.upstream == 1:
		line += ", 1 upstream request"
	case one.upstream > 1:
		line += fmt.Sprintf(", %d upstream requests", one.upstream)
	}
	if one.cut {
		line += ", cut off"
	}
	if e.Err != nil {
		line += ": " + e.Err.Error()
	}
	return oneLine(line)
}

func (one *pull) method() string {
	if one.event.Request.Head {
		return http.MethodHead
	}
	return http.MethodGet
}

// name returns the image as clients write it, with a short digest.
func name(r pullthrough.Request) string {
	algorithm, hex, isDigest := strings.Cut(r.Ref, ":")
	switch {
	case isDigest && digest.Digest(r.Ref).Validate() == nil:
		return r.Repo.Name + "@" + algorithm + ":" + hex[:12]
	case isDigest:
		return r.Repo.Name + "@" + r.Ref
	}
	return r.Repo.Name + ":" + r.Ref
}

// oneLine replaces what is not printable. An upstream's error could move the cursor
// otherwise.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
