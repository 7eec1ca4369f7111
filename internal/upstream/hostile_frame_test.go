package upstream_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// Types and flags of HTTP/2 frames (RFC 9113, section 6).
const (
	frameData, frameHeaders, frameReset, frameSettings        = 0, 1, 3, 4
	framePush, framePing, frameGoAway, frameContinuation      = 5, 6, 7, 9
	flagAck, flagEndStream, flagEndHeaders               byte = 1, 1, 4
	settingWindow, settingFrame                               = 4, 5
)

// frames is a server's end of an HTTP/2 connection that a test writes by hand.
type frames struct {
	mu   sync.Mutex
	conn net.Conn
}

func (f *frames) write(kind, flags byte, stream uint32, payload []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	head := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	head = append(head, flags)
	head = binary.BigEndian.AppendUint32(head, stream)
	_, err := f.conn.Write(append(head, payload...))
	return err
}

// answer begins an answer 200 with a body of this length.
func (f *frames) answer(stream uint32, length int) error {
	n := fmt.Sprint(length)
	block := append([]byte{0x88, 0x0f, 0x0d, byte(len(n))}, n...) // :status 200, content-length (RFC 7541, appendix A)
	return f.write(frameHeaders, flagEndHeaders, stream, block)
}

func (f *frames) data(stream uint32, content []byte) error {
	for len(content) > 0 {
		n := min(len(content), 16<<10)
		if err := f.write(frameData, 0, stream, content[:n]); err != nil {
			return err
		}
		content = content[n:]
	}
	return nil
}

// serve reads what the client says until it hangs up, and has request answer.
func (f *frames) serve(settings []byte, request func(f *frames, stream uint32)) {
	defer func() { _ = f.conn.Close() }()
	preface := make([]byte, 24)
	if _, err := io.ReadFull(f.conn, preface); err != nil {
		return
	}
	go func() { _ = f.write(frameSettings, 0, 0, settings) }()
	var asking sync.WaitGroup
	defer asking.Wait()
	defer func() { _ = f.conn.Close() }()
	for head := make([]byte, 9); ; {
		if _, err := io.ReadFull(f.conn, head); err != nil {
			return
		}
		payload := make([]byte, binary.BigEndian.Uint32(head)>>8)
		if _, err := io.ReadFull(f.conn, payload); err != nil {
			return
		}
		stream := binary.BigEndian.Uint32(head[5:])
		switch kind, ack := head[3], head[4]&flagAck != 0; {
		case kind == frameSettings && !ack:
			asking.Go(func() { _ = f.write(frameSettings, flagAck, 0, nil) })
		case kind == framePing && !ack:
			asking.Go(func() { _ = f.write(framePing, flagAck, 0, payload) })
		case kind == frameHeaders:
			asking.Go(func() { request(f, stream) })
		}
	}
}

// framing returns a way to a server whose frames the test writes.
func (s *siege) framing(t *testing.T, settings []byte, request func(f *frames, stream uint32)) dialFunc {
	t.Helper()
	config := with(s.certify(t, nil))
	config.NextProtos = []string{"h2"}
	return func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		f := &frames{conn: tls.Server(server, config)}
		s.mu.Lock()
		s.framed = append(s.framed, server)
		s.mu.Unlock()
		go f.serve(settings, request)
		return client, nil
	}
}

// drop ends the connections whose frames the test writes.
func (s *siege) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.framed {
		_ = conn.Close()
	}
}

// once returns a way to first, and from the second connection on to next.
func once(first, next dialFunc) dialFunc {
	var mu sync.Mutex
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		mu.Lock()
		dial := first
		first = next
		mu.Unlock()
		return dial(ctx, network, address)
	}
}

func setting(id uint16, value uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(nil, id), value)
}

