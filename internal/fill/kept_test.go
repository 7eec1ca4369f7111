package fill_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const (
	keptSize = 8<<20 + 300<<10
	held     = 64 << 10 // what is never kept
)

// remains is a directory in which downloads stay that end early, and an upstream.
type remains struct {
	t     *testing.T
	up    *pullthroughtest.Upstream
	layer *pullthroughtest.Blob
	dir   string
	store bool // the directory is a dirstore's, and not that of the spools
}

// withRemains runs test for both kinds of places.
func withRemains(t *testing.T, c pullthroughtest.Config, test func(t *testing.T, r *remains)) {
	t.Helper()
	for _, kind := range []string{"store", "spools"} {
		t.Run(kind, func(t *testing.T) {
			r := &remains{t: t, up: pullthroughtest.New(t, c), dir: t.TempDir(), store: kind == "store"}
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 7, LayerSize: keptSize})
			r.layer = img.Layers[0]
			for _, repo := range []string{"a", "b"} {
				r.up.Push(repo, "1", img)
			}
			test(t, r)
		})
	}
}

// process calls f with a proxy that lives no longer. What is under way at its end is given up.
func (r *remains) process(change func(*pullthrough.Proxy), f func(p *pullthrough.Proxy)) {
	r.t.Helper()
	p := &pullthrough.Proxy{
		Store: memstore.New(), Rules: pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: r.up.URL}},
		Transport: &http.Transport{DialContext: pullthroughtest.DialLoopback},
	}
	testkit.WithPolicy(pullthrough.Policy{BlobsFirst: true})(p)
	if !r.store {
		p.SpoolDir = r.dir
	} else {
		s, err := dirstore.Open(r.dir)
		require.NoError(r.t, err)
		defer func() { assert.NoError(r.t, s.Close()) }()
		p.Store = s
	}
	if change != nil {
		change(p)
	}
	f(p)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_ = p.Shutdown(ended) // it may be in the midst of something
	p.Transport.(*http.Transport).CloseIdleConnections()
}

// at is the layer in a repository.
func (r *remains) at(repo string) pullthrough.Request {
	return pullthrough.Request{Repo: testkit.Repo(repo), Ref: r.layer.Digest.String()}
}

