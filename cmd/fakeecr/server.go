package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/ecr-pullthrough/pullthrough/fakeecr"
)

const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	drainTimeout      = 8 * time.Second // docker stop kills after 10
)

// server is a fakeecr that serves.
type server struct {
	program
	config *config
	log    *slog.Logger
	ecr    *fakeecr.Server
	http   *http.Server
	spare  spareConns
	shown  certificate
	failed chan error // what ends http
}

// serve answers requests until a signal comes, and then finishes those that run.
func (p program) serve(c *config) error {
	console := newConsole(p.stderr, c.progress, c.jsonLog)
	s := &server{program: p, config: c, log: c.logger(console), failed: make(chan error, 1)}
	signals := make(chan os.Signal, 4)
	p.notify(signals, os.Interrupt, syscall.SIGTERM)
	listener, err := net.Listen("tcp", c.listen)
	if err != nil {
		return badFlag("-listen", c.listen, err.Error())
	}
	pulls := c.pulls(console, s.log)
	c.Logger = s.log
	if pulls != nil {
		c.OnEvent = pulls.record
	}
	if err := s.open(); err != nil {
		return errors.Join(err, listener.Close())
	}
	defer pulls.close()
	defer console.start(s.ecr.Proxy.Downloads)()
	s.listen(listener, pulls)
	if c.rereads {
		p.notify(signals, syscall.SIGHUP)
	}
	fmt.Fprintf(p.stdout, "listening on %s://%s\n", c.tls.scheme(), listener.Addr())
	return s.wait(signals)
}

// open makes what is served. The flags but for those about files have been checked.
func (s *server) open() error {
	if err := s.shown.load(s.config); err != nil {
		return err
	}
	var err error
	if s.ecr, err = fakeecr.New(s.config.Config); err != nil {
		return badFlag("-data", s.config.Data, err.Error())
	}
	return nil
}

// listen begins to answer requests. There is no write timeout, since layers are large and
// clients may be slow.
func (s *server) listen(listener net.Listener, lines *pulls) {
	s.http = &http.Server{
		ConnState:         s.spare.watch,
		Handler:           lines.around(s.ecr),
		ConnContext:       lines.seat,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		TLSConfig:         s.shown.config(),
	}
	s.warn(s.config.warnings)
	serve := func() error { return s.http.Serve(listener) }
	if s.http.TLSConfig != nil {
		serve = func() error { return s.http.ServeTLS(listener, "", "") }
	}
	go func() { s.failed <- serve() }()
}

func (s *server) warn(warnings []string) {
	for _, warning := range warnings {
		s.log.Warn(warning)
	}
}

// wait waits for what ends the server, and ends it.
func (s *server) wait(signals <-chan os.Signal) error {
	for {
		select {
		case sig := <-signals:
			if sig == syscall.SIGHUP {
				s.reload()
				continue
			}
			s.log.Info("ending: requests and downloads may take "+drainTimeout.String()+", a second signal cuts them off", "signal", sig.String())
			return s.drain(signals)
		case err := <-s.failed:
			return errors.Join(err, s.drain(signals))
		}
	}
}

// reload reads the files again. Where they cannot be used, nothing changes.
func (s *server) reload() {
	c, err := parse(s.args, s.env)
	if err == nil {
		err = s.shown.load(s.config)
	}
	if err == nil {
		err = s.ecr.Reload(c.Config)
	}
	if err != nil {
		s.log.Error("SIGHUP: the files cannot be used; what was read before stays in force", "err", err)
		return
	}
	s.warn(c.warnings)
	for _, name := range changed(s.config.settled, c.settled) {
		s.log.Warn("SIGHUP: -" + name + " has changed, which the next start heeds")
	}
	s.log.Info("SIGHUP: the files have been read again", "rules", len(c.Rules))
}

// drain ends the server, and then the ECR. It waits for requests and downloads, and cuts
// off what has not ended in time. A further signal cuts it off at once, which is an error.
func (s *server) drain(signals <-chan os.Signal) error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	ctx, hurry := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case sig := <-signals:
				if sig != syscall.SIGHUP {
					hurry(fmt.Errorf("ended at once: %s", sig))
				}
			case <-ended:
				return
			}
		}
	}()
	s.spare.close()
	if err := s.http.Shutdown(ctx); err != nil {
		s.log.Warn("requests were cut off", "err", err)
		_ = s.http.Close()
	}
	if err := s.ecr.Shutdown(ctx); err != nil {
		s.log.Warn("downloads were cut off", "err", err)
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return nil
}
