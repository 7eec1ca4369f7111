package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
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
	store, closeStore, err := c.openStore()
	if err != nil {
		return errors.Join(badFlag("-data", c.data, err.Error()), listener.Close())
	}
	defer func() {
		if err := closeStore(); err != nil {
			log.Warn("the data directory could not be closed", "err", err)
		}
	}()
	proxy := c.proxy(store, log)
	var spare spareConns
	server := &http.Server{
		ConnState:         spare.watch,
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
		drain(ctx, server, &spare, proxy, log)
		return nil
	case err = <-failed:
		drain(ctx, server, &spare, proxy, log)
		return err
	}
}

// drain ends the server first and the proxy, whose downloads it waits for,
// second. What is not finished in time is cut off.
func drain(ctx context.Context, server *http.Server, spare *spareConns, proxy *pullthrough.Proxy, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	spare.close()
	if err := server.Shutdown(ctx); err != nil {
		log.Warn("requests were cut off", "err", err)
		_ = server.Close()
	}
	if err := proxy.Shutdown(ctx); err != nil {
		log.Warn("downloads were cut off", "err", err)
	}
}

// spareConns are connections that never carried a request. Clients open some
// ahead of time, and http.Server.Shutdown would wait five seconds for them.
type spareConns struct {
	mu    sync.Mutex
	conns map[net.Conn]struct{}
	ended bool
}

func (s *spareConns) watch(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case state != http.StateNew:
		delete(s.conns, c)
	case s.ended:
		_ = c.Close()
	default:
		if s.conns == nil {
			s.conns = make(map[net.Conn]struct{})
		}
		s.conns[c] = struct{}{}
	}
}

func (s *spareConns) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for c := range s.conns {
		_ = c.Close()
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

// openStore opens the directory, or memory.
func (c *config) openStore() (pullthrough.Store, func() error, error) {
	if c.data == "" {
		return pullthrough.NewMemStore(), func() error { return nil }, nil
	}
	store, err := dirstore.Open(c.data)
	if err != nil {
		return nil, nil, err
	}
	store.Account, store.Region = c.account, c.region
	return store, store.Close, nil
}

// proxy is the registry that the command line describes.
func (c *config) proxy(store pullthrough.Store, log *slog.Logger) *pullthrough.Proxy {
	return &pullthrough.Proxy{
		Store:       store,
		Fill:        c.fill,
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