// breakOff pulls until n bytes have come and no more do.
func (r *remains) breakOff(n int64) {
	r.t.Helper()
	never := make(chan struct{})
	from := int64(0)
	r.process(nil, func(p *pullthrough.Proxy) {
		if n > from {
			heal := r.up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/* 2*", Stall: never, StallAfter: new(n - r.received())})
			defer heal()
		}
		b, err := p.Blob(r.t.Context(), r.at("a"))
		require.NoError(r.t, err)
		assert.True(r.t, bytes.Equal(r.content()[:min(n, keptSize-held)], testkit.RequireRead(r.t, b.Body, min(n, keptSize-held))))
		require.NoError(r.t, b.Body.Close())
	})
}

// breakOffOver pulls a larger layer over n connections until each of them has brought that many
// bytes. It returns the Policy.
func (r *remains) breakOffOver(n int, size, each int64) (policy func(*pullthrough.Proxy)) {
	r.t.Helper()
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 8, LayerSize: size})
	r.layer = img.Layers[0]
	r.up.Push("a", "2", img)
	policy = testkit.WithPolicy(pullthrough.Policy{Connections: n, BlobsFirst: true})
	defer r.up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/* 206", Stall: make(chan struct{}), StallAfter: &each})()
	r.process(policy, func(p *pullthrough.Proxy) {
		b, err := p.Blob(r.t.Context(), r.at("a"))
		require.NoError(r.t, err)
		require.Eventually(r.t, func() bool { return p.Downloads()[0].Written == int64(n)*each }, time.Minute, time.Millisecond)
		require.NoError(r.t, b.Body.Close())
	})
	return policy
}

func (r *remains) content() []byte { return testkit.BlobContent(r.t, r.layer) }

// received is how many bytes upstream has sent.
func (r *remains) received() (n int64) {
	for _, q := range r.up.Requests() {
		if strings.Contains(q.Path, "/blobs/") && q.Status < 300 {
			n += q.Bytes
		}
	}
	return n
}

// ranges are the Range headers that upstream has seen, and its answers.
func (r *remains) ranges() (all []string) {
	for _, q := range r.up.Requests() {
		if strings.Contains(q.Path, "/blobs/") {
			all = append(all, strings.TrimSpace(fmt.Sprintf("%s %d", q.Range, q.Status)))
		}
	}
	return all
}

// whole pulls all of the layer, and makes sure that the Store gets it.
func (r *remains) whole(p *pullthrough.Proxy, q pullthrough.Request) {
	r.t.Helper()
	b, err := p.Blob(r.t.Context(), q)
	require.NoError(r.t, err)
	testkit.AssertBody(r.t, r.layer.Digest, b)
	require.NoError(r.t, p.Idle(r.t.Context()))
	stored, err := p.Store.Blob(r.t.Context(), q.Repo, r.layer.Digest)
	require.NoError(r.t, err)
	testkit.AssertBody(r.t, r.layer.Digest, stored)
}

// files are those of downloads that have ended early, by kind.
func (r *remains) files(kind string) []string {
	r.t.Helper()
	dir := "pullthrough-partial"
	if r.store {
		dir = "pullthrough/partial"
	}
	all, err := filepath.Glob(filepath.Join(r.dir, dir, "*", kind))
	require.NoError(r.t, err)
	return all
}

// rest is the request for all from an offset on, and its answer.
func rest(from int64) string { return fmt.Sprintf("bytes=%d-%d 206", from, keptSize-1) }

func TestWhatWasReceivedIsNotFetchedTwice(t *testing.T) {
	withRemains(t, pullthroughtest.Config{}, func(t *testing.T, r *remains) {
		r.breakOff(5 << 20)
		r.breakOff(6<<20 + 77)
		r.breakOff(7 << 20)
		r.process(nil, func(p *pullthrough.Proxy) { r.whole(p, r.at("a")) })
		assert.Equal(t, []string{
			"200", rest(5 << 20), rest(6<<20 + 77), rest(7 << 20),
		}, r.ranges())
		assert.EqualValues(t, keptSize, r.received())
		assert.Empty(t, r.files("*"), "nothing is left of what was stored")
	})
}

func TestALastReaderThatLeavesLeavesWhatHasCome(t *testing.T) {
	withRemains(t, pullthroughtest.Config{}, func(t *testing.T, r *remains) {
		never := make(chan struct{})
		heal := r.up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/* 2*", Stall: never, StallAfter: new(int64(5 << 20))})
		policy := testkit.WithPolicy(pullthrough.Policy{Orphans: -1, BlobsFirst: true})
		r.process(policy, func(p *pullthrough.Proxy) {
			b, err := p.Blob(t.Context(), r.at("a"))
			require.NoError(t, err)
			testkit.RequireRead(t, b.Body, 5<<20)
			require.NoError(t, b.Body.Close())
			require.NoError(t, p.Idle(t.Context()))
			heal()
			r.whole(p, r.at("a"))
		})
		assert.Equal(t, []string{"200", rest(5 << 20)}, r.ranges())
		assert.EqualValues(t, keptSize, r.received())
	})
}

func TestTheEndIsAlwaysUpstreams(t *testing.T) {
	withRemains(t, pullthroughtest.Config{}, func(t *testing.T, r *remains) {
		never := make(chan struct{})
		heal := r.up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/* 2*", Stall: never, StallAfter: new(int64(keptSize - 1))})
		r.process(nil, func(p *pullthrough.Proxy) {
			b, err := p.Blob(t.Context(), r.at("a"))
			require.NoError(t, err)
			require.Eventually(t, func() bool { return len(p.Downloads()) == 1 && p.Downloads()[0].Written == keptSize-1 }, time.Minute, time.Millisecond)
			require.NoError(t, b.Body.Close())
		})
		heal()
		r.process(nil, func(p *pullthrough.Proxy) { r.whole(p, r.at("a")) })
		assert.Equal(t, []string{"200", rest(keptSize - held)}, r.ranges())
	})
}

func TestReadersReadWhatIsThereAtOnce(t *testing.T) {
	withRemains(t, pullthroughtest.Config{}, func(t *testing.T, r *remains) {
		r.breakOff(6 << 20)
		heal := r.up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/* 2*", Stall: make(chan struct{}), StallAfter: new(int64(0))})
		defer heal()
		r.process(nil, func(p *pullthrough.Proxy) {
			b, err := p.Blob(t.Context(), r.at("a"))
			require.NoError(t, err)
			assert.True(t, bytes.Equal(r.content()[:6<<20], testkit.RequireRead(t, b.Body, 6<<20)))
			require.NoError(t, b.Body.Close())
		})
	})
}

// TestNobodyElseGoesOn: whoever is not the same tenant, by the same rule, from the same
// upstream into the same repository has all of it from upstream.
func TestNobodyElseGoesOn(t *testing.T) {
	rule := func(change func(*pullthrough.Rule)) func(*remains, *pullthrough.Proxy) {
		return func(_ *remains, p *pullthrough.Proxy) {
			rules := p.Rules.(pullthrough.StaticRules)
			change(&rules[0])
		}
	}
	for name, other := range map[string]struct {
		repo   pullthrough.Repo
		change func(*remains, *pullthrough.Proxy)
	}{
		"another account":    {repo: pullthrough.Repo{Account: "123456789012", Region: "eu-west-1", Name: "hub/a"}},
		"another repository": {repo: testkit.Repo("b")},
		"another secret":     {change: rule(func(r *pullthrough.Rule) { r.CredentialARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:x" })},
		"another upstream": {change: func(r *remains, p *pullthrough.Proxy) {
			p.Rules = pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: strings.Replace(r.up.URL, "127.0.0.1", "localhost", 1)}}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			withRemains(t, pullthroughtest.Config{}, func(t *testing.T, r *remains) {
				r.breakOff(7 << 20)
				q := r.at("a")
				if other.repo.Name != "" {
					q.Repo = other.repo
				}
				r.process(func(p *pullthrough.Proxy) {
					if other.change != nil {
						other.change(r, p)
					}
				}, func(p *pullthrough.Proxy) { r.whole(p, q) })
				assert.Equal(t, []string{"200", "200"}, r.ranges())
				assert.EqualValues(t, 7<<20+keptSize, r.received())
			})
		})
	}
}

// TestARuleThatIsMadeAnewGoesOn: hosts make the same rule again each time they start.
func TestARuleThatIsMadeAnewGoesOn(t *testing.T) {
	withRemains(t, pullthroughtest.Config{}, func(t *testing.T, r *remains) {
		r.breakOff(7 << 20)
		r.process(func(p *pullthrough.Proxy) {
			rules := p.Rules.(pullthrough.StaticRules)
			rules[0].CreatedAt, rules[0].UpdatedAt = time.Unix(1, 0), time.Unix(2, 0)
		}, func(p *pullthrough.Proxy) { r.whole(p, r.at("a")) })
		assert.Equal(t, []string{"200", rest(7 << 20)}, r.ranges())
	})
}

// TestTodaysCredentialMustGiveTheRest: what is here is nobody's whom upstream refuses.
func TestTodaysCredentialMustGiveTheRest(t *testing.T) {
	withRemains(t, pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: testkit.Users}, func(t *testing.T, r *remains) {
		with := func(password string) func(*pullthrough.Proxy) {
			return testkit.WithCredential(pullthrough.Credential{Username: "me", AccessToken: password})
		}
		heal := r.up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/* 2*", Stall: make(chan struct{}), StallAfter: new(int64(7 << 20))})
		r.process(with(testkit.Canary), func(p *pullthrough.Proxy) {
			b, err := p.Blob(t.Context(), r.at("a"))
			require.NoError(t, err)
			testkit.RequireRead(t, b.Body, 7<<20)
			require.NoError(t, b.Body.Close())
		})
		heal()
		r.process(with("rotated"), func(p *pullthrough.Proxy) {
			_, err := p.Blob(t.Context(), r.at("a"))
			assert.ErrorIs(t, err, pullthrough.ErrDenied, "and no byte of what is here")
		})
		assert.EqualValues(t, 7<<20, r.received())
		r.process(with(testkit.Canary), func(p *pullthrough.Proxy) { r.whole(p, r.at("a")) })
		assert.EqualValues(t, keptSize, r.received())
	})
}

// TestWhatIsKeptIsHashed: nothing wrong is stored, whatever became of the file.
func TestWhatIsKeptIsHashed(t *testing.T) {
	withRemains(t, pullthroughtest.Config{}, func(t *testing.T, r *remains) {
		r.breakOff(6 << 20)
		data := r.files("data")
		require.Len(t, data, 1)
		flip(t, data[0], 3<<20)
		r.process(nil, func(p *pullthrough.Proxy) {
			b, err := p.Blob(t.Context(), r.at("a"))
			require.NoError(t, err)
			got, err := io.ReadAll(b.Body)
			assert.Error(t, err, "the answer is cut short of its end")
			assert.LessOrEqual(t, len(got), keptSize-held)
			require.NoError(t, b.Body.Close())
			require.NoError(t, p.Idle(t.Context()))
			_, err = p.Store.Blob(t.Context(), r.at("a").Repo, r.layer.Digest)
			assert.ErrorIs(t, err, os.ErrNotExist)
			assert.Empty(t, r.files("*"))
			r.whole(p, r.at("a"))
		})
		assert.Equal(t, []string{"200", rest(6 << 20), "200"}, r.ranges())
	})
}

func flip(t *testing.T, name string, off int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	require.NoError(t, err)
	one := make([]byte, 1)
	_, err = f.ReadAt(one, off)
	require.NoError(t, err)
	one[0] ^= 1
	_, err = f.WriteAt(one, off)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// TestNotesThatAreNotTrusted: all comes anew where nobody knows what is there.
func TestNotesThatAreNotTrusted(t *testing.T) {
	for name, c := range map[string]struct {
		change func(note string) string
		range_ string
	}{
		"not of this system's start, and synced": {func(n string) string { return anotherBoot(n) }, rest(6 << 20)},
		"not of this system's start":             {func(n string) string { return anotherBoot(n[:strings.LastIndex(n, "synced")]) }, "200"},
		"a last line that is torn":               {func(n string) string { return n + "6291456 1" }, rest(6 << 20)},
		"no header":                              {func(n string) string { return n[strings.Index(n, "\n")+1:] }, "200"},
		"nothing":                                {func(string) string { return "" }, "200"},
		"a later format":                         {func(n string) string { return strings.Replace(n, `"v":1`, `"v":2`, 1) }, "200"},
		"more than there is": {func(n string) string {
			lines := strings.SplitN(n, "\n", 3)
			return lines[0] + fmt.Sprintf("\n0 %d\n", 7<<20) + lines[2]
		}, rest(6 << 20)},
	} {
		t.Run(name, func(t *testing.T) {
			withRemains(t, pullthroughtest.Config{}, func(t *testing.T, r *remains) {
				r.breakOff(6 << 20)
				notes := r.files("note")
				require.Len(t, notes, 1)
				var text []byte
				require.Eventually(t, func() (ended bool) { // the last line is written behind the end of the pull
					text, _ = os.ReadFile(notes[0])
					return strings.Contains(string(text), "synced")
				}, time.Minute, time.Millisecond)
				require.NoError(t, os.WriteFile(notes[0], []byte(c.change(string(text))), 0o600))
				r.process(nil, func(p *pullthrough.Proxy) { r.whole(p, r.at("a")) })
				assert.Equal(t, []string{"200", c.range_}, r.ranges())
				assert.Empty(t, r.files("*"))
			})
		})
	}
}

func anotherBoot(note string) string {
	head, rest, _ := strings.Cut(note, `"boot":"`)
	_, rest, _ = strings.Cut(rest, `"`)
	return head + `"boot":"another"` + rest
}

// TestUpstreamWithoutRanges sends all of it again, once.
func TestUpstreamWithoutRanges(t *testing.T) {
	for name, fault := range map[string]pullthroughtest.Fault{
		"ignored":         {Header: http.Header{"Content-Range": nil, "Content-Length": {fmt.Sprint(keptSize)}}, Status: 200},
		"refused":         {Status: http.StatusRequestedRangeNotSatisfiable},
		"of another size": {Header: http.Header{"Content-Range": {fmt.Sprintf("bytes %d-%d/%d", 6<<20, keptSize-1, keptSize+1)}}},
	} {
		t.Run(name, func(t *testing.T) {
			withRemains(t, pullthroughtest.Config{}, func(t *testing.T, r *remains) {
				r.breakOff(6 << 20)
				fault.Match, fault.Times = "GET /v2/*/blobs/* 206", 1
				if fault.Status == 200 {
					fault.Body = r.content()
				}
				r.up.Fault(fault)
				r.process(nil, func(p *pullthrough.Proxy) { r.whole(p, r.at("a")) })
				if fault.Status == 200 {
					assert.Len(t, r.ranges(), 2)
					return
				}
				assert.Len(t, r.ranges(), 3)
				assert.Equal(t, "200", r.ranges()[2])
			})
		})
	}
}

// TestWhatIsAheadIsKept: what a far reader had asked for is not fetched again, either.
func TestWhatIsAheadIsKept(t *testing.T) {
	withRemains(t, pullthroughtest.Config{}, func(t *testing.T, r *remains) {
		never := make(chan struct{})
		heal := r.up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/* 200", Stall: never, StallAfter: new(int64(5 << 20))})
		r.process(nil, func(p *pullthrough.Proxy) {
			b, err := p.Blob(t.Context(), r.at("a"))
			require.NoError(t, err)
			testkit.RequireRead(t, b.Body, 5<<20)
			srv := testkit.Serve(t, p)
			reply := testkit.Send(t, srv, http.MethodGet, testkit.BlobPath("a", r.layer.Digest), "", "Range", fmt.Sprintf("bytes=%d-%d", 7<<20, 7<<20+512<<10-1))
			assert.Equal(t, http.StatusPartialContent, reply.StatusCode)
			require.NoError(t, b.Body.Close())
		})
		heal()
		before := r.received()
		assert.EqualValues(t, 5<<20+512<<10, before)
		r.process(nil, func(p *pullthrough.Proxy) { r.whole(p, r.at("a")) })
		assert.EqualValues(t, keptSize, r.received())
	})
}

// TestASmallStartIsNotKept: what is less than 4 MiB is not worth it.
func TestASmallStartIsNotKept(t *testing.T) {
	withRemains(t, pullthroughtest.Config{}, func(t *testing.T, r *remains) {
		r.breakOff(4<<20 - 1)
		assert.Empty(t, r.files("*"))
		r.process(nil, func(p *pullthrough.Proxy) { r.whole(p, r.at("a")) })
		assert.Equal(t, []string{"200", "200"}, r.ranges())
	})
}

// TestADownloadElsewhereIsNotTaken: while one process downloads another one begins its own.
func TestADownloadElsewhereIsNotTaken(t *testing.T) {
	withRemains(t, pullthroughtest.Config{}, func(t *testing.T, r *remains) {
		heal := r.up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/* 2*", Stall: make(chan struct{}), StallAfter: new(int64(6 << 20))})
		r.process(nil, func(p *pullthrough.Proxy) {
			b, err := p.Blob(t.Context(), r.at("a"))
			require.NoError(t, err)
			testkit.RequireRead(t, b.Body, 6<<20)
			heal()
			r.process(nil, func(p *pullthrough.Proxy) { r.whole(p, r.at("a")) })
			assert.Equal(t, []string{"200", "200"}, r.ranges())
			require.NoError(t, b.Body.Close())
		})
		assert.Len(t, r.files("data"), 1, "the first has left what it had")
	})
}

// TestWhatIsKeptMakesRoom: it counts, and is the first to go.
func TestWhatIsKeptMakesRoom(t *testing.T) {
	withRemains(t, pullthroughtest.Config{}, func(t *testing.T, r *remains) {
		if r.store {
			t.Skip("the spools' alone")
		}
		r.breakOff(6 << 20)
		r.process(func(p *pullthrough.Proxy) { p.SpoolBytes = keptSize + 1<<20 }, func(p *pullthrough.Proxy) { r.whole(p, r.at("b")) })
		assert.Empty(t, r.files("*"))
	})
}

// TestSpoolsWithoutADirectoryStayNameless: nothing is kept in the system's own directory.
func TestSpoolsWithoutADirectoryStayNameless(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	withRemains(t, pullthroughtest.Config{}, func(t *testing.T, r *remains) {
		if r.store {
			t.Skip("the spools' alone")
		}
		r.process(func(p *pullthrough.Proxy) { p.SpoolDir = "" }, func(p *pullthrough.Proxy) {
			b, err := p.Blob(t.Context(), r.at("a"))
			require.NoError(t, err)
			testkit.RequireRead(t, b.Body, 6<<20)
			require.NoError(t, b.Body.Close())
		})
		left, err := filepath.Glob(filepath.Join(temp, "pullthrough*"))
		require.NoError(t, err)
		assert.Empty(t, left)
	})
}

// TestWhatIsKeptGoesOnOverSeveralConnections, and each byte is fetched once all the same.
func TestWhatIsKeptGoesOnOverSeveralConnections(t *testing.T) {
	withRemains(t, pullthroughtest.Config{}, func(t *testing.T, r *remains) {
		two := r.breakOffOver(2, 40<<20, 5<<20)
		r.process(two, func(p *pullthrough.Proxy) { r.whole(p, r.at("a")) })
		assert.EqualValues(t, r.layer.Size, r.received())
		seen := r.ranges()
		assert.Equal(t, []string{"bytes=0-8388607 206", "bytes=8388608-16777215 206"}, slices.Sorted(slices.Values(seen[:2])))
		assert.Contains(t, seen, "bytes=5242880-8388607 206", "the first gap")
		assert.GreaterOrEqual(t, len(seen), 5, "over several connections")
	})
}

// halfKeeper lends the Stages of a Store that keeps downloads, and does not give them back.
type halfKeeper struct {
	pullthrough.Store
	pullthrough.BlobStager
}

// TestWhatNobodyGivesBackIsNotKept: it would only take room.
func TestWhatNobodyGivesBackIsNotKept(t *testing.T) {
	withRemains(t, pullthroughtest.Config{}, func(t *testing.T, r *remains) {
		if !r.store {
			t.Skip("the Store's alone")
		}
		half := func(p *pullthrough.Proxy) { p.Store = halfKeeper{p.Store, p.Store.(pullthrough.BlobStager)} }
		heal := r.up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/* 2*", Stall: make(chan struct{}), StallAfter: new(int64(7 << 20))})
		r.process(half, func(p *pullthrough.Proxy) {
			b, err := p.Blob(t.Context(), r.at("a"))
			require.NoError(t, err)
			testkit.RequireRead(t, b.Body, 7<<20)
			require.NoError(t, b.Body.Close())
		})
		assert.Empty(t, r.files("*"))
		heal()
		r.process(half, func(p *pullthrough.Proxy) { r.whole(p, r.at("a")) })
		assert.Equal(t, []string{"200", "200"}, r.ranges())
	})
}

// TestFewerConnectionsGoOn where more of them have left holes: the Policy may have changed.
func TestFewerConnectionsGoOn(t *testing.T) {
	withRemains(t, pullthroughtest.Config{}, func(t *testing.T, r *remains) {
		const size = 64 << 20
		r.breakOffOver(4, size, 3<<20)
		r.process(nil, func(p *pullthrough.Proxy) { r.whole(p, r.at("a")) })
		assert.EqualValues(t, size, r.received())
		assert.Len(t, r.ranges(), 8)
	})
}

// TestADirectoryWhoseGroupIsInherited, as volumes of Kubernetes are: what is made there has
// one mode bit more.
func TestADirectoryWhoseGroupIsInherited(t *testing.T) {
	withRemains(t, pullthroughtest.Config{}, func(t *testing.T, r *remains) {
		require.NoError(t, os.Chmod(r.dir, 0o770|os.ModeSetgid))
		r.breakOff(6 << 20)
		r.process(nil, func(p *pullthrough.Proxy) { r.whole(p, r.at("a")) })
		assert.Equal(t, []string{"200", rest(6 << 20)}, r.ranges())
		assert.Empty(t, r.files("*"))
	})
}

// unstorable has a proxy receive blobs, and not store them, once broken is set.
func (r *remains) unstorable(broken *atomic.Bool) func(*pullthrough.Proxy) {
	fail := func() error {
		if broken.Load() {
			return os.ErrDeadlineExceeded
		}
		return nil
	}
	return func(p *pullthrough.Proxy) {
		if !r.store {
			p.Store = &testkit.FaultyStore{Store: p.Store.(*memstore.Store), OnPutBlob: func(io.ReadSeeker) error { return fail() }}
			return
		}
		rules := p.Rules
		p.Rules = pullthrough.RuleSourceFunc(func(ctx context.Context, account, region string) ([]pullthrough.Rule, error) {
			if err := fail(); err != nil {
				return nil, err
			}
			return rules.Rules(ctx, account, region)
		})
	}
}

// TestWhatCouldNotBeStoredIsKept: all of it has come, and upstream gives its end once more.
func TestWhatCouldNotBeStoredIsKept(t *testing.T) {
	withRemains(t, pullthroughtest.Config{}, func(t *testing.T, r *remains) {
		var broken atomic.Bool
		r.process(r.unstorable(&broken), func(p *pullthrough.Proxy) {
			b, err := p.Blob(t.Context(), r.at("a"))
			require.NoError(t, err)
			broken.Store(true)
			testkit.AssertBody(t, r.layer.Digest, b)
			require.NoError(t, p.Idle(t.Context()))
		})
		r.process(nil, func(p *pullthrough.Proxy) { r.whole(p, r.at("a")) })
		assert.Equal(t, []string{"200", rest(keptSize - held)}, r.ranges())
		assert.Empty(t, r.files("*"))
	})
}

// TestWhatIsVerifiedIsNotWrittenAgain while anybody reads it.
func TestWhatIsVerifiedIsNotWrittenAgain(t *testing.T) {
	withRemains(t, pullthroughtest.Config{}, func(t *testing.T, r *remains) {
		var broken atomic.Bool
		r.process(r.unstorable(&broken), func(p *pullthrough.Proxy) {
			b, err := p.Blob(t.Context(), r.at("a"))
			require.NoError(t, err)
			broken.Store(true)
			begin := testkit.RequireRead(t, b.Body, keptSize-held)
			require.NoError(t, p.Idle(t.Context()))
			broken.Store(false)
			r.up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/* 2*", Flip: new(int64(held - 1))})
			other, err := p.Blob(t.Context(), r.at("a"))
			require.NoError(t, err)
			_, err = io.ReadAll(other.Body)
			assert.Error(t, err)
			require.NoError(t, other.Body.Close())
			end, err := io.ReadAll(b.Body)
			assert.NoError(t, err)
			assert.True(t, bytes.Equal(r.content(), append(begin, end...)))
			require.NoError(t, b.Body.Close())
		})
		assert.Equal(t, []string{"200", "200"}, r.ranges())
	})
}
