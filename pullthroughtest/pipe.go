package pullthroughtest

import (
	"context"
	"io"
	"net"
	"sync/atomic"
)

// DialPipe connects to the registry without the network and ignores the address. Use it as the DialContext of a
// transport in a testing/synctest bubble, where a goroutine that waits for a socket stops the fake clock. Start the
// registry outside the bubble, and make the transport and the channels of stalls inside. Close does not end these
// connections; the transport's CloseIdleConnections does. Fault.Reset is a plain close on them.
func (u *Upstream) DialPipe(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	go u.serve(u.newServer(), &pipeListener{conn: server}) // serve returns at once; the server goes on with the connection
	return client, nil
}

// pipeListener accepts its one connection and then returns io.EOF.
type pipeListener struct {
	conn     net.Conn
	accepted atomic.Bool
}

func (l *pipeListener) Accept() (net.Conn, error) {
	if l.accepted.Swap(true) {
		return nil, io.EOF
	}
	return l.conn, nil
}

// Close does not close the connection, since a Server calls it as soon as Accept has failed.
func (l *pipeListener) Close() error { return nil }

func (l *pipeListener) Addr() net.Addr { return l.conn.LocalAddr() }
