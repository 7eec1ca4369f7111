package egress

import (
	"cmp"
	"net/netip"
)

// What a RefusedError gives as its reason.
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

// special holds the address ranges that mean something here. The first one that
// contains an address counts: metadata services lie in link-local, private and
// even public ranges.
var special = []struct {
	netip.Prefix
	kind string
}{
	{netip.MustParsePrefix("169.254.169.254/32"), metadata},     // nearly everyone
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

// The IPv6 ranges whose addresses have an IPv4 address in them, beside the
// v4-mapped one, which netip.Addr.Unmap knows.
var (
	compatible = netip.MustParsePrefix("::/96")           // RFC 4291, 2.5.5.1
	translated = netip.MustParsePrefix("::ffff:0:0:0/96") // RFC 2765, 2.1
	nat64      = netip.MustParsePrefix("64:ff9b::/96")    // RFC 6052
	localNAT64 = netip.MustParsePrefix("64:ff9b:1::/48")
	sixToFour  = netip.MustParsePrefix("2002::/16") // RFC 3056
	teredo     = netip.MustParsePrefix("2001::/32") // RFC 4380
)

// reason returns why a must not be dialled, "" if it may be. a is neither
// v4-mapped nor does it have a zone.
func (p Policy) reason(a netip.Addr) string {
	if a.Is4() || a == netip.IPv6Loopback() { // which is no v4-compatible 0.0.0.1
		return p.own(a)
	}
	return cmp.Or(p.own(a), p.embedded(a))
}

// own is reason without regard to what is in an address.
func (p Policy) own(a netip.Addr) string {
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

// embedded is reason for the IPv4 addresses in a: whoever translates or tunnels
// a's packets sends them there.
func (p Policy) embedded(a netip.Addr) string {
	b := a.As16()
	switch {
	case compatible.Contains(a), translated.Contains(a), nat64.Contains(a):
		return p.own(bytesAt(b, 12, 13, 14, 15))
	case localNAT64.Contains(a):
		return p.inLocalNAT64(b)
	case sixToFour.Contains(a):
		return p.own(bytesAt(b, 2, 3, 4, 5))
	case teredo.Contains(a):
		server := p.own(bytesAt(b, 4, 5, 6, 7))
		for i := range b {
			b[i] ^= 0xff // RFC 4380, 4: the client's address is written inverted
		}
		return cmp.Or(server, p.own(bytesAt(b, 12, 13, 14, 15)))
	}
	return ""
}

// inLocalNAT64 judges an address of the NAT64 prefix for local use (RFC 8215). A
// network chooses how much of it to use, and that says where the IPv4 address is
// (RFC 6052, 2.2). As we do not know, an address is refused when any way of
// reading it gives a place that packets can get to. Places that they cannot,
// such as 0.0.0.1, count only when there is nothing else: they come from reading
// an address wrongly, 64:ff9b:1:fffe::808:808 as 255.254.0.0. A public
// destination is lost only to networks that number themselves so that one of the
// wrong readings is, say, in 127.0.0.0/8.
func (p Policy) inLocalNAT64(b [16]byte) string {
	readings := []string{
		p.own(bytesAt(b, 12, 13, 14, 15)), // /96
		p.own(bytesAt(b, 9, 10, 11, 12)),  // /64; byte 8 is always left out
		p.own(bytesAt(b, 7, 9, 10, 11)),   // /56
		p.own(bytesAt(b, 6, 7, 9, 10)),    // /48
	}
	nowhere := readings[0]
	for _, r := range readings {
		switch r {
		case loopback, linkLocal, metadata, private:
			return r
		case "":
			nowhere = ""
		}
	}
	return nowhere
}

func bytesAt(b [16]byte, i, j, k, l int) netip.Addr {
	return netip.AddrFrom4([4]byte{b[i], b[j], b[k], b[l]})
}
