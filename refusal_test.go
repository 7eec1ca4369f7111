package pullthrough_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestHeadsOfManifestsThatAreNoEvidence(t *testing.T) {
	for name, fault := range map[string]pullthroughtest.Fault{
		"405":                    {Match: "HEAD *", Status: 405},
		"404 though GET is 200":  {Match: "HEAD *", Status: 404},
		"200 without a digest":   {Match: "HEAD *", Header: http.Header{"Docker-Content-Digest": nil}},
		"200 with a bad digest":  {Match: "HEAD *", Header: http.Header{"Docker-Content-Digest": {"../../x"}}},
		"200 with an odd digest": {Match: "HEAD *", Header: http.Header{"Docker-Content-Digest": {"md5:00"}}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{}, everyPull)
			one, two := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
			w.up.Push("a", "1", one)
			w.pull(t, "a", "1", one)
			w.up.Push("a", "1", two)
			w.up.Fault(fault)
			w.up.Reset()
			w.pull(t, "a", "1", two)
			assert.Equal(t, 1, w.up.Count("GET /v2/a/manifests/1 200"))
		})
	}
}

func TestWhateverFailsUpstreamAStoredTagIsServed(t *testing.T) {
	for name, fault := range map[string]pullthroughtest.Fault{
		"401": {Status: 401}, "403": {Status: 403}, "404": {Status: 404}, "429": {Status: 429},
		"500": {Status: 500}, "503": {Status: 503}, "cut": {CutAfter: new(int64(-1))},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{}, everyPull)
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
			w.up.Push("a", "1", img)
			w.pull(t, "a", "1", img)
			heal := w.up.Fault(fault)
			m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: "1"})
			require.NoError(t, err)
			assert.Equal(t, pullthrough.SourceStale, m.Source)
			heal()
			m, err = w.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: "1"})
			require.NoError(t, err)
			assert.Equal(t, pullthrough.SourceRevalidated, m.Source)
			assert.Equal(t, 1, w.up.Count("GET /v2/a/manifests/1 200"))
		})
	}
}

func TestWhatUpstreamMayNotGetAwayWith(t *testing.T) {
	other := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	huge := []byte(`{"schemaVersion":2,"x":"` + strings.Repeat("x", 5<<20) + `"}`)
	for name, tc := range map[string]struct {
		fault    pullthroughtest.Fault
		kind     error
		byDigest bool
	}{
		"another manifest than the one asked for": {pullthroughtest.Fault{Body: other.Content}, pullthrough.ErrDigest, true},
		"a flipped bit":                          {pullthroughtest.Fault{Flip: new(int64(10))}, pullthrough.ErrDigest, true},
		"a page for every path":                  {pullthroughtest.Fault{Status: 200, Body: []byte("<html></html>"), Header: http.Header{"Content-Type": {"text/html"}}}, pullthrough.ErrUnavailable, false},
		"a page that says it is a manifest":      {pullthroughtest.Fault{Body: []byte("<html></html>")}, pullthrough.ErrUnavailable, false},
		"nothing":                                {pullthroughtest.Fault{Body: []byte{}}, pullthrough.ErrUnavailable, false},
		"a manifest called an index":             {pullthroughtest.Fault{Header: http.Header{"Content-Type": {ocispec.MediaTypeImageIndex}}}, pullthrough.ErrUnavailable, false},
		"a manifest over 4 MiB":                  {pullthroughtest.Fault{Body: huge}, pullthrough.ErrTooLarge, false},
		"a manifest over 4 MiB without a length": {pullthroughtest.Fault{Body: huge, NoLength: true}, pullthrough.ErrTooLarge, false},
		"half a manifest":                        {pullthroughtest.Fault{CutAfter: new(int64(20))}, pullthrough.ErrUnavailable, false},
		"a short manifest that looks complete":   {pullthroughtest.Fault{Truncate: 1, CloseDelimited: true}, pullthrough.ErrUnavailable, false},
		"a short manifest by digest":             {pullthroughtest.Fault{Truncate: 1, CloseDelimited: true}, pullthrough.ErrDigest, true},
		"schema 1":                               {pullthroughtest.Fault{Body: []byte(`{"schemaVersion":1,"fsLayers":[]}`)}, pullthrough.ErrNotFound, false},
		"401 without a challenge":                {pullthroughtest.Fault{Status: 401, Header: http.Header{"Www-Authenticate": nil}}, pullthrough.ErrDenied, false},
		"403":                                    {pullthroughtest.Fault{Status: 403}, pullthrough.ErrDenied, false},
		"404":                                    {pullthroughtest.Fault{Status: 404}, pullthrough.ErrNotFound, false},
		"400":                                    {pullthroughtest.Fault{Status: 400}, pullthrough.ErrUnavailable, false},
		"429":                                    {pullthroughtest.Fault{Status: 429, Header: http.Header{"Retry-After": {"7"}}}, pullthrough.ErrRateLimited, false},
		"500":                                    {pullthroughtest.Fault{Status: 500}, pullthrough.ErrUnavailable, false},
		"a redirect to nowhere":                  {pullthroughtest.Fault{Status: 307, Header: http.Header{"Location": {"file:///etc/passwd"}}}, pullthrough.ErrUnavailable, false},
		"a redirect loop":                        {pullthroughtest.Fault{Redirect: "{path}"}, pullthrough.ErrUnavailable, false},
		"a connection cut before the answer":     {pullthroughtest.Fault{CutAfter: new(int64(-1))}, pullthrough.ErrUnavailable, false},
		"a page in place of a manifest, by digest": {pullthroughtest.Fault{Body: []byte("<html></html>")}, pullthrough.ErrDigest, true},
	} {
		t.Run(name, func(t *testing.T) {
			clock := new(handClock)
			w := newWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				oneTry(p)
				p.Now = clock.now
			})
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
			w.up.Push("a", "1", img)
			ref := "1"
			if tc.byDigest {
				ref = img.Digest.String()
			}
			tc.fault.Match = "GET /v2/a/manifests/*"
			heal := w.up.Fault(tc.fault)
			m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: ref})
			assert.Nil(t, m)
			require.ErrorIs(t, err, tc.kind)
			e, ok := errors.AsType[*pullthrough.Error](err)
			require.True(t, ok)
			assert.Equal(t, repo("a"), e.Repo)
			assert.Equal(t, ref, e.Ref)
			assert.Equal(t, w.up.Host(), e.Host)
			if tc.kind == pullthrough.ErrRateLimited {
				assert.Equal(t, 7*time.Second, e.RetryAfter)
				return // the next pull has to wait
			}
			_, stored := w.stored(t, ref)
			assert.Error(t, stored, "nothing of it is kept")
			assert.LessOrEqual(t, len(w.up.Log()), 6)

			heal()
			w.up.Reset()
			clock.pass(10 * time.Second) // for so long a 404 counts
			w.pull(t, "a", ref, img)     // and the next pull works
			assert.Equal(t, 1, w.up.Count("GET /v2/a/manifests/* 200"))
		})
	}
}

