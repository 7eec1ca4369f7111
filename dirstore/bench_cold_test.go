//go:build unix

package dirstore_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// The manifests of BenchmarkColdManifests.
const (
	coldRepos   = 50
	coldPerRepo = 10
	coldClients = 16 // each takes one repository after the other
)

// coldStores makes a Store that has nothing: one in a new directory, or one in memory. A
// file system on which many files were removed just now makes new ones slowly, so what is
// measured on a disk needs a new one: DIRSTORE_BENCH_DIR says where it is.
func coldStores(b *testing.B) map[string]func() pullthrough.Store {
	base := os.Getenv("DIRSTORE_BENCH_DIR")
	return map[string]func() pullthrough.Store{
		"dir": func() pullthrough.Store {
			dir, err := os.MkdirTemp(base, "bench")
			require.NoError(b, err)
			s, err := dirstore.Open(dir)
			require.NoError(b, err)
			b.Cleanup(func() { require.NoError(b, os.RemoveAll(dir)) })
			return s
		},
		"mem": func() pullthrough.Store { return memstore.New() },
	}
}

// coldRun is what one pull of all manifests took.
type coldRun struct {
	first, last time.Duration // until the answer
	cpu         int64         // ticks, until all is stored
}

// BenchmarkColdManifests pulls 500 manifests by tag in 50 repositories, through a proxy that
// knows nothing yet, from an upstream that is 20 ms late, into a directory and into memory by
// turns. x-last is how many times as long the directory takes to the last answer, x-cpu how
// many times as much processor time until all is stored, without that of upstream
// and clients, which a pull without a proxy tells; ms-first is by how much the first answer is
// later.
func BenchmarkColdManifests(b *testing.B) {
	up := pullthroughtest.New(b, pullthroughtest.Config{Handler: func(_ http.ResponseWriter, r *http.Request) bool {
		time.Sleep(20 * time.Millisecond)
		return false
	}})
	var images []*pullthroughtest.Image
	for i := range coldPerRepo {
		images = append(images, image(int64(i)))
	}
	for i := range coldRepos {
		for j, img := range images {
			up.Push(fmt.Sprint("r", i), fmt.Sprint("v", j), img)
		}
	}
	runs := make(map[string][]coldRun)
	stores := coldStores(b)
	for round := 0; b.Loop(); round++ {
		for _, which := range [][]string{{"dir", "mem", "direct"}, {"mem", "dir", "direct"}}[round%2] {
			run := coldRun{}
			if which == "direct" {
				before := testkit.CPUTicks()
				run.last = pullCold(b, up.Client(), up.URL+"/v2/", images)
				run.cpu = testkit.CPUTicks() - before
			} else {
				run = runCold(b, stores[which](), up, images)
			}
			runs[which] = append(runs[which], run)
		}
	}
	var last, first []float64
	cpu := make(map[string]int64)
	for i, dir := range runs["dir"] {
		mem := runs["mem"][i]
		last = append(last, dir.last.Seconds()/mem.last.Seconds())
		first = append(first, (dir.first-mem.first).Seconds()*1000)
		for which, all := range runs {
			cpu[which] += all[i].cpu
		}
	}
	b.ReportMetric(testkit.Median(last), "x-last")
	b.ReportMetric(testkit.Median(first), "ms-first")
	if own := cpu["mem"] - cpu["direct"]; own > 20 { // ticks: fewer say nothing
		b.ReportMetric(float64(cpu["dir"]-cpu["direct"])/float64(own), "x-cpu")
	}
}

// runCold pulls the first manifest alone, from a repository of its own, and then all.
func runCold(b *testing.B, s pullthrough.Store, up *pullthroughtest.Upstream, images []*pullthroughtest.Image) coldRun {
	p := &pullthrough.Proxy{
		Store: s, Rules: pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: up.URL}},
		Transport: &http.Transport{DialContext: pullthroughtest.DialLoopback, MaxIdleConnsPerHost: 64},
	}
	srv := httptest.NewServer(p)
	defer srv.Close()
	before, start := testkit.CPUTicks(), time.Now()
	getCold(b, srv.Client(), srv.URL+"/v2/hub/r0/manifests/v0", images[0])
	run := coldRun{first: time.Since(start)}
	run.last = pullCold(b, srv.Client(), srv.URL+"/v2/hub/", images)
	require.NoError(b, p.Idle(b.Context()))
	run.cpu = testkit.CPUTicks() - before
	require.NoError(b, shutDown(context.Background(), p))
	if s, ok := s.(*dirstore.Store); ok {
		for i := range coldRepos {
			for j := range images {
				_, err := s.Manifest(b.Context(), pullthrough.Repo{Name: fmt.Sprint("hub/r", i)}, fmt.Sprint("v", j))
				require.NoError(b, err)
			}
		}
		require.NoError(b, s.Close())
	}
	return run
}

func pullCold(b *testing.B, client *http.Client, base string, images []*pullthroughtest.Image) time.Duration {
	start := time.Now()
	client.Transport.(*http.Transport).MaxIdleConnsPerHost = coldClients
	var wg sync.WaitGroup
	for worker := range coldClients {
		wg.Go(func() {
			for i := worker; i < coldRepos; i += coldClients {
				for j, img := range images {
					getCold(b, client, fmt.Sprint(base, "r", i, "/manifests/v", j), img)
				}
			}
		})
	}
	wg.Wait()
	return time.Since(start)
}

func getCold(b *testing.B, client *http.Client, url string, img *pullthroughtest.Image) {
	resp, err := client.Get(url)
	if err != nil {
		b.Error(err)
		return
	}
	content, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || string(content) != string(img.Content) {
		b.Error(resp.Status, err)
	}
}
