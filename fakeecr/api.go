package fakeecr

import (
	"context"
	"encoding/json"
	"log/slog"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

// newAPI returns an API for the settings, without images.
func (s *Server) newAPI() *ecrapi.API {
	api := &ecrapi.API{
		State:   s.settings,
		Account: s.config.Account, Region: s.config.Region,
		Identify: s.config.identify,
		Secrets:  s.findSecret,
		Logger:   s.config.Logger,
		Now:      s.config.Now,
	}
	if s.config.AnyUpstream {
		api.AllowUpstream = func(string) bool { return true }
	}
	return api
}

// addImages makes the API answer the operations on repositories and images.
func (s *Server) addImages(api *ecrapi.API) {
	api.Validate = s.Proxy.ValidateRule
	api.Images = &ecrapi.Images{Proxy: s.Proxy, Catalog: s.Catalog}
	if s.config.RequireLogin {
		api.Images.Password, api.Images.LayerURL = s.logins.password, s.logins.layerURL
	}
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
