package egress_test

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	typeA     = 1
	typeAAAA  = 28
	dnsHeader = 12
)

// nameServer answers every question, whatever the name, with the addresses of its
// answers: the first look-up with the first, and so on; the last one stays.
type nameServer struct {
	t       *testing.T
	conn    net.PacketConn
	answers [][]netip.Addr

	mu    sync.Mutex
	asked map[uint16]int // by type
}

// resolver returns one that asks a new name server, on loopback.
func resolver(t *testing.T, answers ...[]netip.Addr) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &nameServer{t: t, conn: conn, answers: answers, asked: map[uint16]int{}}
	var serving sync.WaitGroup
	serving.Go(s.serve)
	t.Cleanup(func() {
		assert.NoError(t, conn.Close())
		serving.Wait()
		assert.NotEmpty(t, s.asked, "the name server was asked")
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

func (s *nameServer) serve() {
	buf := make([]byte, 1500)
	for {
		n, from, err := s.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if _, err := s.conn.WriteTo(s.answer(buf[:n]), from); err != nil {
			assert.ErrorIs(s.t, err, net.ErrClosed)
			return
		}
	}
}

// answer returns query's header and question with the answers behind (RFC 1035, 4).
func (s *nameServer) answer(query []byte) []byte {
	end := dnsHeader
	for query[end] != 0 {
		end += int(query[end]) + 1
	}
	qtype := binary.BigEndian.Uint16(query[end+1:])
	out := append([]byte(nil), query[:end+5]...)
	copy(out[2:dnsHeader], []byte{0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}) // an answer, one question
	for _, a := range s.next(qtype) {
		if (qtype == typeA) != a.Is4() {
			continue
		}
		out[7]++
		out = append(out, 0xc0, dnsHeader, 0, byte(qtype), 0, 1, 0, 0, 0, 0) // the name again, class IN, TTL 0
		out = binary.BigEndian.AppendUint16(out, uint16(len(a.AsSlice())))
		out = append(out, a.AsSlice()...)
	}
	return out
}

func (s *nameServer) next(qtype uint16) []netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := min(s.asked[qtype], len(s.answers)-1)
	s.asked[qtype]++
	assert.Contains(s.t, []uint16{typeA, typeAAAA}, qtype)
	return s.answers[i]
}

func addrs(t *testing.T, all ...string) (list []netip.Addr) {
	t.Helper()
	for _, s := range all {
		list = append(list, addr(t, s))
	}
	return list
}
