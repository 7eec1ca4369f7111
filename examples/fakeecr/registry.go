package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"path/filepath"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/debug"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

// registry is the private registry that the command line describes: its images at
// /v2/, its settings by ECR's API at POST /, what it is doing at /debug/pullthrough.
type registry struct {
	config   *config
	log      *slog.Logger
	addr     string // where it listens
	settings *settings
	catalog  *ecrapi.Catalog
	proxy    *pullthrough.Proxy
	pulls    *pulls
	page     *debug.Page
	release  func() error // of the directory
}

// open reads the directory, where there is one. All errors are about it.
func open(c *config, addr string, log *slog.Logger, pulls *pulls) (*registry, error) {
	r := &registry{config: c, log: log, addr: addr, pulls: pulls}
	store, release, err := c.openStore(log)
	if err != nil {
		return nil, err
	}
	r.release = release
	r.settings, err = openSettings(c.file("settings.json"), registryKey(c.account, c.region), c.upstreams.rules(time.Now()))
	if err != nil {
		return nil, errors.Join(err, release())
	}
	api := r.api()
	r.catalog = &ecrapi.Catalog{Template: api.Template, Excluded: api.Excluded, File: c.file("catalog.json"), Logger: log}
	if err := r.catalog.Load(); err != nil {
		return nil, errors.Join(err, release())
	}
	r.proxy = r.newProxy(r.catalog.Around(store), api)
	r.page = r.newPage()
	return r, nil
}

// openStore opens the directory, or memory.
func (c *config) openStore(log *slog.Logger) (store pullthrough.Store, release func() error, err error) {
	if c.data == "" {
		return &memstore.Store{MaxBytes: c.maxBytes}, func() error { return nil }, nil
	}
	dir, err := dirstore.Open(c.data)
	if err != nil {
		return nil, nil, err
	}
	dir.Account, dir.Region = c.account, c.region
	dir.MaxBytes, dir.Logger = c.maxBytes, log
	return dir, dir.Close, nil
}

// file is a file of ours in the directory, beside the store's own; "" without one.
func (c *config) file(name string) string {
	if c.data == "" {
		return ""
	}
	return filepath.Join(c.data, "pullthrough", name)
}

// close is for after the end of the proxy.
func (r *registry) close() {
	r.pulls.close()
	if err := r.catalog.Save(); err != nil {
		r.log.Warn("what is known of images could not be saved", "err", err)
	}
	if err := r.release(); err != nil {
		r.log.Warn("the data directory could not be closed", "err", err)
	}
}

// ServeHTTP is not an http.ServeMux: that would answer paths with empty or dot
// components itself, with a redirect.
func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	switch {
	case pullthrough.IsRegistryRequest(req):
		r.pulls.serve(w, req, r.proxy)
	case r.config.debugPage != "off" && isPage(req.URL.Path):
		r.servePage(w, req)
	case req.Method == http.MethodPost && req.URL.Path == "/":
		r.apiFor(req).ServeHTTP(w, req)
	default:
		http.Error(w, "fakeecr: there is nothing here but /v2/, "+pagePath+" (see -debug-page) and, for POST, /", http.StatusNotFound)
	}
}

// api has the settings, not the images.
func (r *registry) api() *ecrapi.API {
	return &ecrapi.API{
		State:   r.settings,
		Account: r.config.account, Region: r.config.region,
		Identify: r.config.identify,
		Secrets:  r.config.secrets.find,
		Logger:   r.log,
	}
}

// apiFor has the images too. It is made for one request: the URLs in its answers lead
// to the host that the client has reached us by, whatever we are called there.
func (r *registry) apiFor(req *http.Request) *ecrapi.API {
	host := r.addr
	if isHost(req.Host) {
		host = req.Host
	}
	api := r.api()
	api.Validate = r.proxy.ValidateRule
	api.Images = &ecrapi.Images{
		Proxy: r.proxy, Catalog: r.catalog,
		RegistryURL: func(_, _ string) string { return "http://" + host },
	}
	return api
}

func (r *registry) newProxy(store pullthrough.Store, api *ecrapi.API) *pullthrough.Proxy {
	return &pullthrough.Proxy{
		Store:    store,
		Fill:     r.config.fill,
		Rules:    api,
		Endpoint: r.config.endpoint,
		Policy:   r.config.policy,
		Identify: r.config.identify,
		Logger:   r.log,
		Credentials: func(ctx context.Context, repo pullthrough.Repo, rule pullthrough.Rule) (pullthrough.Credential, error) {
			if u := r.config.upstreams.given(rule); u != nil {
				return u.credential, nil
			}
			return api.Credentials(ctx, repo, rule)
		},
		OnEvent: func(ctx context.Context, e pullthrough.Event) {
			r.catalog.RecordPull(ctx, e)
			r.page.Record(ctx, e)
			r.pulls.record(ctx, e)
			logEvent(ctx, r.log, api, e)
		},
	}
}

func (c *config) endpoint(_ context.Context, _ pullthrough.Repo, rule pullthrough.Rule) (*url.URL, error) {
	return c.endpoints[upstreamHost(rule.UpstreamURL)], nil
}

func (c *config) policy(_ context.Context, _ pullthrough.Repo, rule pullthrough.Rule) pullthrough.Policy {
	policy := pullthrough.Policy{TagTTL: c.tagTTL, Offline: c.offline, BlobsFirst: true}
	if u := c.upstreams.behind(rule); u != nil {
		policy.RealmHosts = u.realms
	}
	return policy
}

// identify takes everybody for the one account: what docker sends to
// localhost:5000 names none.
func (c *config) identify(*http.Request) (pullthrough.Identity, error) {
	return pullthrough.Identity{Account: c.account, Region: c.region}, nil
}
