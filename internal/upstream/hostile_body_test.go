package upstream_test

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const manifests = "GET /v2/a/manifests/*"

// holdBack is how much of a large blob stays here until the digest is right.
const holdBack = 64 << 10

// push replaces a:1 by an image with one layer of this size, and returns the
// layer.
func (s *siege) push(size int64) *pullthroughtest.Blob {
	s.img = pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: size, LayerSize: size})
	s.Up.Push("a", "1", s.img)
	return s.img.Layers[0]
}

func testWrongBlobBreaksBeforeItsEnd(t *testing.T) {
	for name, size := range testkit.LayerSizes {
		t.Run(name, func(t *testing.T) {
			besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
				layer := s.push(size)
				other := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 7, LayerSize: size}).Layers[0]
				s.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Body: testkit.BlobContent(t, other)})
				_, read := s.refuseBlob(t, layer.Digest, pullthrough.ErrDigest)
				if size <= 1<<20 {
					assert.Zero(t, read, "a small one is verified before its first byte leaves")
				}
				assert.LessOrEqual(t, read, max(0, size-holdBack))
				assert.LessOrEqual(t, s.Up.Count("*"), 2, "one more try, no more")
			})
		})
	}
}

func testLastByteFlipped(t *testing.T) {
	for _, size := range []int64{1, 1000, holdBack, holdBack + 1, 128 << 10, 128<<10 + 1, 1 << 20, 3 << 20} {
		t.Run(strconv.FormatInt(size, 10), func(t *testing.T) {
			besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
				layer := s.push(size)
				s.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Flip: new(int64(-1))})
				_, read := s.refuseBlob(t, layer.Digest, pullthrough.ErrDigest)
				if size <= 128<<10 {
					assert.Zero(t, read, "a small one is verified before its first byte leaves")
				}
				assert.LessOrEqual(t, read, max(0, size-holdBack))
				assert.LessOrEqual(t, s.Up.Count("*"), 2)
			})
		})
	}
}

func testBlobThatEndsEarly(t *testing.T) {
	for name, size := range testkit.LayerSizes {
		t.Run(name+", once", func(t *testing.T) {
			besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
				layer := s.push(size)
				s.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Times: 1, Truncate: 1000})
				s.PullBlob(t, "a", layer.Digest)
				assert.Equal(t, []string{"200", "206"}, statuses(s.Up))
			})
		})
		t.Run(name+", for ever", func(t *testing.T) {
			besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
				layer := s.push(size)
				s.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Truncate: 1000})
				took := elapsed(func() { s.refuseBlob(t, layer.Digest, pullthrough.ErrUnavailable) })
				assert.Less(t, took, time.Minute)
				assert.LessOrEqual(t, s.Up.Count("*"), 10)
			})
		})
	}
}

// statuses are those that upstream has answered with, in order.
func statuses(u *pullthroughtest.Upstream) (all []string) {
	for _, r := range u.Requests() {
		all = append(all, strconv.Itoa(r.Status))
	}
	return all
}

func testBlobThatEndsEarlyAndLooksComplete(t *testing.T) {
	for name, size := range testkit.LayerSizes {
		for _, known := range []bool{true, false} {
			t.Run(fmt.Sprint(name, ", size known ", known), func(t *testing.T) {
				besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
					layer := s.push(size)
					if known {
						_, err := s.Resolve(t.Context(), "1")
						require.NoError(t, err)
					}
					s.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, CloseDelimited: true, Truncate: 1})
					s.refuseBlob(t, layer.Digest, pullthrough.ErrUnavailable, pullthrough.ErrDigest)
					assert.LessOrEqual(t, s.Up.Count(testkit.Blobs), 10)
				})
			})
		}
	}
}

func testBlobThatGoesOnForEver(t *testing.T) {
	t.Run("one byte more than declared", func(t *testing.T) {
		besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
			layer := s.push(5000)
			s.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Extend: 1})
			s.PullBlob(t, "a", layer.Digest) // the byte is no part of the answer
			assert.Equal(t, 1, s.Up.Count(testkit.Blobs))
		})
	})
	t.Run("without end", testBlobWithoutEndIsLimited)
}

