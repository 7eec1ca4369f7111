package main

import (
	"io"
	"log/slog"
)

// logger returns the log of everything else.
func (c *config) logger(w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{}
	switch {
	case c.debug:
		options.Level = slog.LevelDebug
	case c.noPulls: // -log off
		options.Level = slog.LevelWarn
	}
	if c.jsonLog {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// pulls returns the log of pulls; nil for none. The proxy itself logs why a pull has failed.
func (c *config) pulls(w io.Writer, log *slog.Logger) *pulls {
	switch {
	case c.noPulls:
		return nil
	case c.jsonLog:
		return newPulls(log, nil)
	}
	return newPulls(log, w)
}
