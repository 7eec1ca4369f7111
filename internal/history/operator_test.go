package history_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// deed is something that the operator does.
type deed int

const (
	moveTag deed = iota
	deleteTag
	deleteManifest
	deleteBlob
	jumpSeconds
	jumpDay
	failStatus
	limitRate
	denyAll
	cutAnswer
	stallAnswer
	stallBody
	flipByte
	flipTag
	flipAndHold
	wrongDigest
	wrongType
	slowBody
	shortBody
	noLength
	breakStore
	stallStore
	evict
	cutFile
	replaceRule
	deleteRule
	renewRule
	changePassword
	revokeTokens
	holdAndReplace
	pushLocal
	restart
)

var deeds = [...]struct {
	name string
	do   func(w *world, s step)
}{
	moveTag:        {"move tag", (*world).moveTag},
	deleteTag:      {"delete tag", (*world).deleteTag},
	deleteManifest: {"delete manifest", (*world).deleteManifest},
	deleteBlob:     {"delete blob", (*world).deleteBlob},
	jumpSeconds:    {"jump 11 s", func(w *world, _ step) { w.Jump(11 * time.Second) }},
	jumpDay:        {"jump 25 h", func(w *world, _ step) { w.Jump(25 * time.Hour) }},
	failStatus: {"upstream 5xx", func(w *world, s step) {
		w.fault(s, "", pullthroughtest.Fault{Status: []int{500, 502, 503}[s.size%3]})
	}},
	limitRate: {"upstream 429", func(w *world, s step) {
		w.troubled(func(t *trouble) { t.limited = true })
		w.fault(s, "", pullthroughtest.Fault{Status: 429})
	}},
	denyAll: {"upstream 403", func(w *world, s step) {
		w.troubled(func(t *trouble) { t.denied = true })
		w.fault(s, "", pullthroughtest.Fault{Status: 403})
	}},
	cutAnswer:   {"upstream cuts", func(w *world, s step) { w.fault(s, "", pullthroughtest.Fault{CutAfter: &s.size, Reset: s.pick%2 == 0}) }},
	stallAnswer: {"upstream stalls", func(w *world, s step) { w.fault(s, "", pullthroughtest.Fault{Stall: w.soon(s)}) }},
	stallBody: {"upstream stalls in a blob", func(w *world, s step) {
		w.fault(s, "blobs", pullthroughtest.Fault{Stall: w.soon(s), StallAfter: &s.size})
	}},
	flipByte: {"upstream flips a bit", func(w *world, s step) { w.fault(s, "blobs", pullthroughtest.Fault{Flip: new(s.size % 600)}) }},
	flipTag: {"upstream flips a bit of a tag", func(w *world, s step) {
		w.fault(s, "manifests/"+tags[s.size%2], pullthroughtest.Fault{Times: 1, Flip: new(s.size % 300)})
	}},
	flipAndHold: {"upstream flips a bit and holds the end", (*world).flipAndHold},
	wrongDigest: {"upstream names a wrong digest", func(w *world, s step) {
		w.fault(s, "manifests", pullthroughtest.Fault{Header: http.Header{"Docker-Content-Digest": {digest.FromString("x").String()}}})
	}},
	wrongType: {"upstream names a wrong type", func(w *world, s step) {
		w.fault(s, "manifests", pullthroughtest.Fault{Header: http.Header{"Content-Type": {[]string{"text/html", "application/octet-stream"}[s.size%2]}}})
	}},
	slowBody:       {"upstream is slow", func(w *world, s step) { w.fault(s, "blobs", pullthroughtest.Fault{Rate: 6 << 20}) }},
	shortBody:      {"upstream ends early", func(w *world, s step) { w.fault(s, "", pullthroughtest.Fault{Truncate: 1 + s.size%900}) }},
	noLength:       {"upstream tells no length", func(w *world, s step) { w.fault(s, "blobs", pullthroughtest.Fault{NoLength: true}) }},
	breakStore:     {"Store fails", (*world).breakStore},
	stallStore:     {"Store stalls", (*world).stallStore},
	evict:          {"Store loses", (*world).evict},
	cutFile:        {"file on the disk is cut", (*world).cutFile},
	replaceRule:    {"rule replaced", func(w *world, s step) { w.changeRule(s, other, public) }},
	deleteRule:     {"rule deleted", func(w *world, s step) { w.changeRule(s, noUpstream) }},
	renewRule:      {"rule made anew", func(w *world, s step) { w.changeRule(s, public) }},
	changePassword: {"password changed", (*world).changePassword},
	revokeTokens:   {"tokens revoked", (*world).revokeTokens},
	holdAndReplace: {"upstream stalls while its rule is replaced", (*world).holdAndReplace},
	pushLocal:      {"pushed beside", (*world).pushBeside},
	restart:        {"restart", (*world).restart},
}

