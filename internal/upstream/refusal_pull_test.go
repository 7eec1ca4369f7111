package upstream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestARefusalWhoseBodyNeverComesHoldsUpNobody(t *testing.T) {
	for name, fault := range map[string]pullthroughtest.Fault{
		"404":      {Status: 404, Body: []byte(strings.Repeat("x", 100))},
		"500":      {Status: 500, Body: []byte(strings.Repeat("x", 100))},
		"401":      {Status: 401, Body: []byte(strings.Repeat("x", 100))},
		"redirect": {Redirect: "{path}", Body: []byte(strings.Repeat("x", 100))},
	} {
		t.Run(name, func(t *testing.T) {
			up, enter := testkit.Piped(t, pullthroughtest.Config{})
			synctest.Test(t, func(t *testing.T) {
				w := enter(t)
				layer := w.Layer(1000)
				fault.Match, fault.Stall, fault.StallAfter = testkit.Blobs, make(chan struct{}), new(int64(0))
				up.Fault(fault)
				start := time.Now()
				done := make(chan error, 1)
				go func() {
					_, err := w.Open(context.Background(), layer.Digest)
					done <- err
				}()
				synctest.Wait()
				_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
				assert.NoError(t, err, "the rule's other pulls go on")
				assert.LessOrEqual(t, time.Since(start), 3*time.Second)
				assert.Error(t, <-done)
				assert.LessOrEqual(t, time.Since(start), 15*time.Second)
				assert.Positive(t, up.Count(testkit.Blobs))
			})
		})
	}
}

// net/http puts the Location of a redirect into its error when it cannot be
// parsed, with the signature in its query.
func TestAPresignedURLIsInNoError(t *testing.T) {
	for _, location := range []string{
		"https://cdn.example:port/x?X-Amz-Signature=" + testkit.Canary,
		"https://u:" + testkit.Canary + "@cdn.example/x",
		"http://127.0.0.1:1/x?X-Amz-Signature=" + testkit.Canary,
		"://" + testkit.Canary,
	} {
		var logged bytes.Buffer
		w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Logger = testkit.TextLogger(&logged) })
		layer := w.Layer(1000)
		w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Status: 307, Header: http.Header{"Location": {location}}})
		_, err := w.Open(t.Context(), layer.Digest)
		require.Error(t, err)
		w.Settled(t)
		assert.NotContains(t, fmt.Sprintf("%v %+v", err, err), testkit.Canary)
		assert.NotContains(t, logged.String(), testkit.Canary)
		assert.Equal(t, 1, w.Up.Count(testkit.Blobs))
	}
}

func TestAfterShutdownNoHeadGoesOut(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	layer := w.Layer(1000)
	require.NoError(t, w.Shutdown(t.Context()))
	_, err := w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: layer.Digest.String(), Head: true})
	assert.ErrorIs(t, err, pullthrough.ErrClosed)
	assert.Empty(t, w.Up.Log())
}

func TestHeadsOfManifestsThatAreNoEvidence(t *testing.T) {
	for name, fault := range map[string]pullthroughtest.Fault{
		"405":                    {Match: "HEAD *", Status: 405},
		"404 though GET is 200":  {Match: "HEAD *", Status: 404},
		"200 without a digest":   {Match: "HEAD *", Header: http.Header{"Docker-Content-Digest": nil}},
		"200 with a bad digest":  {Match: "HEAD *", Header: http.Header{"Docker-Content-Digest": {"../../x"}}},
		"200 with an odd digest": {Match: "HEAD *", Header: http.Header{"Docker-Content-Digest": {"md5:00"}}},
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, testkit.EveryPull)
			one, two := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
			w.Up.Push("a", "1", one)
			w.Pull(t, "a", "1", one)
			w.Up.Push("a", "1", two)
			w.Up.Fault(fault)
			w.Up.Reset()
			w.Pull(t, "a", "1", two)
			assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/1 200"))
		})
	}
}

