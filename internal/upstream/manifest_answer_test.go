package upstream_test

import (
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// negotiating answers manifest requests with the first type of the first Accept
// line that it has, as some registries do.
func negotiating(all ...*pullthroughtest.Image) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		for accepted := range strings.SplitSeq(r.Header.Get("Accept"), ",") {
			accepted, _, _ = strings.Cut(strings.TrimSpace(accepted), ";")
			for _, img := range all {
				if accepted == img.MediaType {
					w.Header().Set("Content-Type", img.MediaType)
					w.Header().Set("Docker-Content-Digest", img.Digest.String())
					_, _ = w.Write(img.Content)
					return true
				}
			}
		}
		w.WriteHeader(http.StatusNotAcceptable)
		return true
	}
}

func testOneAcceptHeaderForAll(t *testing.T) {
	oci := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	docker := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Docker: true})
	ociIndex, dockerList := pullthroughtest.NewIndex(oci), pullthroughtest.NewIndex(docker)
	for name, has := range map[string][]*pullthroughtest.Image{
		"an index and a manifest":            {ociIndex, oci},
		"a list and a manifest":              {dockerList, docker},
		"an index and a list":                {ociIndex, dockerList},
		"an OCI and a Docker manifest":       {oci, docker},
		"a list only":                        {dockerList},
		"a Docker manifest only":             {docker},
		"an index, a list and two manifests": {ociIndex, docker, oci, dockerList},
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{Handler: negotiating(has...)}, nil)
			m, err := w.Resolve(t.Context(), "1")
			require.NoError(t, err)
			assert.Equal(t, has[0].MediaType, m.Descriptor.MediaType)
			assert.Equal(t, has[0].Digest, m.Descriptor.Digest)
			assert.Equal(t, 1, w.Up.Count("*"))
		})
	}
	t.Run("whatever the client accepts", func(t *testing.T) {
		f := testkit.NewFace(t, pullthroughtest.Config{}, testkit.EveryPull)
		f.Up.Push("a", "1", oci)
		for _, accept := range []string{"", "*/*", "application/x-" + testkit.Canary, docker.MediaType} {
			f.Settled(t)
			f.Get(t, testkit.ManifestPath("a", "1"), "Accept", accept)
			f.Ask(t, http.MethodHead, testkit.ManifestPath("a", "1"), "Accept", accept)
		}
		require.Positive(t, f.Up.Count("HEAD *"))
		want := f.Up.Requests()[0].Header.Get("Accept")
		types := strings.Split(want, ", ")
		assert.Equal(t, []string{ociIndex.MediaType, oci.MediaType, dockerList.MediaType, docker.MediaType}, types[:4])
		assert.Contains(t, [][]string{{}, {"*/*;q=0.1"}}, types[4:])
		for _, r := range f.Up.Requests() {
			assert.Equal(t, []string{want}, r.Header.Values("Accept"), r.String())
		}
		assert.False(t, f.Up.Saw(testkit.Canary))
	})
}

// readAhead is what may be on its way, in the buffers of both sides, when the proxy has
// had enough.
const readAhead = 256 << 10

func announced(size int64) http.Header {
	return http.Header{"Content-Length": {fmt.Sprint(size)}}
}

