package ecr_test

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
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
		e.Settled(t)
		e.Up.Reset()
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
	assert.Equal(t, pullthrough.SourceHit, e.told.Sources()[1])
	e.asked(t)
}

func TestOfflineSaysWhatIsMissing(t *testing.T) {
	for _, fill := range []pullthrough.FillMode{pullthrough.FillLazy, pullthrough.FillBackground, pullthrough.FillEager} {
		e, unplug := startOffline(t, fills(fill))
		img, other := testkit.Image(1), testkit.Image(2)
		e.push("1", img)
		e.push("2", other)
		if fill == pullthrough.FillLazy {
			e.serves(t, "2", other) // its layers are known and not stored
		}
		unplug()
		layer, nowhere := other.Layers[0].Digest, digest.FromString("nowhere")
		for ref, path := range map[string]string{
			":1":                      testkit.ManifestPath("a", "1"),
			"@" + img.Digest.String(): testkit.ManifestPath("a", img.Digest.String()),
			"@" + layer.String():      testkit.BlobPath("a", layer),
			"@" + nowhere.String():    referrersPath("a", nowhere),
		} {
			say := "offline: " + testkit.Prefix + "/a" + ref + " is not stored"
			assert.Equal(t, say, testkit.AssertOCI(t, e.Get(t, path), http.StatusBadGateway, "UNKNOWN"))
			assert.Equal(t, http.StatusBadGateway, e.Ask(t, http.MethodHead, path).StatusCode)
		}
		_, err := e.Import(t.Context(), pullthrough.Request{Repo: ecrRepo("a"), Ref: "1"}, pullthrough.ImportOptions{})
		assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
		assert.ErrorContains(t, err, "offline: "+testkit.Prefix+"/a:1 is not stored")
		assert.ErrorIs(t, e.ValidateRule(t.Context(), testkit.Account, pullthrough.Rule{Prefix: testkit.Prefix, UpstreamURL: e.Up.URL}), pullthrough.ErrUnavailable)
		e.asked(t)
	}
}

// What is stored by half stays so.
func TestOfflineImportNamesTheFirstPartThatIsMissing(t *testing.T) {
	e, unplug := startOffline(t)
	img := testkit.Image(1)
	e.push("1", img)
	e.serves(t, "1", img)
	unplug()
	_, err := e.Import(t.Context(), pullthrough.Request{Repo: ecrRepo("a"), Ref: "1"}, pullthrough.ImportOptions{})
	assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
	assert.ErrorContains(t, err, "offline: "+testkit.Prefix+"/a@sha256:")
	e.serves(t, "1", img)
	e.asked(t)
}
