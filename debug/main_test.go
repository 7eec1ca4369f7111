package debug_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/debug"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// prefix is the one rule's.
const prefix = "hub"

func repo(name string) pullthrough.Repo { return pullthrough.Repo{Name: prefix + "/" + name} }

// piped returns an upstream, and a function that makes a proxy before it and its
// page in a synctest bubble; change, if not nil, may change both before their use.
func piped(t *testing.T, c pullthroughtest.Config) (*pullthroughtest.Upstream, func(t *testing.T, change func(*debug.Page)) *debug.Page) {
	t.Helper()
	up := pullthroughtest.New(t, c)
	dir := t.TempDir()
	return up, func(t *testing.T, change func(*debug.Page)) *debug.Page {
		transport := &http.Transport{DialContext: up.DialPipe, DisableCompression: true}
		page := &debug.Page{Proxy: &pullthrough.Proxy{
			Store:     memstore.New(),
			Rules:     pullthrough.StaticRules{{Prefix: prefix, UpstreamURL: up.URL}},
			SpoolDir:  dir,
			Transport: transport,
		}}
		page.Proxy.OnEvent = page.Record
		if change != nil {
			change(page)
		}
		t.Cleanup(func() {
			assert.NoError(t, page.Proxy.Shutdown(context.Background()))
			transport.CloseIdleConnections()
		})
		return page
	}
}

// get asks the page without a server between.
func get(t *testing.T, page http.Handler, target string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	page.ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
	require.Equal(t, http.StatusOK, w.Code, "%s", w.Body)
	return w
}

// shown is the part of the page's JSON that tests look at.
type shown struct {
	Title         string
	At, Since     time.Time
	Totals        map[string]int64
	Filter        string
	Downloads     []shownDownload
	MoreDownloads int
	Pending       []shownPending
	MorePending   int
	Chart         struct {
		Seconds int
		Buckets []shownBucket
	}
	Answers    []map[string]any
	Failures   []shownFailure
	Fetches    []map[string]any
	Registries []shownRegistry
	Events     []shownEvent
}

type shownDownload struct {
	Repo, Digest, Upstream string
	Part                   bool
	Began                  time.Time
	Size, Written, Rate    int64
	Readers, Retries       int
	Places                 []shownPlace
}

type shownPending struct {
	Account, Region, Rule, Repo, Ref, Object, Upstream string
	Checks, Image, Lingers                             bool
	Status                                             int
	Micros                                             int64
}

type shownBucket struct{ Hits, Shared, Fills, Failed, Bytes, Fetched int64 }

type shownPlace struct{ At, Readers int64 }

type shownFailure struct {
	Kind              string
	Requests, Fetches int64
}

type shownRegistry struct {
	Account, Region, Error string
	Rules                  []shownRule
	More                   int
}

type shownRule struct {
	Prefix, Upstream, UpstreamPrefix string
	Credential                       bool
}

type shownEvent struct {
	Number                                                         int64
	At                                                             time.Time
	Kind, Object, Rule, Account, Region, Repo, Ref, Digest, Source string
	Part, Head, Anonymous, WrongDigest                             bool
	Bytes, Upstream, Micros                                        int64
	ErrorKind, Error                                               string
	Warnings                                                       []string
}

func getJSON(t *testing.T, page http.Handler) *shown {
	t.Helper()
	return getFiltered(t, page, "")
}

func getFiltered(t *testing.T, page http.Handler, filter string) *shown {
	t.Helper()
	w := get(t, page, "/debug/pullthrough?format=json&repo="+url.QueryEscape(filter))
	assert.Equal(t, "application/json", w.Header().Get("Content-Type"))
	s := &shown{}
	decoder := json.NewDecoder(w.Body)
	require.NoError(t, decoder.Decode(s))
	_, err := decoder.Token()
	require.ErrorIs(t, err, io.EOF)
	return s
}
