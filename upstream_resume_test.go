package pullthrough_test

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// breaks are the ways in which a body ends too early.
var breaks = map[string]struct {
	config pullthroughtest.Config
	fault  pullthroughtest.Fault // RawAfter, StallAfter and CutAfter say what happens, not where
}{
	"a connection that is closed":          {pullthroughtest.Config{}, pullthroughtest.Fault{CutAfter: new(int64)}},
	"a TLS connection that is closed":      {pullthroughtest.Config{TLS: true}, pullthroughtest.Fault{CutAfter: new(int64)}},
	"a chunked body":                       {pullthroughtest.Config{}, pullthroughtest.Fault{CutAfter: new(int64), NoLength: true}},
	"an HTTP/2 stream that is reset":       {secure, pullthroughtest.Fault{CutAfter: new(int64)}},
	"GOAWAY":                               {secure, framed(string(pullthroughtest.GoAway(0, 0)))},
	"GOAWAY because of an error":           {secure, framed(string(pullthroughtest.GoAway(0, 2)))},
	"a frame that must not be":             {secure, framed(oddSettings)},
	"a stall":                              {pullthroughtest.Config{}, pullthroughtest.Fault{StallAfter: new(int64)}},
	"a stall of one of many HTTP/2 bodies": {secure, pullthroughtest.Fault{StallAfter: new(int64)}},
}

// oddSettings is a SETTINGS frame of one byte, where each setting has six.
const oddSettings = "\x00\x00\x01\x04\x00\x00\x00\x00\x00x"

// framed sends an HTTP/2 frame, and then nothing.
func framed(raw string) pullthroughtest.Fault {
	return pullthroughtest.Fault{RawAfter: new(int64), Raw: []byte(raw), StallAfter: new(int64)}
}

// breaking is the fault at the offset, once. It must be made where it is used: stalls
// are channels of a bubble.
func breaking(f pullthroughtest.Fault, match string, offset int64) pullthroughtest.Fault {
	f.Match, f.Times = match, 1
	for _, after := range []**int64{&f.RawAfter, &f.StallAfter, &f.CutAfter} {
		if *after != nil {
			*after = &offset
		}
	}
	if f.StallAfter != nil {
		f.Stall = make(chan struct{})
	}
	return f
}

func testBrokenBlobGoesOn(t *testing.T) {
	for name, c := range breaks {
		t.Run("after "+name, func(t *testing.T) {
			inTime(t, c.config, nil, func(t *testing.T, p *pipeworks) {
				const cut = 1<<20 + 123
				layer := p.Layer(3 << 19)
				_, err := p.Resolve(t.Context(), "1") // tells the size where the answer does not
				require.NoError(t, err)
				p.Up.Fault(breaking(c.fault, testkit.Blobs+" 200", cut))
				p.PullBlob(t, "a", layer.Digest)
				var ranges []string
				for _, r := range p.Up.Requests()[1:] {
					ranges = append(ranges, r.Range)
				}
				require.Len(t, ranges, 2)
				from, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(ranges[1], "bytes="), "-"), 10, 64)
				require.NoError(t, err)
				assert.InDelta(t, cut, from, 16<<10, "what had come is not asked for again")
				for _, a := range p.arrivals("GET /v2/a/blobs/") {
					assert.Equal(t, map[bool]int{true: 2, false: 1}[c.config.HTTP2], a.proto)
				}
			})
		})
	}
	t.Run("after a TCP reset", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
		layer := w.Layer(4 << 20)
		w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Times: 1, CutAfter: new(int64(2 << 20)), Reset: true})
		w.PullBlob(t, "a", layer.Digest)
		assert.LessOrEqual(t, w.Up.Count(testkit.Blobs), 3, "a reset may take back all that was sent")
	})
	t.Run("by way of the registry", testBrokenBlobGoesOnThroughItsRedirect)
	t.Run("with another token", testBrokenBlobGoesOnWithANewToken)
	t.Run("with If-Range", testResumeNamesTheObjectThatItContinues)
	t.Run("answers", testAnswersToAResume)
}

