package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
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

// isles are pulls that have nothing to do with each other but the upstream host:
// those of the repository harmed, which go wrong, and those of neighbours.
type isles struct {
	*testkit.World
	over       chan struct{} // ends stalls
	unreadable atomic.Bool   // harmed's secret
	mute       atomic.Bool   // upstream's token server, about harmed
}

var harmed = pullthrough.Repo{Account: "1", Region: "us-east-1", Name: "bad/x"}

var neighbours = map[string]pullthrough.Repo{
	"another rule":    {Account: "1", Region: "us-east-1", Name: "good/x"},
	"another account": {Account: "2", Region: "us-east-1", Name: "bad/y"},
	"another Region":  {Account: "1", Region: "eu-west-1", Name: "bad/y"},
}

// ofHarmed are harmed's requests upstream: its rules add nothing to names but
// their prefix.
const ofHarmed = "/v2/bad/x/"

// afflictions are what goes wrong, by pulls of harmed that are under way or have
// failed when the neighbour's begin.
var afflictions = map[string]func(t *testing.T, i *isles, pulls *pullsOf){
	"a stalled upstream": func(_ *testing.T, i *isles, pulls *pullsOf) {
		i.Up.Fault(pullthroughtest.Fault{Match: "* " + ofHarmed + "*", Stall: i.over})
		for n := range 20 {
			pulls.start(fmt.Sprint("cold", n))
		}
		pulls.start("stored")
	},
	"a bad secret": func(_ *testing.T, i *isles, pulls *pullsOf) {
		i.unreadable.Store(true)
		i.Up.RevokeTokens()
		for n := range 5 {
			pulls.start(fmt.Sprint("cold", n))
		}
	},
	"429 with Retry-After": func(_ *testing.T, i *isles, pulls *pullsOf) {
		i.Up.Fault(pullthroughtest.Fault{Match: "* " + ofHarmed + "*", Status: 429, Header: http.Header{"Retry-After": {"7"}}})
		for n := range 20 {
			pulls.start(fmt.Sprint("cold", n))
		}
		pulls.blobs(manyLayers)
	},
	"503 with Retry-After of a day": func(_ *testing.T, i *isles, pulls *pullsOf) {
		i.Up.Fault(pullthroughtest.Fault{Match: "* " + ofHarmed + "*", Status: 503, Header: http.Header{"Retry-After": {"86400"}}})
		pulls.start("cold")
		pulls.blobs(manyLayers)
	},
	"a pause of checks": func(t *testing.T, i *isles, pulls *pullsOf) {
		i.Up.Fault(pullthroughtest.Fault{Match: "* " + ofHarmed + "*", Status: 500})
		for range 3 {
			m, err := i.Manifest(t.Context(), pullthrough.Request{Repo: harmed, Ref: "stored"})
			require.NoError(t, err)
			assert.Equal(t, pullthrough.SourceStale, m.Source)
		}
		assert.Less(t, i.Up.Count("HEAD "+ofHarmed+"*"), 3, "checks are paused")
		pulls.start("cold")
	},
	"a token server that does not answer": func(_ *testing.T, i *isles, pulls *pullsOf) {
		i.mute.Store(true)
		i.Up.RevokeTokens()
		for n := range 20 {
			pulls.start(fmt.Sprint("cold", n))
		}
	},
	"64 stalled downloads": func(t *testing.T, i *isles, pulls *pullsOf) {
		i.Up.Fault(pullthroughtest.Fault{Match: "GET " + ofHarmed + "blobs/* 200", Stall: i.over, StallAfter: new(int64(10))})
		pulls.blobs(manyLayers)
		require.NoError(t, i.Up.Wait(t.Context(), "GET "+ofHarmed+"blobs/*", 64))
		synctest.Wait()
		assert.Equal(t, 64, i.Up.Count("GET "+ofHarmed+"blobs/* 200"), "the others of the rule wait for their turn")
	},
}

// manyLayers is an image with more layers than a rule downloads at a time.
var manyLayers = pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 64, Layers: 70})

