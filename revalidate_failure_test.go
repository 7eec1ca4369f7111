package pullthrough_test

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var errOurs = errors.New("a failure of ours")

// failingRules are asked on the way of a hit first, then before a put.
func failingRules(p *pullthrough.Proxy, f func() error) {
	rules := p.Rules
	p.Rules = pullthrough.RuleSourceFunc(func(ctx context.Context, account, region string) ([]pullthrough.Rule, error) {
		if err := f(); err != nil {
			return nil, err
		}
		return rules.Rules(ctx, account, region)
	})
}

// oddStore does something odd when it is asked for a manifest.
type oddStore struct {
	*memstore.Store
	manifest func(ctx context.Context) (m *pullthrough.Manifest, err error, odd bool)
}

func (s *oddStore) Manifest(ctx context.Context, r pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	if m, err, odd := s.manifest(ctx); odd {
		return m, err
	}
	return s.Store.Manifest(ctx, r, ref)
}

// lookingAgain has the Store do something odd from its second look-up on.
func lookingAgain(w *testkit.World, odd func(context.Context) (*pullthrough.Manifest, error)) {
	var calls atomic.Int64
	w.Store = &oddStore{w.Mem, func(ctx context.Context) (*pullthrough.Manifest, error, bool) {
		if calls.Add(1) < 2 {
			return nil, nil, false
		}
		m, err := odd(ctx)
		return m, err, true
	}}
}

// ourFailures are those that are no upstream's, which may be there or not.
var ourFailures = map[string]func(t *testing.T, w *testkit.World){
	"Shutdown": func(t *testing.T, w *testkit.World) { require.NoError(t, w.Shutdown(t.Context())) },
	"the Store fails when it is asked again": func(_ *testing.T, w *testkit.World) {
		lookingAgain(w, func(context.Context) (*pullthrough.Manifest, error) { return nil, errOurs })
	},
	"the Store panics when it is asked again": func(_ *testing.T, w *testkit.World) {
		lookingAgain(w, func(context.Context) (*pullthrough.Manifest, error) { panic("boom") })
	},
	"the Store hangs when it is asked again": func(_ *testing.T, w *testkit.World) {
		lookingAgain(w, func(ctx context.Context) (*pullthrough.Manifest, error) { <-ctx.Done(); return nil, ctx.Err() })
	},
	"the Store gives damaged content": func(_ *testing.T, w *testkit.World) {
		lookingAgain(w, func(context.Context) (*pullthrough.Manifest, error) {
			return &pullthrough.Manifest{Descriptor: testkit.Image(1).Descriptor(), Content: []byte("{}")}, nil
		})
	},
	"the Store gives nothing": func(_ *testing.T, w *testkit.World) {
		lookingAgain(w, func(context.Context) (*pullthrough.Manifest, error) { return nil, nil })
	},
	"the rules cannot be read": func(_ *testing.T, w *testkit.World) {
		failingRules(w.Proxy, func() error { return errOurs })
	},
	"the rules panic": func(_ *testing.T, w *testkit.World) {
		failingRules(w.Proxy, func() error { panic("boom") })
	},
	"the Policy panics": func(_ *testing.T, w *testkit.World) {
		w.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy { panic("boom") }
	},
	"the Endpoint fails": func(_ *testing.T, w *testkit.World) {
		w.Endpoint = func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error) { return nil, errOurs }
	},
	"the Endpoint panics": func(_ *testing.T, w *testkit.World) {
		w.Endpoint = func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error) { panic("boom") }
	},
	"the Credentials fail": func(_ *testing.T, w *testkit.World) {
		w.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			return pullthrough.Credential{}, errOurs
		}
	},
	"the Credentials say that there is no way in": func(_ *testing.T, w *testkit.World) {
		w.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			return pullthrough.Credential{}, pullthrough.ErrDenied
		}
	},
	"the Credentials panic": func(_ *testing.T, w *testkit.World) {
		w.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			panic("boom")
		}
	},
	"the Credentials hang": func(_ *testing.T, w *testkit.World) {
		w.Credentials = func(ctx context.Context, _ pullthrough.Repo, _ pullthrough.Rule) (pullthrough.Credential, error) {
			<-ctx.Done()
			return pullthrough.Credential{}, ctx.Err()
		}
	},
	"the Transport panics": func(_ *testing.T, w *testkit.World) {
		w.Transport = testkit.RoundTripper(func(*http.Request) (*http.Response, error) { panic("boom") })
	},
	"the event handler panics": func(_ *testing.T, w *testkit.World) {
		told := w.OnEvent
		w.OnEvent = func(ctx context.Context, e pullthrough.Event) { told(ctx, e); panic("boom") }
	},
	"there are too many fetches": func(t *testing.T, w *testkit.World) {
		for range 256 {
			take, err := w.TakeTurn(testkit.Repo("a"))
			require.NoError(t, err)
			t.Cleanup(take)
		}
	},
}

