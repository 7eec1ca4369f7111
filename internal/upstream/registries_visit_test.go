package upstream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/transcript"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// What transcripts call {{password}}, {{next password}}, {{identity}} and {{signature}}.
const (
	registryPassword  = "canary-password-1"
	nextPassword      = "canary-password-2"
	registryIdentity  = "canary-identity"
	registrySignature = "canary-signature"
)

// visits are what is tried with one registry.
type visits struct {
	file string // in testdata/registries
	all  []visit
}

// visit is one story in which a fresh proxy pulls from a registry.
type visit struct {
	name   string
	url    string                 // of the rule's upstream, and all that the rule says
	as     pullthrough.Credential // of the rule
	change func(*guest)           // nil: nothing
	story  story
}

type story []step

// step is a part of a story, for which upstream is asked what stands in the sections.
type step struct {
	sections string // "challenge, token"; "": nothing is asked for
	run      func(*testing.T, *guest)
}

// guest is a proxy that visits a registry. Each request that it sends must be in the
// sections that are played at the time, with just the secrets that stand there.
type guest struct {
	*pullthrough.Proxy
	t          *testing.T
	player     *transcript.Player
	store      *memstore.Store
	options    pullthroughtest.ImageOptions
	img        *pullthroughtest.Image
	credential func() pullthrough.Credential
	policy     pullthrough.Policy

	mu     sync.Mutex
	events []pullthrough.Event
	log    bytes.Buffer
}

func (v visits) run(t *testing.T) {
	for _, visit := range v.all {
		t.Run(visit.name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				g := newGuest(t, v.file, visit, dir)
				for _, step := range visit.story {
					step.run(t, g)
				}
			})
		})
	}
}

func newGuest(t *testing.T, file string, v visit, dir string) *guest {
	g := &guest{t: t, player: transcript.New(t, transcriptFile(file)), store: memstore.New()}
	g.credential = func() pullthrough.Credential { return v.as }
	if v.change != nil {
		v.change(g)
	}
	for name, secret := range map[string]string{
		"password": registryPassword, "next password": nextPassword, "identity": registryIdentity, "signature": registrySignature,
	} {
		g.player.Set(name, secret)
	}
	g.Proxy = &pullthrough.Proxy{
		Store:     g.store,
		Rules:     pullthrough.StaticRules{{Prefix: "mirror", UpstreamURL: v.url}},
		SpoolDir:  dir,
		Transport: g.player,
		Logger:    slog.New(slog.NewTextHandler(g, nil)),
		OnEvent:   g.remember,
		Credentials: func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			return g.credential(), nil
		},
		Policy: func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy { return g.policy },
	}
	another(g.options.Seed).run(t, g)
	t.Cleanup(func() {
		assert.NoError(t, g.Shutdown(context.Background()))
		assertNoSecret(t, g.log.String())
		for _, r := range g.player.Requests() {
			assert.Equal(t, "identity", r.Header.Get("Accept-Encoding"), r.URL)
		}
	})
	return g
}

// Write is the log's.
func (g *guest) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.log.Write(p)
}

func (g *guest) remember(_ context.Context, e pullthrough.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.events = append(g.events, e)
}

// anonymous reports whether a fetch went without its credentials.
func (g *guest) anonymous() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, e := range g.events {
		if e.Kind == pullthrough.EventFetch && e.Anonymous {
			return true
		}
	}
	return false
}

// play lays out the sections for an image called name:tag. name@ is its digest.
func (g *guest) play(image, sections string) (request pullthrough.Request) {
	name, ref, ok := strings.Cut(image, ":")
	if !ok {
		name, ref = strings.TrimSuffix(image, "@"), g.img.Digest.String()
	}
	g.player.Set("image", name[strings.LastIndexByte(name, '/')+1:])
	g.player.Set("tag", ref)
	if sections != "" {
		g.player.Play(strings.Split(sections, ", ")...)
	}
	return pullthrough.Request{Repo: pullthrough.Repo{Name: "mirror/" + name}, Ref: ref}
}

