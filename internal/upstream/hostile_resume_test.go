package upstream_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// A blob of resumeSize bytes breaks off after resumeCut, and the rest is
// another's, or not the rest.
const resumeSize, resumeCut = 3 << 20, 1 << 20

// part says that an answer is this part.
func part(first, last, total any) string { return fmt.Sprintf("bytes %v-%v/%v", first, last, total) }

// badParts are headers of answers that are not the rest of the blob, by what is
// wrong.
var badParts = map[string]http.Header{
	"another total":         {"Content-Range": {part(resumeCut, resumeSize, resumeSize+1)}},
	"a smaller total":       {"Content-Range": {part(resumeCut, resumeSize-2, resumeSize-1)}},
	"shifted back":          {"Content-Range": {part(resumeCut-1, resumeSize-2, resumeSize)}},
	"shifted on":            {"Content-Range": {part(resumeCut+1, resumeSize-1, resumeSize)}},
	"from the start":        {"Content-Range": {part(0, resumeSize-1, resumeSize)}},
	"not to the end":        {"Content-Range": {part(resumeCut, resumeSize-2, resumeSize)}},
	"no Content-Range":      {"Content-Range": nil},
	"two of them":           {"Content-Range": {part(resumeCut, resumeSize-1, resumeSize), part(0, resumeSize-1, resumeSize)}},
	"the same twice":        {"Content-Range": {part(resumeCut, resumeSize-1, resumeSize), part(resumeCut, resumeSize-1, resumeSize)}},
	"two in one":            {"Content-Range": {part(resumeCut, resumeSize-1, resumeSize) + ", " + part(0, 1, 2)}},
	"an unknown total":      {"Content-Range": {part(resumeCut, resumeSize-1, "*")}},
	"no range":              {"Content-Range": {"bytes */3145728"}},
	"backwards":             {"Content-Range": {part(resumeSize-1, resumeCut, resumeSize)}},
	"too big for a number":  {"Content-Range": {part(resumeCut, "9223372036854775808", "9223372036854775809")}},
	"a sign":                {"Content-Range": {part(fmt.Sprintf("+%d", resumeCut), resumeSize-1, resumeSize)}},
	"negative":              {"Content-Range": {part("-1", resumeSize-1, resumeSize)}},
	"other units":           {"Content-Range": {strings.Replace(part(resumeCut, resumeSize-1, resumeSize), "bytes", "lines", 1)}},
	"no units":              {"Content-Range": {strings.TrimPrefix(part(resumeCut, resumeSize-1, resumeSize), "bytes ")}},
	"several parts":         {"Content-Range": nil, "Content-Type": {"multipart/byteranges; boundary=x"}},
	"one part and multiple": {"Content-Type": {"multipart/byteranges; boundary=x"}},
}

func testPartsOfTwoObjectsAreNotJoined(t *testing.T) {
	other := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 77, LayerSize: resumeSize}).Layers[0]
	for name, header := range badParts {
		for what, wrong := range map[string]bool{"the rest": false, "another's": true} {
			t.Run(name+", "+what, func(t *testing.T) {
				fault := pullthroughtest.Fault{Match: testkit.Blobs + " 206", Header: header}
				if wrong {
					fault.Body = testkit.BlobContent(t, other)[resumeCut:]
				}
				continued(t, fault)
			})
		}
	}
	for name, fault := range map[string]pullthroughtest.Fault{
		"another ETag":             {Match: testkit.Blobs + " 206", Header: http.Header{"Etag": {`"other"`}}, Body: testkit.BlobContent(t, other)[resumeCut:]},
		"another object":           {Match: testkit.Blobs + " 206", Body: testkit.BlobContent(t, other)[resumeCut:]},
		"another object, whole":    {Match: testkit.Blobs + " 206", Status: 200, Header: http.Header{"Content-Range": nil}, Body: testkit.BlobContent(t, other)},
		"a longer one, whole":      {Match: testkit.Blobs + " 206", Status: 200, Header: http.Header{"Content-Range": nil}, Body: append(testkit.BlobContent(t, other), 0)},
		"the whole as a part":      {Match: testkit.Blobs + " 206", Body: testkit.BlobContent(t, other)},
		"less than it says":        {Match: testkit.Blobs + " 206", Truncate: 1000, NoLength: true},
		"more than it says":        {Match: testkit.Blobs + " 206", Extend: 1000, NoLength: true},
		"a page":                   {Match: testkit.Blobs + " 206", Status: 200, Body: []byte("<html></html>"), Header: http.Header{"Content-Type": {"text/html"}, "Content-Range": nil}},
		"nothing":                  {Match: testkit.Blobs + " 206", Status: 204, Body: []byte{}},
		"not modified":             {Match: testkit.Blobs + " 206", Status: 304, Body: []byte{}},
		"multiple choices":         {Match: testkit.Blobs + " 206", Status: 300, Body: []byte("x")},
		"no range that it knows":   {Match: testkit.Blobs + " 206", Status: 416},
		"no range, always":         {Match: testkit.Blobs + " 20*", Skip: 1, Status: 416},
		"a range that was not met": {Match: testkit.Blobs + " 206", Status: 412},
	} {
		t.Run(name, func(t *testing.T) { continued(t, fault) })
	}
}

