package pullthrough_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestAFetchThatRunsAtShutdownMayStillGetAToken(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, testkit.WithSecret(nil))
	img := testkit.Image(1)
	w.Up.Push("a", "1", img)
	gate := testkit.NewGate(t)
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/1 401", Stall: gate.C})
	pulled := make(chan error, 1)
	go func() {
		_, err := w.Resolve(context.Background(), "1")
		pulled <- err
	}()
	require.Eventually(t, func() bool { return w.Running() == 1 }, 10*time.Second, time.Millisecond)
	ended := make(chan error, 1)
	go func() { ended <- w.Shutdown(context.Background()) }()
	require.Eventually(t, func() bool {
		_, err := w.Resolve(context.Background(), digest.FromString(time.Now().String()).String())
		return errors.Is(err, pullthrough.ErrClosed)
	}, 10*time.Second, time.Millisecond)
	gate.Open()
	assert.NoError(t, <-pulled, "it was under way")
	assert.NoError(t, <-ended)
	_, err := w.Mem.Manifest(t.Context(), testkit.Repo("a"), "1")
	assert.NoError(t, err)
}

func TestIdle(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		release := heldPuts(w)()
		require.NoError(t, w.Idle(t.Context()), "nothing was ever asked for")
		img := testkit.Image(1)
		w.Up.Push("a", "1", img)
		_, err := w.Resolve(t.Context(), "1")
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err = w.Idle(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.ErrorContains(t, err, "manifest hub/a:1", "it says what still goes on")
		go func() { time.Sleep(time.Second); release() }()
		require.NoError(t, w.Idle(t.Context()))
		_, err = w.Mem.Manifest(t.Context(), testkit.Repo("a"), "1")
		assert.NoError(t, err, "what was answered is stored")
		assert.Equal(t, 1, w.Up.Count("*"))
	})
}

// What the host was asked for when Shutdown ran out of time says nothing of the image.
func TestWhatShutdownGivesUpIsUnavailable(t *testing.T) {
	for name, change := range map[string]func(*testkit.World){
		"CreateRepo": func(w *testkit.World) { w.Store = &slowCreator{w.Mem} },
		"Credentials": func(w *testkit.World) {
			w.Credentials = func(ctx context.Context, _ pullthrough.Repo, _ pullthrough.Rule) (pullthrough.Credential, error) {
				<-ctx.Done()
				return pullthrough.Credential{}, ctx.Err()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.InBubble(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(t *testing.T, w *testkit.World) {
				change(w)
				w.Up.Push("a", "1", testkit.Image(1))
				failed := make(chan error, 1)
				go func() { _, err := w.Resolve(t.Context(), "1"); failed <- err }()
				synctest.Wait()
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				assert.ErrorIs(t, w.Shutdown(ctx), context.Canceled)
				err := <-failed
				assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
				assert.NotErrorIs(t, err, pullthrough.ErrNotFound)
				assert.NotErrorIs(t, err, pullthrough.ErrDenied)
				assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/1 401"))
			})
		})
	}
}

func TestAfterShutdownHitsAreServedAndMissesRefused(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("a", "1", img)
	w.Pull(t, "a", "1", img)
	require.NoError(t, w.Shutdown(t.Context()))
	w.Up.Reset()
	w.Pull(t, "a", "1", img)
	_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "2"})
	assert.ErrorIs(t, err, pullthrough.ErrClosed)
	for _, head := range []bool{false, true} {
		_, err = w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("b"), Ref: img.Blobs()[0].Digest.String(), Head: head})
		assert.ErrorIs(t, err, pullthrough.ErrClosed)
	}
	assert.Empty(t, w.Up.Log())
}

func TestEventsSayWhatHappened(t *testing.T) {
	told := &testkit.Events{}
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(p *pullthrough.Proxy) { p.OnEvent = told.On })
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 1})
	w.Up.Push("a", "1", img)
	for range 2 {
		_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1", Caller: "arn", Head: true})
		require.NoError(t, err)
		w.Settled(t)
	}
	fetches, answers := told.Of(pullthrough.EventFetch), told.Of(pullthrough.EventManifest)
	require.Len(t, fetches, 1)
	assert.Equal(t, 3, fetches[0].Upstream, "a challenge, a token, a manifest")
	assert.Equal(t, []pullthrough.Source{pullthrough.SourceFill, pullthrough.SourceHit}, told.Sources())
	assert.Equal(t, "arn", answers[1].Request.Caller)
	assert.True(t, answers[1].Request.Head)
	assert.EqualValues(t, len(img.Content), answers[1].Bytes)
	assert.Equal(t, 3, w.Up.Count("*"))
}

func TestPendingNamesWhatWaitsAndForHowLong(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		w.Fill = pullthrough.FillBackground
		assert.Equal(t, []pullthrough.Event{}, w.Pending())
		img := testkit.Image(1)
		w.Up.Push("a", "1", img)
		w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Status: 403})
		for range 2 { // the second failure is followed by a pause
			assert.Empty(t, w.Pending())
			_, err := w.Resolve(t.Context(), "1")
			require.NoError(t, err)
			require.NoError(t, w.Idle(t.Context()))
		}
		waits := func() (pullthrough.Event, *pullthrough.Error) {
			all := w.Pending()
			require.Len(t, all, 1)
			e, why := all[0], &pullthrough.Error{}
			require.ErrorAs(t, e.Err, &why)
			e.Err = nil
			return e, why
		}
		e, why := waits()
		d := img.Digest.String()
		assert.Equal(t, pullthrough.Event{Kind: pullthrough.EventFetch, Part: true, Request: pullthrough.Request{Repo: testkit.Repo("a"), Ref: d}, Digest: d}, e)
		assert.Equal(t, 10*time.Second, why.RetryAfter)

		time.Sleep(25 * time.Hour) // the tag is due
		w.Up.Fault(pullthroughtest.Fault{Status: 500})
		m, err := w.Resolve(t.Context(), "1")
		require.NoError(t, err)
		assert.Equal(t, pullthrough.SourceStale, m.Source)
		e, why = waits()
		assert.Equal(t, pullthrough.Event{
			Kind: pullthrough.EventFetch, Object: pullthrough.EventManifest, Rule: testkit.Prefix, Source: pullthrough.SourceStale,
		}, e, "it is about all tags of the rule")
		assert.Equal(t, 15*time.Second, why.RetryAfter)
		assert.ErrorIs(t, why, pullthrough.ErrUnavailable)
		assert.Equal(t, w.Up.Host(), why.Host)
		time.Sleep(15 * time.Second)
		assert.Empty(t, w.Pending())
		assert.Equal(t, 2, w.Up.Count("* /v2/a/manifests/*"), "one pull and one check: %s", w.Up.Log())
	})
}
