package dirstore_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

// BenchmarkManifestHit is a stored manifest, by tag and by digest: the Store alone,
// the whole handler, and the handler over 32 connections. The last two are run by
// turns with MemStore and with http.ServeContent from a file: x-mem and x-file are
// the medians of how many times as long ours takes.
func BenchmarkManifestHit(b *testing.B) {
	s, mem := open(b, b.TempDir()), memstore.New()
	m := manifestOf(image(1), "v1")
	put(b, s, repo, m)
	require.NoError(b, mem.PutManifest(b.Context(), repo, m))
	for name, ref := range map[string]string{"tag": "v1", "digest": m.Descriptor.Digest.String()} {
		b.Run(name+"/store", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, err := s.Manifest(b.Context(), repo, ref)
				require.NoError(b, err)
			}
		})
		path := "/v2/" + repo.Name + "/manifests/" + ref
		rivals := map[string]http.Handler{"x-mem": proxyOf(mem), "x-file": fromFile(b, m)}
		b.Run(name+"/handler", func(b *testing.B) {
			b.ReportAllocs()
			byTurns(b, proxyOf(s), rivals, func(h http.Handler) func() {
				r := httptest.NewRequest(http.MethodGet, path, nil)
				return func() {
					for range 1000 {
						w := &discarding{header: make(http.Header, 8)}
						if h.ServeHTTP(w, r); w.n != len(m.Content) {
							b.Fatal(w.n)
						}
					}
				}
			})
		})
		b.Run(name+"/connections=32", func(b *testing.B) {
			byTurns(b, proxyOf(s), rivals, func(h http.Handler) func() { return clients(b, h, path, 32) })
		})
	}
}

func proxyOf(s pullthrough.Store) http.Handler {
	return &pullthrough.Proxy{
		Store: s, Rules: pullthrough.StaticRules{},
		Policy: func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{TagTTL: -1}
		},
	}
}

// fromFile is the standard library's way to send a file.
func fromFile(b *testing.B, m *pullthrough.Manifest) http.Handler {
	name := filepath.Join(b.TempDir(), "manifest")
	require.NoError(b, os.WriteFile(name, m.Content, 0o644))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, err := os.Open(name)
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		defer func() { _ = f.Close() }()
		w.Header().Set("Content-Type", m.Descriptor.MediaType)
		w.Header().Set("Docker-Content-Digest", m.Descriptor.Digest.String())
		w.Header().Set("Etag", `"`+m.Descriptor.Digest.String()+`"`)
		http.ServeContent(w, r, "", time.Time{}, f)
	})
}

// discarding is a ResponseWriter without a connection.
type discarding struct {
	header http.Header
	n      int
}

func (d *discarding) Header() http.Header { return d.header }
func (d *discarding) WriteHeader(int)     {}
func (d *discarding) Write(p []byte) (int, error) {
	d.n += len(p)
	return len(p), nil
}

// clients returns what has so many clients make 100 requests each.
func clients(b *testing.B, h http.Handler, path string, n int) func() {
	server := httptest.NewServer(h)
	b.Cleanup(server.Close)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: n}}
	b.Cleanup(client.CloseIdleConnections)
	return func() {
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				for range 100 {
					resp, err := client.Get(server.URL + path)
					if err != nil {
						b.Error(err)
						return
					}
					if n, err := io.Copy(io.Discard, resp.Body); err != nil || n == 0 || resp.StatusCode != http.StatusOK {
						b.Error(n, err, resp.Status)
					}
					_ = resp.Body.Close()
				}
			})
		}
		wg.Wait()
	}
}

// byTurns runs ours and its rivals one after the other, again and again.
func byTurns(b *testing.B, ours http.Handler, rivals map[string]http.Handler, prepare func(http.Handler) func()) {
	timed := func(f func()) float64 {
		start := time.Now()
		f()
		return time.Since(start).Seconds()
	}
	run := prepare(ours)
	others := make(map[string]func())
	for name, h := range rivals {
		others[name] = prepare(h)
		others[name]()
	}
	ratios := make(map[string][]float64)
	for range max(1, testkit.Most(11)) {
		for name, other := range others {
			ratios[name] = append(ratios[name], timed(run)/timed(other))
		}
	}
	for b.Loop() {
		run()
	}
	for name, all := range ratios {
		slices.Sort(all)
		b.ReportMetric(all[len(all)/2], name)
	}
}

func BenchmarkBlobHit(b *testing.B) {
	s := open(b, b.TempDir())
	d := putBlob(b, s, repo, noise(1, 1<<20))
	b.ReportAllocs()
	for b.Loop() {
		blob, err := s.Blob(b.Context(), repo, d)
		require.NoError(b, err)
		require.NoError(b, blob.Body.Close())
	}
}

func BenchmarkPutBlob(b *testing.B) {
	s := open(b, b.TempDir())
	b.SetBytes(1 << 20)
	content := noise(1, 1<<20)
	for i := 0; b.Loop(); i++ {
		content[0], content[1], content[2] = byte(i), byte(i>>8), byte(i>>16)
		desc := descriptor(content)
		require.NoError(b, s.PutBlob(b.Context(), repo, desc, bytes.NewReader(content)))
	}
}

// BenchmarkRecheck is what a tag that upstream has confirmed costs.
func BenchmarkRecheck(b *testing.B) {
	s := open(b, b.TempDir())
	m := manifestOf(image(1), "v1")
	put(b, s, repo, m)
	m.Source = pullthrough.SourceRevalidated
	for i := 0; b.Loop(); i++ {
		m.CheckedAt = checked.Add(time.Duration(i))
		require.NoError(b, s.PutManifest(b.Context(), repo, m))
	}
}
