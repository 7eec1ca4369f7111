package upstream_test

import (
	"fmt"
	"math"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestHostileManifestsCostLittleMemory(t *testing.T) {
	for name, unit := range map[string]string{"descriptors": "{},", "numbers": "0,", "arrays": "[],"} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			w.Up.Push("a", "1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))
			body := `{"schemaVersion":2,"config":{},"layers":[` + strings.Repeat(unit, (4<<20-100)/len(unit)) + `{}]}`
			w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/*", Body: []byte(body)})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
			runtime.ReadMemStats(&after)
			require.ErrorIs(t, err, pullthrough.ErrUnavailable)
			assert.Less(t, len(err.Error()), 1000)
			assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<20))
			assert.Equal(t, 2, w.Up.Count("*"), "the tag, and once the digest that it is said to have")
		})
	}
}

func testWrongManifestIsRefused(t *testing.T) {
	other := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 7})
	for name, header := range map[string]http.Header{
		"": nil, " and lies about its digest": {}, " under its own digest": {"Docker-Content-Digest": {other.Digest.String()}},
	} {
		t.Run("another manifest"+name, func(t *testing.T) {
			besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
				if header != nil && len(header) == 0 {
					header = http.Header{"Docker-Content-Digest": {s.img.Digest.String()}}
				}
				s.Up.Fault(pullthroughtest.Fault{Match: manifests, Body: other.Content, Header: header})
				s.refuse(t, s.img.Digest.String(), pullthrough.ErrDigest)
				_, stored := s.Stored(t, other.Digest.String())
				assert.Error(t, stored, "nor under its own name: nobody asked for it")
				assert.LessOrEqual(t, s.Up.Count("*"), 2, "one more try, no more")
			})
		})
	}
}

// pushRaw replaces a:1 by a manifest of these bytes, and returns its digest.
func (s *siege) pushRaw(mediaType, content string) digest.Digest {
	d := digest.FromString(content)
	s.Up.Push("a", "1", &pullthroughtest.Image{MediaType: mediaType, Content: []byte(content)})
	return d
}

// sized is an image manifest that says that its one layer has this size.
func sized(layer digest.Digest, size int64) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":2},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig, digest.FromString("{}"), ocispec.MediaTypeImageLayerGzip, layer, size)
}

func testAbsurdSizesInAManifest(t *testing.T) {
	for _, size := range []int64{-1, math.MinInt64} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
				d := s.pushRaw(ocispec.MediaTypeImageManifest, sized(s.img.Layers[0].Digest, size))
				s.refuse(t, "1", pullthrough.ErrUnavailable)
				s.refuse(t, d.String(), pullthrough.ErrUnavailable)
				assert.Equal(t, 2, s.Up.Count("*"))
			})
		})
	}
	for _, size := range []int64{0, 4999, 1 << 40, math.MaxInt64} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
				s.pushRaw(ocispec.MediaTypeImageManifest, sized(s.img.Layers[0].Digest, size))
				_, err := s.Resolve(t.Context(), "1")
				require.NoError(t, err, "that it is a lie is not known yet")
				s.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, NoLength: true})
				cost := testkit.Allocated(func() { err = s.Whole(t.Context(), s.img.Layers[0].Digest) })
				if err != nil {
					assert.True(t, isOneOf(err, pullthrough.ErrDigest, pullthrough.ErrUnavailable, pullthrough.ErrTooLarge), "%v", err)
				}
				assert.Less(t, cost, uint64(8<<20), "nothing is allocated by a size that was told")
				assert.LessOrEqual(t, s.Up.Count(testkit.Blobs), 2)
			})
		})
	}
}

func testManifestsThatAreSlowToParse(t *testing.T) {
	const most = 4 << 20
	fill := func(before, unit, behind string) string {
		return before + strings.Repeat(unit, (most-len(before)-len(behind))/len(unit)) + behind
	}
	for name, content := range map[string]string{
		"arrays in arrays":    fill("", "[", ""),
		"in a known key":      fill(`{"layers":`, "[", ""),
		"in another key":      fill(`{"x":`, "[", ""),
		"objects in objects":  fill(`{"x":`, `{"a":`, ""),
		"a million layers":    fill(`{"schemaVersion":2,"config":{},"layers":[{}`, ",{}", "]}"),
		"a million manifests": fill(`{"schemaVersion":2,"manifests":[{}`, ",{}", "]}"),
		"a million keys":      manyKeys(most),
		"spaces":              fill("{", " ", "}"),
		"half a string":       fill(`{"x":"`, "x", ""),
		"escapes":             fill(`{"x":"`, `\u0000`, `"}`),
		"a 10 MB string":      `{"x":"` + strings.Repeat("x", 10<<20) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			// The bubble's clock stands still while somebody computes.
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
			w.Up.Push("a", "1", &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageManifest, Content: []byte(content)})
			var err error
			before := testkit.CPUTicks()
			cost := testkit.Allocated(func() { _, err = w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"}) })
			took := time.Duration(testkit.CPUTicks()-before) * 10 * time.Millisecond
			if err != nil {
				require.True(t, isOneOf(err, pullthrough.ErrUnavailable, pullthrough.ErrTooLarge), "%v", err)
			}
			assert.Less(t, took, 2*time.Second, "the parser is not linear") // well under 100 ms without the race detector
			assert.Less(t, cost, uint64(96<<20))
			assert.Equal(t, 1, w.Up.Count("*"))
			w.Up.Push("a", "2", img)
			w.Pull(t, "a", "2", img)
		})
	}
}

func manyKeys(size int) string {
	var b strings.Builder
	b.WriteString(`{"schemaVersion":2`)
	for i := 0; b.Len() < size-20; i++ {
		fmt.Fprintf(&b, `,"%x":0`, i)
	}
	return b.String() + "}"
}

func testManifestThatReadersUnderstandInTwoWays(t *testing.T) {
	const layer = `{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:` + testkit.Hex64 + `","size":0}`
	for name, rest := range map[string]string{
		"index and image":             `"manifests":[],"config":` + layer + `,"layers":[]`,
		"index and layers":            `"manifests":[` + layer + `],"layers":[` + layer + `]`,
		"index and configuration":     `"manifests":[],"config":` + layer,
		"layers twice":                `"config":` + layer + `,"layers":[],"layers":[` + layer + `]`,
		"manifests twice":             `"manifests":[],"manifests":[` + layer + `]`,
		"configuration twice":         `"config":` + layer + `,"config":null,"layers":[]`,
		"layers in another case":      `"config":` + layer + `,"layers":[],"Layers":[` + layer + `]`,
		"manifests in another case":   `"manifests":[],"MANIFESTS":[` + layer + `]`,
		"only another case":           `"config":` + layer + `,"Layers":[` + layer + `]`,
		"a letter that folds to one":  `"config":` + layer + `,"layers":[],"layer\u017f":[` + layer + `]`,
		"another case of schema":      `"config":` + layer + `,"layers":[],"SchemaVersion":1`,
		"a key twice by its escape":   `"config":` + layer + `,"layers":[],"l\u0061yers":[` + layer + `]`,
		"Config":                      `"Config":` + layer + `,"layers":[]`,
		"mediaType twice":             `"mediaType":"` + ocispec.MediaTypeImageIndex + `","mediaType":"` + ocispec.MediaTypeImageManifest + `","manifests":[]`,
		"mediaType and MediaType":     `"mediaType":"` + ocispec.MediaTypeImageIndex + `","MediaType":"x","manifests":[]`,
		"an index called a manifest":  `"mediaType":"` + ocispec.MediaTypeImageManifest + `","manifests":[]`,
		"a manifest called an index":  `"mediaType":"` + ocispec.MediaTypeImageIndex + `","config":` + layer,
		"two documents":               `"config":` + layer + `,"layers":[]}{"schemaVersion":2,"manifests":[]`,
		"digest twice in a layer":     `"config":` + layer + `,"layers":[{"digest":"sha256:` + testkit.Hex64 + `","digest":"sha256:` + testkit.Hex64[1:] + `0","size":0}]`,
		"Digest beside digest in one": `"config":` + layer + `,"layers":[{"digest":"sha256:` + testkit.Hex64 + `","Digest":"sha256:` + testkit.Hex64[1:] + `0","size":0}]`,
	} {
		t.Run(name, func(t *testing.T) {
			besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
				for _, served := range []string{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, "application/json"} {
					d := s.pushRaw(served, `{"schemaVersion":2,`+rest+`}`)
					s.refuse(t, "1", pullthrough.ErrUnavailable)
					s.refuse(t, d.String(), pullthrough.ErrUnavailable)
				}
				assert.Equal(t, 6, s.Up.Count("*"), "the same would come again")
			})
		})
	}
}

func testTagThatMovesWhileItIsChecked(t *testing.T) {
	images := make([]*pullthroughtest.Image, 4)
	for i := range images {
		images[i] = pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i)})
	}
	besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
		s.rule(pullthrough.Policy{TagTTL: pullthrough.EveryPull})
		s.Up.Push("a", "1", images[0])
		s.Pull(t, "a", "1", images[0])
		next := 1
		s.handle(func(_ http.ResponseWriter, r *http.Request) bool {
			if next < len(images) { // with every request the tag moves on, and what it was is gone
				if r.Method == http.MethodGet {
					s.Up.Delete("a", images[next-1].Digest.String())
				}
				s.Up.Push("a", "1", images[next])
				next++
			}
			return false
		})
		m, err := s.Resolve(t.Context(), "1")
		require.NoError(t, err)
		assert.Equal(t, digest.FromBytes(m.Content), m.Descriptor.Digest)
		assert.EqualValues(t, len(m.Content), m.Descriptor.Size)
		i := slices.IndexFunc(images, func(img *pullthroughtest.Image) bool { return img.Digest == m.Descriptor.Digest })
		assert.Positive(t, i, "it is one of those that the tag has had")
		s.handle(nil)
		s.img = images[next-1]
		s.Pull(t, "a", "1", s.img)
		assert.LessOrEqual(t, s.Up.Count("GET "+strings.TrimPrefix(manifests, "GET ")), 6)
	})
}

func testDigestsThatArePaths(t *testing.T) {
	for name, child := range map[string]string{
		"a path": "../../x", "a path behind an algorithm": "sha256:../../../etc/passwd", "a slash": "sha256:" + testkit.Hex64 + "/../x",
		"too short": "sha256:" + testkit.Hex64[1:], "too long": "sha256:" + testkit.Hex64 + "0", "upper case": "sha256:" + strings.ToUpper(testkit.Hex64),
		"no digest": "latest", "empty": "", "only a colon": ":", "no hash": "sha256:", "another algorithm": "md5:d41d8cd98f00b204e9800998ecf8427e",
		"an unknown one": "sha257:" + testkit.Hex64, "sha512 of sha256": "sha512:" + testkit.Hex64, "a query": "sha256:" + testkit.Hex64 + "?x=y", "a line break": `sha256:` + testkit.Hex64 + `\r\nX: y`,
	} {
		t.Run(name, func(t *testing.T) {
			besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
				s.Fill = pullthrough.FillEager
				content := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":"%s","size":10}]}`,
					ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, child)
				s.pushRaw(ocispec.MediaTypeImageIndex, content)
				m, err := s.Resolve(t.Context(), "1")
				s.Settled(t)
				if err == nil {
					assert.Equal(t, content, string(m.Content), "what is served is what upstream has")
				} else {
					assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
				}
				assert.Equal(t, []string{"GET /v2/a/manifests/1 200"}, s.Up.Log())
				b := `{"schemaVersion":2,"config":{"digest":"` + child + `","size":1},"layers":[{"digest":"` + child + `","size":1}]}`
				s.pushRaw(ocispec.MediaTypeImageManifest, b)
				s.Up.Reset()
				_, _ = s.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: digest.FromString(b).String()})
				s.Settled(t)
				assert.Len(t, s.Up.Log(), 1, "a blob of that name is not asked for")
			})
		})
	}
}
