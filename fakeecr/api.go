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

// newAPI has the settings, not the images.
func (s *Server) newAPI() *ecrapi.API {
	return &ecrapi.API{
		State:   s.settings,
		Account: s.config.Account, Region: s.config.Region,
		Identify: s.config.identify,
		Secrets:  secrets(s.config.Secrets).find,
		Logger:   s.config.Logger,
	}
}

// serveAPI has the images too. It makes an API for one request: the URLs in its
// answers lead to the host that the client has reached us by, whatever we are
// called there.
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

// hostOf is what the client calls us. A client that says nothing that is a host name
// is told the address that its connection has reached.
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
