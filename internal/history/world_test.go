package history_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/debug"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/handlerstore"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// spoolBytes is the room for downloads.
const spoolBytes = 12 << 20

// accounts are those of the tenants, users their names at the private upstream.
var (
	accounts = []string{"111122223333", "444455556666"}
	users    = []string{"alice", "bob"}
)

const region = "us-east-1"

// world is a proxy with all that is around it, on loopback.
type world struct {
	t *testing.T
	plan
	*journal
	*clock
	model   *model
	secrets *pullthroughtest.Secrets
	ups     [upstreams]*pullthroughtest.Upstream

	dir      string // for downloads and for a Store on the disk
	store    *faultyStore
	host     pullthrough.Store // what the proxy has: store with all that it may also be
	closing  func() error      // of the Store
	catalog  *ecrapi.Catalog
	registry *registry // nil: the Store is no registry

	server *httptest.Server
	client *http.Client
	front  atomic.Pointer[front]

	mu        sync.Mutex
	rules     map[ruleName]pullthrough.Rule
	made      int // rules so far
	passwords [2]string
	mistaken  [2]bool             // tenants whose password is not the right one
	repos     map[place]time.Time // when they had a manifest first
	wasLost   map[name]bool

	*scene
	violations atomic.Int32
}

// front is the proxy of now. A restart puts another one in its place.
type front struct {
	proxy *pullthrough.Proxy
	http.Handler
}

// newWorld builds the world of a plan. All of it ends with the test.
func newWorld(t *testing.T, p plan) *world {
	secrets := pullthroughtest.NewSecrets(t) // first: it judges after all else has ended
	w := &world{
		t: t, plan: p, journal: newJournal(), clock: newClock(), model: newModel(), secrets: secrets,
		dir: t.TempDir(), rules: map[ruleName]pullthrough.Rule{}, repos: map[place]time.Time{}, wasLost: map[name]bool{}, scene: newScene(calm),
	}
	w.newUpstreams()
	w.newStore()
	for tenant := range p.tenants() {
		w.makeRule(ruleName{tenant, "hub"}, public)
		w.makeRule(ruleName{tenant, "priv"}, private)
	}
	w.front.Store(w.newFront())
	w.server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { w.front.Load().ServeHTTP(rw, r) }))
	w.client = &http.Client{
		Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return w
}

func (w *world) newUpstreams() {
	for tenant := range w.passwords {
		w.passwords[tenant] = w.secrets.New()
	}
	open := pullthroughtest.Config{}
	closed := pullthroughtest.Config{
		Auth:  pullthroughtest.Bearer, // by real time, or a jump would end a token that is on its way
		Users: map[string]string{users[0]: w.passwords[0], users[1]: w.passwords[1]},
		Allow: func(user, repo string) bool { return len(user) > 0 && repo[0] == user[0] },
	}
	for i, config := range []pullthroughtest.Config{open, open, closed} {
		w.ups[i] = pullthroughtest.New(w.t, config)
	}
	for _, password := range w.passwords {
		w.secrets.Allow(password, w.ups[private])
	}
	w.secrets.Watch(w.ups[:]...)
	for _, h := range homes {
		for _, tag := range tags {
			w.place(h, tag, 0)
		}
		if signature := w.model.signature[h]; signature != nil {
			w.ups[h.upstream].Push(h.name, "", signature)
		}
	}
}

// place pushes a version of a tag to its upstream.
func (w *world) place(h home, tag string, version int) {
	e := w.model.editions[h][tag][min(version, versions-1)]
	w.model.change(func() { w.ups[h.upstream].Push(h.name, tag, e.Image) }, func(before, after time.Time) {
		w.model.placed(h, tag, e, before, after)
	})
}

func (w *world) newStore() {
	w.closing = func() error { return nil }
	switch w.plan.store {
	case inMemory:
		w.store = newFaultyStore(w, memstore.New())
		w.host = lister{w.store}
	case inDir, inSmallDir:
		w.openDir()
	case inHandler, inWrapped:
		w.registry = newRegistry()
		inner := &handlerstore.Store{Handler: w.registry}
		if w.plan.store == inHandler {
			inner.Name = innerName
		}
		w.store = newFaultyStore(w, inner)
		w.host = w.store
	}
	if w.plan.catalog {
		w.catalog = &ecrapi.Catalog{Now: w.Now, Logger: w.logger()}
		w.host = w.catalog.Around(w.host)
	}
}

// openDir opens the Store on the disk.
func (w *world) openDir() {
	inner, err := dirstore.Open(filepath.Join(w.dir, "store"))
	require.NoError(w.t, err)
	inner.Logger = w.logger()
	if w.plan.store == inSmallDir {
		inner.MaxBytes = inSmallSize
	}
	w.store = newFaultyStore(w, inner)
	w.host, w.closing = directory{lister{w.store}}, inner.Close
}

// innerName is the name of a repository in the registry of a Store.
func innerName(r pullthrough.Repo) (string, error) { return "of-" + r.Account + "/" + r.Name, nil }

