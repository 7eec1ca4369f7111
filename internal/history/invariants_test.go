package history_test

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// What must hold.
const (
	neverWrong       = "1: a complete answer has the bytes of its digest and range, and its headers agree"
	oneContent       = "2: HEAD and GET of an object agree"
	tagsAreTrue      = "3: a tag is what upstream had within its TTL, or what was pushed, or it is said to be stale"
	fetchesBounded   = "4: nothing is fetched twice"
	answeredIsStored = "5: once the proxy is idle, what was answered is stored, or an event said why not"
	noLeak           = "6: nobody gets what another tenant or rule has"
	nothingLeft      = "7: all requests end, and nothing is left"
	answersMean      = "8: an error says what is so"
	pushesWhole      = "9: a push beside the proxy is whole"
	eventsTell       = "10: each request is told by one event, which says what the answer says"
)

// putLag is how long a put may begin after the rule of its content has changed: the rule is
// looked up before the put waits for its turn.
const putLag = time.Second

// must reports a violation unless ok.
func (w *world) must(ok bool, invariant, key, format string, args ...any) bool {
	w.t.Helper()
	if ok {
		return true
	}
	if w.violations.Add(1) <= 3 {
		w.t.Errorf("history: violated %s\n%s\n%v, %v, wrong so far %+v\nagain: go test -race ./internal/history -run History -history.seed %d -history.world %d\n%s",
			invariant, fmt.Sprintf(format, args...), w.plan, w.scene.weather, w.wrong(), w.plan.seed, w.plan.world, w.last(key))
	}
	return false
}

// checkNoFault is called for what must not happen while nothing goes wrong.
func (w *world) checkNoFault(key, what string) {
	w.must(w.wrong().isAnything() || w.plan.setting.store == inSmallDir, answersMean, key, "nothing is wrong, but: %s", what)
}

func (w *world) judgeTime(key string, start time.Time) {
	w.must(time.Since(start) < patience, nothingLeft, key, "a request hangs")
}

// judge compares an answer with the model.
func (w *world) judge(a *answer) {
	key := a.name.String()
	w.judgeTime(key, a.start)
	switch {
	case a.left:
		return
	case a.err != nil:
		w.checkNoFault(key, a.String())
		return
	}
	e := w.judgeEvent(a)
	switch a.status {
	case http.StatusOK, http.StatusPartialContent:
		w.judgeContent(a, e)
	case http.StatusNotModified:
		known := strings.Trim(a.request.header.Get("If-None-Match"), `"`)
		w.must(known != "" && a.digest().String() == known, neverWrong, key, "not modified: %v", a)
		w.judgeRight(a, e)
	case http.StatusRequestedRangeNotSatisfiable:
		w.judgeBeyond(a)
	case http.StatusNotFound:
		w.judgeAbsence(a)
	default:
		w.judgeFailure(a)
	}
}

// judgeEvent returns what was told of the request. A wrapped registry tells nothing of what
// it answers itself, where the proxy has not, or has failed.
func (w *world) judgeEvent(a *answer) (e pullthrough.Event) {
	key := a.name.String()
	e, n := w.eventOf(a.caller)
	good := a.status < 400 || a.status == http.StatusRequestedRangeNotSatisfiable
	if w.plan.setting.store == inWrapped && (n == 0 || good && e.Err != nil) {
		return pullthrough.Event{Source: pullthrough.SourceStale} // it answers whatever its age
	}
	w.must(n >= 1 && n <= int(a.tries.Load()), eventsTell, key, "%d events of %v", n, a)
	w.must(good == (e.Err == nil), eventsTell, key, "the event has the error %v: %v", e.Err, a)
	w.must(!good || e.Digest == a.digest().String(), eventsTell, key, "the event has %s: %v", e.Digest, a)
	return e
}

