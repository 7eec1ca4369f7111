package pullthrough_test

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// startOffline is a registry that goes offline when the function is called.
func startOffline(t *testing.T, changes ...func(*pullthrough.Proxy)) (e *ecr, unplug func()) {
	t.Helper()
	var offline atomic.Bool
	e = startECR(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, append(changes, func(p *pullthrough.Proxy) {
		p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{Offline: offline.Load()}
		}
	})...)
	return e, func() {
		e.settled(t)
		e.up.Reset()
		offline.Store(true)
	}
}

func TestOfflineServesWhatIsStoredHoweverOld(t *testing.T) {
	e, unplug := startOffline(t)
	subject, signature, sbom := e.signed()
	e.serves(t, "1", subject)
	e.servesBlobs(t, subject)
	e.lists(t, subject.Digest, signature, sbom)
	unplug()
	e.pass(1000 * time.Hour)
	for range 2 {
		e.serves(t, "1", subject)
		e.serves(t, subject.Digest.String(), subject)
		e.servesBlobs(t, subject)
		e.lists(t, subject.Digest, signature, sbom)
	}
	assert.Equal(t, pullthrough.SourceHit, e.told.sources()[1])
	e.asked(t)
}

func TestOfflineSaysWhatIsMissing(t *testing.T) {
	for _, fill := range []pullthrough.FillMode{pullthrough.FillLazy, pullthrough.FillBackground, pullthrough.FillEager} {
		e, unplug := startOffline(t, fills(fill))
		img, other := image(1), image(2)
		e.push("1", img)
		e.push("2", other)
		if fill == pullthrough.FillLazy {
			e.serves(t, "2", other) // its layers are known and not stored
		}
		unplug()
		layer, nowhere := other.Layers[0].Digest, digest.FromString("nowhere")
		for ref, path := range map[string]string{
			":1":                      manifestPath("a", "1"),
			"@" + img.Digest.String(): manifestPath("a", img.Digest.String()),
			"@" + layer.String():      blobPath("a", layer),
			"@" + nowhere.String():    referrersPath("a", nowhere),
		} {
			say := "offline: " + prefix + "/a" + ref + " is not stored"
			assert.Equal(t, say, assertOCI(t, e.get(t, path), http.StatusBadGateway, "UNKNOWN"))
			assert.Equal(t, http.StatusBadGateway, e.ask(t, http.MethodHead, path).StatusCode)
		}
		_, err := e.Import(t.Context(), pullthrough.Request{Repo: ecrRepo("a"), Ref: "1"}, pullthrough.ImportOptions{})
		assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
		assert.ErrorContains(t, err, "offline: "+prefix+"/a:1 is not stored")
		assert.ErrorIs(t, e.ValidateRule(t.Context(), account, pullthrough.Rule{Prefix: prefix, UpstreamURL: e.up.URL()}), pullthrough.ErrUnavailable)
		e.asked(t)
	}
}

// What is stored by half stays so.
func TestOfflineImportNamesTheFirstPartThatIsMissing(t *testing.T) {
	e, unplug := startOffline(t)
	img := image(1)
	e.push("1", img)
	e.serves(t, "1", img)
	unplug()
	_, err := e.Import(t.Context(), pullthrough.Request{Repo: ecrRepo("a"), Ref: "1"}, pullthrough.ImportOptions{})
	assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
	assert.ErrorContains(t, err, "offline: "+prefix+"/a@sha256:")
	e.serves(t, "1", img)
	e.asked(t)
}
