package pullthrough_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestARefusalWhoseBodyNeverComesHoldsUpNobody(t *testing.T) {
	for name, fault := range map[string]pullthroughtest.Fault{
		"404":      {Status: 404, Body: []byte(strings.Repeat("x", 100))},
		"500":      {Status: 500, Body: []byte(strings.Repeat("x", 100))},
		"401":      {Status: 401, Body: []byte(strings.Repeat("x", 100))},
		"redirect": {Redirect: "{path}", Body: []byte(strings.Repeat("x", 100))},
	} {
		t.Run(name, func(t *testing.T) {
			up, enter := piped(t, pullthroughtest.Config{})
			synctest.Test(t, func(t *testing.T) {
				w := enter(t)
				layer := w.layer(1000)
				fault.Match, fault.Stall, fault.StallAfter = blobs, make(chan struct{}), new(int64(0))
				up.Fault(fault)
				start := time.Now()
				done := make(chan error, 1)
				go func() {
					_, err := w.open(context.Background(), layer.Digest)
					done <- err
				}()
				synctest.Wait()
				_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: "1"})
				assert.NoError(t, err, "the rule's other pulls go on")
				assert.LessOrEqual(t, time.Since(start), 3*time.Second)
				assert.Error(t, <-done)
				assert.LessOrEqual(t, time.Since(start), 15*time.Second)
				assert.Positive(t, up.Count(blobs))
			})
		})
	}
}

// A middleware that sets Content-Encoding makes net/http send no Content-Length.
func TestAFailedBodyIsSeenWithoutAContentLengthToo(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{}, nil)
	layer := w.layer(3 << 20)
	w.up.Fault(pullthroughtest.Fault{Match: blobs, Flip: new(int64(-1))})
	s := serve(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Encoding", "x-odd")
		w.ServeHTTP(rw, r)
	}))
	resp, err := http.Get(s.URL + "/v2/hub/a/blobs/" + layer.Digest.String())
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	assert.Error(t, err)
	require.NoError(t, resp.Body.Close())
	assert.Equal(t, 1, w.up.Count(blobs))
}

func TestADamagedBlobIsFetchedAgain(t *testing.T) {
	for name, body := range map[string]func() io.ReadCloser{
		"cut":         func() io.ReadCloser { return seeker{bytes.NewReader(make([]byte, 500))} },
		"empty":       func() io.ReadCloser { return seeker{bytes.NewReader(nil)} },
		"of no size":  func() io.ReadCloser { return io.NopCloser(strings.NewReader("x")) },
		"of no bytes": func() io.ReadCloser { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			var failed atomic.Int32
			w := newWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				p.OnEvent = func(_ context.Context, e pullthrough.Event) {
					if e.Kind == pullthrough.EventStoreFailed {
						failed.Add(1)
					}
				}
			})
			layer := w.layer(1000)
			size := map[bool]int64{true: 1000, false: 0}[name == "cut"]
			w.Store = &damaged{Store: w.store, blob: func() *pullthrough.Blob {
				return &pullthrough.Blob{Descriptor: ocispec.Descriptor{Size: size}, Body: body()}
			}}
			w.pullBlob(t, "a", layer.Digest)
			assert.Positive(t, failed.Load())
			assert.Equal(t, 1, w.up.Count(blobs))
		})
	}
}

type seeker struct{ *bytes.Reader }

func (seeker) Close() error { return nil }

type damaged struct {
	pullthrough.Store
	blob func() *pullthrough.Blob
}

func (d *damaged) Blob(context.Context, pullthrough.Repo, digest.Digest) (*pullthrough.Blob, error) {
	return d.blob(), nil
}