// violations are what a server does with a request for a blob of frameBlob
// bytes.
var violations = map[string]struct {
	settings []byte
	request  func(f *frames, stream uint32, content []byte)
}{
	"GOAWAY in the body": {nil, func(f *frames, stream uint32, content []byte) {
		half(f, stream, content)
		_ = f.write(frameGoAway, 0, 0, make([]byte, 8)) // NO_ERROR, and none of the streams counts
		_ = f.conn.Close()
	}},
	"GOAWAY before the answer": {nil, func(f *frames, _ uint32, _ []byte) {
		_ = f.write(frameGoAway, 0, 0, binary.BigEndian.AppendUint32(make([]byte, 4), 2))
		_ = f.conn.Close()
	}},
	"RST_STREAM in the body": {nil, func(f *frames, stream uint32, content []byte) {
		half(f, stream, content)
		_ = f.write(frameReset, 0, stream, []byte{0, 0, 0, 2})
		_ = f.conn.Close()
	}},
	"RST_STREAM before the answer": {nil, func(f *frames, stream uint32, _ []byte) { _ = f.write(frameReset, 0, stream, []byte{0, 0, 0, 2}) }},
	"a body that ends early": {nil, func(f *frames, stream uint32, content []byte) {
		half(f, stream, content)
		_ = f.write(frameData, flagEndStream, stream, nil)
		_ = f.conn.Close()
	}},
	"SETTINGS_MAX_FRAME_SIZE of 0":     {setting(settingFrame, 0), half},
	"SETTINGS_MAX_FRAME_SIZE of 4 GiB": {setting(settingFrame, 1<<32-1), half},
	"a window of 4 GiB":                {setting(settingWindow, 1<<32-1), half},
	"settings that break off":          {[]byte{0, 5, 0}, half},
	"CONTINUATION without end": {nil, func(f *frames, stream uint32, _ []byte) {
		field := append([]byte{0x00, 0x01, 'x', 0x7f, 0x81, 0x7e}, strings.Repeat("x", 127+16129)...)[:16<<10]
		err := f.write(frameHeaders, 0, stream, []byte{0x88})
		for err == nil {
			err = f.write(frameContinuation, 0, stream, field)
		}
	}},
	"CONTINUATION of nothing": {nil, func(f *frames, stream uint32, _ []byte) {
		_ = f.write(frameContinuation, flagEndHeaders, stream, []byte{0x88})
	}},
	"a header that cannot be unpacked": {nil, func(f *frames, stream uint32, _ []byte) {
		_ = f.write(frameHeaders, flagEndHeaders, stream, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	}},
	"a header without a status": {nil, func(f *frames, stream uint32, _ []byte) {
		_ = f.write(frameHeaders, flagEndHeaders, stream, []byte{0x0f, 0x0d, 1, '5'})
	}},
	"data of no stream":      {nil, func(f *frames, _ uint32, content []byte) { _ = f.write(frameData, 0, 0, content[:100]) }},
	"data before the header": {nil, func(f *frames, stream uint32, content []byte) { _ = f.write(frameData, 0, stream, content[:100]) }},
	"a frame of 16 MiB":      {nil, func(f *frames, stream uint32, _ []byte) { _ = f.write(frameData, 0, stream, make([]byte, 1<<24-1)) }},
	"a push": {nil, func(f *frames, stream uint32, _ []byte) {
		_ = f.write(framePush, flagEndHeaders, stream, []byte{0, 0, 0, 2, 0x82})
	}},
	"more than the window takes": {nil, func(f *frames, stream uint32, _ []byte) {
		if f.answer(stream, 1<<30) == nil {
			_ = f.data(stream, make([]byte, 16<<20)) // whatever the client says of its window
		}
		_ = f.conn.Close()
	}},
}

func half(f *frames, stream uint32, content []byte) {
	if f.answer(stream, len(content)) == nil {
		_ = f.data(stream, content[:len(content)/2])
	}
}

const frameBlob = 300_000

var http2 = pullthroughtest.Config{TLS: true, HTTP2: true}

func testBrokenHTTP2(t *testing.T) {
	for name, v := range violations {
		t.Run(name+", once", func(t *testing.T) {
			besieged(t, http2, func(t *testing.T, s *siege) {
				layer := s.push(frameBlob)
				content := testkit.BlobContent(t, layer)
				request := func(f *frames, stream uint32) { v.request(f, stream, content) }
				s.at("registry.test", once(s.framing(t, v.settings, request), s.Up.DialPipe))
				took := elapsed(func() {
					if err := s.Whole(t.Context(), layer.Digest); err != nil {
						s.assertRefusal(t, layer.Digest.String(), err, pullthrough.ErrUnavailable)
					}
				})
				assert.LessOrEqual(t, took, time.Minute)
				assert.GreaterOrEqual(t, len(s.dials()), 1)
			})
		})
		t.Run(name+", for ever", func(t *testing.T) {
			besieged(t, http2, func(t *testing.T, s *siege) {
				layer := s.push(frameBlob)
				content := testkit.BlobContent(t, layer)
				s.at("registry.test", s.framing(t, v.settings, func(f *frames, stream uint32) { v.request(f, stream, content) }))
				took := elapsed(func() { s.refuseBlob(t, layer.Digest, pullthrough.ErrUnavailable, pullthrough.ErrDigest) })
				assert.LessOrEqual(t, took, 4*time.Minute)
				assert.LessOrEqual(t, len(s.dials()), 40, "one a second for half a minute, and the first tries")
				assert.Empty(t, s.Up.Log())
				s.drop() // that server is no more
			})
		})
	}
	t.Run("a window of nothing", func(t *testing.T) {
		config := identities
		config.TLS, config.HTTP2, config.Realm = true, true, "https://auth.registry.test/token"
		besieged(t, config, func(t *testing.T, s *siege) {
			s.rule(pullthrough.Policy{RealmHosts: []string{"auth.registry.test"}})
			s.credential(pullthrough.Credential{IdentityToken: strings.Repeat("x", 200<<10)})
			s.at("auth.registry.test", once(s.framing(t, setting(settingWindow, 0), func(*frames, uint32) {}), s.Up.DialPipe))
			took := elapsed(func() { s.refuse(t, "1", pullthrough.ErrUnavailable, pullthrough.ErrDenied) })
			assert.LessOrEqual(t, took, time.Minute)
			require.Equal(t, 1, s.Up.Count("GET /v2/a/manifests/1 401"))
			s.withIdentity()
		})
	})
}
