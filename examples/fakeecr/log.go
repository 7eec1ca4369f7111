package main

import (
	"context"
	"io"
	"log/slog"
	"net/http"

	"github.com/ecr-pullthrough/pullthrough"
)

func newLogger(w io.Writer, json bool) *slog.Logger {
	if json {
		return slog.New(slog.NewJSONHandler(w, nil))
	}
	return slog.New(slog.NewTextHandler(w, nil))
}

// logEvents writes one line per request. What goes wrong behind a request, or
// after its answer has begun, the proxy logs itself.
func logEvents(log *slog.Logger) func(context.Context, pullthrough.Event) {
	return func(ctx context.Context, e pullthrough.Event) {
		if e.Kind != pullthrough.EventManifest && e.Kind != pullthrough.EventBlob {
			return
		}
		method := http.MethodGet
		if e.Request.Head {
			method = http.MethodHead
		}
		attrs := []any{"method", method, "repo", e.Request.Repo.Name, "ref", e.Request.Ref, "took", e.Duration}
		if e.Err == nil {
			attrs = append(attrs, "source", e.Source.String(), "digest", e.Digest, "bytes", e.Bytes)
		} else {
			status, code, _ := pullthrough.OCI(e.Err)
			attrs = append(attrs, "status", status, "code", code, "err", e.Err)
		}
		log.InfoContext(ctx, string(e.Kind), attrs...)
	}
}
