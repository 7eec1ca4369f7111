package main

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"

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

// pulls is the log of pulls. What goes wrong behind a request, or after its answer has
// begun, the proxy logs itself.
func (c *config) pulls(w io.Writer, log *slog.Logger) *pulls {
	if c.jsonLog {
		return &pulls{log: log}
	}
	return &pulls{log: log, lines: w}
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
