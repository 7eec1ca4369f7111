package pullthroughtest

import (
	"context"
	"fmt"
	"net"
)

// connKey is the context key of a request's connection.
type connKey struct{}

func withConn(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, conn)
}

// DialLoopback dials like a zero net.Dialer, but only literal loopback addresses and localhost. Tests use it as the
// DialContext of a transport. It is safe for concurrent use.
func DialLoopback(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial guard: %w", err)
	}
	if ip := net.ParseIP(host); host != "localhost" && !ip.IsLoopback() {
		return nil, fmt.Errorf("dial guard: %s is not a loopback address", address)
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, network, address)
}
