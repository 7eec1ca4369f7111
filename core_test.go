package pullthrough_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// A call that a fetch makes after its answer is out has nobody who could leave. Where
// as many of them hang as may run, the look-ups of others do not wait behind them for
// long.
func TestARuleSourceThatHangsForOneAccountHoldsUpNoOther(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		rules := w.Rules
		gate := make(chan struct{})
		var asked atomic.Int32
		w.Rules = pullthrough.RuleSourceFunc(func(ctx context.Context, account, region string) ([]pullthrough.Rule, error) {
			if account == "slow" && asked.Add(1) > 64 { // after the fetch, when the rule is compared
				<-gate
			}
			return rules.Rules(ctx, account, region)
		})
		w.Up.Push("a", "1", testkit.Image(1))
		answer := make(chan struct{})
		heal := w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/*", Stall: answer})
		for i := range 64 {
			repo := pullthrough.Repo{Account: "slow", Region: string(rune('A' + i)), Name: testkit.Prefix + "/a"}
			go func() { _, _ = w.Manifest(t.Context(), pullthrough.Request{Repo: repo, Ref: "1"}) }()
		}
		time.Sleep(time.Second)
		require.Equal(t, 64, w.Running())
		heal()
		close(answer)
		time.Sleep(time.Second)
		require.Equal(t, 64, w.Running())
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		_, err := w.Resolve(ctx, "1")
		assert.NoError(t, err)
		close(gate)
		w.Settled(t)
	})
}

// taciturn is a Store that lists nothing.
type taciturn struct{ pullthrough.Store }

// findsRepos is a Store that tells which repositories are there, and no more.
type findsRepos struct {
	taciturn
	there string
	err   error
}

func (s findsRepos) RepoExists(_ context.Context, repo pullthrough.Repo) (bool, error) {
	return repo.Name == s.there, s.err
}

func TestARepositoryThatExistsLacksAnImageAndNoName(t *testing.T) {
	onDisk, err := dirstore.Open(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, onDisk.Close()) })
	local := testkit.LocalManifest("1")
	for name, c := range map[string]struct {
		store          pullthrough.Store
		manifest, blob string
	}{
		"in memory":             {memstore.New(), "MANIFEST_UNKNOWN", "BLOB_UNKNOWN"},
		"in a directory":        {onDisk, "MANIFEST_UNKNOWN", "BLOB_UNKNOWN"},
		"that finds it":         {findsRepos{taciturn: taciturn{memstore.New()}, there: "mine"}, "MANIFEST_UNKNOWN", "BLOB_UNKNOWN"},
		"with nothing but gets": {taciturn{memstore.New()}, "NAME_UNKNOWN", "NAME_UNKNOWN"},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, c.store.PutManifest(t.Context(), pullthrough.Repo{Name: "mine"}, local))
			f := testkit.NewFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store = c.store })
			testkit.AssertOCI(t, f.Get(t, "/v2/mine/manifests/2"), 404, c.manifest)
			testkit.AssertOCI(t, f.Get(t, "/v2/mine/blobs/"+digest.FromString("x").String()), 404, c.blob)
			testkit.AssertOCI(t, f.Get(t, "/v2/yours/manifests/2"), 404, "NAME_UNKNOWN")
			assert.Empty(t, f.Up.Log())
		})
	}
}

func TestOneCallerMayImportAndTheOtherMayNot(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	d := img.Blobs()[0].Digest.String()
	for name, order := range map[string][]string{"refused first": {"guest", "admin"}, "allowed first": {"admin", "guest"}} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				p.Authorize = func(_ context.Context, a pullthrough.Action, r pullthrough.Request) error {
					if a == pullthrough.ActionImport && r.Caller == "guest" {
						return errors.New("guests import nothing")
					}
					return nil
				}
			})
			w.Up.Push("a", "1", img)
			gate := make(chan struct{})
			w.Up.Fault(pullthroughtest.Fault{Stall: gate})
			results := map[string]chan error{"guest": make(chan error, 2), "admin": make(chan error, 2)}
			for _, caller := range order {
				go func() {
					_, err := w.Manifest(context.Background(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1", Caller: caller})
					results[caller] <- err
				}()
				go func() {
					b, err := w.Blob(context.Background(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: d, Caller: caller})
					if err == nil {
						err = b.Body.Close()
					}
					results[caller] <- err
				}()
				if caller == "guest" {
					for range 2 {
						err := <-results["guest"]
						assert.ErrorIs(t, err, pullthrough.ErrNotFound, "masked, as Amazon ECR does")
						assert.ErrorIs(t, err, pullthrough.ErrDenied)
					}
				} else {
					require.Eventually(t, func() bool { return w.Running() == 2 }, 10*time.Second, time.Millisecond)
				}
			}
			close(gate)
			for range 2 {
				assert.NoError(t, <-results["admin"])
			}
			w.Settled(t)
			assert.Len(t, w.Up.Log(), 2)
			_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1", Caller: "guest"})
			assert.NoError(t, err, "what is stored needs no import")
		})
	}
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
