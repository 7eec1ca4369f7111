// Package fakeecr is a small Amazon ECR as one [http.Handler]: a private registry
// with pull through cache rules, kept in memory or in a directory. It is made for
// tests and for development. Command fakeecr serves it on a port.
//
//	ecr, err := fakeecr.New(fakeecr.Config{
//		Rules: []pullthrough.Rule{{Prefix: "docker-hub", UpstreamURL: "registry-1.docker.io"}},
//	})
//	if err != nil {
//		return err
//	}
//	defer ecr.Shutdown(context.Background())
//	server := httptest.NewServer(ecr)
//	defer server.Close()
//
// A [Server] is made of the parts of this module, and shows how to assemble them:
//
//   - a [pullthrough.Proxy] at /v2/, over a [memstore.Store] or a [dirstore.Store]
//   - an [ecrapi.API] at POST /, whose settings are kept in the directory, if there is one
//   - an [ecrapi.Catalog], the notes on repositories and images
//   - a [debug.Page] at [PagePath]
//
// A program that is ready for requests says so at [HealthPath]. Package
// [github.com/ecr-pullthrough/pullthrough/pullthroughtest] has NewECR, which starts a
// Server for a test together with the registry that it pulls from.
package fakeecr

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/debug"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

// Server is the ECR that a [Config] describes. It is safe for concurrent use. Its fields
// are the parts that New has put together: call their methods, and change none of them.
type Server struct {
	// Proxy answers at /v2/.
	Proxy *pullthrough.Proxy
	// API answers POST /.
	API *ecrapi.API
	// Catalog has the notes on repositories and images.
	Catalog *ecrapi.Catalog
	// Page answers below [PagePath], for those whom Config.DebugPage lets in.
	Page *debug.Page

	config    Config                 // with no zero values left that mean something else
	upstreams atomic.Pointer[Config] // the one whose upstreams are in force; read as a whole, since its rules and credentials belong together
	settings  *settings
	logins    *logins
	release   func() error // closes the directory
	reloading sync.Mutex   // one Reload at a time
	ending    sync.Once
}

// New returns a Server that is ready to serve. It changes nothing in config, whose maps
// and slices must not change afterwards. It returns an error if a value of config
// cannot be used, or if the directory cannot be opened or read. It opens no
// connections. [Server.Shutdown] ends the Server.
func New(config Config) (*Server, error) {
	if err := config.complete(); err != nil {
		return nil, fmt.Errorf("fakeecr: %w", err)
	}
	s := &Server{config: config, logins: newLogins(config.Now)}
	s.upstreams.Store(&config)
	store, err := s.openStore()
	if err != nil {
		return nil, err
	}
	if err := s.load(store); err != nil {
		return nil, errors.Join(err, s.release())
	}
	return s, nil
}

// openStore opens the directory, or memory.
func (s *Server) openStore() (pullthrough.Store, error) {
	c := &s.config
	if c.Data == "" {
		s.release = func() error { return nil }
		return &memstore.Store{MaxBytes: c.MaxBytes}, nil
	}
	dir, err := dirstore.Open(c.Data)
	if err != nil {
		return nil, err
	}
	unlock, err := lockData(s.file("fakeecr"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", c.Data, err), dir.Close())
	}
	s.release = func() error { return errors.Join(dir.Close(), unlock()) }
	dir.Account, dir.Region = c.Account, c.Region
	dir.MaxBytes, dir.VerifyBlobs, dir.Logger = c.MaxBytes, c.VerifyBlobs, c.Logger
	return dir, nil
}

// load reads what the directory keeps beside images, and puts everything together.
func (s *Server) load(store pullthrough.Store) error {
	var err error
	s.settings, err = openSettings(s.file("settings.json"), registryKey(s.config.Account, s.config.Region), s.config.Rules, s.config.Logger)
	if err != nil {
		return err
	}
	api := s.newAPI()
	s.Catalog = &ecrapi.Catalog{Template: api.Template, Excluded: api.Excluded, File: s.file("catalog.json"), Logger: s.config.Logger}
	if err := s.Catalog.Load(); err != nil {
		return err
	}
	s.Proxy = s.newProxy(s.Catalog.Around(store), api)
	s.addImages(api)
	s.API = api
	s.Page = s.newPage()
	return nil
}

// file returns the path of a file of the Server in the directory, beside the Store's own
// files. It is "" if there is no directory.
func (s *Server) file(name string) string {
	if s.config.Data == "" {
		return ""
	}
	return filepath.Join(s.config.Data, "pullthrough", name)
}

// ServeHTTP answers the registry's requests, those of ECR's API, and those for the
// debug page. Everything else is not found. It does not use an [http.ServeMux], which
// answers paths with empty or dot components itself, with a redirect.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case pullthrough.IsRegistryRequest(r):
		s.Proxy.ServeHTTP(w, r)
	case s.config.DebugPage != PageOff && isPage(r.URL.Path):
		s.servePage(w, r)
	case r.Method == http.MethodPost && r.URL.Path == "/":
		s.API.ServeHTTP(w, r)
	case r.URL.Path == HealthPath:
		s.serveHealth(w)
	default:
		http.Error(w, "fakeecr: there is nothing here but /v2/, "+HealthPath+", "+PagePath+" (see -debug-page) and, for POST, /", http.StatusNotFound)
	}
}

// Idle waits until nothing is being fetched or stored, like [pullthrough.Proxy.Idle]. A
// pull is answered before everything is stored: a test that wants the next pull to be a
// hit calls Idle in between.
func (s *Server) Idle(ctx context.Context) error { return s.Proxy.Idle(ctx) }

// Shutdown ends the Server. It waits for running downloads; when ctx ends first, it
// cancels them and returns ctx's error. Then it saves its notes on images and releases
// the directory. If that fails, Config.Logger gets the error. Shut the [http.Server]
// down first: a Server whose directory is released cannot serve. A second call does no
// harm.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.Proxy.Shutdown(ctx)
	s.ending.Do(s.close)
	return err
}

// close saves and releases what the Server holds, after the end of the proxy.
func (s *Server) close() {
	if err := s.Catalog.Save(); err != nil {
		s.config.Logger.Warn("what is known of images could not be saved", "err", err)
	}
	if err := s.release(); err != nil {
		s.config.Logger.Warn("the data directory could not be closed", "err", err)
	}
}
