package egress

import (
	"cmp"
	"net/netip"
	"strconv"
	"strings"
)

// CheckHost is [Policy.Check] for the host of a URL, without a port, brackets or
// not: it saves the look-up of what is an address already. It returns nil for
// names, which [Policy.Dialer] judges once they are resolved, except for localhost
// and the names under it, which are loopback (RFC 6761). An address may be written
// as any resolver may read it: 127.1, 2130706433, 0x7f.1, 0177.0.0.1, with a zone
// or a trailing dot. What looks like an address and is none is refused, and so is
// what no name has in it: spaces, and letters beyond ASCII, as net/http makes
// 127.0.0.1 of １２７．０．０．１. The empty host is refused: it would be dialled as
// loopback.
func (p Policy) CheckHost(host string) error {
	for _, a := range readings(host) {
		if err := p.Check(a); err != nil {
			return err
		}
	}
	return nil
}

// readings returns the addresses for which a resolver may take host, the zero Addr
// for what it should refuse to read, and none for a name.
func readings(host string) []netip.Addr {
	// A zone does not count, nor what C code may not read. Names have neither.
	if i := strings.IndexFunc(host, func(r rune) bool { return r <= ' ' || r == '%' }); i >= 0 {
		if found := readings(host[:i]); found != nil {
			return found
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

// endsInNumber tells an IPv4 address from a name as browsers do (WHATWG URL, 3.5):
// no top-level domain is a number.
func endsInNumber(host string) bool {
	last := host[strings.LastIndexByte(host, '.')+1:]
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}

// parseIPv4 reads host as inet_aton does, numbers with leading zeros in zeroBase.
// It returns the zero Addr if that cannot be done.
func parseIPv4(host string, zeroBase int) netip.Addr {
	parts := strings.Split(host, ".")
	if len(parts) > 4 {
		return netip.Addr{}
	}
	var v uint64
	for i, part := range parts {
		bits := 8
		if i == len(parts)-1 {
			bits = 8 * (4 - i) // the last number stands for all that is left
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
