// Package egress decides to which network addresses a connection may be made.
//
// An upstream registry names hosts in redirects and as token servers. A hostile or
// compromised registry can name hosts that it cannot reach itself, such as the metadata
// service of the machine on which the proxy runs (CVE-2026-33990, CVE-2026-10517,
// CVE-2026-44430). It is not enough to check the URL: a name can resolve to any address,
// and to another one the next time ("DNS rebinding", go-containerregistry#2440). So the
// address itself is checked immediately before it is dialled.
//
// Behind an HTTP proxy this process dials only the address of that proxy. The HTTP proxy
// must then check the addresses that it dials.
package egress

import (
	"context"
	"net"
	"net/netip"
	"syscall"
)

// Policy says which special-purpose addresses may be dialled. The zero Policy allows
// public and private addresses only. It refuses loopback, unspecified (0.0.0.0/8, ::),
// link-local, multicast, broadcast and reserved (240.0.0.0/4) addresses, and those of
// cloud metadata services in any range. Other special ranges, such as those for
// documentation and benchmarks, count as public.
//
// An IPv6 address that contains an IPv4 address (v4-mapped, v4-compatible,
// v4-translated, NAT64, 6to4, Teredo) is refused if either address is. Zones are
// ignored.
//
// A Policy is a comparable value; its methods are safe for concurrent use.
type Policy struct {
	// Loopback allows 127.0.0.0/8 and ::1. false: they are refused.
	Loopback bool
	// BlockPrivate refuses private networks: RFC 1918, RFC 4193, RFC 6598 and the
	// former site-local fec0::/10. false: they may be dialled.
	BlockPrivate bool
	// Any allows every address, whatever the other fields say. It is for hosts that an
	// administrator has named. false: the other fields decide.
	Any bool
}

// RefusedError says that a policy does not allow an address. The methods of [Policy]
// return it, and errors.As finds it in the error of a dial. It is immutable and safe for
// concurrent use.
type RefusedError struct {
	// Addr is the refused address without its zone. The zero Addr: the text was neither
	// an address nor a name.
	Addr netip.Addr
	// Reason is the kind of Addr or of the IPv4 address in it: "loopback", "private",
	// "cloud metadata", "link-local", "unspecified", "multicast", "broadcast" or
	// "reserved". For a zero Addr it is a phrase. It is never empty.
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

// Dialer returns d with a ControlContext that checks the address of each attempt after
// the name has been resolved. It then calls d's own ControlContext or Control. An attempt
// at a refused address opens no connection and fails with a [*RefusedError]. As after any
// failed attempt, the other addresses of the name are tried, and the dial returns the
// error of its first attempt.
//
// DNS look-ups are not checked, since they go to the machine's own name server. Only TCP
// and UDP may be dialled, unless p.Any is set. d may be a zero Dialer. The returned Dialer
// is safe for concurrent use.
//
// The operating system must be one on which package net calls ControlContext: any but
// Plan 9 and those without sockets (js, wasip1).
func (p Policy) Dialer(d net.Dialer) *net.Dialer {
	next := d.ControlContext
	if control := d.Control; next == nil && control != nil {
		next = func(_ context.Context, network, address string, c syscall.RawConn) error {
			return control(network, address, c)
		}
	}
	d.ControlContext = func(ctx context.Context, network, address string, c syscall.RawConn) error {
		// The path of a Unix socket cannot be parsed and gives the zero Addr.
		to, _ := netip.ParseAddrPort(address)
		if err := p.Check(to.Addr()); err != nil || next == nil {
			return err
		}
		return next(ctx, network, address, c)
	}
	return &d
}