func testManifestOver4MiB(t *testing.T) {
	const limit = 4 << 20
	padded := func(size int) []byte {
		const head, tail = `{"schemaVersion":2,"manifests":[],"annotations":{"x":"`, `"}}`
		return []byte(head + strings.Repeat("x", size-len(head)-len(tail)) + tail)
	}
	index := http.Header{"Content-Type": {ocispec.MediaTypeImageIndex}}
	for name, c := range map[string]struct {
		fault pullthroughtest.Fault
		most  int64
	}{
		"one byte too many, announced":     {pullthroughtest.Fault{Body: []byte("{"), Extend: limit, Header: announced(limit + 1)}, 0},
		"one byte too many, not announced": {pullthroughtest.Fault{Body: padded(limit + 1), Header: index, NoLength: true}, limit + 1},
		"1 GiB, announced":                 {pullthroughtest.Fault{Body: []byte("{"), Extend: 1<<30 - 1, Header: announced(1 << 30)}, 0},
		"1 GiB, not announced":             {pullthroughtest.Fault{Body: []byte("{"), Extend: 1<<30 - 1, NoLength: true}, limit + 1},
		"no end":                           {pullthroughtest.Fault{Body: []byte("{"), Extend: math.MaxInt64, NoLength: true}, limit + 1},
		"no end and no lengths":            {pullthroughtest.Fault{Body: []byte("{"), Extend: math.MaxInt64, CloseDelimited: true}, limit + 1},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
				img := testkit.Image(1)
				w.Up.Push("a", "1", img)
				for _, ref := range []string{img.Digest.String(), "1"} {
					w.Up.Reset()
					heal := w.Up.Fault(c.fault)
					assert.Less(t, testkit.Allocated(func() {
						_, err := w.Resolve(t.Context(), ref)
						assert.ErrorIs(t, err, pullthrough.ErrTooLarge)
					}), uint64(32<<20))
					_, err := w.Stored(t, ref)
					assert.Error(t, err)
					assert.LessOrEqual(t, sent(w), c.most+readAhead)
					assert.Equal(t, 1, w.Up.Count("*"))
					heal()
				}
				_, err := w.Resolve(t.Context(), "1")
				assert.NoError(t, err)
			})
		})
	}
	for name, noLength := range map[string]bool{"4 MiB, announced": false, "4 MiB, not announced": true} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			w.Layer(1)
			index := http.Header{"Content-Type": index["Content-Type"], "Docker-Content-Digest": nil}
			body := padded(limit)
			w.Up.Fault(pullthroughtest.Fault{Body: body, Header: index, NoLength: noLength})
			m, err := w.Resolve(t.Context(), "1")
			require.NoError(t, err)
			assert.EqualValues(t, limit, m.Descriptor.Size)
			assert.Equal(t, 1, w.Up.Count("*"))
		})
	}
}

// nobodys is a digest that nothing has.
var nobodys = digest.FromString("nobody has this").String()

func named(digest string) http.Header { return http.Header{"Docker-Content-Digest": {digest}} }

func testDigestOfWhatCameCounts(t *testing.T) {
	t.Run("by digest", testManifestByDigestMustMatch)
	for name, c := range map[string]struct {
		fault  pullthroughtest.Fault
		lied   bool
		refuse bool
		asked  int // for the digest that the header names
	}{
		"by tag, with the right digest":              {pullthroughtest.Fault{}, false, true, 0},
		"by tag, without a digest":                   {pullthroughtest.Fault{Header: named("")}, false, true, 0},
		"by tag, with neither digest nor length":     {pullthroughtest.Fault{Header: named(""), NoLength: true}, false, true, 0},
		"by tag, with a wrong digest":                {pullthroughtest.Fault{Header: named(nobodys)}, true, false, 1},
		"by tag, with what is no digest":             {pullthroughtest.Fault{Header: named("../../x")}, true, false, 0},
		"by tag, with a wrong digest, and a refusal": {pullthroughtest.Fault{Header: named(nobodys)}, true, true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var told testkit.Events
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				testkit.WithPolicy(pullthrough.Policy{RefuseWrongDigest: c.refuse})(p)
				p.OnEvent = told.On
			})
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
			w.Up.Push("a", "1", img)
			w.Up.Fault(c.fault)
			m, err := w.Resolve(t.Context(), "1")
			if c.lied && c.refuse {
				assert.ErrorIs(t, err, pullthrough.ErrDigest)
				_, err = w.Stored(t, "1")
				assert.Error(t, err)
			} else {
				require.NoError(t, err)
				assert.Equal(t, img.Digest, m.Descriptor.Digest)
			}
			w.Settled(t)
			assert.Equal(t, c.lied, fetchEvent(t, &told).WrongDigest)
			assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/1"))
			assert.Equal(t, 1+c.asked, w.Up.Count("*"))
		})
	}
}

