package main

import (
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// spareConns are connections that never carried a request. Clients open some
// ahead of time, and http.Server.Shutdown would wait five seconds for them.
type spareConns struct {
	mu    sync.Mutex
	conns map[net.Conn]struct{}
	ended bool
	count atomic.Int64 // of conns: most requests come while there are none
}

func (s *spareConns) watch(c net.Conn, state http.ConnState) {
	if state != http.StateNew && s.count.Load() == 0 {
		return
	}
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
	s.count.Store(int64(len(s.conns)))
}

func (s *spareConns) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for c := range s.conns {
		_ = c.Close()
	}
}