func testLengthsThatLie(t *testing.T) {
	const real = 5000
	for name, lengths := range map[string][]string{
		"bigger": {"5010"}, "smaller": {"4990"}, "far too big": {"9223372036854775807"}, "too big for a number": {"9223372036854775808"},
		"negative": {"-1"}, "no number": {"many"}, "hexadecimal": {"0x1388"}, "with a sign": {"+5000"}, "empty list": {","},
		"twice": {"5000", "4990"}, "twice in one": {"5000, 4990"},
	} {
		t.Run("blob, "+name, func(t *testing.T) {
			besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
				layer := s.push(real)
				s.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Header: http.Header{"Content-Length": lengths}})
				took := elapsed(func() {
					s.refuseBlob(t, layer.Digest, pullthrough.ErrUnavailable, pullthrough.ErrDigest, pullthrough.ErrTooLarge)
				})
				assert.Less(t, took, time.Minute)
				assert.LessOrEqual(t, s.Up.Count("*"), 10)
			})
		})
		t.Run("manifest, "+name, func(t *testing.T) {
			besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
				size := int64(len(s.img.Content))
				for i := range lengths { // the same lies about another size
					lengths[i] = strings.NewReplacer("5000", fmt.Sprint(size), "4990", fmt.Sprint(size-10), "5010", fmt.Sprint(size+10)).Replace(lengths[i])
				}
				s.Up.Fault(pullthroughtest.Fault{Match: manifests, Header: http.Header{"Content-Length": lengths}})
				took := elapsed(func() { s.refuse(t, "1", pullthrough.ErrUnavailable, pullthrough.ErrDigest, pullthrough.ErrTooLarge) })
				assert.Less(t, took, time.Minute)
				assert.LessOrEqual(t, s.Up.Count("*"), 8)
			})
		})
	}
}

func testAnswerThatStopsInTheMiddle(t *testing.T) {
	for kind, match := range map[string]string{"manifest": manifests, "blob": testkit.Blobs, "token": "GET /token*"} {
		t.Run(kind, func(t *testing.T) {
			besieged(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(t *testing.T, s *siege) {
				s.Up.Fault(pullthroughtest.Fault{Match: match + " 20*", Stall: make(chan struct{}), StallAfter: new(int64(50))})
				took := elapsed(func() { s.slow(t, kind) })
				assert.LessOrEqual(t, took, 4*time.Minute)
			})
		})
	}
}

// slow pulls what cannot be had, and something else meanwhile.
func (s *siege) slow(t *testing.T, kind string) {
	t.Helper()
	meanwhile(func() {
		if kind == "blob" {
			s.refuseBlob(t, s.img.Layers[0].Digest, pullthrough.ErrUnavailable)
		} else {
			s.refuse(t, "1", pullthrough.ErrUnavailable)
		}
	}, func() {
		if kind == "token" {
			return // one that is asked for in the same way: see the isolation of rules
		}
		s.Up.Push("b", "1", afterwards)
		assert.Zero(t, elapsed(func() { s.ReadImage(t, testkit.Repo("b"), "1", afterwards) }), "other pulls go on")
	})
}

func testByteEveryFourSeconds(t *testing.T) {
	for kind, path := range map[string]string{"manifest": "/v2/a/manifests/", "blob": "/v2/a/blobs/", "token": "/token"} {
		t.Run(kind, func(t *testing.T) {
			besieged(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(t *testing.T, s *siege) {
				s.handle(func(w http.ResponseWriter, r *http.Request) bool {
					if !strings.HasPrefix(r.URL.Path, path) || path != "/token" && r.Header.Get("Authorization") == "" {
						return false
					}
					w.Header().Set("Content-Length", "5000")
					for range 5000 {
						_, err := io.WriteString(w, "x")
						if err != nil || http.NewResponseController(w).Flush() != nil || !wait(r, 4*time.Second) {
							break
						}
					}
					return true
				})
				took := elapsed(func() { s.slow(t, kind) })
				assert.LessOrEqual(t, took, 2*time.Minute+2*time.Second)
			})
		})
	}
}

func testHugeTrailers(t *testing.T) {
	for kind, path := range map[string]string{"manifest": "/v2/a/manifests/1", "blob": "/v2/a/blobs/"} {
		t.Run(kind, func(t *testing.T) {
			besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
				content := map[string][]byte{"manifest": s.img.Content, "blob": testkit.BlobContent(t, s.img.Layers[0])}[kind]
				parts := []string{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-A\r\n\r\n", fmt.Sprintf("%x\r\n%s\r\n0\r\nX-A: ", len(content), content)}
				for range 10 << 10 {
					parts = append(parts, kilobyte)
				}
				parts = append(parts, "\r\n\r\n")
				s.handle(func(w http.ResponseWriter, r *http.Request) bool {
					ours := strings.HasPrefix(r.URL.Path, path)
					if ours {
						speak(t, w, parts...)
					}
					return ours
				})
				var err error
				cost := testkit.Allocated(func() {
					if kind == "blob" {
						err = s.Whole(t.Context(), s.img.Layers[0].Digest)
					} else {
						_, err = s.Resolve(t.Context(), "1")
					}
				})
				if err != nil {
					assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
				}
				assert.Less(t, cost, uint64(4<<20))
				assert.LessOrEqual(t, s.Up.Count("*"), 10)
			})
		})
	}
}

var kilobyte = strings.Repeat("x", 1<<10)