func testManifestByDigestMustMatch(t *testing.T) {
	one, two := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	w.Up.Push("a", "1", one)
	heal := w.Up.Fault(pullthroughtest.Fault{Body: two.Content, Header: named(one.Digest.String())})
	_, err := w.Resolve(t.Context(), one.Digest.String())
	assert.ErrorIs(t, err, pullthrough.ErrDigest)
	for _, ref := range []string{one.Digest.String(), two.Digest.String()} {
		_, err = w.Stored(t, ref)
		assert.Error(t, err)
	}
	assert.LessOrEqual(t, w.Up.Count("*"), 2)
	heal()
	w.Up.Fault(pullthroughtest.Fault{Header: named(nobodys)})
	m, err := w.Resolve(t.Context(), one.Digest.String())
	require.NoError(t, err, "what came has the digest, whatever the header says")
	assert.Equal(t, one.Digest, m.Descriptor.Digest)
}

// fetchEvent is the one event of a fetch.
func fetchEvent(t *testing.T, e *testkit.Events) pullthrough.Event {
	t.Helper()
	fetches := e.Of(pullthrough.EventFetch)
	require.Len(t, fetches, 1, "one fetch, one event")
	return fetches[0]
}

func testHeadOfAManifestDecidesNothing(t *testing.T) {
	one, two := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	without := func(name string) pullthroughtest.Fault {
		return pullthroughtest.Fault{Match: "HEAD *", Header: http.Header{name: nil}}
	}
	cases := map[string]struct {
		fault pullthroughtest.Fault
		gets  int // of a tag that has not moved
	}{
		"with both":          {pullthroughtest.Fault{Match: "HEAD *"}, 0},
		"without a digest":   {without("Docker-Content-Digest"), 1},
		"without a type":     {without("Content-Type"), 1},
		"with a bad digest":  {pullthroughtest.Fault{Match: "HEAD *", Header: http.Header{"Docker-Content-Digest": {"sha256:ABC"}}}, 1},
		"405, and GET fails": {pullthroughtest.Fault{Status: 405}, 1},
	}
	for _, status := range headRefusals {
		cases[fmt.Sprint(status)] = struct {
			fault pullthroughtest.Fault
			gets  int
		}{pullthroughtest.Fault{Match: "HEAD *", Status: status}, 1}
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, testkit.EveryPull)
			w.Up.Push("a", "1", one)
			w.Pull(t, "a", "1", one)
			assert.Zero(t, w.Up.Count("HEAD *"), "nothing is stored that could be checked")
			w.Settled(t)
			w.Up.Reset()
			w.Up.Fault(c.fault)
			m, err := w.Resolve(t.Context(), "1")
			require.NoError(t, err)
			assert.Equal(t, one.Digest, m.Descriptor.Digest)
			assert.Equal(t, 1, w.Up.Count("HEAD *"))
			assert.Equal(t, c.gets, w.Up.Count("GET *"))
			if strings.Contains(name, "fails") {
				return
			}
			w.Settled(t)
			w.Up.Push("a", "1", two)
			w.Pull(t, "a", "1", two)
		})
	}
	t.Run("by a rule that refuses what is stale", testRefusedHeadAndRefuseStale)
}

// A digest that is written oddly is worth what one is that is not.
func testDigestsInOddSpelling(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	for name, said := range map[string]string{
		"quotes": `"` + img.Digest.String() + `"`, "upper case": strings.ToUpper(img.Digest.String()), "both": `"` + strings.ToUpper(img.Digest.String()) + `"`,
	} {
		t.Run(name, func(t *testing.T) {
			var told testkit.Events
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				testkit.WithPolicy(pullthrough.Policy{TagTTL: pullthrough.EveryPull, RefuseWrongDigest: true})(p)
				p.OnEvent = told.On
			})
			w.Up.Push("a", "1", img)
			w.Up.Fault(pullthroughtest.Fault{Match: "* /v2/a/manifests/*", Header: named(said)})
			for range 2 {
				m, err := w.Resolve(t.Context(), "1")
				require.NoError(t, err)
				assert.Equal(t, img.Digest, m.Descriptor.Digest)
				w.Settled(t)
			}
			assert.Equal(t, []string{"GET /v2/a/manifests/1 200", "HEAD /v2/a/manifests/1 200"}, w.Up.Log())
			for _, e := range told.Of(pullthrough.EventFetch) {
				assert.False(t, e.WrongDigest)
			}
		})
	}
}

