package egress

import (
	"cmp"
	"net/netip"
	"strconv"
	"strings"
)

// CheckHost is [Policy.Check] for the host of a URL, without a port and with or without
// brackets. It refuses a bad address before anything is looked up.
//
// It returns nil for a name, whose addresses [Policy.Dialer] checks later. The exceptions
// are localhost and the names under it, which are loopback addresses (RFC 6761). It
// understands every spelling of an address that a resolver may accept: 127.1, 2130706433,
// 0x7f.1, 0177.0.0.1, with a zone or with a trailing dot.
//
// A host that looks like an address but is not one is refused. So is a host with spaces,
// and one with characters beyond ASCII, since net/http turns １２７．０．０．１ into
// 127.0.0.1. The empty host is refused because it would be dialled as loopback.
func (p Policy) CheckHost(host string) error {
	for _, a := range possibleAddrs(host) {
		if err := p.Check(a); err != nil {
			return err
		}
	}
	return nil
}

// possibleAddrs returns the addresses that a resolver may read host as. It returns the
// zero Addr for a host that must be refused, and nil for a name.
func possibleAddrs(host string) []netip.Addr {
	// Ignore a zone, and everything after a space or control character, where C code may
	// stop reading. Names have neither.
	if i := strings.IndexFunc(host, func(r rune) bool { return r <= ' ' || r == '%' }); i >= 0 {
		if addrs := possibleAddrs(host[:i]); addrs != nil {
			return addrs
		}
		return []netip.Addr{{}}
	}
	host = strings.Trim(host, "[].")
	if strings.ContainsFunc(host, func(r rune) bool { return r > '~' }) {
		return []netip.Addr{{}}
	}
	switch host = strings.ToLower(host); {
	case host == "":
		return []netip.Addr{netip.IPv6Unspecified()}
	case host == "localhost", strings.HasSuffix(host, ".localhost"):
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	case strings.Contains(host, ":"):
		a, _ := netip.ParseAddr(host)
		return []netip.Addr{a}
	case endsInNumber(host):
		// 010 is 8 to inet_aton and 10 to others, Go's net.ParseIP once among them
		// (CVE-2021-29923).
		octal, decimal := parseIPv4(host, 8), parseIPv4(host, 10)
		return []netip.Addr{cmp.Or(octal, decimal), cmp.Or(decimal, octal)}
	}
	return nil
}

// endsInNumber reports whether host is an IPv4 address rather than a name, as browsers
// decide it (WHATWG URL, 3.5): no top-level domain is a number.
func endsInNumber(host string) bool {
	last := host[strings.LastIndexByte(host, '.')+1:]
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}

// parseIPv4 parses host as inet_aton does. Numbers with leading zeros are in base
// zeroBase. It returns the zero Addr if host cannot be parsed.
func parseIPv4(host string, zeroBase int) netip.Addr {
	parts := strings.Split(host, ".")
	if len(parts) > 4 {
		return netip.Addr{}
	}
	var v uint64
	for i, part := range parts {
		bits := 8
		if i == len(parts)-1 {
			bits = 8 * (4 - i) // the last number stands for all remaining bytes
		}
		n, err := parseNumber(part, zeroBase, bits)
		if err != nil {
			return netip.Addr{}
		}
		v = v<<bits | n
	}
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

func parseNumber(s string, zeroBase, bits int) (uint64, error) {
	if hex, ok := strings.CutPrefix(s, "0x"); ok {
		return strconv.ParseUint(hex, 16, bits)
	}
	if strings.HasPrefix(s, "0") {
		return strconv.ParseUint(s, zeroBase, bits)
	}
	return strconv.ParseUint(s, 10, bits)
}