// nameInside is innerName, or the name itself in a wrapped registry.
func (w *world) nameInside(p place) string {
	if w.plan.store == inWrapped {
		return p.repo
	}
	name, _ := innerName(w.repo(p)) // it never fails
	return name
}

// repo is the place as the proxy names it.
func (w *world) repo(p place) pullthrough.Repo {
	if w.plan.store == inWrapped {
		return pullthrough.Repo{Name: p.repo}
	}
	return pullthrough.Repo{Account: accounts[p.tenant], Region: region, Name: p.repo}
}

// newFront makes a proxy over the Store, and what is mounted beside it.
func (w *world) newFront() *front {
	proxy := &pullthrough.Proxy{
		Store: w.host, Fill: w.plan.fill, SpoolDir: w.dir, SpoolBytes: spoolBytes, Now: w.Now, Logger: w.logger(),
		Rules: pullthrough.RuleSourceFunc(w.rulesOf), Credentials: w.credential, Policy: w.policy, Identify: w.identify,
	}
	page := &debug.Page{Proxy: proxy, Registries: []debug.Registry{{Account: accounts[0], Region: region}}}
	proxy.OnEvent = func(ctx context.Context, e pullthrough.Event) {
		w.hear(e)
		page.Record(ctx, e)
		if w.catalog != nil {
			w.catalog.RecordPull(ctx, e)
		}
	}
	mux := http.NewServeMux()
	if w.registry != nil && w.plan.store == inWrapped {
		mux.Handle("/v2/", proxy.Handler(w.registry))
	} else {
		mux.Handle("/v2/", proxy)
	}
	mux.Handle("/debug/", page)
	if w.catalog != nil {
		mux.Handle("/", &ecrapi.API{Identify: w.identify, Images: &ecrapi.Images{Proxy: proxy, Catalog: w.catalog}, Now: w.Now})
	}
	return &front{proxy, mux}
}

// proxy is that of now.
func (w *world) proxy() *pullthrough.Proxy { return w.front.Load().proxy }

func (w *world) logger() *slog.Logger { return slog.New(slog.NewTextHandler(w.secrets.Writer(), nil)) }

// The headers by which clients say who they are. The caller names the one request, so its
// event can be found.
const (
	accountHeader = "X-Account"
	callerHeader  = "X-Caller"
)

func (w *world) identify(r *http.Request) (pullthrough.Identity, error) {
	id := pullthrough.Identity{Caller: r.Header.Get(callerHeader)}
	if w.plan.store != inWrapped {
		id.Account, id.Region = r.Header.Get(accountHeader), region
	}
	return id, nil
}

func (w *world) policy(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
	p := pullthrough.Policy{KeepLocal: w.plan.keepLocal, RefuseStale: w.plan.refuseStale, Retries: 1}
	if w.plan.everyPull {
		p.TagTTL = pullthrough.EveryPull
	}
	return p
}

// tagTTL is how old an answer by tag may be.
const tagTTL = 24 * time.Hour

func (w *world) tenantOf(account string) int {
	if account == accounts[1] {
		return 1
	}
	return 0
}

func (w *world) rulesOf(_ context.Context, account, _ string) (rules []pullthrough.Rule, _ error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for n, rule := range w.rules {
		if n.tenant == w.tenantOf(account) {
			rules = append(rules, rule)
		}
	}
	return rules, nil
}

func (w *world) credential(_ context.Context, repo pullthrough.Repo, rule pullthrough.Rule) (pullthrough.Credential, error) {
	if rule.Prefix != "priv" {
		return pullthrough.Credential{}, nil
	}
	tenant := w.tenantOf(repo.Account)
	w.mu.Lock()
	defer w.mu.Unlock()
	c := pullthrough.Credential{Username: users[tenant], AccessToken: w.passwords[tenant]}
	if w.mistaken[tenant] {
		c.AccessToken = "not-the-password"
	}
	return c, nil
}

// makeRule makes a rule, or makes it anew, or removes it.
func (w *world) makeRule(n ruleName, upstream int) {
	w.model.change(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if upstream == noUpstream {
			delete(w.rules, n)
			return
		}
		w.made++
		w.rules[n] = pullthrough.Rule{
			Prefix: n.prefix, UpstreamURL: w.ups[upstream].URL,
			CreatedAt: w.journal.began.Add(time.Duration(w.made) * time.Second), CredentialARN: fmt.Sprintf("arn:of-%d", n.tenant),
		}
	}, func(before, after time.Time) { timelineOf(w.model.rules, n).set(upstream, before, after) })
}

// repoThere notes that a repository has a manifest.
func (w *world) repoThere(p place) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.repos[p].IsZero() {
		w.repos[p] = time.Now()
	}
}

// wasThere reports whether the repository had a manifest before the time.
func (w *world) wasThere(p place, at time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	since := w.repos[p]
	return !since.IsZero() && since.Before(at)
}

// storesDir is where a Store on the disk is.
func (w *world) storesDir() string { return filepath.Join(w.dir, "store") }
