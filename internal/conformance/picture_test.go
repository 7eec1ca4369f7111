package conformance_test

import (
	"bytes"
	"context"
	raster "image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/fakeecr"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const (
	pictureHerd = 64
	// pictureRate is what upstream sends in a second, of a layer of pictureLayer.
	pictureRate  = 4 << 20
	pictureLayer = 48 << 20
	// maxPicture is how large the file may be.
	maxPicture = 150 << 10
)

// TestPictureOfTheDebugPage makes the picture of the README: the debug page of fakeecr
// while 64 clients pull one layer that nobody has pulled before. It runs by command, since
// it takes as long as the layer does:
//
//	PICTURE=../../docs/page.png go test -count=1 -run TestPictureOfTheDebugPage .
func TestPictureOfTheDebugPage(t *testing.T) {
	path := os.Getenv("PICTURE")
	if path == "" {
		t.Skip("PICTURE names no file")
	}
	c := startChromium(t)
	p := startPicture(t)
	p.fiveMinutes(t)
	end := p.gather(t)
	defer end()
	c.do(t, chromedp.EmulateViewport(1200, 756), chromedp.Navigate(p.url+fakeecr.PagePath), chromedp.WaitVisible("#pause"))
	c.until(t, `[...document.querySelectorAll(".bar")].some(b => b.ariaValueNow >= 0.62 * b.ariaValueMax)`)
	shot, err := chromedp.Run(c.ctx, chromedp.CaptureScreenshot())
	require.NoError(t, err)
	file := fewColours(t, shot)
	require.Less(t, len(file), maxPicture)
	require.NoError(t, os.WriteFile(path, file, 0o644))
	assert.Equal(t, 1, p.up.Count("GET /v2/library/nginx/blobs/*"), "64 clients, one fetch")
}

// picture is a fakeecr that believes that its upstream is Docker Hub.
type picture struct {
	up     *pullthroughtest.Upstream
	url    string
	ahead  atomic.Int64 // how far its clock is ahead
	nginx  *pullthroughtest.Image
	alpine *pullthroughtest.Image
}

// RoundTrip sends every request to the one upstream there is.
func (p *picture) RoundTrip(r *http.Request) (*http.Response, error) {
	to, err := url.Parse(p.up.URL)
	if err != nil {
		return nil, err
	}
	own := r.Clone(r.Context())
	own.URL.Scheme, own.URL.Host, own.Host = to.Scheme, to.Host, to.Host
	return http.DefaultTransport.RoundTrip(own)
}

func startPicture(t *testing.T) *picture {
	t.Helper()
	p := &picture{
		up:     pullthroughtest.New(t, pullthroughtest.Config{}),
		nginx:  pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 2, LayerSize: pictureLayer}),
		alpine: pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 3 << 20}),
	}
	p.up.Push("library/nginx", "1.27", p.nginx)
	p.up.Push("library/alpine", "3.20", p.alpine)
	server, err := fakeecr.New(fakeecr.Config{
		Rules: []pullthrough.Rule{
			{Prefix: "docker-hub", UpstreamURL: "registry-1.docker.io"}, {Prefix: "quay", UpstreamURL: "quay.io"},
		},
		Transport: p, Now: func() time.Time { return time.Now().Add(time.Duration(p.ahead.Load())) },
	})
	require.NoError(t, err)
	h := httptest.NewServer(server)
	p.url = h.URL
	t.Cleanup(func() {
		h.CloseClientConnections()
		h.Close()
		assert.NoError(t, server.Shutdown(context.Background()))
	})
	return p
}

// get reads an answer to its end.
func (p *picture) get(ctx context.Context, t *testing.T, path string) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/v2/"+path, nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return // it has had no patience
	}
	_, err = io.Copy(io.Discard, resp.Body)
	assert.NoError(t, err)
	assert.NoError(t, resp.Body.Close())
}

// fiveMinutes lets images be pulled in five minutes of its clock, now more, now fewer.
func (p *picture) fiveMinutes(t *testing.T) {
	t.Helper()
	const step = 5 * time.Second
	p.ahead.Store(int64(-59 * step))
	for i := range 59 {
		for range 6 + (i*7)%9 + (i/9%3)*8 {
			p.get(t.Context(), t, "docker-hub/library/alpine/manifests/3.20")
		}
		if i%4 == 1 {
			p.get(t.Context(), t, "docker-hub/library/alpine/blobs/"+p.alpine.Layers[0].Digest.String())
		}
		if i%23 == 9 {
			p.get(t.Context(), t, "docker-hub/library/alpine/manifests/edge")
		}
		p.ahead.Add(int64(step))
	}
	// A registry that wants us to wait, and a client that does not.
	p.up.Fault(pullthroughtest.Fault{Match: "GET /v2/prometheus/*", Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"10"}}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	p.get(ctx, t, "quay/prometheus/node-exporter/manifests/latest")
}

// gather has the herd pull the layer. Some follow it, others have stopped on their way until
// end is called.
func (p *picture) gather(t *testing.T) (end func()) {
	t.Helper()
	layer := p.nginx.Layers[0].Digest.String()
	p.up.Fault(pullthroughtest.Fault{Match: "GET /v2/library/nginx/blobs/*", Rate: pictureRate})
	p.get(t.Context(), t, "docker-hub/library/nginx/manifests/1.27")
	ended := make(chan struct{})
	var wg sync.WaitGroup
	for i := range pictureHerd {
		wg.Go(func() {
			resp, err := http.Get(p.url + "/v2/docker-hub/library/nginx/blobs/" + layer)
			if !assert.NoError(t, err) {
				return
			}
			defer func() { _ = resp.Body.Close() }()
			stop := int64(pictureLayer)
			if i%3 == 0 {
				stop = int64(i+4) * (pictureLayer / 2) / pictureHerd
			}
			_, _ = io.CopyN(io.Discard, resp.Body, stop)
			<-ended
		})
	}
	return func() { close(ended); wg.Wait() }
}

// fewColours writes the picture again with the 256 colours that it has most of.
func fewColours(t *testing.T, shot []byte) []byte {
	t.Helper()
	full, err := png.Decode(bytes.NewReader(shot))
	require.NoError(t, err)
	many := map[color.Color]int{}
	for y := range full.Bounds().Dy() {
		for x := range full.Bounds().Dx() {
			many[full.At(x, y)]++
		}
	}
	palette := make(color.Palette, 0, len(many))
	for c := range many {
		palette = append(palette, c)
	}
	slices.SortFunc(palette, func(a, b color.Color) int { return many[b] - many[a] })
	few := raster.NewPaletted(full.Bounds(), palette[:min(len(palette), 256)])
	draw.Draw(few, few.Rect, full, full.Bounds().Min, draw.Src)
	var file bytes.Buffer
	encoder := png.Encoder{CompressionLevel: png.BestCompression}
	require.NoError(t, encoder.Encode(&file, few))
	return file.Bytes()
}
