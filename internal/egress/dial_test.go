package egress_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/egress"
)

var errStopped = errors.New("stopped by the test")

// attempts are what a policy lets through. Those beyond loopback are stopped: no
// packet leaves the machine.
type attempts struct {
	mu   sync.Mutex
	list []string
}

func (a *attempts) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list = append(a.list, to.Addr().String())
	if !to.Addr().IsLoopback() {
		return errStopped
	}
	return nil
}

// dial dials a port of a host by name, for d's resolver to find.
func dial(t *testing.T, d *net.Dialer, port int) error {
	t.Helper()
	conn, err := d.DialContext(t.Context(), "tcp", net.JoinHostPort("blobs.registry.test.", strconv.Itoa(port)))
	if err == nil {
		assert.NoError(t, conn.Close())
	}
	return err
}

// listener counts the connections to a port of 127.0.0.1.
type listener struct {
	*net.TCPListener
	port int
}

func listen(t *testing.T) listener {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, l.Close()) })
	return listener{l, l.Addr().(*net.TCPAddr).Port}
}

// connections returns how many there were. One more is made, since they are
// accepted in turn: what came before it is all.
func (l listener) connections(t *testing.T) (n int) {
	t.Helper()
	last, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer func() { assert.NoError(t, last.Close()) }()
	for ; ; n++ {
		conn, err := l.Accept()
		require.NoError(t, err)
		require.NoError(t, conn.Close())
		if conn.RemoteAddr().String() == last.LocalAddr().String() {
			return n
		}
	}
}

// U29: the URL was looked at when the name was still harmless.
func TestANameThatResolvesToSomethingElseTheSecondTime(t *testing.T) {
	for then, want := range map[string]struct {
		policy egress.Policy
		reason string
	}{
		"169.254.169.254":    {dev, "cloud metadata"},
		"168.63.129.16":      {dev, "cloud metadata"},
		"169.254.170.2":      {dev, "link-local"},
		"127.0.0.1":          {zero, "loopback"},
		"10.0.0.1":           {shut, "private"},
		"224.0.0.1":          {zero, "multicast"},
		"::1":                {zero, "loopback"},
		"fd00:ec2::254":      {zero, "cloud metadata"},
		"fe80::1":            {zero, "link-local"},
		"64:ff9b::a9fe:a9fe": {zero, "cloud metadata"},
		"2002:7f00:1::":      {zero, "loopback"},
	} {
		t.Run(then, func(t *testing.T) {
			l, tried := listen(t), &attempts{}
			d := want.policy.Dialer(net.Dialer{
				Resolver:       resolver(t, addrs(t, "192.0.2.1"), addrs(t, then)),
				ControlContext: tried.control,
			})
			require.NoError(t, want.policy.CheckHost("blobs.registry.test."))
			require.ErrorIs(t, dial(t, d, l.port), errStopped, "allowed, so far as the policy goes")
			assertRefused(t, dial(t, d, l.port), addr(t, then), want.reason)
			assertRefused(t, dial(t, d, l.port), addr(t, then), want.reason)
			assert.Equal(t, []string{"192.0.2.1"}, tried.list)
			assert.Zero(t, l.connections(t))
		})
	}
}

// The Go resolver makes an IPv4 address of a v4-mapped one.
func TestANameThatResolvesToAMappedAddress(t *testing.T) {
	l, tried := listen(t), &attempts{}
	d := zero.Dialer(net.Dialer{Resolver: resolver(t, addrs(t, "::ffff:127.0.0.1")), ControlContext: tried.control})
	assertRefused(t, dial(t, d, l.port), addr(t, "127.0.0.1"), "loopback")
	assert.Empty(t, tried.list)
	assert.Zero(t, l.connections(t))
}

func TestOfSeveralAddressesOnlyThoseAllowedAreTried(t *testing.T) {
	all := addrs(t, "169.254.169.254", "10.0.0.1", "127.0.0.1", "100.100.100.200", "0.1.2.3", "fe80::1", "fd00::1", "fd00:ec2::23", "64:ff9b::a00:1", "2002:a9fe:a9fe::")
	for name, tc := range map[string]struct {
		policy egress.Policy
		tried  []string
	}{
		"one":  {egress.Policy{Loopback: true, BlockPrivate: true}, []string{"127.0.0.1"}},
		"none": {shut, nil},
	} {
		for mode, delay := range map[string]time.Duration{"one at a time": -1, "both families": 0} {
			t.Run(name+", "+mode, func(t *testing.T) {
				l, tried := listen(t), &attempts{}
				d := tc.policy.Dialer(net.Dialer{Resolver: resolver(t, all), ControlContext: tried.control, FallbackDelay: delay})
				err := dial(t, d, l.port)
				_, refused := errors.AsType[*egress.RefusedError](err)
				assert.Equal(t, tc.tried == nil, refused, "%v", err)
				assert.Equal(t, tc.tried, tried.list)
				assert.Equal(t, len(tc.tried), l.connections(t))
			})
		}
	}
}