// settled waits for all that is fetched or stored. All that was played must have been
// asked for by then.
func (g *guest) settled(t *testing.T) {
	t.Helper()
	require.NoError(t, g.Idle(context.Background()))
	g.player.Done()
}

// pull reads a whole image.
func (g *guest) pull(t *testing.T, r pullthrough.Request) {
	m, err := g.Manifest(t.Context(), r)
	if !assert.NoError(t, err) {
		return
	}
	assert.Equal(t, g.img.Digest, m.Descriptor.Digest)
	assert.Equal(t, g.img.MediaType, m.Descriptor.MediaType)
	assert.True(t, bytes.Equal(g.img.Content, m.Content), "the manifest is upstream's, byte for byte")
	for _, b := range g.img.Blobs() {
		g.pullBlob(t, r.Repo, b.Digest)
	}
}

func (g *guest) pullBlob(t *testing.T, repo pullthrough.Repo, d digest.Digest) {
	b, err := g.Blob(t.Context(), pullthrough.Request{Repo: repo, Ref: d.String()})
	if !assert.NoError(t, err) {
		return
	}
	verifier := d.Verifier()
	_, err = io.Copy(verifier, b.Body)
	assert.NoError(t, err)
	assert.True(t, verifier.Verified(), "the blob is what its digest says")
	assert.NoError(t, b.Body.Close())
}

func passes(d time.Duration) step {
	return step{"", func(*testing.T, *guest) { time.Sleep(d) }}
}

// another image is upstream's from now on.
func another(seed int64) step {
	return step{"", func(_ *testing.T, g *guest) {
		g.options.Seed = seed
		g.img = pullthroughtest.NewImage(g.options)
		layer := textOf(g.img.Layers[0])
		begin := layer[:len(layer)/3]
		for name, text := range map[string]string{
			"manifest": string(g.img.Content), "manifest digest": g.img.Digest.String(), "manifest type": g.img.MediaType,
			"config": textOf(g.img.Config), "config digest": g.img.Config.Digest.String(),
			"layer": layer, "layer digest": g.img.Layers[0].Digest.String(), "layer size": fmt.Sprint(len(layer)), "layer end": fmt.Sprint(len(layer) - 1),
			"begin of the layer": begin, "begin size": fmt.Sprint(len(begin)), "rest of the layer": layer[len(begin):],
		} {
			g.player.Set(name, text)
		}
	}}
}

func textOf(b *pullthroughtest.Blob) string {
	content, err := io.ReadAll(b.Open())
	if err != nil {
		panic(err)
	}
	return string(content)
}

// pulls is a cold pull, for just the sections, and a warm one, for nothing.
func pulls(image, sections string) step {
	return step{sections, func(t *testing.T, g *guest) {
		pullsOnce(image, sections).run(t, g)
		g.pull(t, g.play(image, ""))
		g.settled(t)
	}}
}

// pullsOnce is a cold pull.
func pullsOnce(image, sections string) step {
	return step{sections, func(t *testing.T, g *guest) {
		g.pull(t, g.play(image, sections))
		g.settled(t)
	}}
}

// pullsTogether is a cold pull by 8 clients, which is the same as one by one client.
func pullsTogether(image, sections string) step {
	return step{sections, func(t *testing.T, g *guest) {
		r := g.play(image, sections)
		var clients sync.WaitGroup
		for range 8 {
			clients.Go(func() { g.pull(t, r) })
		}
		clients.Wait()
		g.settled(t)
	}}
}

// pullsBlob is a cold pull of a layer, and a warm one.
func pullsBlob(image, sections string) step {
	return step{sections, func(t *testing.T, g *guest) {
		for _, sections := range []string{sections, ""} {
			g.pullBlob(t, g.play(image, sections).Repo, g.img.Layers[0].Digest)
			g.settled(t)
		}
	}}
}