// headRefusals are the answers to a HEAD that say nothing about the tag.
var headRefusals = []int{400, 401, 403, 404, 405, 406, 415, 501}

// What GET says counts: the tag has moved, has not, or may not be had any more. An
// upstream in trouble is not asked twice.
func testRefusedHeadAndRefuseStale(t *testing.T) {
	one, two := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	strict := testkit.WithPolicy(pullthrough.Policy{TagTTL: pullthrough.EveryPull, RefuseStale: true})
	pushed := func(t *testing.T) *testkit.World {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, strict)
		w.Up.Push("a", "1", one)
		w.Pull(t, "a", "1", one)
		w.Settled(t)
		w.Up.Reset()
		return w
	}
	for _, status := range headRefusals {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			w := pushed(t)
			w.Up.Fault(pullthroughtest.Fault{Match: "HEAD *", Status: status})
			w.Pull(t, "a", "1", one)
			w.Settled(t)
			w.Up.Push("a", "1", two)
			w.Pull(t, "a", "1", two)
			assert.Equal(t, []int{2, 2}, []int{w.Up.Count("HEAD *"), w.Up.Count("GET */manifests/*")})
			w.Settled(t)
			w.Up.Fault(pullthroughtest.Fault{Match: "GET *", Status: 403})
			_, err := w.Resolve(t.Context(), "1")
			assert.ErrorIs(t, err, pullthrough.ErrDenied, "GET is refused, too")
		})
	}
	for _, status := range []int{408, 429, 500, 502, 503, 504} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			w := pushed(t)
			w.Up.Fault(pullthroughtest.Fault{Match: "HEAD *", Status: status})
			m, err := w.Resolve(t.Context(), "1")
			require.NoError(t, err)
			assert.Equal(t, pullthrough.SourceStale, m.Source)
			assert.Equal(t, []string{fmt.Sprintf("HEAD /v2/a/manifests/1 %d", status)}, w.Up.Log())
		})
	}
}

func testWarningsReachTheOwner(t *testing.T) {
	long := make([]string, 0, 20)
	for i := range 20 {
		long = append(long, fmt.Sprintf(`299 - "%d%s"`, i%10, strings.Repeat("x", 511))) // 10 KiB, each twice
	}
	for name, c := range map[string]struct {
		header []string
		want   []string // nil: 4096 bytes at most, and something
	}{
		"none":              {[]string{""}, []string{}},
		"one":               {[]string{`299 - "this tag goes away"`}, []string{"this tag goes away"}},
		"two, and one more": {[]string{`299 - "one"`, `299 - "two"`, `299 - "one"`}, []string{"one", "two"}},
		"with escapes":      {[]string{`299 - "say \"no\" \\ yes"`}, []string{`say "no" \ yes`}},
		"of other kinds": {[]string{`199 - "a"`, `299 proxy "b"`, `299 - c`, `299 - "d`, `- "e"`, `110 - "Response is Stale"`, `299 - ""`},
			[]string{}},
		"too long":                {long, nil},
		"too long, and not ASCII": {[]string{`299 - "x` + strings.Repeat("é", 4000) + `"`}, nil},
	} {
		for _, kind := range []string{"manifests", "blobs"} {
			t.Run(name+", about "+kind, func(t *testing.T) {
				var told testkit.Events
				f := testkit.NewFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.OnEvent = told.On })
				layer := f.Layer(1000)
				f.Up.Fault(pullthroughtest.Fault{Header: http.Header{"Warning": c.header}})
				path := map[string]string{"manifests": testkit.ManifestPath("a", "1"), "blobs": testkit.BlobPath("a", layer.Digest)}[kind]
				r := f.Get(t, path)
				assert.Equal(t, 200, r.StatusCode, "warnings change nothing")
				assert.Empty(t, r.Header.Values("Warning"))
				f.Settled(t)
				got := fetchEvent(t, &told).Warnings
				if c.want != nil {
					assert.Equal(t, c.want, append([]string{}, got...))
				} else {
					assert.NotEmpty(t, got)
					assert.LessOrEqual(t, len(strings.Join(got, "")), 4096)
					assert.True(t, utf8.ValidString(strings.Join(got, "")))
				}
				assert.Equal(t, 1, f.Up.Count("*"))
			})
		}
	}
}
