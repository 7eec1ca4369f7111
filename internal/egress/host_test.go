package egress_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// bad is the reason for what is neither a name nor an address.
const bad = "neither a plain host name nor an IP address"

func TestHostsInAnyNotation(t *testing.T) {
	for host, want := range map[string]struct{ addr, reason string }{
		"127.0.0.1":                  {"127.0.0.1", "loopback"},
		"127.0.0.1.":                 {"127.0.0.1", "loopback"},
		"127.0.0.1..":                {"127.0.0.1", "loopback"},
		"[127.0.0.1]":                {"127.0.0.1", "loopback"},
		"[127.0.0.1].":               {"127.0.0.1", "loopback"},
		"127.0.0.1%lo":               {"127.0.0.1", "loopback"},
		"127.0.0.1 example.com":      {"127.0.0.1", "loopback"},
		"127.0.0.1\x00.example.com":  {"127.0.0.1", "loopback"},
		"127.1":                      {"127.0.0.1", "loopback"},
		"127.1.":                     {"127.0.0.1", "loopback"},
		"127.0.1":                    {"127.0.0.1", "loopback"},
		"127.65535":                  {"127.0.255.255", "loopback"},
		"2130706433":                 {"127.0.0.1", "loopback"},
		"0x7f.1":                     {"127.0.0.1", "loopback"},
		"0X7F.1":                     {"127.0.0.1", "loopback"},
		"0x7f000001":                 {"127.0.0.1", "loopback"},
		"0x7f.0x0.0x0.0x1":           {"127.0.0.1", "loopback"},
		"0177.0.0.1":                 {"127.0.0.1", "loopback"},
		"00000000000177.1":           {"127.0.0.1", "loopback"},
		"017700000001":               {"127.0.0.1", "loopback"},
		"0169.0254.0169.0254":        {"169.254.169.254", "cloud metadata"},
		"0127.0.0.1":                 {"127.0.0.1", "loopback"}, // 87.0.0.1 to inet_aton
		"169.254.43518":              {"169.254.169.254", "cloud metadata"},
		"2852039166":                 {"169.254.169.254", "cloud metadata"},
		"0xa9fea9fe":                 {"169.254.169.254", "cloud metadata"},
		"0251.0376.0251.0376":        {"169.254.169.254", "cloud metadata"},
		"0":                          {"0.0.0.0", "unspecified"},
		"0x0":                        {"0.0.0.0", "unspecified"},
		"4294967295":                 {"255.255.255.255", "broadcast"},
		" 127.0.0.1":                 {"::", "unspecified"}, // as good a reason as any
		"":                           {"::", "unspecified"},
		"[]":                         {"::", "unspecified"},
		".":                          {"::", "unspecified"},
		"[::1]":                      {"::1", "loopback"},
		"::1":                        {"::1", "loopback"},
		"[::1].":                     {"::1", "loopback"},
		"0:0:0:0:0:0:0:1":            {"::1", "loopback"},
		"[fe80::1%eth0]":             {"fe80::1", "link-local"},
		"[fe80::1%25eth0]":           {"fe80::1", "link-local"},
		"FE80::1%eth0":               {"fe80::1", "link-local"},
		"[::ffff:127.0.0.1]":         {"::ffff:127.0.0.1", "loopback"},
		"::ffff:7f00:1%x":            {"::ffff:127.0.0.1", "loopback"},
		"[64:ff9b::169.254.169.254]": {"64:ff9b::a9fe:a9fe", "cloud metadata"},
		"[FD00:EC2::254]":            {"fd00:ec2::254", "cloud metadata"},
		"localhost":                  {"127.0.0.1", "loopback"},
		"LOCALHOST.":                 {"127.0.0.1", "loopback"},
		"a.localhost":                {"127.0.0.1", "loopback"},
		"a.b.LocalHost.":             {"127.0.0.1", "loopback"},
	} {
		t.Run(host, func(t *testing.T) {
			assertRefused(t, zero.CheckHost(host), addr(t, want.addr), want.reason)
			if want.reason == "loopback" {
				want.reason = ""
			}
			assertRefused(t, dev.CheckHost(host), addr(t, want.addr), want.reason)
			assert.NoError(t, open.CheckHost(host))
		})
	}
}

func TestPrivateHostsInAnyNotation(t *testing.T) {
	for host, want := range map[string]string{
		"10.1": "10.0.0.1", "0xa.1": "10.0.0.1", "012.1": "10.0.0.1", "010.0.0.1": "10.0.0.1", "167772161": "10.0.0.1",
		"192.168.257": "192.168.1.1", "0300.0250.1": "192.168.0.1", "[fc00::1]": "fc00::1", "100.64.1": "100.64.0.1",
	} {
		assertRefused(t, shut.CheckHost(host), addr(t, want), "private", host)
		assert.NoError(t, zero.CheckHost(host), host)
		assert.NoError(t, open.CheckHost(host), host)
	}
}

func TestPublicAddressesAndNamesMayBeLookedUp(t *testing.T) {
	for _, host := range []string{
		"1.2.3.4", "1.2.3.4.", "[2600::1]", "2600::1%eth0", "16909060", "0x1020304", "8.8", "01.2.3.4", "08.8.8.8",
		"example.com", "example.com.", "registry-1.docker.io", "123456789012.dkr.ecr.us-east-1.amazonaws.com", "xn--bcher-kva.example",
		"localhost.example.com", "notlocalhost", "local", "127.0.0.1.nip.io", "127-0-0-1.example", "1.2.3.4.5e", "0x7f.example", "0xzz", "a1", "1a", "_x",
	} {
		for _, p := range append(every, open) {
			assert.NoError(t, p.CheckHost(host), host)
		}
	}
}

// What only looks like an address may be one to somebody's resolver: 425 is 169
// where numbers wrap around.
func TestHostsThatAreNeitherNamesNorAddresses(t *testing.T) {
	for _, host := range []string{
		"425.510.425.510", "256.0.0.1", "1.2.3.256", "4294967296", "1.2.3.4.5", "1.2.65536", "1.16777216", "127..1", "a.1", "example.0x7f", "0x", "1.0x",
		"0377777777777777777777777", "1_0.1", "99999999999999999999999999", "0x7f_1.1",
		"::g", "1:2", "example.com:443", "127.0.0.1:80", "::ffff:127.1", "::ffff:0177.0.0.1", "::1::",
		"１２７.0.0.1", "127。0。0。1", "①②⑦.0.0.1", "ｌocalhost", "bücher.example", "\x7f", "\xff",
		"a .localhost", "example.com%eth0", "example.com\x00.localhost", "a\x01b", "a\nb",
	} {
		for _, p := range every {
			assertRefused(t, p.CheckHost(host), netip.Addr{}, bad, host)
		}
		assert.NoError(t, open.CheckHost(host), host)
	}
}

// Why names that are not in ASCII cannot be judged as they are written.
func TestWhatNetHTTPMakesOfAHost(t *testing.T) {
	var dialled string
	tr := &http.Transport{DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
		dialled = address
		return nil, errors.New("enough")
	}}
	for host, want := range map[string]string{"１２７．０。０.1": "127.0.0.1:80", "⑯⑨.②⑤④": "169.254:80", "ｌocalhost": "localhost:80"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+host+"/", nil)
		require.NoError(t, err)
		_, err = tr.RoundTrip(req)
		require.Error(t, err)
		assert.Equal(t, want, dialled)
		assertRefused(t, zero.CheckHost(host), netip.Addr{}, bad, host)
	}
}