// forecast is what the operator does in which weather.
var forecast = [weathers][]deed{
	calm: {moveTag, moveTag, moveTag, jumpSeconds, jumpDay, pushLocal},
	upstorm: {
		moveTag, moveTag, jumpDay, deleteTag, deleteManifest, deleteBlob, failStatus, limitRate, denyAll, cutAnswer, cutAnswer, stallAnswer, stallBody,
		flipByte, flipByte, flipTag, flipAndHold, flipAndHold, wrongDigest, wrongType, slowBody, shortBody, noLength,
	},
	diskwind: {moveTag, jumpDay, breakStore, breakStore, breakStore, stallStore, stallStore, evict, evict, evict, cutFile, cutFile, pushLocal},
	rulefog:  {moveTag, jumpDay, replaceRule, deleteRule, renewRule, changePassword, revokeTokens, holdAndReplace, stallAnswer, stallBody, slowBody},
	chaos: {
		moveTag, jumpSeconds, jumpDay, deleteTag, deleteBlob, failStatus, cutAnswer, stallAnswer, stallBody, flipByte, shortBody, breakStore, stallStore,
		evict, replaceRule, renewRule, revokeTokens, pushLocal, restart,
	},
}

func pickDeed(rng *rand.Rand, w weather) deed { return forecast[w][rng.IntN(len(forecast[w]))] }

// operate does what is planned, one step after the other.
func (w *world) operate(steps []step) {
	for _, s := range steps {
		time.Sleep(s.after)
		w.note(everything, "operator: %s (%d)", deeds[s.what].name, s.pick%1000)
		deeds[s.what].do(w, s)
	}
}

func (s step) home() home  { return homes[s.pick%uint64(len(homes))] }
func (s step) tag() string { return tags[s.pick/16%uint64(len(tags))] }

// pickOf chooses a digest that belongs to the home, of those that its tags had so far.
func (w *world) pickOf(h home, pick uint64, manifest bool) digest.Digest {
	tag := tags[pick%2]
	e := w.model.editions[h][tag][pick/2%uint64(w.model.reach(h, tag)+1)]
	manifests, blobs := parts(e.Image)
	if manifest {
		return manifests[pick/64%uint64(len(manifests))]
	}
	return blobs[pick/64%uint64(len(blobs))]
}

func (w *world) moveTag(s step) {
	h, tag := s.home(), s.tag()
	w.place(h, tag, w.model.reach(h, tag)+1)
	w.note(everything, "  %v:%s is version %d", h, tag, w.model.reach(h, tag))
}

// remove deletes a ref of the upstream repository.
func (w *world) remove(h home, ref string) {
	w.note(everything, "  %v@%s", h, short(ref))
	w.model.change(func() { w.ups[h.upstream].Delete(h.name, ref) }, func(before, after time.Time) {
		w.model.deleted(h, ref, before, after)
	})
}

func (w *world) deleteTag(s step) { w.remove(s.home(), s.tag()) }

func (w *world) deleteManifest(s step) {
	w.remove(s.home(), w.pickOf(s.home(), s.pick, true).String())
}

func (w *world) deleteBlob(s step) { w.remove(s.home(), w.pickOf(s.home(), s.pick, false).String()) }

// fault makes a registry misbehave a few times.
func (w *world) fault(s step, kind string, f pullthroughtest.Fault) {
	up := w.ups[s.pick%upstreams]
	switch {
	case kind != "":
		f.Match = "GET /v2/*/" + kind + "* 200"
	case s.pick/8%3 == 0:
		f.Match = "* /v2/*/manifests/* 200"
	case s.pick/8%3 == 1:
		f.Match = "GET /v2/*/blobs/* 200"
	default:
		f.Match = "* /v2/* 200"
	}
	if f.Times == 0 {
		f.Times = 1 + int(s.pick/32%4)
	}
	w.note(everything, "  upstream %d: %q %d times, status %d", s.pick%upstreams, f.Match, f.Times, f.Status)
	w.troubled(func(t *trouble) { t.upstream = true })
	up.Fault(f)
}

