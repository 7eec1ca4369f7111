package fakeecr

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/internal/hostname"
)

// newAPI returns an API for the settings, without images.
func (s *Server) newAPI() *ecrapi.API {
	return &ecrapi.API{
		State:   s.settings,
		Account: s.config.Account, Region: s.config.Region,
		Identify: s.config.identify,
		Secrets:  secrets(s.config.Secrets).find,
		Logger:   s.config.Logger,
	}
}

// serveAPI answers with an API for settings and images. It makes one for each request:
// the URLs in the answer lead to the host name that the client has used.
func (s *Server) serveAPI(w http.ResponseWriter, r *http.Request) {
	host := hostOf(r)
	api := s.newAPI()
	api.Validate = s.proxy.ValidateRule
	api.Images = &ecrapi.Images{
		Proxy: s.proxy, Catalog: s.catalog,
		RegistryURL: func(_, _ string) string { return "http://" + host },
	}
	api.ServeHTTP(w, r)
}

// hostOf returns the host name that the client has used. If it sent none that is
// valid, it is the address that its connection has reached.
func hostOf(r *http.Request) string {
	if hostname.Valid(r.Host) {
		return r.Host
	}
	if addr, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		return addr.String()
	}
	return "localhost"
}

// logEvent writes what Amazon ECR would tell EventBridge, at debug level.
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
