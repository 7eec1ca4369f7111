package egress_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/egress"
)

var (
	zero = egress.Policy{}
	dev  = egress.Policy{Loopback: true}
	shut = egress.Policy{BlockPrivate: true}
	open = egress.Policy{Any: true}
	// every is each combination of what may be set, beside Any.
	every = []egress.Policy{zero, dev, shut, {Loopback: true, BlockPrivate: true}}
)

// ranges are the closed ranges by their edges: the last address before one, or
// none, its first and last, and the first address behind it, or none. What is
// before and behind is public unless it says something else.
var ranges = []struct {
	name                        string
	before, first, last, behind string
	reason, beforeIs, behindIs  string
}{
	{name: "this network", first: "0.0.0.0", last: "0.255.255.255", behind: "1.0.0.0", reason: "unspecified"},
	{name: "RFC 1918, 10/8", before: "9.255.255.255", first: "10.0.0.0", last: "10.255.255.255", behind: "11.0.0.0", reason: "private"},
	{name: "RFC 6598", before: "100.63.255.255", first: "100.64.0.0", last: "100.127.255.255", behind: "100.128.0.0", reason: "private"},
	{name: "Alibaba Cloud", before: "100.100.100.199", first: "100.100.100.200", last: "100.100.100.200", behind: "100.100.100.201", reason: "cloud metadata", beforeIs: "private", behindIs: "private"},
	{name: "loopback", before: "126.255.255.255", first: "127.0.0.0", last: "127.255.255.255", behind: "128.0.0.0", reason: "loopback"},
	{name: "Azure", before: "168.63.129.15", first: "168.63.129.16", last: "168.63.129.16", behind: "168.63.129.17", reason: "cloud metadata"},
	{name: "link-local", before: "169.253.255.255", first: "169.254.0.0", last: "169.254.255.255", behind: "169.255.0.0", reason: "link-local"},
	{name: "metadata", before: "169.254.169.253", first: "169.254.169.254", last: "169.254.169.254", behind: "169.254.169.255", reason: "cloud metadata", beforeIs: "link-local", behindIs: "link-local"},
	{name: "RFC 1918, 172.16/12", before: "172.15.255.255", first: "172.16.0.0", last: "172.31.255.255", behind: "172.32.0.0", reason: "private"},
	{name: "Oracle Cloud, classic", before: "192.0.0.191", first: "192.0.0.192", last: "192.0.0.192", behind: "192.0.0.193", reason: "cloud metadata"},
	{name: "RFC 1918, 192.168/16", before: "192.167.255.255", first: "192.168.0.0", last: "192.168.255.255", behind: "192.169.0.0", reason: "private"},
	{name: "multicast", before: "223.255.255.255", first: "224.0.0.0", last: "239.255.255.255", behind: "240.0.0.0", reason: "multicast", behindIs: "reserved"},
	{name: "reserved", before: "239.255.255.255", first: "240.0.0.0", last: "255.255.255.254", behind: "255.255.255.255", reason: "reserved", beforeIs: "multicast", behindIs: "broadcast"},
	{name: "broadcast", before: "255.255.255.254", first: "255.255.255.255", last: "255.255.255.255", reason: "broadcast", beforeIs: "reserved"},

	{name: "::", first: "::", last: "::", behind: "::1", reason: "unspecified", behindIs: "loopback"},
	{name: "::1", before: "::", first: "::1", last: "::1", behind: "::2", reason: "loopback", beforeIs: "unspecified", behindIs: "unspecified"},
	{name: "RFC 4193", before: "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", first: "fc00::", last: "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", behind: "fe00::", reason: "private"},
	{name: "AWS", before: "fd00:ec1:ffff:ffff:ffff:ffff:ffff:ffff", first: "fd00:ec2::", last: "fd00:ec2:ffff:ffff:ffff:ffff:ffff:ffff", behind: "fd00:ec3::", reason: "cloud metadata", beforeIs: "private", behindIs: "private"},
	{name: "AWS, an instance and a pod", before: "fd00:ec2::22", first: "fd00:ec2::23", last: "fd00:ec2::254", behind: "fd00:ec2::255", reason: "cloud metadata", beforeIs: "cloud metadata", behindIs: "cloud metadata"},
	{name: "Google Cloud", before: "fd20:ce::253", first: "fd20:ce::254", last: "fd20:ce::254", behind: "fd20:ce::255", reason: "cloud metadata", beforeIs: "private", behindIs: "private"},
	{name: "Oracle Cloud", before: "fd00:c1::a9fe:a9fd", first: "fd00:c1::a9fe:a9fe", last: "fd00:c1::a9fe:a9fe", behind: "fd00:c1::a9fe:a9ff", reason: "cloud metadata", beforeIs: "private", behindIs: "private"},
	{name: "Alibaba Cloud, IPv6", before: "fd00:100::100:1ff", first: "fd00:100::100:200", last: "fd00:100::100:200", behind: "fd00:100::100:201", reason: "cloud metadata", beforeIs: "private", behindIs: "private"},
	{name: "Akamai", before: "fd00:a9fe:a9fe::", first: "fd00:a9fe:a9fe::1", last: "fd00:a9fe:a9fe::1", behind: "fd00:a9fe:a9fe::2", reason: "cloud metadata", beforeIs: "private", behindIs: "private"},
	{name: "Scaleway", before: "fd00:42::41", first: "fd00:42::42", last: "fd00:42::42", behind: "fd00:42::43", reason: "cloud metadata", beforeIs: "private", behindIs: "private"},
	{name: "link-local, IPv6", before: "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff", first: "fe80::", last: "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", behind: "fec0::", reason: "link-local", behindIs: "private"},
	{name: "site-local", before: "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", first: "fec0::", last: "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", behind: "ff00::", reason: "private", beforeIs: "link-local", behindIs: "multicast"},
	{name: "multicast, IPv6", before: "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", first: "ff00::", last: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", reason: "multicast", beforeIs: "private"},
}

func TestRangesByTheirEdges(t *testing.T) {
	for _, r := range ranges {
		t.Run(r.name, func(t *testing.T) {
			assertAddr(t, r.first, r.reason)
			assertAddr(t, r.last, r.reason)
			if r.before != "" {
				assert.Equal(t, addr(t, r.first), addr(t, r.before).Next(), "the table")
				assertAddr(t, r.before, r.beforeIs)
			}
			if r.behind != "" {
				assert.Equal(t, addr(t, r.behind), addr(t, r.last).Next(), "the table")
				assertAddr(t, r.behind, r.behindIs)
			}
		})
	}
}

func TestPublicAddressesMayBeDialled(t *testing.T) {
	for _, s := range []string{
		"1.1.1.1", "8.8.8.8", "52.94.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "192.0.0.1",
		"2600:1f18::1", "2a00:1450:4001::1", "2001:db8::1", "2001:1::1", "2003::1", "100::1", "64:ff9b:2::7f00:1", "64:ff9b:0:0:0:1:7f00:1", "::1:7f00:1", "::fffe:7f00:1", "::fffe:0:7f00:1", "2001:1:7f00:1::80ff:fffe", "2003:7f00:1::",
	} {
		assertAddr(t, s, "")
	}
}

// The zero Addr is what an address that could not be parsed leaves behind.
func TestWhatIsNoAddressIsRefused(t *testing.T) {
	for _, p := range every {
		err := p.Check(netip.Addr{})
		refused, ok := errors.AsType[*egress.RefusedError](err)
		require.True(t, ok)
		assert.False(t, refused.Addr.IsValid())
		assert.EqualError(t, err, "egress: refused: neither a plain host name nor an IP address")
	}
	assert.NoError(t, open.Check(netip.Addr{}))
}

func TestARefusalNamesAddressAndReason(t *testing.T) {
	assert.EqualError(t, zero.Check(addr(t, "127.0.0.1")), "egress: address 127.0.0.1 refused: loopback")
	assert.EqualError(t, zero.Check(addr(t, "::ffff:169.254.169.254")), "egress: address ::ffff:169.254.169.254 refused: cloud metadata")
	assert.EqualError(t, zero.Check(addr(t, "fe80::1%a\nb")), "egress: address fe80::1 refused: link-local", "the zone may be anything")
}

func TestPoliciesCompare(t *testing.T) {
	dialers := map[egress.Policy]string{zero: "zero", dev: "dev", shut: "shut", open: "open"}
	assert.Len(t, dialers, 4)
	assert.Equal(t, "dev", dialers[egress.Policy{Loopback: true}])
}

func addr(t *testing.T, s string) netip.Addr {
	t.Helper()
	a, err := netip.ParseAddr(s)
	require.NoError(t, err)
	return a
}

// assertAddr wants s to be refused for the reason, "" for none, by every policy
// that does not allow it; and by none that does.
func assertAddr(t *testing.T, s, reason string) {
	t.Helper()
	a := addr(t, s)
	for _, p := range every {
		want := reason
		if reason == "loopback" && p.Loopback || reason == "private" && !p.BlockPrivate {
			want = ""
		}
		assertRefused(t, p.Check(a), a, want, "%+v.Check(%s)", p, s)
		assertRefused(t, p.CheckHost(s), a, want, "%+v.CheckHost(%s)", p, s)
	}
	assert.NoError(t, open.Check(a))
	assert.NoError(t, egress.Policy{Any: true, BlockPrivate: true}.Check(a))
}

func assertRefused(t *testing.T, err error, a netip.Addr, reason string, call ...any) {
	t.Helper()
	if reason == "" {
		assert.NoError(t, err, call...)
		return
	}
	refused, ok := errors.AsType[*egress.RefusedError](err)
	if assert.True(t, ok, call...) {
		assert.Equal(t, egress.RefusedError{Addr: a, Reason: reason}, *refused, call...)
	}
}