// flipAndHold makes upstream send a wrong blob, without its length, and not say for a while
// that this was all.
func (w *world) flipAndHold(s step) {
	h := s.home()
	d := w.pickOf(h, s.pick, false)
	size := int64(len(w.model.objects[d].content))
	w.troubled(func(t *trouble) { t.upstream = true })
	w.ups[h.upstream].Fault(pullthroughtest.Fault{
		Match: "GET /v2/" + h.name + "/blobs/" + d.String() + "*", Times: 2,
		NoLength: true, Flip: new(s.size % size), Stall: w.soon(s), StallAfter: &size,
	})
}

// soon is closed after a while.
func (w *world) soon(s step) <-chan struct{} {
	over := make(chan struct{})
	time.AfterFunc(time.Duration(20+s.size%200)*time.Millisecond, func() { close(over) })
	return over
}

// breakStore makes a call of the Store fail or panic a few times.
func (w *world) breakStore(s step) {
	w.breakCall(s, storeFault{kind: int(s.size % 2), times: 1 + int(s.pick/64%3)})
}

func (w *world) stallStore(s step) {
	w.breakCall(s, storeFault{kind: storeStalls, times: 1 + int(s.pick/64%3), stall: time.Duration(10+s.size%150) * time.Millisecond})
}

func (w *world) breakCall(s step, f storeFault) {
	f.call = storeCalls[s.pick%uint64(len(storeCalls))]
	w.note(everything, "  Store.%s, kind %d, %d times", f.call, f.kind, f.times)
	w.troubled(func(t *trouble) { t.store = true })
	w.store.fail(f)
}

// evict makes the Store lose something.
func (w *world) evict(s step) {
	p := place{int(s.pick / 8 % uint64(w.tenants())), ""}
	h := s.home()
	p.repo = "hub/" + h.name
	if h.upstream == private {
		p.repo = ownSecret(p.tenant)
	}
	n := name{p, w.pickOf(h, s.pick/16, s.size%3 == 0).String()}
	w.lose(n)
}

// lose makes the Store lose a manifest or blob.
func (w *world) lose(n name) {
	w.note(n.String(), "the Store loses it")
	w.mu.Lock()
	w.wasLost[n] = true
	w.mu.Unlock()
	w.troubled(func(t *trouble) { t.lost[n] = true })
	if w.registry != nil {
		w.registry.drop(w.nameInside(n.place), digest.Digest(n.ref))
		return
	}
	w.store.lose(n)
}

// cutFile puts a shorter file in place of a blob's on the disk, behind the Store's back. The
// file itself is not cut: the kernel would clear bytes that are on their way to a client.
func (w *world) cutFile(s step) {
	h := s.home()
	d := w.pickOf(h, s.pick/16, false)
	file := filepath.Join(w.storesDir(), layout.Registry.Data(d))
	content, err := os.ReadFile(file)
	if !w.isDir() || err != nil || len(content) == 0 {
		return
	}
	left, short := s.size%int64(len(content)), filepath.Join(w.dir, "short")
	if err := os.WriteFile(short, content[:left], 0o600); !w.must(err == nil, nothingLeft, everything, "%v", err) {
		return
	}
	w.troubled(func(t *trouble) {
		for tenant := range w.tenants() {
			t.lost[name{place{tenant, "hub/" + h.name}, d.String()}] = true
			t.lost[name{place{tenant, "priv/" + h.name}, d.String()}] = true
		}
	})
	w.note(everything, "  %s to %d bytes: %v", d, left, os.Rename(short, file))
}

// changeRule makes the rule hub of a tenant lead elsewhere. Where it leads there already
// it is made anew.
func (w *world) changeRule(s step, to ...int) {
	n := ruleName{int(s.pick / 8 % uint64(w.tenants())), "hub"}
	w.troubled(func(t *trouble) { t.rules[n] = true })
	upstream := to[s.size%int64(len(to))]
	w.note(everything, "  hub of %s leads to %d", accounts[n.tenant], upstream)
	w.makeRule(n, upstream)
}

// changePassword makes the password of a tenant wrong, or right again.
func (w *world) changePassword(s step) {
	tenant := int(s.pick / 8 % uint64(w.tenants()))
	w.troubled(func(t *trouble) { t.passwords[tenant] = true })
	w.mu.Lock()
	w.mistaken[tenant] = !w.mistaken[tenant]
	w.mu.Unlock()
	if s.size%2 == 0 {
		w.revokeTokens(s)
	}
}