// A manifest of one repository says nothing of another's blobs.
func TestSizesThatAManifestTellsStayInItsRepository(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{}, nil)
	good := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 3000})
	w.up.Push("nginx", "1", good)
	d := good.Layers[0].Digest
	evil := &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageManifest}
	evil.Content = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"digest":%q,"size":5},"layers":[]}`, evil.MediaType, d)
	evil.Digest = digest.FromBytes(evil.Content)
	w.up.Push("evil", "1", evil)
	_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: repo("evil"), Ref: "1"})
	require.NoError(t, err)
	w.up.Fault(pullthroughtest.Fault{Match: blobs, NoLength: true})
	w.up.Fault(pullthroughtest.Fault{Match: "GET /v2/nginx/blobs/*", NoLength: true})
	w.pullBlob(t, "nginx", d)
	_, err = w.Blob(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: d.String(), Head: true})
	assert.ErrorIs(t, err, pullthrough.ErrNotFound)
	assert.Equal(t, 1, w.up.Count("GET /v2/nginx/blobs/*"))
}

func TestASizeThatWasALieIsForgotten(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{}, nil)
	layer := w.layer(3000)
	liar := &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageManifest}
	liar.Content = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"digest":%q,"size":5},"layers":[]}`, liar.MediaType, layer.Digest)
	liar.Digest = digest.FromBytes(liar.Content)
	w.up.Push("a", "lie", liar)
	_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: "lie"})
	require.NoError(t, err)
	w.up.Fault(pullthroughtest.Fault{Match: blobs, NoLength: true})
	_, err = w.open(t.Context(), layer.Digest)
	require.ErrorIs(t, err, pullthrough.ErrDigest)
	w.settled(t)
	w.pullBlob(t, "a", layer.Digest)
	assert.Equal(t, 2, w.up.Count(blobs))
}

func TestAuthorizeTellsClientsWhatItMeansToAndNoMore(t *testing.T) {
	const own = "hunter2" // of the host, which may log and tell itself what it panics with
	secret := "postgres://u:" + own + "@db"
	for name, tc := range map[string]struct {
		authorize func() error
		status    int
	}{
		"a refusal":      {func() error { return errors.New("User: me is not authorized") }, 403},
		"a panic":        {func() error { panic(secret) }, 500},
		"not identified": {func() error { return pullthrough.ErrUnauthorized }, 401},
		"its own error":  {func() error { return &pullthrough.Error{Kind: pullthrough.ErrRateLimited} }, 429},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				p.Authorize = func(context.Context, pullthrough.Action, pullthrough.Request) error { return tc.authorize() }
			})
			body, status := getBody(t, serve(t, w.Proxy).URL+"/v2/hub/a/manifests/1")
			assert.Equal(t, tc.status, status)
			assert.NotContains(t, string(body), own)
			assert.Empty(t, w.up.Log())
		})
	}
}

func TestTheKindDecidesWhatAClientGets(t *testing.T) {
	for _, cause := range []error{pullthrough.ErrNotFound, pullthrough.ErrNoRule, os.ErrNotExist, context.DeadlineExceeded} {
		status, code, _ := pullthrough.OCI(&pullthrough.Error{Kind: pullthrough.ErrDenied, Err: cause})
		assert.Equal(t, 403, status, cause)
		assert.Equal(t, "DENIED", code, cause)
	}
	status, _, message := pullthrough.OCI(&pullthrough.Error{})
	assert.Equal(t, 500, status)
	assert.NotEmpty(t, message)
	assert.NotPanics(t, func() { _ = (&pullthrough.Error{}).Error() })
}

// net/http puts the Location of a redirect into its error when it cannot be
// parsed, with the signature in its query.
func TestAPresignedURLIsInNoError(t *testing.T) {
	for _, location := range []string{
		"https://cdn.example:port/x?X-Amz-Signature=" + canary,
		"https://u:" + canary + "@cdn.example/x",
		"http://127.0.0.1:1/x?X-Amz-Signature=" + canary,
		"://" + canary,
	} {
		var logged bytes.Buffer
		w := newWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Logger = textLogger(&logged) })
		layer := w.layer(1000)
		w.up.Fault(pullthroughtest.Fault{Match: blobs, Status: 307, Header: http.Header{"Location": {location}}})
		_, err := w.open(t.Context(), layer.Digest)
		require.Error(t, err)
		w.settled(t)
		assert.NotContains(t, fmt.Sprintf("%v %+v", err, err), canary)
		assert.NotContains(t, logged.String(), canary)
		assert.Equal(t, 1, w.up.Count(blobs))
	}
}