// TestUpstreamIsolation: whatever goes wrong for one rule of one account in one
// Region delays and changes no other pull from the same upstream host.
func TestUpstreamIsolation(t *testing.T) {
	for neighbour, theirs := range neighbours {
		for _, warm := range []bool{false, true} {
			alone := pullBeside(t, theirs, warm, nil)
			assert.Greater(t, len(alone), 1+len(manyLayers.Blobs()), "a token, a manifest, blobs")
			for affliction, begin := range afflictions {
				if affliction == "a pause of checks" && !warm {
					continue // there is nothing to check
				}
				t.Run(fmt.Sprintf("%s, %s, known %t", affliction, neighbour, warm), func(t *testing.T) {
					assert.Equal(t, alone, pullBeside(t, theirs, warm, begin), "the same requests as alone")
				})
			}
		}
	}
}

// pullBeside has an affliction begin and then pulls as a neighbour does. It returns
// the neighbour's requests. warm: both have pulled from upstream before.
func pullBeside(t *testing.T, theirs pullthrough.Repo, warm bool, affliction func(*testing.T, *isles, *pullsOf)) (requests []string) {
	t.Helper()
	i := &isles{}
	up, enter := testkit.Piped(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: tenantUsers, Handler: i.answer})
	synctest.Test(t, func(t *testing.T) {
		i.enter(t, enter(t))
		if warm {
			for _, r := range []pullthrough.Repo{harmed, theirs} {
				i.FetchImage(t, r, "stored", afterwards)
			}
			<-time.After(2 * time.Hour)
		}
		pulls := &pullsOf{isles: i}
		ctx, cancel := context.WithCancel(t.Context())
		pulls.ctx = ctx
		up.Reset()
		if affliction != nil {
			affliction(t, i, pulls)
		}
		synctest.Wait()
		up.Reset()
		assert.Zero(t, elapsed(func() {
			i.ReadImage(t, theirs, "new", manyLayers)
			i.ReadImage(t, theirs, "stored", afterwards)
		}), "nobody waits for another's trouble")
		requests = i.neighbours()
		cancel()
		close(i.over)
		pulls.Wait()
	})
	return requests
}

func (i *isles) enter(t *testing.T, w *testkit.World) {
	i.World, i.over = w, make(chan struct{})
	allowTenants(w)
	w.Rules = pullthrough.StaticRules{
		{Prefix: "bad", UpstreamURL: w.Up.URL, UpstreamPrefix: "bad"},
		{Prefix: "good", UpstreamURL: w.Up.URL, UpstreamPrefix: "good"},
	}
	w.Policy = policyOf(pullthrough.Policy{TagTTL: time.Hour})
	w.Credentials = func(_ context.Context, r pullthrough.Repo, rule pullthrough.Rule) (pullthrough.Credential, error) {
		if i.unreadable.Load() && rule.Prefix == "bad" && r.Account == harmed.Account && r.Region == harmed.Region {
			return pullthrough.Credential{}, errors.New("the secret cannot be read")
		}
		return pullthrough.Credential{Username: "ann", AccessToken: annsCanary}, nil
	}
	for _, name := range []string{"bad/x", "bad/y", "good/x"} {
		w.Up.Push(name, "stored", afterwards)
		w.Up.Push(name, "new", manyLayers)
	}
}

// answer leaves token requests for harmed alone when they are to hang.
func (i *isles) answer(_ http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path == "/token" && i.mute.Load() && strings.Contains(r.URL.RawQuery, "bad%2Fx") {
		select {
		case <-i.over:
		case <-r.Context().Done():
		}
	}
	return false
}

// neighbours are the requests that are not harmed's.
func (i *isles) neighbours() (lines []string) {
	for _, r := range i.Up.Requests() {
		if !strings.Contains(r.Path, ofHarmed) && !strings.Contains(r.Query, "bad%2Fx") {
			scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
			lines = append(lines, fmt.Sprint(r, " ", r.Query, " ", r.Range, " ", scheme))
		}
	}
	return lines
}

// pullsOf are harmed's pulls, in the background. They end one way or the other.
type pullsOf struct {
	*isles
	ctx context.Context
	sync.WaitGroup
}

func (p *pullsOf) start(tag string) {
	p.Up.Push("bad/x", tag, afterwards)
	p.Go(func() { _, _ = p.Manifest(p.ctx, pullthrough.Request{Repo: harmed, Ref: tag}) })
}

func (p *pullsOf) blobs(img *pullthroughtest.Image) {
	for _, b := range img.Blobs() {
		p.Go(func() {
			blob, err := p.Blob(p.ctx, pullthrough.Request{Repo: harmed, Ref: b.Digest.String()})
			if err == nil {
				_ = blob.Body.Close()
			}
		})
	}
}