// continued pulls a blob that breaks off; what comes then is right or an error.
func continued(t *testing.T, fault pullthroughtest.Fault) {
	t.Helper()
	besieged(t, pullthroughtest.Config{}, func(t *testing.T, s *siege) {
		layer := s.push(resumeSize)
		s.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 200", Times: 1, CutAfter: new(int64(resumeCut))})
		s.Up.Fault(fault)
		took := elapsed(func() {
			if err := s.Whole(t.Context(), layer.Digest); err != nil {
				s.assertRefusal(t, layer.Digest.String(), err, pullthrough.ErrUnavailable, pullthrough.ErrDigest)
				s.Settled(t)
				_, stored := s.Mem.Blob(t.Context(), testkit.Repo("a"), layer.Digest)
				assert.Error(t, stored)
			}
		})
		assert.Less(t, took, time.Minute)
		ranges := 0
		for _, r := range s.Up.Requests() {
			if r.Range != "" {
				ranges++
				var from int64
				_, err := fmt.Sscanf(r.Range, "bytes=%d-", &from)
				assert.NoError(t, err)
				assert.GreaterOrEqual(t, from, int64(resumeCut), "what came was right")
			}
		}
		assert.Positive(t, ranges)
		assert.LessOrEqual(t, s.Up.Count("*"), 8)
	})
}

func testURLsOfLayersAreNotFetched(t *testing.T) {
	for _, fill := range []pullthrough.FillMode{pullthrough.FillLazy, pullthrough.FillBackground, pullthrough.FillEager} {
		for _, mediaType := range []string{ocispec.MediaTypeImageLayerGzip, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"} {
			t.Run(fmt.Sprint(fill, " ", mediaType), func(t *testing.T) {
				besieged(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, func(t *testing.T, s *siege) {
					s.login()
					s.Fill = fill
					s.at("other.test", s.other.DialPipe)
					s.at("169.254.169.254", s.other.DialPipe)
					missing := s.other.PushBlob("a", []byte("a layer that only others have"))
					urls := fmt.Sprintf(`"urls":["http://other.test/v2/a/blobs/%[1]s","http://169.254.169.254/latest/meta-data/"]`, missing)
					config := s.Up.PushBlob("a", []byte("{}"))
					content := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":2,%[5]s},"layers":[{"mediaType":%[4]q,"digest":%[6]q,"size":29,%[5]s}]}`,
						ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig, config, mediaType, urls, missing)
					s.pushRaw(ocispec.MediaTypeImageManifest, content)
					m, err := s.Resolve(t.Context(), "1")
					require.NoError(t, err)
					assert.Equal(t, content, string(m.Content), "clients may know what to make of it")
					s.Settled(t)
					s.refuseBlob(t, missing, pullthrough.ErrNotFound)
					s.assertNotDialled(t)
					assert.Positive(t, s.Up.Count(testkit.Blobs+" 404"))
				})
			})
		}
	}
}
