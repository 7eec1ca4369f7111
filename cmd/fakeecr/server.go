package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough/fakeecr"
)

const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	drainTimeout      = 10 * time.Second
)

// serve answers requests until ctx ends, and then finishes those that run. There is no
// write timeout, since layers are large and clients may be slow.
func serve(ctx context.Context, c *config, stdout io.Writer, stderr *console) error {
	log := c.logger(stderr)
	listener, err := net.Listen("tcp", c.listen)
	if err != nil {
		return badFlag("-listen", c.listen, err.Error())
	}
	pulls := c.pulls(stderr, log)
	c.Logger = log
	if pulls != nil {
		c.OnEvent = pulls.record
	}
	ecr, err := fakeecr.New(c.Config)
	if err != nil { // the other flags have been checked
		return errors.Join(badFlag("-data", c.Data, err.Error()), listener.Close())
	}
	defer pulls.close()
	defer stderr.start(ecr.Proxy.Downloads)()
	var spare spareConns
	server := &http.Server{
		ConnState:         spare.watch,
		Handler:           pulls.around(ecr),
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
		drain(ctx, server, &spare, ecr, log)
		return nil
	case err = <-failed:
		drain(ctx, server, &spare, ecr, log)
		return err
	}
}

// drain ends the server, and then the ECR. It waits for requests and downloads, and cuts
// off what has not ended in time.
func drain(ctx context.Context, server *http.Server, spare *spareConns, ecr *fakeecr.Server, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	spare.close()
	if err := server.Shutdown(ctx); err != nil {
		log.Warn("requests were cut off", "err", err)
		_ = server.Close()
	}
	if err := ecr.Shutdown(ctx); err != nil {
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