// failsBlob is the pull of a layer that fails, and keeps nothing of it.
func breaksBlob(image, sections string) step {
	return step{sections, func(t *testing.T, g *guest) {
		r := g.play(image, sections)
		r.Ref = g.img.Layers[0].Digest.String()
		_, err := g.Blob(t.Context(), r)
		assert.ErrorIs(t, err, pullthrough.ErrDigest)
		g.settled(t)
		_, err = g.store.Blob(t.Context(), r.Repo, g.img.Layers[0].Digest)
		assert.Error(t, err)
	}}
}

// sizes asks how large a layer is.
func sizes(image, sections string) step {
	return step{sections, func(t *testing.T, g *guest) {
		r := g.play(image, sections)
		r.Ref, r.Head = g.img.Layers[0].Digest.String(), true
		b, err := g.Blob(t.Context(), r)
		require.NoError(t, err)
		assert.Equal(t, g.img.Layers[0].Size, b.Descriptor.Size)
		assert.NoError(t, b.Body.Close())
		g.settled(t)
	}}
}

// checks is the pull of a tag that is due.
func checks(image, sections string, want pullthrough.Source) step {
	return step{sections, func(t *testing.T, g *guest) {
		m, err := g.Manifest(t.Context(), g.play(image, sections))
		require.NoError(t, err)
		assert.Equal(t, g.img.Digest, m.Descriptor.Digest)
		assert.Equal(t, want, m.Source)
		g.settled(t)
	}}
}

// failed is what becomes of a pull that upstream refuses. Zero values are not looked at.
type failed struct {
	kind       error
	status     int    // upstream's
	host       string // that is to blame
	says       string // for whoever wrote the rule
	oci        string // status and code for clients
	silent     string // nothing that a client reads
	retryAfter time.Duration
	atOnce     bool // no time passes
}

// fails is a pull that fails and keeps nothing.
func fails(image, sections string, want failed) step {
	return step{sections, func(t *testing.T, g *guest) {
		start, r := time.Now(), g.play(image, sections)
		_, err := g.Manifest(t.Context(), r)
		require.ErrorIs(t, err, want.kind)
		assert.False(t, want.atOnce && time.Since(start) > 0, "it is too long to hold a client")
		g.settled(t)
		want.check(t, err)
		_, stored := g.store.Manifest(t.Context(), r.Repo, r.Ref)
		assert.Error(t, stored, "nothing of it is kept")
	}}
}

// misses is a pull of what is not there.
func misses(image, sections, message string) step {
	return fails(image, sections, failed{kind: pullthrough.ErrNotFound, status: 404, oci: "404 MANIFEST_UNKNOWN", silent: message})
}

func (f failed) check(t *testing.T, err error) {
	t.Helper()
	status, code, message := pullthrough.OCI(err)
	assertNoSecret(t, err.Error()+message)
	e, ok := errors.AsType[*pullthrough.Error](err)
	require.True(t, ok)
	assert.True(t, f.status == 0 || f.status == e.Status, "the status is %d", e.Status)
	assert.True(t, f.host == "" || f.host == e.Host, "the host is %s", e.Host)
	assert.ErrorContains(t, err, f.says)
	assert.True(t, f.oci == "" || f.oci == fmt.Sprintf("%d %s", status, code), "clients read %d %s", status, code)
	assert.True(t, f.silent == "" || !strings.Contains(message, f.silent), "clients do not read what upstream wrote: %s", message)
	assert.True(t, f.retryAfter == 0 || f.retryAfter == e.RetryAfter, "try again after %s", e.RetryAfter)
}

func assertNoSecret(t *testing.T, text string) {
	t.Helper()
	for _, secret := range []string{registryPassword, nextPassword, registryIdentity, registrySignature, "-of-the-transcript"} {
		assert.NotContains(t, text, secret)
	}
}