func TestADamagedStoreHeals(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.up.Push("a", "1", img)
	bad := localManifest("1")
	bad.CheckedAt = time.Now()
	bad.Content = append([]byte(nil), bad.Content...)
	bad.Content[3] ^= 1
	require.NoError(t, w.store.PutManifest(t.Context(), repo("a"), bad))
	w.pull(t, "a", "1", img)
	assert.Equal(t, 1, w.up.Count("GET /v2/a/manifests/1 200"))
}

func TestAHostThatPanicsHurtsOneRequest(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	for name, breakIt := range map[string]func(*pullthrough.Proxy){
		"Credentials": func(p *pullthrough.Proxy) {
			p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
				panic("oops")
			}
		},
		"Authorize": func(p *pullthrough.Proxy) {
			p.Authorize = func(context.Context, pullthrough.Action, pullthrough.Request) error { panic("oops") }
		},
		"Rules": func(p *pullthrough.Proxy) {
			p.Rules = pullthrough.RuleSourceFunc(func(context.Context, string, string) ([]pullthrough.Rule, error) { panic("oops") })
		},
		"Policy": func(p *pullthrough.Proxy) {
			p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy { panic("oops") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, breakIt)
			w.up.Push("a", "1", img)
			for range 2 {
				_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: "1"})
				assert.ErrorContains(t, err, "oops")
			}
			assert.Zero(t, w.up.Count("GET /token*"))
		})
	}
	t.Run("OnEvent", func(t *testing.T) {
		w := newWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
			p.OnEvent = func(context.Context, pullthrough.Event) { panic("oops") }
		})
		w.up.Push("a", "1", img)
		w.pull(t, "a", "1", img)
		assert.Equal(t, 1, w.up.Count("GET /v2/a/manifests/*"))
	})
}

func TestABadRequestAsksNobody(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Rules = pullthrough.RuleSourceFunc(func(context.Context, string, string) ([]pullthrough.Rule, error) {
			t.Error("a bad name reached the rules")
			return nil, io.EOF
		})
	})
	for _, r := range []pullthrough.Request{
		{Repo: repo("../a"), Ref: "1"}, {Repo: repo("A"), Ref: "1"}, {Repo: repo("a"), Ref: ""},
		{Repo: repo("a"), Ref: strings.Repeat("a", 129)}, {Repo: repo("a"), Ref: "sha256:" + strings.Repeat("a", 63)},
		{Repo: repo("a"), Ref: "md5:d41d8cd98f00b204e9800998ecf8427e"},
	} {
		_, err := w.Manifest(t.Context(), r)
		assert.ErrorIs(t, err, pullthrough.ErrInvalid)
		_, err = w.Blob(t.Context(), r)
		assert.ErrorIs(t, err, pullthrough.ErrInvalid)
	}
	_, err := w.Blob(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: "latest"})
	assert.ErrorIs(t, err, pullthrough.ErrInvalid, "a blob has no tags")
	assert.Empty(t, w.up.Log())
}