// A presigned URL is good for one use here: the rest must not be asked for there.
func testBrokenBlobGoesOnThroughItsRedirect(t *testing.T) {
	cdn := pullthroughtest.New(t, pullthroughtest.Config{})
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
	layer := w.Layer(4 << 20)
	cdn.Push("a", "1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 4 << 20, LayerSize: 4 << 20}))
	for i := range 3 {
		w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 2*", Times: 1, Redirect: fmt.Sprint(cdn.URL, "{path}?signature=", i)})
	}
	cdn.Fault(pullthroughtest.Fault{Times: 2, CutAfter: new(int64(1 << 20))})
	w.PullBlob(t, "a", layer.Digest)
	var queries, ranges []string
	for _, r := range cdn.Requests() {
		queries, ranges = append(queries, r.Query), append(ranges, r.Range)
		assert.Empty(t, r.Header.Get("Authorization"))
	}
	assert.Equal(t, []string{"signature=0", "signature=1", "signature=2"}, queries)
	assert.Equal(t, []string{"", "bytes=1048576-", "bytes=2097152-"}, ranges)
	assert.Equal(t, 3, w.Up.Count(testkit.Blobs+" 307"))
	assert.Equal(t, 1, w.Up.Count("* 401"))
}

// A token may die while a long blob is on its way.
func testBrokenBlobGoesOnWithANewToken(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
	layer, gate := w.Layer(4<<20), testkit.NewGate(t)
	cut := int64(2 << 20)
	w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 200", Times: 1, Stall: gate.C, StallAfter: &cut, CutAfter: &cut})
	b, err := w.Open(t.Context(), layer.Digest)
	require.NoError(t, err)
	testkit.RequireRead(t, b.Body, 1<<20)
	w.Up.RevokeTokens()
	gate.Open()
	_, err = b.Body.(io.Seeker).Seek(0, io.SeekStart)
	require.NoError(t, err)
	testkit.AssertBody(t, layer.Digest, b)
	assert.Equal(t, []string{"401", "200", "401", "206"}, statuses(w, "/blobs/"))
	assert.Equal(t, 2, w.Up.Count("GET /token 200"))
}

// statuses are those of the answers to such paths.
func statuses(w *testkit.World, part string) (all []string) {
	for _, r := range w.Up.Requests() {
		if strings.Contains(r.Path, part) {
			all = append(all, fmt.Sprint(r.Status))
		}
	}
	return all
}

// If-Range with a validator that is weak, or of another host, would have the
// registry compare what cannot be compared.
func testResumeNamesTheObjectThatItContinues(t *testing.T) {
	const strong, weak = `"strong"`, `W/"weak"`
	cdn := pullthroughtest.New(t, pullthroughtest.Config{})
	cdn.Push("a", "1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 3 << 19, LayerSize: 3 << 19}))
	cut := pullthroughtest.Fault{Match: testkit.Blobs + " 200", Times: 1, CutAfter: new(int64(1 << 20))}
	for name, c := range map[string]struct {
		etag     string
		redirect bool
		allowed  []string
	}{
		"strong":            {strong, false, []string{"", strong}},
		"weak":              {weak, false, []string{""}},
		"of another origin": {strong, true, []string{""}},
		"none":              {"", false, []string{""}},
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			layer, from := w.Layer(3<<19), w.Up
			if c.redirect {
				w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Redirect: cdn.URL + "{path}"})
				from = cdn
			}
			fault := cut
			fault.Header = http.Header{"Etag": {c.etag}}
			from.Fault(fault)
			w.PullBlob(t, "a", layer.Digest)
			require.Equal(t, 2, w.Up.Count(testkit.Blobs))
			assert.Equal(t, "bytes=1048576-", w.Up.Requests()[1].Range)
			assert.Contains(t, c.allowed, w.Up.Requests()[1].Header.Get("If-Range"))
		})
	}
}

type resumed struct {
	fault pullthroughtest.Fault
	want  string
}

// What may become of a resume: either is that it fails or begins anew, but is
// never spliced.
const good, refused, either = "good", "refused", "either"

