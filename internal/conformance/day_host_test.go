package conformance_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const (
	daySecret = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:ecr-pullthroughcache/hub-a1B2c3"
	dayRole   = "arn:aws:iam::123456789012:role/templates"
	dayRepo   = "docker-hub/library/app"
	dayToken  = "day-canary-token"
)

// day is a fake ECR that lives in the test, so that time in it passes when the test
// says so, before an upstream that stands where registry-1.docker.io should.
type day struct {
	t      *testing.T
	up     *pullthroughtest.Upstream
	url    string
	events chan pullthrough.Event

	mu    sync.Mutex
	clock time.Time
	told  []ecrapi.PullThroughCacheEvent
}

func startDay(t *testing.T) *day {
	d := &day{t: t, clock: time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC), events: make(chan pullthrough.Event, 1000)}
	d.up = pullthroughtest.New(t, pullthroughtest.Config{
		Auth: pullthroughtest.Bearer, Users: map[string]string{"robot": dayToken}, Now: d.now,
	})
	dir := t.TempDir()
	store, err := dirstore.Open(dir)
	require.NoError(t, err)
	store.Account, store.Region = "123456789012", "eu-west-1"
	identify := func(*http.Request) (pullthrough.Identity, error) {
		return pullthrough.Identity{Account: store.Account, Region: store.Region, Caller: "arn:aws:iam::123456789012:user/ann"}, nil
	}
	api := &ecrapi.API{Account: store.Account, Region: store.Region, Identify: identify, Secrets: d.secret, Now: d.now}
	catalog := &ecrapi.Catalog{
		Template: api.Template, Excluded: api.Excluded, File: filepath.Join(dir, "pullthrough", "catalog.json"), Now: d.now,
	}
	require.NoError(t, catalog.Load())
	proxy := &pullthrough.Proxy{
		Store: catalog.Around(store), Rules: api, Credentials: api.Credentials, Identify: identify,
		Fill: pullthrough.FillBackground, Now: d.now,
		Endpoint: func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error) {
			return url.Parse(d.up.URL)
		},
		OnEvent: func(ctx context.Context, e pullthrough.Event) {
			catalog.RecordPull(ctx, e)
			d.hear(api.PullThroughCacheEvent(ctx, e))
			if e.Kind == pullthrough.EventFetch {
				d.events <- e
			}
		},
	}
	mux := http.NewServeMux()
	mux.Handle("/v2/", proxy)
	mux.Handle("/", api)
	server := httptest.NewServer(mux)
	d.url = server.URL
	api.Validate = proxy.ValidateRule
	api.Images = &ecrapi.Images{Proxy: proxy, Catalog: catalog, RegistryURL: func(*http.Request, string, string) string { return server.URL }}
	t.Cleanup(func() {
		server.Close()
		assert.NoError(t, proxy.Shutdown(context.Background()))
		assert.NoError(t, catalog.Save())
		assert.NoError(t, store.Close())
	})
	return d
}

func (d *day) now() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.clock
}

func (d *day) pass(by time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clock = d.clock.Add(by)
}

func (d *day) hear(event ecrapi.PullThroughCacheEvent, ok bool, err error) {
	assert.NoError(d.t, err)
	d.mu.Lock()
	defer d.mu.Unlock()
	if ok {
		d.told = append(d.told, event)
	}
}

// tells are the events for EventBridge since the last call, of tags: who is first to
// fetch a platform's manifest, the client or the import, is chance.
func (d *day) tells() (all []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.told {
		if e.Detail.ImageTag == "" {
			continue
		}
		all = append(all, e.Detail.SyncStatus+" "+e.Detail.RepositoryName+":"+e.Detail.ImageTag+" "+e.Detail.FailureCode)
	}
	d.told = nil
	return all
}

// secret is Secrets Manager.
func (d *day) secret(_ context.Context, _, _, arn string) (string, error) {
	if arn != daySecret {
		return "", ecrapi.ErrSecretNotFound
	}
	return `{"username":"robot","accessToken":"` + dayToken + `"}`, nil
}