// revokeTokens makes all tokens worthless. A token that was fetched for a request, and is
// refused before that is sent, refuses the request.
func (w *world) revokeTokens(step) {
	w.troubled(func(t *trouble) { t.passwords = [2]bool{true, true} })
	w.ups[private].RevokeTokens()
}

// holdAndReplace makes upstream stall until its rule has been another one for longer than
// a put may lag behind its rule.
func (w *world) holdAndReplace(s step) {
	over := make(chan struct{})
	w.troubled(func(t *trouble) { t.upstream = true })
	for _, up := range w.ups[:private] {
		match := []string{"GET /v2/*/manifests/* 200", "GET /v2/*/blobs/* 200"}[s.size%2]
		up.Fault(pullthroughtest.Fault{Match: match, Times: 8, Stall: over})
	}
	time.Sleep(60 * time.Millisecond)
	for tenant := range w.tenants() {
		n := ruleName{tenant, "hub"}
		w.troubled(func(t *trouble) { t.rules[n] = true })
		w.makeRule(n, []int{other, public}[s.pick%2])
	}
	time.AfterFunc(putLag+100*time.Millisecond, func() { close(over) })
}

// pushBeside pushes an image to the Store as the host does, without the proxy.
func (w *world) pushBeside(s step) {
	if w.registry != nil {
		return // it is pushed to over HTTP
	}
	p := place{int(s.pick / 8 % uint64(w.tenants())), "hub/app"}
	img := w.model.local[s.pick/16%uint64(len(w.model.local))]
	tag := append(tags, "mine")[s.size%3]
	w.pushing(p, tag, img, func() error { return w.pushToStore(p, tag, img) })
}

// pushing notes a push of an image that do makes.
func (w *world) pushing(p place, tag string, img *pullthroughtest.Image, do func() error) {
	n := name{p, tag}
	w.troubled(func(t *trouble) { t.pushed[n] = true })
	w.model.mu.Lock()
	manifests, blobs := parts(img)
	for _, d := range append(manifests, blobs...) {
		w.model.pushed[name{p, d.String()}] = true
	}
	at := len(w.model.pushes[n])
	w.model.pushes[n] = append(w.model.pushes[n], push{digest: img.Digest, start: time.Now()})
	w.model.mu.Unlock()
	err := do()
	w.note(n.String(), "pushed beside: %s err=%v", short(img.Digest.String()), err)
	if err != nil {
		return
	}
	w.model.mu.Lock()
	w.model.pushes[n][at].end = time.Now()
	w.model.mu.Unlock()
}

func (w *world) pushToStore(p place, tag string, img *pullthroughtest.Image) error {
	ctx, repo := context.Background(), w.repo(p)
	for _, b := range img.Blobs() {
		content := w.model.objects[b.Digest].content
		desc := ocispec.Descriptor{MediaType: "application/octet-stream", Digest: b.Digest, Size: b.Size}
		if err := w.store.inner.PutBlob(ctx, repo, desc, bytes.NewReader(content)); err != nil {
			return err
		}
		w.store.found(name{p, b.Digest.String()})
	}
	desc := ocispec.Descriptor{MediaType: img.MediaType, Digest: img.Digest, Size: int64(len(img.Content))}
	return w.host.PutManifest(ctx, repo, &pullthrough.Manifest{Descriptor: desc, Content: img.Content, Tag: tag})
}

// restart shuts the proxy down, with or without time for what runs, and puts another one
// over the same Store.
func (w *world) restart(s step) {
	w.troubled(func(t *trouble) { t.restarted = true })
	patience := []time.Duration{0, 50 * time.Millisecond, 10 * time.Second}[s.pick%3]
	w.shutDown(w.proxy(), patience)
	w.front.Store(w.newFront())
}

// calmDown ends all faults and makes rules and passwords right again.
func (w *world) calmDown() {
	for _, up := range w.ups {
		up.Heal()
	}
	w.store.heal()
	w.mu.Lock()
	w.mistaken = [2]bool{}
	w.mu.Unlock()
	for tenant := range w.tenants() {
		n := ruleName{tenant, "hub"}
		if w.model.now(n) == noUpstream {
			w.troubled(func(t *trouble) { t.rules[n] = true })
			w.makeRule(n, public)
		}
	}
}
