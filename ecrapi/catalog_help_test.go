package ecrapi_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// registry is an API with images, its Catalog and its Proxy, before an upstream that
// the rule "hub" names.
type registry struct {
	*client
	up      *pullthroughtest.Upstream
	proxy   *pullthrough.Proxy
	catalog *ecrapi.Catalog
	clock   atomic.Int64 // seconds
	events  events
}

// newRegistry starts one. change, if not nil, may change it before its first use.
func newRegistry(t *testing.T, inner pullthrough.Store, change func(*registry)) *registry {
	t.Helper()
	r := registryBefore(t, pullthroughtest.New(t, pullthroughtest.Config{}), inner, change)
	server := httptest.NewServer(r.api)
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

// registryBefore returns a registry before up that is not reached by HTTP.
func registryBefore(t *testing.T, up *pullthroughtest.Upstream, inner pullthrough.Store, change func(*registry)) *registry {
	t.Helper()
	api := &ecrapi.API{}
	r := &registry{client: &client{api: api, now: epoch}, up: up, catalog: &ecrapi.Catalog{}}
	r.clock.Store(epoch.Unix())
	api.Now, r.catalog.Now = r.time, r.time
	r.catalog.Template, r.catalog.Excluded = api.Template, api.Excluded
	r.proxy = &pullthrough.Proxy{
		Store: r.catalog.Around(inner), Rules: api, SpoolDir: t.TempDir(), Now: r.time,
		Policy: func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{Retries: -1, NotFoundTTL: -1}
		},
		OnEvent: func(ctx context.Context, e pullthrough.Event) {
			r.catalog.RecordPull(ctx, e)
			r.events.add(e)
		},
	}
	api.Images = &ecrapi.Images{Proxy: r.proxy, Catalog: r.catalog, RegistryURL: func(_ *http.Request, account, region string) string {
		return "https://" + account + ".dkr.ecr." + region + ".amazonaws.com"
	}}
	r.rule(t, pullthrough.Rule{Prefix: "hub", UpstreamURL: r.up.URL})
	if change != nil {
		change(r)
	}
	t.Cleanup(func() { assert.NoError(t, r.proxy.Shutdown(context.Background())) })
	return r
}

func (r *registry) time() time.Time { return time.Unix(r.clock.Load(), 0) }

func (r *registry) wait(d time.Duration) { r.clock.Add(int64(d / time.Second)) }

// rule adds a rule that Create would not take.
func (r *registry) rule(t *testing.T, rule pullthrough.Rule) {
	t.Helper()
	if r.api.State == nil {
		r.api.State = &ecrapi.MemState{}
	}
	require.NoError(t, r.api.State.Update(t.Context(), account, region, func(s *ecrapi.Settings) error {
		s.Rules = append(s.Rules, rule)
		return nil
	}))
}

// template adds a template for the rule's repositories.
func (r *registry) template(t *testing.T, members string) {
	t.Helper()
	resp, body := r.send(t, target+"CreateRepositoryCreationTemplate", `{"prefix":"hub","appliedFor":["PULL_THROUGH_CACHE"],`+members+`}`)
	require.Equal(t, http.StatusOK, resp.StatusCode, body)
}

// pull brings a manifest in, and nothing else. It returns when the Store has it.
func (r *registry) pull(t *testing.T, name, ref string) {
	t.Helper()
	_, err := r.proxy.Manifest(t.Context(), pullthrough.Request{Repo: repo(name), Ref: ref})
	require.NoError(t, err)
	r.idle(t)
}

// idle waits until the Store has all that was pulled.
func (r *registry) idle(t *testing.T) {
	t.Helper()
	require.NoError(t, r.proxy.Idle(t.Context()))
}

// bring brings the whole image in.
func (r *registry) bring(t *testing.T, name, ref string) {
	t.Helper()
	_, err := r.proxy.Import(t.Context(), pullthrough.Request{Repo: repo(name), Ref: ref}, pullthrough.ImportOptions{})
	require.NoError(t, err)
	r.idle(t)
}

// request sends a request to /v2/.
func (r *registry) request(method, path string) int {
	w := httptest.NewRecorder()
	r.proxy.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w.Code
}

func repo(name string) pullthrough.Repo { return pullthrough.Repo{Name: "hub/" + name} }

// image makes an image with the seed.
func image(seed int64) *pullthroughtest.Image {
	return pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: seed})
}

// sizeOf is what ECR calls the size of an image.
func sizeOf(img *pullthroughtest.Image) (size int64) {
	for _, b := range img.Blobs() {
		size += b.Size
	}
	return size
}

// detail is what DescribeImages says of an image at first.
func detail(img *pullthroughtest.Image, more string) string {
	return `{"registryId":"123456789012","repositoryName":"hub/a","imageDigest":"` + img.Digest.String() + `","imageSizeInBytes":` + strconv.FormatInt(sizeOf(img), 10) +
		`,"imageManifestMediaType":"` + img.MediaType + `","artifactMediaType":"application/vnd.oci.image.config.v1+json","imageStatus":"ACTIVE"` + more + `}`
}

const hubA = `"repositoryName":"hub/a"`

// digestsOf are the digests of the repository's images, by their tags.
func (r *registry) tagged(t *testing.T) map[string][]string {
	t.Helper()
	out, err := r.api.ListImages(t.Context(), pullthrough.Identity{}, ecrapi.ListImagesInput{RepositoryName: new("hub/a")})
	require.NoError(t, err)
	tags := map[string][]string{}
	for _, id := range out.ImageIds {
		tag := ""
		if id.ImageTag != nil {
			tag = *id.ImageTag
		}
		tags[tag] = append(tags[tag], *id.ImageDigest)
	}
	return tags
}

// pulledAt is what DescribeImages says of the last pull, in seconds; 0: nothing.
func (r *registry) pulledAt(t *testing.T, img *pullthroughtest.Image) int64 {
	t.Helper()
	out, err := r.api.DescribeImages(t.Context(), pullthrough.Identity{}, ecrapi.DescribeImagesInput{
		RepositoryName: new("hub/a"), ImageIds: []ecrapi.ImageIdentifier{{ImageDigest: new(img.Digest.String())}},
	})
	require.NoError(t, err)
	if at := out.ImageDetails[0].LastRecordedPullTime; !at.IsZero() {
		return at.Unix()
	}
	return 0
}

// events are the proxy's.
type events struct {
	mu  sync.Mutex
	all []pullthrough.Event
}

func (e *events) add(event pullthrough.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, event)
}

func (e *events) take() []pullthrough.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := e.all
	e.all = nil
	return all
}
