package ecr_test

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// staleTroubles are ways in which the check of a tag fails; each returns how it is
// undone.
var staleTroubles = map[string]func(*ecr, *pullthroughtest.Image) func(){
	"401": answering(401), "403": answering(403), "404": answering(404), "408": answering(408), "429": answering(429),
	"500": answering(500), "502": answering(502), "503": answering(503), "504": answering(504), "400": answering(400),
	"the connection breaks": faulty(pullthroughtest.Fault{CutAfter: new(int64(-1))}),
	"a web page":            faulty(pullthroughtest.Fault{Status: 200, Body: []byte("<html>"), Header: http.Header{"Content-Type": {"text/html"}, "Docker-Content-Digest": nil}}),
	"no manifest":           faulty(pullthroughtest.Fault{Match: "GET /v2/a/manifests/*", Body: []byte("rubbish")}),
	"half of the content":   faulty(pullthroughtest.Fault{Match: "GET /v2/a/manifests/*", CutAfter: new(int64(20))}),
	"redirected elsewhere":  faulty(pullthroughtest.Fault{Redirect: "http://127.0.0.1:1{path}"}),
	"the tag is deleted": func(e *ecr, moved *pullthroughtest.Image) func() {
		e.Up.Delete("a", "1")
		return func() { e.Up.Push("a", "1", moved) }
	},
	"the repository is deleted": func(e *ecr, moved *pullthroughtest.Image) func() {
		e.Up.Delete("a", "")
		return func() { e.Up.Push("a", "1", moved) }
	},
}

func answering(code int) func(*ecr, *pullthroughtest.Image) func() {
	return faulty(testkit.Status(code))
}

func faulty(f pullthroughtest.Fault) func(*ecr, *pullthroughtest.Image) func() {
	return func(e *ecr, _ *pullthroughtest.Image) func() { return e.Up.Fault(f) }
}

// stale is a registry whose tag 1 is due; upstream it has moved on.
func stale(t *testing.T, changes ...func(*pullthrough.Proxy)) (e *ecr, stored, moved *pullthroughtest.Image) {
	t.Helper()
	e = startECR(t, pullthroughtest.Config{}, changes...)
	stored, moved = testkit.Image(1), testkit.Image(2)
	e.push("1", stored)
	e.serves(t, "1", stored)
	e.push("1", moved)
	e.pass(day)
	return e, stored, moved
}

func testStaleIsServedWhateverFails(t *testing.T) {
	for name, trouble := range staleTroubles {
		t.Run(name, func(t *testing.T) {
			e, stored, moved := stale(t)
			heal := trouble(e, moved)
			for range 3 {
				e.serves(t, "1", stored)
				assert.Equal(t, 200, e.Ask(t, http.MethodHead, testkit.ManifestPath("a", "1")).StatusCode)
				e.pass(100 * day)
			}
			assert.Contains(t, e.told.Sources(), pullthrough.SourceStale)
			assert.Positive(t, e.Up.Count("*"))
			failed := false
			for _, event := range e.told.Of(pullthrough.EventFetch) {
				failed = failed || event.Err != nil
			}
			assert.True(t, failed, "an event tells of it")
			heal()
			e.serves(t, "1", moved)
		})
	}
	t.Run("not there at all", func(t *testing.T) {
		e, stored, _ := stale(t)
		e.Up.Close()
		e.serves(t, "1", stored)
	})
	t.Run("refused if the rule wants it", func(t *testing.T) {
		for code, refused := range map[int]bool{401: true, 403: true, 404: true, 429: false, 500: false, 503: false} {
			e, stored, _ := stale(t, testkit.WithPolicy(pullthrough.Policy{RefuseStale: true}))
			e.Up.Fault(testkit.Status(code))
			if !refused {
				e.serves(t, "1", stored)
				continue
			}
			wire := map[int]int{401: 403, 403: 403, 404: 404}
			assert.Equal(t, wire[code], e.Get(t, testkit.ManifestPath("a", "1")).StatusCode)
		}
	})
}

func testFailedCheckDoesNotCount(t *testing.T) {
	for name, trouble := range staleTroubles {
		t.Run(name, func(t *testing.T) {
			e, stored, moved := stale(t)
			heal := trouble(e, moved)
			for range 4 {
				e.Up.Reset()
				e.serves(t, "1", stored)
				assert.Positive(t, e.Up.Count("* /v2/a/manifests/*"), "it is asked for again")
				e.pass(5 * time.Minute) // the longest pause
			}
			heal()
			e.serves(t, "1", moved)
		})
	}
}

// pauses checks that upstream is not asked for so long, and then is, by so many requests.
func (e *ecr) pauses(t *testing.T, pause time.Duration, stored *pullthroughtest.Image, requests int) {
	t.Helper()
	e.Up.Reset()
	e.pass(pause - time.Second)
	for range 3 {
		e.serves(t, "1", stored)
	}
	e.asked(t)
	e.pass(time.Second)
	e.serves(t, "1", stored)
	assert.Equal(t, requests, e.Up.Count("*"), "after %v", pause)
}

