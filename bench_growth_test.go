package pullthrough_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

// amongRules is a hit of a manifest by digest or by tag, at the last of n rules.
func amongRules(tb testing.TB, n int, ref string) func() {
	tb.Helper()
	store, m := memstore.New(), testkit.LocalManifest("1")
	if err := store.PutManifest(tb.Context(), pullthrough.Repo{Name: "hub0/a"}, m); err != nil {
		tb.Fatal(err)
	}
	rules := make(pullthrough.StaticRules, n)
	for i := range rules {
		rules[i] = pullthrough.Rule{Prefix: fmt.Sprint("hub", n-1-i), UpstreamURL: fmt.Sprintf("https://r%d.example", i)}
	}
	p := &pullthrough.Proxy{Store: store, Rules: rules}
	if ref == "" {
		ref = m.Descriptor.Digest.String()
	}
	r := httptest.NewRequest(http.MethodGet, "/v2/hub0/a/manifests/"+ref, nil)
	return func() {
		w := httptest.NewRecorder()
		if p.ServeHTTP(w, r); w.Code != http.StatusOK {
			tb.Fatal(w.Code, w.Body)
		}
	}
}

// TestMoreRulesCostNothing: a hit allocates the same.
func TestMoreRulesCostNothing(t *testing.T) {
	for name, ref := range map[string]string{"digest": "", "tag": "1"} {
		one, many := amongRules(t, 1, ref), amongRules(t, 50, ref)
		assert.Equal(t, testkit.Allocs(one), testkit.Allocs(many), name)
	}
}

// BenchmarkRules is a hit with more and more rules.
func BenchmarkRules(b *testing.B) {
	for name, ref := range map[string]string{"digest": "", "tag": "1"} {
		for _, n := range []int{1, 5, 10, 50} {
			b.Run(fmt.Sprintf("%s/rules=%d", name, n), func(b *testing.B) {
				hit := amongRules(b, n, ref)
				b.ReportAllocs()
				for b.Loop() {
					hit()
				}
			})
		}
	}
}

// emptyRegistry has a token for everybody, and nothing else.
var emptyRegistry = testkit.RoundTripper(func(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	switch {
	case strings.HasSuffix(r.URL.Path, "/token"):
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"token":"%x","expires_in":3600}`, r.URL.Query().Get("scope"))
	case r.Header.Get("Authorization") == "":
		w.Header().Set("Www-Authenticate", `Bearer realm="https://r.example/token",service="r.example"`)
		w.WriteHeader(http.StatusUnauthorized)
	default:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.WriteString(`{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known to registry"}]}`)
	}
	resp := w.Result()
	resp.Request = r
	return resp, nil
})

// askMany asks for a manifest and a blob of each of some repositories, which upstream has
// not. All of them want a token.
type askMany struct {
	p     *pullthrough.Proxy
	asked int
}

func newAskMany() *askMany {
	return &askMany{p: &pullthrough.Proxy{
		Store: memstore.New(), Rules: pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: "https://r.example"}}, Transport: emptyRegistry,
	}}
}

// upTo asks until n repositories were asked for, and returns what the process holds then.
func (a *askMany) upTo(tb testing.TB, n int) uint64 {
	tb.Helper()
	d := testkit.LocalManifest("1").Descriptor.Digest
	for ; a.asked < n; a.asked++ {
		for _, what := range []string{"manifests/v1", "blobs/" + d.String()} {
			w := httptest.NewRecorder()
			a.p.ServeHTTP(w, httptest.NewRequest(http.MethodGet, fmt.Sprintf("/v2/hub/r%d/%s", a.asked, what), nil))
			if w.Code != http.StatusNotFound {
				tb.Fatal(w.Code, w.Body)
			}
		}
	}
	if err := a.p.Idle(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return testkit.InUse()
}

// TestMoreRepositoriesAreNotMoreMemory: tokens, what upstream does not have and what is
// under way are kept of the last few thousand.
func TestMoreRepositoriesAreNotMoreMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // a machine that stands still is no upstream that does not answer
		a := newAskMany()
		many := a.upTo(t, 3000)
		more := a.upTo(t, 6000)
		assert.InDelta(t, many, more, 2<<20)
		assert.NoError(t, a.p.Shutdown(t.Context()))
	})
}

// BenchmarkRepositories is what the process holds when more and more repositories were asked
// for.
func BenchmarkRepositories(b *testing.B) {
	before, a := testkit.InUse(), newAskMany()
	for n := 1; n <= testkit.Most(100_000); n *= 10 {
		b.Run(fmt.Sprintf("repositories=%d", n), func(b *testing.B) {
			var held uint64
			for b.Loop() {
				held = a.upTo(b, n)
			}
			b.ReportMetric((float64(held)-float64(before))/(1<<10), "KiB-held")
		})
	}
}

// BenchmarkLayerSize is the peak resident size of the process, upstream and client included,
// with larger and larger layers, and the time of each MiB. COLD_BENCH_MIB is the size of the
// largest, such as 10240.
func BenchmarkLayerSize(b *testing.B) {
	most, _ := strconv.ParseInt(os.Getenv("COLD_BENCH_MIB"), 10, 64)
	for mib := int64(1); mib <= max(most, testkit.Most(int64(1024))); mib *= 10 {
		if mib == 1000 {
			mib = 1024
		}
		b.Run(fmt.Sprintf("MiB=%d", mib), func(b *testing.B) {
			layer, store := newColdLayer(b, mib<<20, 0), newLayerStore(b)
			url, again := layer.behind(b, stagingStore{store}, func() error { return os.Remove(store.path(layer.Digest)) })
			b.SetBytes(layer.Size)
			before, start := resetPeak(b), time.Now()
			pulls := 0
			for b.Loop() {
				if _, err := layer.local.get(url, layer.Size, io.Discard); err != nil {
					b.Fatal(err)
				}
				if err := again(); err != nil {
					b.Fatal(err)
				}
				pulls++
			}
			b.ReportMetric(time.Since(start).Seconds()*1000/float64(pulls)/float64(mib), "ms/MiB")
			b.ReportMetric(float64(peakRSS(b)-before)/(1<<20), "MiB-RSS")
		})
	}
}
