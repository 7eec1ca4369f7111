package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
)

const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	drainTimeout      = 10 * time.Second
)

// serve answers requests until ctx ends, then finishes those under way. There
// is no write timeout: layers are large and clients slow.
func serve(ctx context.Context, c *config, stdout io.Writer, log *slog.Logger) error {
	listener, err := net.Listen("tcp", c.listen)
	if err != nil {
		return badFlag("-listen", c.listen, err.Error())
	}
	proxy := c.proxy(log)
	server := &http.Server{
		Handler:           handler(proxy),
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	for _, warning := range c.warnings {
		log.Warn(warning)
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	fmt.Fprintf(stdout, "listening on http://%s\n", listener.Addr())

	select {
	case <-ctx.Done():
		drain(ctx, server, proxy, log)
		return nil
	case err = <-failed:
		drain(ctx, server, proxy, log)
		return err
	}
}

// drain ends the server first and the proxy, whose downloads it waits for,
// second. What is not finished in time is cut off.
func drain(ctx context.Context, server *http.Server, proxy *pullthrough.Proxy, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		log.Warn("requests were cut off", "err", err)
		_ = server.Close()
	}
	if err := proxy.Shutdown(ctx); err != nil {
		log.Warn("downloads were cut off", "err", err)
	}
}

// handler is not an http.ServeMux: that would answer paths with empty or dot
// components itself, with a redirect.
func handler(proxy *pullthrough.Proxy) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !pullthrough.IsRegistryRequest(r) {
			http.Error(w, "fakeecr: there is nothing but /v2/ here", http.StatusNotFound)
			return
		}
		proxy.ServeHTTP(w, r)
	})
}

// proxy is the registry that the command line describes.
func (c *config) proxy(log *slog.Logger) *pullthrough.Proxy {
	return &pullthrough.Proxy{
		Store:       pullthrough.NewMemStore(),
		Rules:       c.upstreams.rules(),
		Credentials: c.credentials,
		Endpoint:    c.endpoint,
		Policy:      c.policy,
		Identify:    c.identify,
		OnEvent:     logEvents(log),
		Logger:      log,
	}
}

func (c *config) credentials(_ context.Context, _ pullthrough.Repo, rule pullthrough.Rule) (pullthrough.Credential, error) {
	return c.upstreams.of(rule.Prefix).credential, nil
}

func (c *config) endpoint(_ context.Context, _ pullthrough.Repo, rule pullthrough.Rule) (*url.URL, error) {
	return c.upstreams.of(rule.Prefix).endpoint, nil
}

func (c *config) policy(_ context.Context, _ pullthrough.Repo, rule pullthrough.Rule) pullthrough.Policy {
	return pullthrough.Policy{TagTTL: c.tagTTL, RealmHosts: c.upstreams.of(rule.Prefix).realms}
}

// identify takes everybody for the one account: what docker sends to
// localhost:5000 names none.
func (c *config) identify(*http.Request) (pullthrough.Identity, error) {
	return pullthrough.Identity{Account: c.account, Region: c.region}, nil
}
