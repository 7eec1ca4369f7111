package upstream_test

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// bombs are a few kilobytes each that are 256 MiB when they are decompressed.
var bombs = sync.OnceValue(func() map[string][]byte {
	return map[string][]byte{"gzip": gzipBomb(), "zstd": zstdBomb()}
})

const (
	bombSize   = 256 << 20
	bombBudget = 24 << 20 // what a pull of one may cost, upstream's share included
)

func gzipBomb() []byte {
	var member, all bytes.Buffer
	z := gzip.NewWriter(&member)
	_, err := z.Write(make([]byte, 4<<20))
	if err != nil || z.Close() != nil {
		panic("a buffer does not fail")
	}
	for range bombSize / (4 << 20) { // members one behind the other are one stream
		all.Write(member.Bytes())
	}
	return all.Bytes()
}

// zstdBomb is a frame of blocks that repeat one byte each (RFC 8878).
func zstdBomb() []byte {
	const block = 128 << 10
	bomb := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38} // magic number, no options, a window of 128 KiB
	for i := range bombSize / block {
		header := uint32(block<<3 | 1<<1) // repeat
		if i == bombSize/block-1 {
			header |= 1 // the last
		}
		bomb = append(bomb, byte(header), byte(header>>8), byte(header>>16), 0)
	}
	return bomb
}

func testCompressionBombs(t *testing.T) {
	for encoding, bomb := range bombs() {
		header := http.Header{"Content-Encoding": {encoding}}
		t.Run(encoding+", blob", func(t *testing.T) {
			besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
				d := s.Up.PushBlob("a", bomb)
				s.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Header: header})
				cost := testkit.Allocated(func() { s.PullBlob(t, "a", d) })
				assert.Less(t, cost, uint64(bombBudget), "the raw bytes have the digest")
				s.assertIdentity(t)
			})
		})
		for name, tc := range map[string]struct {
			fault pullthroughtest.Fault
			kind  error
		}{
			"manifest": {pullthroughtest.Fault{Match: manifests + " 200", Body: bomb}, pullthrough.ErrUnavailable},
			"token":    {pullthroughtest.Fault{Match: "GET /token*", Body: bomb}, pullthrough.ErrUnavailable},
			"error":    {pullthroughtest.Fault{Match: manifests + " 200", Status: 403, Body: bomb}, pullthrough.ErrDenied},
		} {
			t.Run(encoding+", "+name, func(t *testing.T) {
				besieged(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(t *testing.T, s *siege) {
					tc.fault.Header = header
					s.Up.Fault(tc.fault)
					cost := testkit.Allocated(func() { s.refuse(t, "1", tc.kind) })
					assert.Less(t, cost, uint64(bombBudget))
					s.assertIdentity(t)
				})
			})
		}
	}
}

// assertIdentity checks that upstream was told not to encode anything.
func (s *siege) assertIdentity(t *testing.T) {
	t.Helper()
	require.NotEmpty(t, s.Up.Requests())
	for _, r := range s.Up.Requests() {
		assert.Equal(t, []string{"identity"}, r.Header["Accept-Encoding"], r.String())
	}
}

func testChainsOfEncodings(t *testing.T) {
	for name, encodings := range map[string][]string{
		"a chain": {"gzip, gzip, zstd"}, "several headers": {"gzip", "deflate"}, "unknown": {"x-odd"}, "none": {"identity"},
		"upper case": {"GZIP"}, "empty parts": {",,"}, "of Amazon's": {"aws-chunked"}, "long": {strings.Repeat("gzip, ", 10_000) + "gzip"},
	} {
		t.Run(name, func(t *testing.T) {
			besieged(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(t *testing.T, s *siege) {
				s.Up.Fault(pullthroughtest.Fault{Header: http.Header{"Content-Encoding": encodings}})
				s.Pull(t, "a", "1", s.img)
				assert.Equal(t, 1+1+1+len(s.img.Blobs()), s.Up.Count("*"))
				s.assertIdentity(t)
			})
		})
	}
}
