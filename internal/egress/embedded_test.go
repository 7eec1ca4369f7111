package egress_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/egress"
)

// wrappers put an IPv4 address into an IPv6 one, each in one of the ways in which
// packets for the latter end at the former.
var wrappers = map[string]func(v4 [4]byte) netip.Addr{
	"v4-mapped":          put("::ffff:0:0", 12, 13, 14, 15),
	"v4-compatible":      put("::", 12, 13, 14, 15),
	"v4-translated":      put("::ffff:0:0:0", 12, 13, 14, 15),
	"NAT64":              put("64:ff9b::", 12, 13, 14, 15),
	"local NAT64":        put("64:ff9b:1::", 12, 13, 14, 15),
	"local NAT64, usual": put("64:ff9b:1:fffe::", 12, 13, 14, 15),
	"6to4":               put("2002::1", 2, 3, 4, 5),
	"6to4, of a subnet":  put("2002:0:0:808:808:808:808:808", 2, 3, 4, 5),
	"Teredo's server":    put("2001:0:0:0:8000:ffff:f7f7:f7f7", 4, 5, 6, 7),
	"Teredo's client": func(v4 [4]byte) netip.Addr {
		return put("2001:0:808:808:8000:ffff::", 12, 13, 14, 15)([4]byte{^v4[0], ^v4[1], ^v4[2], ^v4[3]})
	},
}

// narrow are those ways in which other readings of the same address have to be
// reckoned with.
var narrow = map[string]func(v4 [4]byte) netip.Addr{
	"local NAT64, subnet":      put("64:ff9b:1:fffd:1::", 12, 13, 14, 15),
	"local NAT64, /64":         put("64:ff9b:1::", 9, 10, 11, 12),
	"local NAT64, /64, suffix": put("64:ff9b:1:1:ff00::9:909", 9, 10, 11, 12),
	"local NAT64, /56":         put("64:ff9b:1::", 7, 9, 10, 11),
	"local NAT64, /56, suffix": put("64:ff9b:1:0100:ff00:0:0909:909", 7, 9, 10, 11),
	"local NAT64, /48":         put("64:ff9b:1::", 6, 7, 9, 10),
	"local NAT64, /48, suffix": put("64:ff9b:1:0:ff00:0:0909:909", 6, 7, 9, 10),
}

func put(base string, at ...int) func([4]byte) netip.Addr {
	outer := netip.MustParseAddr(base).As16()
	return func(v4 [4]byte) netip.Addr {
		b := outer
		for i, j := range at {
			b[j] = v4[i]
		}
		return netip.AddrFrom16(b)
	}
}

func TestAnAddressIsJudgedByTheOneInIt(t *testing.T) {
	for name, wrap := range wrappers {
		t.Run(name, func(t *testing.T) {
			for _, r := range ranges {
				for v4, reason := range map[string]string{r.before: r.beforeIs, r.first: r.reason, r.last: r.reason, r.behind: r.behindIs} {
					if a, err := netip.ParseAddr(v4); err == nil && a.Is4() && v4 != "0.0.0.0" {
						assertAddr(t, wrap(a.As4()).String(), reason)
					}
				}
			}
			assertAddr(t, wrap([4]byte{8, 8, 8, 8}).String(), "")
			if name != "v4-compatible" { // :: and ::1 are themselves
				assertAddr(t, wrap([4]byte{}).String(), "unspecified")
				assertAddr(t, wrap([4]byte{0, 0, 0, 1}).String(), "unspecified")
			}
		})
	}
}

func TestALocalNAT64AddressIsRefusedHoweverItCanBeRead(t *testing.T) {
	for name, wrap := range narrow {
		t.Run(name, func(t *testing.T) {
			for _, v4 := range []string{
				"127.0.0.1", "127.255.255.255", "169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16",
				"10.0.0.1", "192.168.255.1", "8.8.8.8", "52.94.1.2",
			} {
				a := wrap(addr(t, v4).As4())
				for _, p := range every {
					assert.Equal(t, p.Check(addr(t, v4)) == nil, p.Check(a) == nil, "%+v.Check(%v), %s", p, a, v4)
				}
			}
		})
	}
	assertAddr(t, "64:ff9b:1::", "unspecified")
	assertAddr(t, "64:ff9b:1:fffe::", "unspecified")
}

func TestThePartsOfATeredoAddress(t *testing.T) {
	// RFC 4380's layout: server 65.54.227.120, client 192.0.2.45.
	assertAddr(t, "2001:0:4136:e378:8000:63bf:3fff:fdd2", "")
	assertAddr(t, "2001:0:a9fe:a9fe:8000:63bf:3fff:fdd2", "cloud metadata")
	assertAddr(t, "2001:0:4136:e378:8000:63bf:80ff:fffe", "loopback")
	both := addr(t, "2001:0:7f00:1:8000:63bf:f5ff:fffe") // 127.0.0.1 and 10.0.0.1
	assertRefused(t, shut.Check(both), both, "loopback")
	assertRefused(t, egress.Policy{Loopback: true, BlockPrivate: true}.Check(both), both, "private")
	assert.NoError(t, dev.Check(both))
}

func TestZonesDoNotCount(t *testing.T) {
	for _, s := range []string{"fe80::1%eth0", "fe80::1%25eth0", "fe80::1%1.2.3.4", "fe80::1%]"} {
		assertRefused(t, zero.Check(addr(t, s)), addr(t, "fe80::1"), "link-local", s)
	}
	for _, s := range []string{"::1%lo", "::ffff:127.0.0.1%lo", "64:ff9b::7f00:1%x"} {
		a := addr(t, s)
		assertRefused(t, zero.Check(a), a.WithZone(""), "loopback", s)
		assert.NoError(t, dev.Check(a))
	}
	assert.NoError(t, zero.Check(addr(t, "2600::1%eth0")))
}