// resumes are the answers to the second half of a layer of size bytes.
func resumes(t *testing.T, size, cut int64) map[string]resumed {
	part := func(contentRange ...string) pullthroughtest.Fault {
		return pullthroughtest.Fault{Header: http.Header{"Content-Range": contentRange}}
	}
	span := func(first, last, total int64) string { return fmt.Sprintf("bytes %d-%d/%d", first, last, total) }
	same := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: size, LayerSize: size}).Layers[0]
	other := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 7, LayerSize: size}).Layers[0]
	all := func(b *pullthroughtest.Blob, more ...byte) pullthroughtest.Fault {
		return pullthroughtest.Fault{Status: 200, Body: append(testkit.BlobContent(t, b), more...), Header: http.Header{"Content-Range": nil}}
	}
	inParts := http.Header{"Content-Range": nil, "Content-Type": {"multipart/byteranges; boundary=x"}}
	return map[string]resumed{
		"206 as asked":                         {pullthroughtest.Fault{}, good},
		"200 with all of it":                   {all(same), good},
		"200 with all of another":              {all(other), refused},
		"200 with more than all of it":         {all(same, 0), refused},
		"416":                                  {pullthroughtest.Fault{Status: 416}, good},
		"503 once":                             {pullthroughtest.Fault{Status: 503, Times: 1}, good},
		"404":                                  {pullthroughtest.Fault{Status: 404}, refused},
		"403":                                  {pullthroughtest.Fault{Status: 403}, refused},
		"206 that starts early":                {part(span(cut-10, size-1, size)), either},
		"206 that starts late":                 {part(span(cut+10, size-1, size)), either},
		"206 that ends early":                  {part(span(cut, size-2, size)), either},
		"206 of a larger object":               {part(span(cut, size, size+1)), refused},
		"206 of a larger object, by the total": {part(span(cut, size-1, size+1)), refused},
		"206 of a smaller object":              {part(span(cut, size-2, size-1)), refused},
		"206 without Content-Range":            {part(), either},
		"206 with two Content-Range":           {part(span(cut, size-1, size), "bytes 0-1/2"), either},
		"206 with Content-Range twice":         {part(span(cut, size-1, size), span(cut, size-1, size)), either},
		"206 that satisfies nothing":           {part(fmt.Sprintf("bytes */%d", size)), either},
		"206 of unknown total":                 {part(fmt.Sprintf("bytes %d-%d/*", cut, size-1)), either},
		"206 of items":                         {part(fmt.Sprintf("items %d-%d/%d", cut, size-1, size)), either},
		"206 backwards":                        {part("bytes 9-5/10"), either},
		"206 with signs":                       {part(fmt.Sprintf("bytes +%d-%d/%d", cut, size-1, size)), either},
		"206 with numbers over 64 bits":        {part(fmt.Sprintf("bytes %d-18446744073709551615/18446744073709551616", cut)), either},
		"206 with numbers that wrap":           {part("bytes 18446744073710600192-18446744073710862335/18446744073710862336"), either},
		"206 in several parts":                 {pullthroughtest.Fault{Header: inParts}, either},
		"206 with a bit flipped":               {pullthroughtest.Fault{Flip: new(int64(5))}, refused},
	}
}

func testAnswersToAResume(t *testing.T) {
	const size, cut = 5 << 18, 1 << 20
	for name, c := range resumes(t, size, cut) {
		t.Run(name, func(t *testing.T) {
			inTime(t, pullthroughtest.Config{}, nil, func(t *testing.T, p *pipeworks) {
				layer := p.Layer(size)
				p.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 200", Times: 1, CutAfter: new(int64(cut))})
				c.fault.Match = testkit.Blobs + " 206"
				p.Up.Fault(c.fault)
				err := p.Whole(t.Context(), layer.Digest)
				p.Settled(t)
				_, missing := p.Mem.Blob(t.Context(), testkit.Repo("a"), layer.Digest)
				if c.want == good || c.want == either && err == nil {
					assert.NoError(t, err)
					assert.NoError(t, missing)
					assert.GreaterOrEqual(t, p.Up.Count(testkit.Blobs), map[string]int{good: 2, either: 3}[c.want], "what does not fit is not taken")
				} else {
					assert.Equal(t, 502, statusOf(err), err)
					assert.Error(t, missing)
				}
				assert.LessOrEqual(t, p.Up.Count(testkit.Blobs), 6)
				p.Up.Heal()
				assert.NoError(t, p.Whole(t.Context(), layer.Digest))
			})
		})
	}
	t.Run("416 to whatever is asked in parts, and a cut in what is whole", func(t *testing.T) {
		inTime(t, pullthroughtest.Config{}, nil, func(t *testing.T, p *pipeworks) {
			layer := p.Layer(size)
			p.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 200", CutAfter: new(int64(cut))})
			p.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 206", Status: 416})
			assertNoBlob(t, p.World, layer.Digest, pullthrough.ErrUnavailable)
			assert.LessOrEqual(t, p.Up.Count(testkit.Blobs), 7)
			assert.LessOrEqual(t, p.Up.Count(testkit.Blobs+" 416"), 1)
		})
	})
}