func TestWhateverFailsUpstreamAStoredTagIsServed(t *testing.T) {
	for name, fault := range map[string]pullthroughtest.Fault{
		"401": {Status: 401}, "403": {Status: 403}, "404": {Status: 404}, "429": {Status: 429},
		"500": {Status: 500}, "503": {Status: 503}, "cut": {CutAfter: new(int64(-1))},
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, testkit.EveryPull)
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
			w.Up.Push("a", "1", img)
			w.Pull(t, "a", "1", img)
			heal := w.Up.Fault(fault)
			m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
			require.NoError(t, err)
			assert.Equal(t, pullthrough.SourceStale, m.Source)
			heal()
			m, err = w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
			require.NoError(t, err)
			assert.Equal(t, pullthrough.SourceRevalidated, m.Source)
			assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/1 200"))
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
			clock := new(testkit.HandClock)
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				testkit.OneTry(p)
				p.Now = clock.Now
			})
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
			w.Up.Push("a", "1", img)
			ref := "1"
			if tc.byDigest {
				ref = img.Digest.String()
			}
			tc.fault.Match = "GET /v2/a/manifests/*"
			heal := w.Up.Fault(tc.fault)
			m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: ref})
			assert.Nil(t, m)
			require.ErrorIs(t, err, tc.kind)
			e, ok := errors.AsType[*pullthrough.Error](err)
			require.True(t, ok)
			assert.Equal(t, testkit.Repo("a"), e.Repo)
			assert.Equal(t, ref, e.Ref)
			assert.Equal(t, w.Up.Host(), e.Host)
			if tc.kind == pullthrough.ErrRateLimited {
				assert.Equal(t, 7*time.Second, e.RetryAfter)
				return // the next pull has to wait
			}
			_, stored := w.Stored(t, ref)
			assert.Error(t, stored, "nothing of it is kept")
			assert.LessOrEqual(t, len(w.Up.Log()), 6)

			heal()
			w.Up.Reset()
			clock.Pass(10 * time.Second) // for so long a 404 counts
			w.Pull(t, "a", ref, img)     // and the next pull works
			assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/* 200"))
		})
	}
}

func TestADamagedStoreHeals(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("a", "1", img)
	bad := testkit.LocalManifest("1")
	bad.CheckedAt = time.Now()
	bad.Content = append([]byte(nil), bad.Content...)
	bad.Content[3] ^= 1
	require.NoError(t, w.Mem.PutManifest(t.Context(), testkit.Repo("a"), bad))
	w.Pull(t, "a", "1", img)
	assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/1 200"))
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
			w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, breakIt)
			w.Up.Push("a", "1", img)
			for range 2 {
				_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
				assert.ErrorContains(t, err, "oops")
			}
			assert.Zero(t, w.Up.Count("GET /token*"))
		})
	}
	t.Run("OnEvent", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
			p.OnEvent = func(context.Context, pullthrough.Event) { panic("oops") }
		})
		w.Up.Push("a", "1", img)
		w.Pull(t, "a", "1", img)
		assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/*"))
	})
}

func TestABadRequestAsksNobody(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Rules = pullthrough.RuleSourceFunc(func(context.Context, string, string) ([]pullthrough.Rule, error) {
			t.Error("a bad name reached the rules")
			return nil, io.EOF
		})
	})
	for _, r := range []pullthrough.Request{
		{Repo: testkit.Repo("../a"), Ref: "1"}, {Repo: testkit.Repo("A"), Ref: "1"}, {Repo: testkit.Repo("a"), Ref: ""},
		{Repo: testkit.Repo("a"), Ref: strings.Repeat("a", 129)}, {Repo: testkit.Repo("a"), Ref: "sha256:" + strings.Repeat("a", 63)},
		{Repo: testkit.Repo("a"), Ref: "md5:d41d8cd98f00b204e9800998ecf8427e"},
	} {
		_, err := w.Manifest(t.Context(), r)
		assert.ErrorIs(t, err, pullthrough.ErrInvalid)
		_, err = w.Blob(t.Context(), r)
		assert.ErrorIs(t, err, pullthrough.ErrInvalid)
	}
	_, err := w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "latest"})
	assert.ErrorIs(t, err, pullthrough.ErrInvalid, "a blob has no tags")
	assert.Empty(t, w.Up.Log())
}
