package egress

import (
	"cmp"
	"net/netip"
)

// The reasons of a RefusedError.
const (
	loopback    = "loopback"
	private     = "private"
	metadata    = "cloud metadata"
	linkLocal   = "link-local"
	unspecified = "unspecified"
	multicast   = "multicast"
	broadcast   = "broadcast"
	reserved    = "reserved"
	malformed   = "neither a plain host name nor an IP address"
)

// special holds the special address ranges. The first one that contains an address
// decides, since addresses of metadata services lie in link-local, private and even
// public ranges.
var special = []struct {
	netip.Prefix
	kind string
}{
	{netip.MustParsePrefix("169.254.169.254/32"), metadata},     // most clouds
	{netip.MustParsePrefix("100.100.100.200/32"), metadata},     // Alibaba Cloud
	{netip.MustParsePrefix("168.63.129.16/32"), metadata},       // Azure's wire server
	{netip.MustParsePrefix("192.0.0.192/32"), metadata},         // Oracle Cloud, classic
	{netip.MustParsePrefix("fd00:ec2::/32"), metadata},          // AWS: ::254, and ::23 has a pod's credentials
	{netip.MustParsePrefix("fd20:ce::254/128"), metadata},       // Google Cloud
	{netip.MustParsePrefix("fd00:c1::a9fe:a9fe/128"), metadata}, // Oracle Cloud
	{netip.MustParsePrefix("fd00:100::100:200/128"), metadata},  // Alibaba Cloud
	{netip.MustParsePrefix("fd00:a9fe:a9fe::1/128"), metadata},  // Akamai, Linode
	{netip.MustParsePrefix("fd00:42::42/128"), metadata},        // Scaleway

	{netip.MustParsePrefix("0.0.0.0/8"), unspecified},
	{netip.MustParsePrefix("127.0.0.0/8"), loopback},
	{netip.MustParsePrefix("169.254.0.0/16"), linkLocal},
	{netip.MustParsePrefix("10.0.0.0/8"), private},
	{netip.MustParsePrefix("172.16.0.0/12"), private},
	{netip.MustParsePrefix("192.168.0.0/16"), private},
	{netip.MustParsePrefix("100.64.0.0/10"), private}, // RFC 6598: behind a carrier's NAT
	{netip.MustParsePrefix("224.0.0.0/4"), multicast},
	{netip.MustParsePrefix("255.255.255.255/32"), broadcast},
	{netip.MustParsePrefix("240.0.0.0/4"), reserved},

	{netip.MustParsePrefix("::/128"), unspecified},
	{netip.MustParsePrefix("::1/128"), loopback},
	{netip.MustParsePrefix("fe80::/10"), linkLocal},
	{netip.MustParsePrefix("fc00::/7"), private},
	{netip.MustParsePrefix("fec0::/10"), private}, // RFC 3879: site-local, no longer used
	{netip.MustParsePrefix("ff00::/8"), multicast},
}

// The IPv6 ranges whose addresses contain an IPv4 address. The v4-mapped range is not
// among them, since netip.Addr.Unmap handles it.
var (
	compatible = netip.MustParsePrefix("::/96")           // RFC 4291, 2.5.5.1
	translated = netip.MustParsePrefix("::ffff:0:0:0/96") // RFC 2765, 2.1
	nat64      = netip.MustParsePrefix("64:ff9b::/96")    // RFC 6052
	localNAT64 = netip.MustParsePrefix("64:ff9b:1::/48")
	sixToFour  = netip.MustParsePrefix("2002::/16") // RFC 3056
	teredo     = netip.MustParsePrefix("2001::/32") // RFC 4380
)

// reason returns why a must not be dialled, or "" if it may be. a must not be v4-mapped
// and must have no zone.
func (p Policy) reason(a netip.Addr) string {
	if a.Is4() || a == netip.IPv6Loopback() { // ::1 is not the v4-compatible address of 0.0.0.1
		return p.ownReason(a)
	}
	return cmp.Or(p.ownReason(a), p.embeddedReason(a))
}

// ownReason is reason for the address itself, without an IPv4 address in it.
func (p Policy) ownReason(a netip.Addr) string {
	for _, s := range special {
		if s.Contains(a) {
			if s.kind == loopback && p.Loopback || s.kind == private && !p.BlockPrivate {
				return ""
			}
			return s.kind
		}
	}
	return ""
}

// embeddedReason is reason for the IPv4 addresses in a. A router that translates or
// tunnels the packets sends them there.
func (p Policy) embeddedReason(a netip.Addr) string {
	b := a.As16()
	switch {
	case compatible.Contains(a), translated.Contains(a), nat64.Contains(a):
		return p.ownReason(bytesAt(b, 12, 13, 14, 15))
	case localNAT64.Contains(a):
		return p.localNAT64Reason(b)
	case sixToFour.Contains(a):
		return p.ownReason(bytesAt(b, 2, 3, 4, 5))
	case teredo.Contains(a):
		server := p.ownReason(bytesAt(b, 4, 5, 6, 7))
		for i := range b {
			b[i] ^= 0xff // RFC 4380, 4: the client's address is written inverted
		}
		return cmp.Or(server, p.ownReason(bytesAt(b, 12, 13, 14, 15)))
	}
	return ""
}

// localNAT64Reason is embeddedReason for the NAT64 prefix for local use (RFC 8215). A
// network chooses the length of its prefix, and the length decides where the IPv4 address
// is (RFC 6052, 2.2). We do not know the length, so we try all of them and refuse the
// address if any of them gives an IPv4 address that is refused and can be reached.
//
// Addresses that cannot be reached, such as 0.0.0.1, come from a wrong length: with one of
// them 64:ff9b:1:fffe::808:808 contains 255.254.0.0. They are a reason only if every
// length gives one. A public destination is refused by mistake only in a network whose
// numbering makes a wrong length give an address in, say, 127.0.0.0/8.
func (p Policy) localNAT64Reason(b [16]byte) string {
	reasons := []string{
		p.ownReason(bytesAt(b, 12, 13, 14, 15)), // /96
		p.ownReason(bytesAt(b, 9, 10, 11, 12)),  // /64; byte 8 is not part of the address
		p.ownReason(bytesAt(b, 7, 9, 10, 11)),   // /56
		p.ownReason(bytesAt(b, 6, 7, 9, 10)),    // /48
	}
	unreachable := reasons[0]
	for _, r := range reasons {
		switch r {
		case loopback, linkLocal, metadata, private:
			return r
		case "":
			unreachable = ""
		}
	}
	return unreachable
}

func bytesAt(b [16]byte, i, j, k, l int) netip.Addr {
	return netip.AddrFrom4([4]byte{b[i], b[j], b[k], b[l]})
}