func (w *world) judgeContent(a *answer, e pullthrough.Event) {
	key, d := a.name.String(), a.digest()
	o, ok := w.model.objects[d]
	if !ok {
		w.judgeUnknown(a)
		return
	}
	w.must(a.ref == d.String() || !a.blob && !strings.Contains(a.ref, ":"), neverWrong, key, "another digest than asked for: %v", a)
	if kind, params, err := mime.ParseMediaType(a.header.Get("Content-Type")); err == nil && kind == "multipart/byteranges" {
		w.judgeParts(a, params["boundary"], o.content)
		w.judgeRight(a, e)
		return
	}
	wantType := o.mediaType
	if wantType == "" {
		wantType = "application/octet-stream"
	}
	w.must(a.header.Get("Content-Type") == wantType, neverWrong, key, "type %q instead of %q: %v", a.header.Get("Content-Type"), wantType, a)
	want := o.content
	from, to := 0, len(want)
	if a.status == http.StatusPartialContent {
		from, to, ok = w.judgePart(a, len(want))
		if !ok {
			return
		}
	}
	w.must(a.header.Get("Content-Length") == strconv.Itoa(to-from), neverWrong, key, "length for %d bytes: %v", to-from, a)
	if a.method == http.MethodGet && !w.mayBeUnverified(a, from, to, len(want)) {
		w.must(string(a.content) == string(want[from:to]), neverWrong, key, "the bytes are wrong: %v", a)
	}
	w.judgeRight(a, e)
}

// mayBeUnverified reports whether the part may come from a download that is not verified:
// it ends before what is held back, or it was asked for by its end and is not all; and
// upstream may have lied.
func (w *world) mayBeUnverified(a *answer, from, to, size int) bool {
	closed := !strings.HasSuffix(a.request.header.Get("Range"), "-") && to-from < size
	return a.status == http.StatusPartialContent && (closed || to <= size-64<<10) && w.wrong().upstream
}

// judgeParts is about several parts in one answer: the only ones that clients here ask for.
func (w *world) judgeParts(a *answer, boundary string, content []byte) {
	key := a.name.String()
	parts := multipart.NewReader(bytes.NewReader(a.content), boundary)
	for _, want := range [][2]int{{0, 1}, {5, 10}} {
		p, err := parts.NextPart()
		if !w.must(err == nil && want[1] <= len(content), neverWrong, key, "no part %v: %v", want, a) {
			return
		}
		got, err := io.ReadAll(p)
		said := fmt.Sprintf("bytes %d-%d/%d", want[0], want[1]-1, len(content))
		w.must(err == nil && p.Header.Get("Content-Range") == said, neverWrong, key, "part %q instead of %q: %v", p.Header.Get("Content-Range"), said, a)
		w.must(bytes.Equal(got, content[want[0]:want[1]]) || w.wrong().upstream, neverWrong, key, "the bytes are wrong: %v", a)
	}
}

// judgeUnknown is about content that no upstream has meant to send: an event must have said
// that upstream named another digest than the content has.
func (w *world) judgeUnknown(a *answer) {
	w.model.mu.Lock()
	said := w.model.said[name{a.place, a.digest().String()}]
	w.model.mu.Unlock()
	honest := a.method == http.MethodHead || digest.FromBytes(a.content) == a.digest()
	w.must(said && honest && !a.blob, neverWrong, a.name.String(), "nobody has this content: %v", a)
}

// judgePart compares Content-Range with the Range that was asked for.
func (w *world) judgePart(a *answer, size int) (from, to int, ok bool) {
	var total int
	_, err := fmt.Sscanf(a.header.Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &total)
	first, last, within := parseRange(a.request.header.Get("Range"), size)
	ok = err == nil && within && from == first && to == last && total == size
	return from, to + 1, w.must(ok, neverWrong, a.name.String(), "part %q of %d bytes: %v", a.header.Get("Content-Range"), size, a)
}

// parseRange is which bytes, the last one included, a Range asks for.
func parseRange(header string, size int) (first, last int, within bool) {
	spec := strings.TrimPrefix(header, "bytes=")
	from, to, _ := strings.Cut(spec, "-")
	if from == "" {
		n, _ := strconv.Atoi(to)
		return max(0, size-n), size - 1, n > 0 && size > 0
	}
	first, _ = strconv.Atoi(from)
	last = size - 1
	if n, err := strconv.Atoi(to); err == nil {
		last = min(last, n)
	}
	return first, last, first < size
}

