package egress_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/egress"
)

// closed are the closed ranges again, as numbers from and to, written without
// prefixes: "4" and "6" are the families. It shares nothing with the product.
var closed = []struct {
	family   string
	from, to *big.Int
	reason   string
}{
	{"4", number("00000000"), number("00ffffff"), "unspecified"},
	{"4", number("7f000000"), number("7fffffff"), "loopback"},
	{"4", number("a9fe0000"), number("a9feffff"), "link-local"},
	{"4", number("646464c8"), number("646464c8"), "cloud metadata"},
	{"4", number("a83f8110"), number("a83f8110"), "cloud metadata"},
	{"4", number("c00000c0"), number("c00000c0"), "cloud metadata"},
	{"4", number("0a000000"), number("0affffff"), "private"},
	{"4", number("ac100000"), number("ac1fffff"), "private"},
	{"4", number("c0a80000"), number("c0a8ffff"), "private"},
	{"4", number("64400000"), number("647fffff"), "private"},
	{"4", number("e0000000"), number("ffffffff"), "multicast and more"},
	{"6", number("00000000000000000000000000000000"), number("00000000000000000000000000000000"), "unspecified"},
	{"6", number("00000000000000000000000000000001"), number("00000000000000000000000000000001"), "loopback"},
	{"6", number("fe800000000000000000000000000000"), number("febfffffffffffffffffffffffffffff"), "link-local"},
	{"6", number("fd000ec2000000000000000000000000"), number("fd000ec2ffffffffffffffffffffffff"), "cloud metadata"},
	{"6", number("fd2000ce000000000000000000000254"), number("fd2000ce000000000000000000000254"), "cloud metadata"},
	{"6", number("fd0000c10000000000000000a9fea9fe"), number("fd0000c10000000000000000a9fea9fe"), "cloud metadata"},
	{"6", number("fd000100000000000000000001000200"), number("fd000100000000000000000001000200"), "cloud metadata"},
	{"6", number("fd00a9fea9fe00000000000000000001"), number("fd00a9fea9fe00000000000000000001"), "cloud metadata"},
	{"6", number("fd000042000000000000000000000042"), number("fd000042000000000000000000000042"), "cloud metadata"},
	{"6", number("fc000000000000000000000000000000"), number("fdffffffffffffffffffffffffffffff"), "private"},
	{"6", number("fec00000000000000000000000000000"), number("feffffffffffffffffffffffffffffff"), "private"},
	{"6", number("ff000000000000000000000000000000"), number("ffffffffffffffffffffffffffffffff"), "multicast"},
}

// containers are the ranges with an IPv4 address inside: how far right it is to be
// shifted, and what it is inverted with.
var containers = []struct {
	from, to *big.Int
	shift    uint
	invert   int64
}{
	{number("00000000000000000000000000000002"), number("000000000000000000000000ffffffff"), 0, 0},
	{number("00000000000000000000ffff00000000"), number("00000000000000000000ffffffffffff"), 0, 0},
	{number("0000000000000000ffff000000000000"), number("0000000000000000ffff0000ffffffff"), 0, 0},
	{number("0064ff9b000000000000000000000000"), number("0064ff9b0000000000000000ffffffff"), 0, 0},
	{number("20020000000000000000000000000000"), number("2002ffffffffffffffffffffffffffff"), 80, 0},
	{number("20010000000000000000000000000000"), number("20010000ffffffffffffffffffffffff"), 64, 0},
	{number("20010000000000000000000000000000"), number("20010000ffffffffffffffffffffffff"), 0, 0xffffffff},
}

var (
	localFrom = number("0064ff9b000100000000000000000000")
	localTo   = number("0064ff9b0001ffffffffffffffffffff")
	low56     = number("ffffffffffffff")
)

func number(s string) *big.Int {
	n, ok := new(big.Int).SetString(s, 16)
	if !ok {
		panic(s)
	}
	return n
}

func within(n, from, to *big.Int) bool { return n.Cmp(from) >= 0 && n.Cmp(to) <= 0 }

// low returns 32 bits of n, from bit shift on.
func low(n *big.Int, shift uint) *big.Int {
	return new(big.Int).And(new(big.Int).Rsh(n, shift), big.NewInt(0xffffffff))
}

// slow returns the reason why p closes the number n, "" if it does not.
func slow(p egress.Policy, family string, n *big.Int) string {
	for _, c := range closed {
		if c.family == family && within(n, c.from, c.to) {
			if c.reason == "private" && !p.BlockPrivate || c.reason == "loopback" && p.Loopback {
				return ""
			}
			return c.reason
		}
	}
	return ""
}