// localhost is two addresses of which often one answers.
func TestHappyEyeballsOnLoopback(t *testing.T) {
	l, tried := listen(t), &attempts{}
	both := resolver(t, addrs(t, "::1", "127.0.0.1"))
	assert.NoError(t, dial(t, dev.Dialer(net.Dialer{Resolver: both, ControlContext: tried.control}), l.port))
	assert.Contains(t, tried.list, "127.0.0.1")
	assert.Equal(t, 1, l.connections(t))

	tried.list = nil
	err := dial(t, zero.Dialer(net.Dialer{Resolver: both, ControlContext: tried.control}), l.port)
	refused, ok := errors.AsType[*egress.RefusedError](err)
	require.True(t, ok, "%v", err)
	assert.Equal(t, "loopback", refused.Reason)
	assert.Empty(t, tried.list)
	assert.Zero(t, l.connections(t))
}

// They reach the machine itself. Package net puts the loopback address in their
// place before we are asked, on some systems.
func TestUnspecifiedAddressesAreRefused(t *testing.T) {
	l := listen(t)
	for _, host := range []string{"", "0.0.0.0", "::"} {
		address := net.JoinHostPort(host, strconv.Itoa(l.port))
		_, err := zero.Dialer(net.Dialer{}).Dial("tcp", address)
		_, ok := errors.AsType[*egress.RefusedError](err)
		assert.True(t, ok, "%q: %v", host, err)
		assert.Error(t, zero.CheckHost(host))
		conn, err := open.Dialer(net.Dialer{}).Dial("tcp4", address)
		require.NoError(t, err, host)
		assert.NoError(t, conn.Close())
	}
	assert.Equal(t, 3, l.connections(t), "those of the policy that allows all")
}

func TestLiteralAddressesAreCheckedToo(t *testing.T) {
	for host, reason := range map[string]string{
		"127.0.0.1": "loopback", "::1": "loopback", "fe80::1%1": "link-local", "169.254.169.254": "cloud metadata", "64:ff9b::7f00:1": "loopback",
	} {
		for _, network := range []string{"tcp", "udp"} {
			tried := &attempts{}
			_, err := zero.Dialer(net.Dialer{ControlContext: tried.control}).DialContext(t.Context(), network, net.JoinHostPort(host, "9"))
			assertRefused(t, err, addr(t, host).WithZone(""), reason)
			assert.Empty(t, tried.list)
		}
	}
}

func TestARefusalIsFoundInTheErrorOfARequest(t *testing.T) {
	l := listen(t)
	tr := &http.Transport{DialContext: zero.Dialer(net.Dialer{}).DialContext}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+"/", nil)
	require.NoError(t, err)
	_, err = (&http.Client{Transport: tr}).Do(req)
	assertRefused(t, err, addr(t, "127.0.0.1"), "loopback")
	assert.Zero(t, l.connections(t))
}

func TestOnlyNetworksWithAddressesMayBeDialled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer func() { assert.NoError(t, l.Close()) }()
	_, err = dev.Dialer(net.Dialer{}).Dial("unix", path)
	assertRefused(t, err, netip.Addr{}, bad)
	conn, err := open.Dialer(net.Dialer{}).Dial("unix", path)
	require.NoError(t, err)
	assert.NoError(t, conn.Close())
}

func TestTheDialersOwnControlIsKept(t *testing.T) {
	l := listen(t)
	type key struct{}
	ctx := context.WithValue(t.Context(), key{}, "v")
	var called []string
	check := func(name, network, address string, c syscall.RawConn) {
		called = append(called, name)
		assert.Equal(t, "tcp4", network)
		assert.Equal(t, l.Addr().String(), address)
		assert.NoError(t, c.Control(func(uintptr) {}))
	}
	plain := func(network, address string, c syscall.RawConn) error {
		check("plain", network, address, c)
		return errStopped
	}
	withContext := func(ctx context.Context, network, address string, c syscall.RawConn) error {
		check("with context", network, address, c)
		assert.Equal(t, "v", ctx.Value(key{}))
		return errStopped
	}
	for _, d := range []net.Dialer{{Control: plain}, {ControlContext: withContext}, {Control: plain, ControlContext: withContext}} {
		_, err := zero.Dialer(d).DialContext(ctx, "tcp", l.Addr().String())
		assertRefused(t, err, addr(t, "127.0.0.1"), "loopback")
		for _, p := range []egress.Policy{dev, open} {
			_, err := p.Dialer(d).DialContext(ctx, "tcp", l.Addr().String())
			assert.ErrorIs(t, err, errStopped)
		}
		_, err = dev.Dialer(*zero.Dialer(d)).DialContext(ctx, "tcp", l.Addr().String())
		assertRefused(t, err, addr(t, "127.0.0.1"), "loopback")
	}
	assert.Equal(t, []string{"plain", "plain", "with context", "with context", "with context", "with context"}, called)
	assert.Zero(t, l.connections(t))
}

func TestADialerIsOtherwiseAsItWas(t *testing.T) {
	d := net.Dialer{Timeout: 1, KeepAlive: 2, FallbackDelay: 3, Resolver: &net.Resolver{}}
	got := zero.Dialer(d)
	require.NotNil(t, got.ControlContext)
	assert.Nil(t, d.ControlContext)
	got.ControlContext = nil
	assert.Equal(t, &d, got)
}