// call sends a request of ECR's API.
func (d *day) call(op, body string) (status int, out map[string]any) {
	d.t.Helper()
	r, err := http.NewRequestWithContext(d.t.Context(), http.MethodPost, d.url+"/", strings.NewReader(body))
	require.NoError(d.t, err)
	r.Header.Set("X-Amz-Target", "AmazonEC2ContainerRegistry_V20150921."+op)
	resp, err := http.DefaultClient.Do(r)
	require.NoError(d.t, err)
	defer func() { _ = resp.Body.Close() }()
	content, err := io.ReadAll(resp.Body)
	require.NoError(d.t, err)
	require.NoError(d.t, json.Unmarshal(content, &out), string(content))
	return resp.StatusCode, out
}

// does sends a request that must go well.
func (d *day) does(op, body string) map[string]any {
	d.t.Helper()
	status, out := d.call(op, body)
	require.Equal(d.t, 200, status, "%s: %v", op, out)
	return out
}

// asked asserts what upstream was asked since the last call, in any order.
func (d *day) asked(want ...string) {
	d.t.Helper()
	assert.ElementsMatch(d.t, want, d.up.Log())
	d.up.Reset()
}

// fetched waits until n manifests and blobs have been fetched and stored, or have
// failed.
func (d *day) fetched(n int) {
	d.t.Helper()
	for range n {
		select {
		case <-d.events:
		case <-time.After(startTimeout):
			require.FailNow(d.t, "not fetched", "%d; upstream was asked for %q", n, d.up.Log())
		}
	}
	select {
	case e := <-d.events:
		assert.Fail(d.t, "more was fetched", "%+v", e)
	default:
	}
}

func (d *day) options() []remote.Option {
	return []remote.Option{
		remote.WithContext(d.t.Context()), remote.WithTransport(newTransport(d.t)),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: "arm64"}),
	}
}

// get is what the tag of the repository is, by a GET of its manifest.
func (d *day) get(repo, tag string) (digest.Digest, error) {
	d.t.Helper()
	ref, err := name.ParseReference(strings.TrimPrefix(d.url, "http://") + "/" + repo + ":" + tag)
	require.NoError(d.t, err)
	desc, err := remote.Get(ref, d.options()...)
	if err != nil {
		return "", err
	}
	return digest.Digest(desc.Digest.String()), nil
}

// pull reads the whole image for linux/arm64, and what the tag is.
func (d *day) pull(tag string) digest.Digest {
	d.t.Helper()
	ref, err := name.ParseReference(strings.TrimPrefix(d.url, "http://") + "/" + dayRepo + ":" + tag)
	require.NoError(d.t, err)
	desc, err := remote.Get(ref, d.options()...)
	require.NoError(d.t, err)
	img, err := desc.Image()
	require.NoError(d.t, err)
	_, err = img.RawConfigFile()
	require.NoError(d.t, err)
	layers, err := img.Layers()
	require.NoError(d.t, err)
	require.NotEmpty(d.t, layers)
	for _, layer := range layers {
		r, err := layer.Compressed()
		require.NoError(d.t, err)
		_, err = io.Copy(io.Discard, r) // it is verified on the way
		require.NoError(d.t, err)
		require.NoError(d.t, r.Close())
	}
	return digest.Digest(desc.Digest.String())
}

// refused is how a registry client is told that there is no such image.
func (d *day) refused(repo, tag string, code transport.ErrorCode, message string) {
	d.t.Helper()
	_, err := d.get(repo, tag)
	var refusal *transport.Error
	require.ErrorAs(d.t, err, &refusal)
	assert.Equal(d.t, 404, refusal.StatusCode)
	require.Len(d.t, refusal.Errors, 1)
	assert.Equal(d.t, code, refusal.Errors[0].Code)
	assert.Equal(d.t, message, refusal.Errors[0].Message)
}
