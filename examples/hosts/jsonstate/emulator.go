// Package jsonstate is an emulator of Amazon ECR that survives a restart: its rules and its notes on images are JSON files,
// its images are in a directory beside them.
package jsonstate

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"path/filepath"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

// Emulator is the ECR. Make one with Open. It is safe for concurrent use.
type Emulator struct {
	api     *ecrapi.API
	catalog *ecrapi.Catalog
	images  *dirstore.Store
	proxy   *pullthrough.Proxy
}

// Open returns an Emulator with what an earlier one has left in dir. endpoint returns the real address of an upstream
// registry, for tests; nil: the one in the rule.
func Open(dir string, endpoint func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error)) (*Emulator, error) {
	settings, err := openSettings(filepath.Join(dir, "settings.json"))
	if err != nil {
		return nil, err
	}
	e := &Emulator{api: &ecrapi.API{State: settings}}
	e.catalog = &ecrapi.Catalog{Template: e.api.Template, Excluded: e.api.Excluded, File: filepath.Join(dir, "catalog.json")}
	if err := e.catalog.Load(); err != nil {
		return nil, err
	}
	if e.images, err = dirstore.Open(filepath.Join(dir, "images")); err != nil {
		return nil, err
	}
	e.proxy = &pullthrough.Proxy{
		Store: e.catalog.Around(e.images), Rules: e.api, Credentials: e.api.Credentials, OnEvent: e.catalog.RecordPull, Endpoint: endpoint,
	}
	e.api.Images = &ecrapi.Images{Proxy: e.proxy, Catalog: e.catalog}
	return e, nil
}

// ServeHTTP serves the registry at /v2/ and ECR's JSON API at any other path.
func (e *Emulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if pullthrough.IsRegistryRequest(r) {
		e.proxy.ServeHTTP(w, r)
		return
	}
	e.api.ServeHTTP(w, r)
}

// Idle waits until what was pulled is stored.
func (e *Emulator) Idle(ctx context.Context) error { return e.proxy.Idle(ctx) }

// Close waits for running downloads, and saves the times of pulls, which no other change has saved. Shut the http.Server
// down first.
func (e *Emulator) Close(ctx context.Context) error {
	return errors.Join(e.proxy.Shutdown(ctx), e.catalog.Save(), e.images.Close())
}