func TestHostileManifestsCostLittleMemory(t *testing.T) {
	for name, unit := range map[string]string{"descriptors": "{},", "numbers": "0,", "arrays": "[],"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{}, nil)
			w.up.Push("a", "1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))
			body := `{"schemaVersion":2,"config":{},"layers":[` + strings.Repeat(unit, (4<<20-100)/len(unit)) + `{}]}`
			w.up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/*", Body: []byte(body)})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: "1"})
			runtime.ReadMemStats(&after)
			require.ErrorIs(t, err, pullthrough.ErrUnavailable)
			assert.Less(t, len(err.Error()), 1000)
			assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<20))
			assert.Equal(t, 1, w.up.Count("*"))
		})
	}
}

func TestAHeadThatLiesAboutTheDigestFreezesNoTag(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{}, everyPull)
	one, two := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	w.up.Push("a", "1", one)
	w.pull(t, "a", "1", one)
	w.up.Push("a", "1", two)
	wrong := digest.FromString("nobody has this")
	w.up.Fault(pullthroughtest.Fault{Match: "HEAD *", Header: http.Header{"Docker-Content-Digest": {wrong.String()}}})
	w.up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/sha256:*", Status: 200, Body: two.Content, Header: http.Header{"Content-Type": {two.MediaType}}})
	w.settled(t)
	w.pull(t, "a", "1", two)
	assert.Equal(t, 1, w.up.Count("HEAD *"))
}

func TestAfterShutdownNoHeadGoesOut(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{}, nil)
	layer := w.layer(1000)
	require.NoError(t, w.Shutdown(t.Context()))
	_, err := w.Blob(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: layer.Digest.String(), Head: true})
	assert.ErrorIs(t, err, pullthrough.ErrClosed)
	assert.Empty(t, w.up.Log())
}

func TestManyHeadsOfAColdBlobAreOneRequest(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{}, nil)
	layer := w.layer(1000)
	gate := make(chan struct{})
	w.up.Fault(pullthroughtest.Fault{Match: blobs, Stall: gate})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			b, err := w.Blob(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: layer.Digest.String(), Head: true})
			if assert.NoError(t, err) {
				assert.EqualValues(t, 1000, b.Descriptor.Size)
			}
		})
	}
	require.NoError(t, w.up.Wait(t.Context(), blobs, 1))
	close(gate)
	wg.Wait()
	assert.Equal(t, 1, w.up.Count(blobs))
}

func TestConcurrentPullsAskForBasicCredentialsOnce(t *testing.T) {
	var asked atomic.Int32
	gate := make(chan struct{})
	w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: users}, func(p *pullthrough.Proxy) {
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			asked.Add(1)
			<-gate
			return pullthrough.Credential{Username: "me", AccessToken: canary}, nil
		}
	})
	var wg sync.WaitGroup
	for i := range 50 {
		w.up.Push("a", fmt.Sprint(i), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i)}))
		wg.Go(func() {
			_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: fmt.Sprint(i)})
			assert.NoError(t, err)
		})
	}
	require.Eventually(t, func() bool { return asked.Load() == 1 }, 10*time.Second, time.Millisecond)
	close(gate)
	wg.Wait()
	assert.EqualValues(t, 1, asked.Load())
	assert.Equal(t, 1, w.up.Count("* 401"))
}

func getBody(t *testing.T, url string) ([]byte, int) {
	t.Helper()
	resp, err := http.Get(url)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return body, resp.StatusCode
}