// statusOf is the status a client gets for err, which must be of the proxy's kinds.
func statusOf(err error) int {
	status, _, _ := pullthrough.OCI(err)
	return status
}

func testManyBreaksEndWhereNothingComes(t *testing.T) {
	t.Run("every 100 KB", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
		layer := w.Layer(10 << 20)
		w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, CutAfter: new(int64(100_000))})
		w.PullBlob(t, "a", layer.Digest)
		assert.Equal(t, 105, w.Up.Count(testkit.Blobs))
		assert.EqualValues(t, 10<<20, spent(w, "/blobs/"), "no byte is sent twice")
	})
	for name, step := range map[string]int64{"without a byte": 0, "with a byte each time": 1} {
		t.Run(name, func(t *testing.T) {
			inTime(t, pullthroughtest.Config{}, nil, func(t *testing.T, p *pipeworks) {
				layer := p.Layer(10 << 20)
				p.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 200", Times: 1, CutAfter: new(int64(5 << 20))})
				p.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, CutAfter: &step})
				assertNoBlob(t, p.World, layer.Digest, pullthrough.ErrUnavailable)
				assert.InDelta(t, 5, p.Up.Count(testkit.Blobs), 1, "four tries that got nowhere")
			})
		})
	}
	t.Run("and is away", testUpstreamThatIsAwayIsWaitedFor)
	t.Run("and is away twice", testUpstreamThatIsAwayTwice)
	t.Run("for ever", func(t *testing.T) {
		inTime(t, pullthroughtest.Config{}, nil, func(t *testing.T, p *pipeworks) {
			layer := p.Layer(63 << 20)
			p.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, CutAfter: new(int64(64 << 10))})
			assertNoBlob(t, p.World, layer.Digest, pullthrough.ErrUnavailable)
			assert.Equal(t, 1001, p.Up.Count(testkit.Blobs))
		})
	})
}

func testBodyThatEndsWithItsConnection(t *testing.T) {
	for name, size := range testkit.LayerSizes {
		for _, told := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, size told by the manifest: %v", name, told), func(t *testing.T) {
				inTime(t, pullthroughtest.Config{}, nil, func(t *testing.T, p *pipeworks) {
					layer := p.Layer(size)
					if told {
						_, err := p.Resolve(t.Context(), "1")
						require.NoError(t, err)
					}
					heal := p.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, CloseDelimited: true, Truncate: 1})
					err := p.Whole(t.Context(), layer.Digest)
					assert.Equal(t, 502, statusOf(err), err)
					p.Settled(t)
					_, err = p.Mem.Blob(t.Context(), testkit.Repo("a"), layer.Digest)
					assert.Error(t, err)
					assert.LessOrEqual(t, p.Up.Count(testkit.Blobs), 6)
					heal()
					p.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, CloseDelimited: true})
					assert.NoError(t, p.Whole(t.Context(), layer.Digest))
				})
			})
		}
	}
	for name, digest := range map[string]bool{"a manifest by tag": false, "a manifest by digest": true} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
			w.Up.Push("a", "1", img)
			ref := map[bool]string{true: img.Digest.String(), false: "1"}[digest]
			heal := w.Up.Fault(pullthroughtest.Fault{CloseDelimited: true, Truncate: 1})
			_, err := w.Resolve(t.Context(), ref)
			assert.Equal(t, 502, statusOf(err), err)
			_, err = w.Stored(t, ref)
			assert.Error(t, err)
			assert.LessOrEqual(t, w.Up.Count("*"), 2)
			heal()
			w.Up.Fault(pullthroughtest.Fault{CloseDelimited: true})
			m, err := w.Resolve(t.Context(), ref)
			require.NoError(t, err)
			assert.Equal(t, img.Digest, m.Descriptor.Digest)
		})
	}
}
