package pullthroughtest

import (
	"context"
	"io"
	"net"
	"sync/atomic"
)

// DialPipe connects to the registry without the network, whatever the address. As the DialContext of a transport it
// makes tests possible in a testing/synctest bubble, where waiting for a socket stops the fake clock: start the
// registry outside the bubble, and make the transport, and the channels of stalls, inside. Close does not end these
// connections; the transport's CloseIdleConnections does. On them Fault.Reset is a plain close.
func (u *Upstream) DialPipe(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	go u.serve(u.newServer(), &pipeListener{conn: server}) // returns at once, and the connection is served on
	return client, nil
}

// pipeListener accepts its one connection and is at its end then.
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

// Close leaves the connection alone: a Server calls this as soon as there is nothing left to accept.
func (l *pipeListener) Close() error { return nil }

func (l *pipeListener) Addr() net.Addr { return l.conn.LocalAddr() }