func (w *world) judgeBeyond(a *answer) {
	size := len(w.model.objects[digest.Digest(a.ref)].content)
	_, _, within := parseRange(a.request.header.Get("Range"), size)
	w.must(!within && a.header.Get("Content-Range") == fmt.Sprintf("bytes */%d", size), neverWrong, a.name.String(), "of %d bytes: %v", size, a)
}

// judgeRight asks whether the tenant may have the content, and whether a tag may have it.
func (w *world) judgeRight(a *answer, e pullthrough.Event) {
	d := name{a.place, a.digest().String()}
	if !w.must(w.model.mayHave(d), noLeak, a.name.String(), "it is not in this repository: %v", a) {
		return
	}
	if !a.blob && !strings.Contains(a.ref, ":") {
		w.judgeTag(a, e)
	}
	w.scene.lock.Lock()
	defer w.scene.lock.Unlock()
	if a.status == http.StatusOK && a.method == http.MethodGet {
		a.content = nil
		w.answers = append(w.answers, a)
	}
}

func (w *world) judgeTag(a *answer, e pullthrough.Event) {
	key, d := a.name.String(), a.digest()
	lo := w.start() // what was fetched or confirmed, was so in this scene
	switch {
	case e.Source == pullthrough.SourceStale, w.model.uncovered(a.place, lo, a.end):
		lo = time.Time{}
	case e.Source == pullthrough.SourceHit && !w.plan.everyPull:
		lo = w.Before(a.start, tagTTL).Add(-200 * time.Millisecond) // it may be the hit of a fetch that found it stored
		if w.wrong().store {
			lo = w.Before(w.start(), tagTTL)
		}
	}
	values := w.model.tagValues(a.name, lo, a.end)
	local := w.model.localValues(a.name, a.end)
	isLocal := false
	for _, p := range local {
		isLocal = isLocal || p.digest == d
	}
	w.must(values[d] || isLocal, tagsAreTrue, key, "%v, %v, since %v upstream had %v, pushed were %v", e.Source, a, lo.Sub(w.journal.began), values, local)
	w.judgeKept(a, local, isLocal)
	w.judgeOrder(a, e, len(local) > 0)
}

// judgeKept is about KeepLocal: a tag that was pushed stays. While the Store fails to tell
// it, upstream's may be answered; it must not be put.
func (w *world) judgeKept(a *answer, local []push, isLocal bool) {
	if !w.plan.keepLocal || isLocal || w.wrong().store || w.plan.setting.store == inSmallDir {
		return
	}
	for _, p := range local {
		if p.end.IsZero() || !p.end.Before(a.start) || w.overlaps(a.name, p) || w.everLost(name{a.place, p.digest.String()}) {
			continue
		}
		w.must(false, tagsAreTrue, a.name.String(), "%s was pushed before, and KeepLocal is set: %v", p.digest, a)
	}
}

// overlaps reports whether the proxy was putting the tag while it was pushed.
func (w *world) overlaps(n name, p push) bool {
	for _, put := range w.store.putsOf(n) {
		if put.start.Before(p.end) && put.end.After(p.start) {
			return true
		}
	}
	return false
}

// judgeOrder: a tag that upstream never moves back is never answered with an older image
// than before.
func (w *world) judgeOrder(a *answer, e pullthrough.Event, pushed bool) {
	if pushed || e.Source == pullthrough.SourceStale || w.plan.setting.store == inSmallDir {
		return
	}
	from := w.model.objects[a.digest()].home
	version := w.model.version(from, a.ref, a.digest())
	w.scene.lock.Lock()
	newest, steady := -1, w.steady()
	for _, s := range w.tags[a.name] {
		if s.from == from && s.end.Before(a.start) { // another one was stored by a rule that has changed since
			newest = max(newest, s.version)
		}
	}
	w.tags[a.name] = append(w.tags[a.name], seen{from, version, a.end})
	w.scene.lock.Unlock()
	w.must(!steady || version >= newest, tagsAreTrue, a.name.String(), "the tag goes back from version %d to %d: %v", newest, version, a)
}