func testChecksPauseAfterAFailure(t *testing.T) {
	for code, requests := range map[int]int{429: 1, 500: 1, 503: 1, 403: 2} { // a refused HEAD is no verdict
		e, stored, moved := stale(t)
		heal := e.Up.Fault(testkit.Status(code))
		e.serves(t, "1", stored)
		for _, pause := range []time.Duration{15, 30, 60, 120, 240, 300, 300} {
			e.pauses(t, pause*time.Second, stored, requests)
		}
		heal()
		e.pass(300 * time.Second)
		e.serves(t, "1", moved)

		e.pass(day)
		e.Up.Fault(testkit.Status(code))
		e.serves(t, "1", moved)
		e.pauses(t, 15*time.Second, moved, requests) // what is over is forgotten
	}
}

func testPauseIsForChecksOnly(t *testing.T) {
	e, stored, moved := stale(t, testkit.WithPolicy(pullthrough.Policy{Retries: -1}))
	heal := e.Up.Fault(testkit.Status(503))
	e.serves(t, "1", stored)
	e.Up.Reset()
	e.refuses(t, "new", 502, "UNKNOWN", sayUnavailable)
	e.asked(t, asks("GET", "new", 503))
	heal()
	e.push("new", moved)
	e.serves(t, "new", moved)
	e.asked(t, asks("GET", "new", 200))

	for code, asked := range map[int][]string{503: nil, 429: nil, 403: {"HEAD /v2/b/manifests/1 403", "GET /v2/b/manifests/1 403"}} {
		e, stored, _ := stale(t)
		other := testkit.Image(3)
		e.Up.Push("b", "1", other)
		testkit.AssertManifest(t, e.Get(t, testkit.ManifestPath("b", "1")), http.MethodGet, other, other.Digest)
		e.Settled(t)
		e.pass(day)
		e.Up.Fault(testkit.Status(code))
		e.serves(t, "1", stored)
		e.Up.Reset()
		testkit.AssertManifest(t, e.Get(t, testkit.ManifestPath("b", "1")), http.MethodGet, other, other.Digest)
		e.asked(t, asked...)
	}
}

func testSlowCheckIsNotWaitedFor(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		one, two := testkit.Image(1), testkit.Image(2)
		w.Up.Push("a", "1", one)
		w.Pull(t, "a", "1", one)
		w.Up.Push("a", "1", two)
		time.Sleep(day)
		g := make(chan struct{})
		w.Up.Fault(pullthroughtest.Fault{Match: "HEAD *", Stall: g})
		start := time.Now()
		m, err := w.Resolve(t.Context(), "1")
		require.NoError(t, err)
		assert.Equal(t, one.Digest, m.Descriptor.Digest)
		assert.Equal(t, pullthrough.SourceStale, m.Source)
		assert.Equal(t, 2*time.Second, time.Since(start))
		close(g)
		synctest.Wait()
		w.Settled(t)
		w.Up.Reset()
		m, err = w.Tagged(t, "1")
		require.NoError(t, err)
		assert.Equal(t, two.Digest, m.Descriptor.Digest, "the check went on")
		assert.Empty(t, w.Up.Log())
	})
}

func testCachedOutlivesItsRule(t *testing.T) {
	e, _ := startRepoECR(t, nil)
	rules := e.rulesThatChange()
	img := testkit.Image(1)
	e.push("1", img)
	e.serves(t, "1", img)
	e.servesBlobs(t, img)
	e.Settled(t)
	*rules = nil
	e.push("2", img)
	e.push("1", testkit.Image(2))
	e.pass(1000 * day)
	e.serves(t, "1", img)
	e.serves(t, img.Digest.String(), img)
	e.servesBlobs(t, img)
	e.refuses(t, "2", 404, "MANIFEST_UNKNOWN", testkit.SayNotFound)
	e.refusesAt(t, testkit.ManifestPath("b", "1"), 404, "NAME_UNKNOWN", testkit.SayNoRepository("hub/b", testkit.RegistryAccount))
	e.asked(t)
}

func testCachedOutlivesItsSecret(t *testing.T) {
	var broken atomic.Bool
	e := startECR(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: map[string]string{"robot": "right"}}, func(p *pullthrough.Proxy) {
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			if broken.Load() {
				return pullthrough.Credential{}, errVault
			}
			return pullthrough.Credential{Username: "robot", AccessToken: "right"}, nil
		}
	})
	img := testkit.Image(1)
	e.push("1", img)
	e.serves(t, "1", img)
	e.servesBlobs(t, img)
	e.Settled(t)
	broken.Store(true)
	e.push("2", testkit.Image(2))
	e.pass(1000 * day)
	e.serves(t, "1", img)
	e.serves(t, img.Digest.String(), img)
	e.servesBlobs(t, img)
	e.refuses(t, "2", 403, "DENIED", testkit.SayDenied)
	assert.Zero(t, e.Up.Count("* 200"), "upstream: %s", e.Up.Log())
}
