package fakeecr

import "context"

// Settle waits until what was pulled is stored.
func (s *Server) Settle(ctx context.Context) error { return s.proxy.Idle(ctx) }
