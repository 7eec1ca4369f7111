package main

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

func (c *config) logger(w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{}
	if c.debug {
		options.Level = slog.LevelDebug
	}
	if c.jsonLog {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// logPull writes one line per request. What goes wrong behind a request, or
// after its answer has begun, the proxy logs itself.
func logPull(ctx context.Context, log *slog.Logger, e pullthrough.Event) {
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

// logEvent writes what Amazon ECR would tell EventBridge, for -debug.
func logEvent(ctx context.Context, log *slog.Logger, api *ecrapi.API, e pullthrough.Event) {
	if !log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	event, ok, err := api.PullThroughCacheEvent(ctx, e)
	if err == nil && !ok {
		return
	}
	var content json.RawMessage
	if err == nil {
		content, err = json.Marshal(event)
	}
	if err != nil {
		log.WarnContext(ctx, "there is no event for EventBridge", "err", err)
		return
	}
	log.DebugContext(ctx, event.DetailType, "event", content)
}