// With a copy in hand no failure of ours wins, also where RefuseStale is set: that is
// about what upstream says.
func TestNoFailureOfOursTakesAStoredTagAway(t *testing.T) {
	for name, fail := range ourFailures {
		for state, down := range map[string]bool{"upstream is well": false, "upstream is down": true} {
			for _, refuse := range []bool{false, true} {
				t.Run(name+", "+state, func(t *testing.T) {
					config := pullthroughtest.Config{Auth: pullthroughtest.Bearer}
					testkit.InBubble(t, config, func(t *testing.T, w *testkit.World) {
						img := testkit.Image(1)
						require.NoError(t, w.Mem.PutManifest(t.Context(), testkit.Repo("a"), &pullthrough.Manifest{
							Descriptor: img.Descriptor(), Content: img.Content, Tag: "1",
							Origin: w.Up.Host(), CheckedAt: time.Now().Add(-25 * time.Hour),
						}))
						w.Up.Push("a", "1", img)
						if down {
							w.Up.Fault(testkit.Status(500))
						}
						testkit.WithPolicy(pullthrough.Policy{RefuseStale: refuse})(w.Proxy)
						heard := &testkit.Events{}
						w.OnEvent = heard.On
						fail(t, w)
						start := time.Now()
						m, err := w.Resolve(t.Context(), "1")
						require.NoError(t, err)
						assert.Equal(t, img.Digest, m.Descriptor.Digest)
						assert.LessOrEqual(t, time.Since(start), 4*time.Second, "the Store's time and upstream's")
						if down {
							assert.Equal(t, pullthrough.SourceStale, m.Source)
						} else {
							assert.Contains(t, []pullthrough.Source{pullthrough.SourceStale, pullthrough.SourceRevalidated}, m.Source)
						}
						assert.Equal(t, []pullthrough.Source{m.Source}, heard.Sources())
						assert.LessOrEqual(t, w.Up.Count("* /v2/*"), 2, "a check is one try")
						synctest.Wait()
					})
				})
			}
		}
	}
}

// Only upstream's own word keeps a tag back, or pauses the checks of a rule. That its
// client leaves, or that a check finds no room, is none.
func TestACheckThatIsGivenUpSaysNothing(t *testing.T) {
	for name, orphans := range map[string]int{"it ends with its client": -1, "it goes on for a while": 0} {
		for _, refuse := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
					testkit.WithPolicy(pullthrough.Policy{RefuseStale: refuse, Orphans: orphans})(w.Proxy)
					img, moved := testkit.Image(1), testkit.Image(2)
					for _, name := range []string{"a", "moved", "secret"} {
						w.Up.Push(name, "1", img)
						w.Pull(t, name, "1", img)
					}
					time.Sleep(25 * time.Hour)
					w.Up.Push("moved", "1", moved)
					w.Up.Fault(pullthroughtest.Fault{Match: "* /v2/secret/*", Status: 403})
					stall := testkit.NewGate(t)
					w.Up.Fault(pullthroughtest.Fault{Match: "HEAD /v2/a/manifests/*", Stall: stall.C})
					w.Up.Reset()
					err := hurried(t, 50*time.Millisecond, func(ctx context.Context) error { _, err := w.Resolve(ctx, "1"); return err })
					require.ErrorIs(t, err, context.DeadlineExceeded)
					synctest.Wait()
					m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("moved"), Ref: "1"})
					require.NoError(t, err)
					assert.Equal(t, moved.Digest, m.Descriptor.Digest)
					_, err = w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("secret"), Ref: "1"})
					assert.Equal(t, refuse, errors.Is(err, pullthrough.ErrDenied))
					stall.Open()
					m, err = w.Resolve(t.Context(), "1")
					require.NoError(t, err)
					assert.NotEqual(t, pullthrough.SourceStale, m.Source)
					w.Settled(t)
					assert.Equal(t, []string{"HEAD /v2/moved/manifests/1 200", "GET /v2/moved/manifests/" + moved.Digest.String() + " 200", "HEAD /v2/secret/manifests/1 403"},
						w.Up.Log()[1:4])
					assert.Equal(t, 1, w.Up.Count("HEAD /v2/a/manifests/1 200"))
				})
			})
		}
	}
}

// An upstream that does not answer costs one wait for each pause of the checks, also of the
// tag whose check still runs.
func TestWhileChecksArePausedNobodyWaitsForOneThatRuns(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		img := testkit.Image(1)
		for _, name := range []string{"a", "b"} {
			w.Up.Push(name, "1", img)
			w.Pull(t, name, "1", img)
		}
		time.Sleep(25 * time.Hour)
		stall := testkit.NewGate(t)
		w.Up.Fault(pullthroughtest.Fault{Stall: stall.C})
		w.Up.Reset()
		pull := func(name string) (took time.Duration) {
			start := time.Now()
			m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo(name), Ref: "1"})
			require.NoError(t, err)
			assert.Equal(t, pullthrough.SourceStale, m.Source)
			return time.Since(start)
		}
		assert.Equal(t, 2*time.Second, pull("a"))
		for range 3 {
			assert.Zero(t, pull("a"))
			assert.Zero(t, pull("b"))
		}
		time.Sleep(20 * time.Second)
		assert.Equal(t, 2*time.Second, pull("b"), "the pause is over")
		assert.Zero(t, pull("a"))
		stall.Open()
		w.Settled(t)
		assert.Equal(t, []string{"HEAD /v2/a/manifests/1 200", "HEAD /v2/b/manifests/1 200"}, w.Up.Log())
	})
}