// judgeAbsence is about 404.
func (w *world) judgeAbsence(a *answer) {
	t := w.wrong()
	lo := w.start()
	if memory := w.Before(a.start, 10*time.Second); memory.Before(lo) {
		lo = memory // NotFoundTTL
	}
	switch {
	case w.model.lacked(a.name, lo, a.end), a.isForeign():
	case w.plan.setting.store == inWrapped && (a.method == http.MethodHead || t.isAnything()): // the registry's own answer
	case w.makesRepos() && (t.store || a.blob && !w.wasThere(a.place, a.start)): // the image makes the repository
	default:
		w.must(false, answersMean, a.name.String(), "upstream had it all the time: %v %.200s", a, a.content)
	}
}

// isForeign reports whether the other tenant alone may pull from the repository.
func (r request) isForeign() bool {
	return strings.HasPrefix(r.repo, "priv/") && r.repo != ownSecret(r.tenant)
}

// judgeFailure is about errors but 404.
func (w *world) judgeFailure(a *answer) {
	t := w.wrong()
	ok := false
	switch {
	case a.isForeign() && a.status < 500:
		ok = true
	case a.status == http.StatusForbidden:
		ok = t.denied || t.passwords[a.tenant]
	case a.status == http.StatusTooManyRequests:
		ok = t.limited
	case a.status >= 500:
		ok = t.isAnything() || w.plan.setting.store == inSmallDir
	}
	w.must(ok, answersMean, a.name.String(), "%v %.300s", a, a.content)
}

// judgePush: what was pushed through the door beside the proxy is whole in the registry.
func (w *world) judgePush(p place, tag string, img *pullthroughtest.Image, err error) {
	key := name{p, tag}.String()
	lost := w.wrong().lost
	if slices.ContainsFunc(img.Blobs(), func(b *pullthroughtest.Blob) bool { return lost[name{p, b.Digest.String()}] }) {
		return // the registry may have lost it after it has told the client that it had it
	}
	if !w.must(err == nil, pushesWhole, key, "the push fails: %v", err) {
		return
	}
	for _, b := range img.Blobs() {
		w.must(w.store.has(w.t.Context(), w.repo(p), b.Digest), pushesWhole, key, "the registry lacks %s", b.Digest)
	}
}

// judgeImport is about the result of an import: it is stored when it is told.
func (w *world) judgeImport(n name, m *pullthrough.Manifest, err error, start time.Time) {
	w.judgeTime(n.String(), start)
	if err != nil {
		lacked := w.model.lacked(n, w.start(), time.Now()) || w.lackedPart(n) || w.plan.setting.store == inWrapped
		lacked = lacked || w.plan.keepLocal && w.wrong().pushed[n] // what was pushed meanwhile stays, and the import says that its own image does not
		w.must(lacked || w.wrong().isAnything() || w.plan.setting.store == inSmallDir, answersMean, n.String(), "nothing is wrong, but the import fails: %v", err)
		return
	}
	d := name{n.place, m.Descriptor.Digest.String()}
	w.must(w.model.mayHave(d), noLeak, n.String(), "an import brings %s", d)
	if w.wrong().isAnything() || w.plan.setting.store == inSmallDir {
		return
	}
	_, err = w.store.look(w.t.Context(), w.repo(n.place), d.ref)
	w.must(err == nil, answeredIsStored, d.String(), "it was imported: %v", err)
}

// lackedPart reports whether upstream has lacked a part of an image that the tag had.
func (w *world) lackedPart(n name) bool {
	h, _ := w.model.home(n.place)
	for _, e := range w.model.editions[h][n.ref][:w.model.reach(h, n.ref)+1] {
		manifests, blobs := parts(e.Image)
		for _, d := range append(manifests, blobs...) {
			if w.model.lacked(name{n.place, d.String()}, w.start(), time.Now()) {
				return true
			}
		}
	}
	return false
}

// checkPut: what came by a rule that is gone is not stored.
func (w *world) checkPut(n name, from home) {
	if from.name == "" {
		return
	}
	now := time.Now()
	w.must(w.model.ledTo(n.place, from.upstream, now.Add(-putLag), now), noLeak, n.String(),
		"it comes from upstream %d, where the rule has not led for %v, and is put", from.upstream, putLag)
}
