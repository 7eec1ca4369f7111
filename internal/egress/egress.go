// Package egress decides to which network addresses a connection may go.
//
// An upstream registry names hosts: in redirects, and as token servers. One that
// is hostile or broken into names hosts that it cannot reach itself, such as the
// metadata service of the machine the proxy runs on (CVE-2026-33990,
// CVE-2026-10517, CVE-2026-44430). Looking at the URL is not enough, as a name
// may resolve to anything, and to something else the second time ("DNS
// rebinding", go-containerregistry#2440). So the address itself is judged, at
// the last moment before it is dialled.
//
// Behind an HTTP proxy only the proxy's address is dialled here: what it dials is
// for the proxy to judge.
package egress

import (
	"context"
	"net"
	"net/netip"
	"syscall"
)

// Policy says which special-purpose addresses may be dialled. The zero Policy
// allows public and private addresses only. Closed to it are loopback,
// unspecified (0.0.0.0/8, ::), link-local, multicast, broadcast and reserved
// (240.0.0.0/4) addresses, and those of cloud metadata services wherever they
// lie. What is neither public nor of any use here, such as the ranges for
// documentation and benchmarks, counts as public.
//
// An IPv6 address that has an IPv4 address in it (v4-mapped, v4-compatible,
// v4-translated, NAT64, 6to4, Teredo) is refused when either is. Zones do not
// count.
//
// A Policy is a comparable value; its methods are safe for concurrent use.
type Policy struct {
	// Loopback opens 127.0.0.0/8 and ::1. false: they are refused.
	Loopback bool
	// BlockPrivate closes private networks: RFC 1918, RFC 4193, RFC 6598 and the
	// former site-local fec0::/10. false: they may be dialled.
	BlockPrivate bool
	// Any opens everything, whatever the other fields say: for hosts that an
	// administrator has named. false: the other fields decide.
	Any bool
}

// RefusedError says that a policy does not allow an address. It is what the
// methods of [Policy] return, and what errors.As finds in the error of a dial. It
// does not change once returned, and so is safe for concurrent use.
type RefusedError struct {
	// Addr is the address that was to be dialled, without its zone. The zero Addr:
	// there was none, only something that is neither an address nor a name.
	Addr netip.Addr
	// Reason is the kind of address: "loopback", "private", "cloud metadata",
	// "link-local", "unspecified", "multicast", "broadcast" or "reserved", of Addr
	// or of the IPv4 address in it. It is never empty.
	Reason string
}

func (e *RefusedError) Error() string {
	if !e.Addr.IsValid() {
		return "egress: refused: " + e.Reason
	}
	return "egress: address " + e.Addr.String() + " refused: " + e.Reason
}

// Check returns nil if addr may be dialled, and a [*RefusedError] otherwise. The
// zero Addr is refused.
func (p Policy) Check(addr netip.Addr) error {
	if p.Any {
		return nil
	}
	addr = addr.WithZone("")
	reason := malformed
	if addr.IsValid() {
		reason = p.reason(addr.Unmap())
	}
	if reason == "" {
		return nil
	}
	return &RefusedError{Addr: addr, Reason: reason}
}

// Dialer returns d with a ControlContext that checks the address of each attempt,
// after names are resolved, and then calls the ControlContext or Control that d
// has. An attempt at a refused address opens no connection and fails with a
// [*RefusedError]. Like any failed attempt it leaves the name's other addresses
// to be tried, and its error is that of the dial if no other came first.
//
// Look-ups are not checked, as the name server is the machine's own. Only TCP and
// UDP may be dialled, unless p.Any. The zero Dialer will do. The returned one is
// safe for concurrent use.
//
// The operating system must be one on which package net calls ControlContext,
// that is any but Plan 9 and those without sockets (js, wasip1).
func (p Policy) Dialer(d net.Dialer) *net.Dialer {
	next := d.ControlContext
	if control := d.Control; next == nil && control != nil {
		next = func(_ context.Context, network, address string, c syscall.RawConn) error {
			return control(network, address, c)
		}
	}
	d.ControlContext = func(ctx context.Context, network, address string, c syscall.RawConn) error {
		// What cannot be parsed, a Unix socket's path, gives the zero Addr.
		to, _ := netip.ParseAddrPort(address)
		if err := p.Check(to.Addr()); err != nil || next == nil {
			return err
		}
		return next(ctx, network, address, c)
	}
	return &d
}