func slowRefuses(p egress.Policy, a netip.Addr) bool {
	n := new(big.Int).SetBytes(a.AsSlice())
	if a.Is4() {
		return slow(p, "4", n) != ""
	}
	if slow(p, "6", n) != "" {
		return true
	}
	for _, c := range containers {
		v4 := low(n, c.shift)
		if within(n, c.from, c.to) && slow(p, "4", v4.Xor(v4, big.NewInt(c.invert))) != "" {
			return true
		}
	}
	return within(n, localFrom, localTo) && slowNAT64(p, n)
}

func slowNAT64(p egress.Policy, n *big.Int) bool {
	var without big.Int // n without bits 64 to 71, which are no part of an address
	without.Rsh(n, 64).Lsh(&without, 56)
	without.Or(&without, new(big.Int).And(n, low56))
	lost := true
	for _, v4 := range []*big.Int{low(n, 0), low(&without, 40), low(&without, 32), low(&without, 24)} {
		switch slow(p, "4", v4) {
		case "":
			lost = false
		case "loopback", "private", "link-local", "cloud metadata":
			return true
		}
	}
	return lost
}

func policyOf(bits byte) egress.Policy {
	return egress.Policy{Loopback: bits&1 != 0, BlockPrivate: bits&2 != 0}
}

// FuzzCheck makes an address of hi and lo, its first bytes replaced by those of a
// range if the shape says so: few numbers would hit one otherwise.
func FuzzCheck(f *testing.F) {
	for _, r := range ranges {
		for _, s := range []string{r.first, r.last} {
			b := netip.MustParseAddr(s).As16()
			f.Add(binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:]), byte(0), byte(0), "eth0")
			f.Add(uint64(0x64ff9b0001fffe), binary.BigEndian.Uint64(b[8:]), byte(3), byte(255), "")
		}
	}
	for i := range len(closed) + len(containers) {
		f.Add(uint64(1), uint64(0x0a0000017f000001), byte(i), byte(i), "%]")
	}
	f.Fuzz(func(t *testing.T, hi, lo uint64, policy, shape byte, zone string) {
		p := policyOf(policy)
		checkWrapped(t, p, netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(lo)))))
		a := shaped(hi, lo, shape)
		checkOne(t, p, a)
		checkZone(t, p, a, zone)
	})
}

func shaped(hi, lo uint64, shape byte) netip.Addr {
	b := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, hi), lo)
	if i := int(shape); i < len(closed) && closed[i].family == "6" {
		copy(b, closed[i].from.FillBytes(make([]byte, 16))[:4])
	} else if i -= len(closed); 0 <= i && i < len(containers) {
		keep := 12 - containers[i].shift/8
		copy(b, containers[i].from.FillBytes(make([]byte, 16))[:keep])
	}
	return netip.AddrFrom16([16]byte(b))
}

func checkOne(t *testing.T, p egress.Policy, a netip.Addr) {
	err := p.Check(a)
	require.Equal(t, slowRefuses(p, a), err != nil, "%+v %v: %v", p, a, err)
	require.Equal(t, err, p.CheckHost(a.String()))
	require.Equal(t, err, p.CheckHost("["+a.StringExpanded()+"]."))
	require.NoError(t, egress.Policy{Any: true}.Check(a))
	if err != nil {
		refused, ok := errors.AsType[*egress.RefusedError](err)
		require.True(t, ok)
		require.Equal(t, a, refused.Addr)
		require.NotEmpty(t, refused.Reason)
		require.Contains(t, err.Error(), a.String())
		require.Contains(t, err.Error(), refused.Reason)
	}
}

func checkZone(t *testing.T, p egress.Policy, a netip.Addr, zone string) {
	require.Equal(t, p.Check(a), p.Check(a.WithZone(zone)))
	require.Equal(t, p.Check(a), p.CheckHost("["+a.WithZone(zone).String()+"]"))
}

// checkWrapped wants v4, however it is written or wrapped, to be refused if it is
// refused, and only then.
func checkWrapped(t *testing.T, p egress.Policy, v4 netip.Addr) {
	checkOne(t, p, v4)
	refused := p.Check(v4) != nil
	for name, wrap := range wrappers {
		if v4.As4() == [4]byte{0, 0, 0, 1} && name == "v4-compatible" {
			continue // ::1
		}
		a := wrap(v4.As4())
		checkOne(t, p, a)
		require.Equal(t, refused, p.Check(a) != nil, "%s: %+v %v", name, p, a)
	}
	reason := slow(p, "4", new(big.Int).SetBytes(v4.AsSlice()))
	for name, wrap := range narrow {
		a := wrap(v4.As4())
		checkOne(t, p, a)
		if reason == "loopback" || reason == "private" || reason == "link-local" || reason == "cloud metadata" {
			require.Error(t, p.Check(a), "%s: %+v %v", name, p, a)
		}
	}
	checkNotations(t, p, v4)
}

func checkNotations(t *testing.T, p egress.Policy, v4 netip.Addr) {
	b := v4.As4()
	n := binary.BigEndian.Uint32(b[:])
	for _, host := range []string{
		fmt.Sprint(n), fmt.Sprintf("%#x", n), fmt.Sprintf("%d.%d", b[0], n&0xffffff), fmt.Sprintf("%d.%d.%d", b[0], b[1], n&0xffff),
		fmt.Sprintf("%#X.%d.%#x.%d.", b[0], b[1], b[2], b[3]),
	} {
		require.Equal(t, p.Check(v4), p.CheckHost(host), host)
	}
	octal := fmt.Sprintf("%#o.%#o.%#o.%#o", b[0], b[1], b[2], b[3])
	if err := p.Check(v4); err != nil {
		require.Equal(t, err, p.CheckHost(octal), octal)
		require.Error(t, p.CheckHost(fmt.Sprintf("%03d.%03d.%03d.%03d", b[0], b[1], b[2], b[3])))
	}
}

// FuzzCheckHost feeds any host: what the standard library takes for an address is
// judged as that address, and nothing that is allowed is one in disguise.
func FuzzCheckHost(f *testing.F) {
	for _, s := range []string{
		"127.1", "2130706433", "0x7f.1", "0177.0.0.1", "[::1%lo].", "::ffff:127.0.0.1", "localhost", "a.LOCALHOST.", "example.com", "425.510.425.510",
		"1.2.3.4", "１２７.1", "1..2", "0x", "08.1", "127.0.0.1\x00.a", "[", "%", "x:1", "1.2.3.4.5", "A .LOCALHOST",
	} {
		f.Add(s, byte(0))
	}
	f.Fuzz(func(t *testing.T, host string, policy byte) {
		p := policyOf(policy)
		err := p.CheckHost(host)
		require.Equal(t, err, p.CheckHost(host+"."))
		require.Equal(t, err, p.CheckHost("["+host+"]"))
		require.NoError(t, egress.Policy{Any: true}.CheckHost(host))
		if a, parsed := netip.ParseAddr(host); parsed == nil {
			require.Equal(t, p.Check(a), err)
		}
		if err != nil {
			_, ok := errors.AsType[*egress.RefusedError](err)
			require.True(t, ok)
			return
		}
		if i := strings.IndexFunc(host, inNoName); i >= 0 {
			require.Regexp(t, address, host[:i])
		}
		host = strings.TrimRight(strings.ToLower(host), ".")
		require.False(t, host == "" || !p.Loopback && strings.HasSuffix("."+host, ".localhost"))
		if strings.Trim(host, "0123456789.") == "" && !strings.Contains("."+host, ".0") {
			checkNumbers(t, p, host)
		}
	})
}

func inNoName(r rune) bool { return r == '%' || r <= 0x20 }

// address is what an address has in it or ends in.
var address = regexp.MustCompile(`(?i):|(^|[][.])(localhost|0x[0-9a-f]*|[0-9]+)[][.]*$`)

// checkNumbers wants a host of decimal numbers to be an address that p allows.
func checkNumbers(t *testing.T, p egress.Policy, host string) {
	parts := strings.Split(strings.TrimLeft(host, "."), ".")
	require.LessOrEqual(t, len(parts), 4)
	sum := new(big.Int)
	for i, part := range parts {
		n, ok := new(big.Int).SetString(part, 10)
		require.True(t, ok, "%q", host)
		shift := uint(24 - 8*i)
		if i == len(parts)-1 {
			shift = 0
		}
		require.LessOrEqual(t, n.BitLen(), 32-8*i)
		sum.Add(sum, n.Lsh(n, shift))
	}
	require.Empty(t, slow(p, "4", sum), "%q", host)
}
