package history_test

import (
	"context"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
)

// idle brings the world to rest.
func (w *world) idle() {
	ctx, cancel := context.WithTimeout(context.Background(), w.endPatience())
	defer cancel()
	err := w.proxy().Idle(ctx)
	w.must(err == nil, nothingLeft, everything, "the proxy does not come to rest: %v", err)
	down := w.proxy().Downloads()
	for len(down) > 0 && ctx.Err() == nil { // the server may not know yet that a client has left
		time.Sleep(time.Millisecond)
		down = w.proxy().Downloads()
	}
	w.must(len(down) == 0, nothingLeft, everything, "downloads are left: %+v", down)
}

// endPatience is how long the end of what runs may take.
func (w *world) endPatience() time.Duration {
	if w.violations.Load() > 0 {
		return time.Second // there is something to tell already
	}
	return 20 * time.Second
}

// checkScene is what must hold when the world is at rest.
func (w *world) checkScene() {
	w.checkStored()
	w.checkStoreFailures()
	w.checkFetches()
}

// checkStored: what was fetched for an answer is stored.
func (w *world) checkStored() {
	t := w.wrong()
	if t.restarted || w.plan.setting.store == inSmallDir {
		return
	}
	w.scene.lock.Lock()
	answers := slices.Clone(w.answers)
	w.scene.lock.Unlock()
	for _, a := range answers {
		e, n := w.eventOf(a.caller)
		d := name{a.place, a.digest().String()}
		prefix, _ := a.parts()
		switch {
		case n == 0, e.Source != pullthrough.SourceFill && e.Source != pullthrough.SourceShared:
		case t.rules[ruleName{a.tenant, prefix}], t.lost[d], w.storeFailed(a.place, a.ref, d.ref) > 0:
		case w.plan.fill == pullthrough.FillEager && (w.fetchFailed(a.place) || w.storeFailed(a.place) > 0): // the image is not complete
		case w.plan.keepLocal && t.pushed[a.name]: // what was pushed meanwhile stays
		case a.blob:
			w.must(w.store.has(w.t.Context(), w.repo(a.place), a.digest()), answeredIsStored, d.String(), "the blob is not stored: %v", a)
		default:
			_, err := w.store.look(w.t.Context(), w.repo(a.place), d.ref)
			w.must(err == nil, answeredIsStored, a.name.String(), "the manifest is not stored: %v, %v", err, a)
			w.checkTag(a, t)
		}
	}
}

// checkTag: the Store has the image that was answered, or a newer one.
func (w *world) checkTag(a *answer, t trouble) {
	if strings.Contains(a.ref, ":") || len(w.model.localValues(a.name, time.Now())) > 0 || len(t.lost) > 0 || t.store {
		return
	}
	m, err := w.store.look(w.t.Context(), w.repo(a.place), a.ref)
	if !w.must(err == nil, answeredIsStored, a.name.String(), "the tag is not stored: %v, %v", err, a) {
		return
	}
	h := w.model.objects[a.digest()].home
	have, told := w.model.version(h, a.ref, m.Descriptor.Digest), w.model.version(h, a.ref, a.digest())
	w.must(have >= told, answeredIsStored, a.name.String(), "the Store has version %d of the tag, and version %d was answered: %v", have, told, a)
}

// checkStoreFailures: each put that failed was told, and nothing else. A registry refuses
// images of which upstream has lost a part.
func (w *world) checkStoreFailures() {
	for p, n := range w.store.takeFailed() {
		told := w.storeFailed(p)
		w.must(told >= n || w.wrong().restarted, answeredIsStored, p.repo, "%d puts have failed in %s, and %d events tell of it", n, p.repo, told)
	}
	if !w.wrong().isAnything() && w.plan.setting.store != inSmallDir && w.registry == nil {
		w.scene.lock.Lock()
		told := slices.Clone(w.failed)
		w.scene.lock.Unlock()
		w.must(len(told) == 0, answersMean, everything, "the Store did not fail, and events say that it did: %+v", told)
	}
}

// checkFetches: upstream was asked no more than need be.
func (w *world) checkFetches() {
	w.scene.lock.Lock()
	asked, stored, left := w.asked, w.stored, w.left
	w.scene.lock.Unlock()
	sent := 0
	for i, up := range w.ups {
		gets := map[remote]int{}
		for _, r := range up.Requests() {
			sent++
			repo, ref, isBlob := strings.Cut(strings.TrimPrefix(r.Path, "/v2/"), "/blobs/")
			if isBlob && r.Method == http.MethodGet && r.Range == "" && r.Status == 200 { // by Range comes what is far ahead
				gets[remote{home{i, repo}, ref}]++
			}
		}
		if stored != nil && !w.wrong().isAnything() && w.plan.setting.store != inSmallDir {
			w.checkGets(gets, stored, left)
		}
	}
	w.must(sent <= 100+40*asked, fetchesBounded, everything, "%d requests of clients have led to %d requests to upstreams", asked, sent)
}

// checkGets: where nothing goes wrong, each blob that was not stored is fetched once for each
// repository.
func (w *world) checkGets(gets map[remote]int, stored map[name]bool, left map[name]int) {
	for at, n := range gets {
		most := 0
		for tenant := range w.tenants() {
			for _, prefix := range []string{"hub", "priv"} {
				n := name{place{tenant, prefix + "/" + at.name}, at.ref}
				if h, ok := w.model.home(n.place); ok && h == at.home && !n.place.isForeign() && !stored[n] {
					most++
				}
				most += left[n]
			}
		}
		w.must(n <= most, fetchesBounded, name{place{0, "hub/" + at.name}, at.ref}.String(), "upstream %v was asked %d times for %s; %d would do", at.home, n, at.ref, most)
	}
}

func (p place) isForeign() bool { return request{name: name{place: p}}.isForeign() }

// rest asks a world at rest, in which nothing is wrong and all that was remembered of
// failures is forgotten.
func (w *world) rest(wishes []wish) {
	for i, one := range wishes {
		p := place{one.tenant, one.repo}
		switch i % 5 {
		case 0:
			w.checkExact(name{p, one.tag})
		case 1:
			w.checkHead(one)
		case 2:
			w.checkNowhere(one)
		case 3:
			w.checkDeleted(one)
		default:
			w.grant(one)
		}
	}
}

// checkExact: a tag that is due is exactly what upstream has.
func (w *world) checkExact(n name) {
	h, ok := w.model.home(n.place)
	if !ok {
		return
	}
	e, ok := w.model.current(h, n.ref)
	if local := w.model.localValues(n, time.Now()); !ok || w.plan.keepLocal && len(local) > 0 {
		return
	}
	var a *answer
	for range 3 { // on a machine that is busy a check may take too long
		w.Jump(25 * time.Hour)
		a = w.ask(request{name: n, method: http.MethodGet})
		if a.digest() == e.Digest {
			return
		}
		w.idle()
	}
	w.must(false, tagsAreTrue, n.String(), "the tag is due and nothing is wrong; upstream has %s (version %d): %v", e.Digest, e.version, a)
}

// checkHead: HEAD and GET say the same.
func (w *world) checkHead(one wish) {
	h, ok := w.model.home(place{one.tenant, one.repo})
	if !ok {
		return
	}
	one.kind = []kind{getBlob, getManifest, getTag}[one.pick%3]
	r := w.object(one, request{name: name{place{one.tenant, one.repo}, one.tag}, method: http.MethodGet}, h)
	head := r
	head.method = http.MethodHead
	first := w.ask(head)
	get := w.ask(r)
	w.idle()
	last := w.ask(head)
	if r.blob && w.plan.setting.store == inWrapped {
		first = last // before the blob is stored HEAD is the registry's answer
	}
	for _, a := range []*answer{first, last} {
		same := a.status == get.status
		if a.status == http.StatusOK {
			for _, key := range []string{"Content-Length", "Content-Type", "Docker-Content-Digest", "Etag"} {
				same = same && a.header.Get(key) == get.header.Get(key)
			}
		}
		w.must(same || a.err != nil || get.err != nil, oneContent, r.String(), "HEAD: %v\nGET: %v", a, get)
	}
}

// checkNowhere: what is neither stored nor upstream is not found, whatever was known of it.
func (w *world) checkNowhere(one wish) {
	p := place{one.tenant, one.repo}
	h, ok := w.model.home(p)
	if !ok {
		return
	}
	n := name{p, w.pickOf(h, one.pick, one.pick%2 == 0).String()}
	blob := one.pick%2 != 0
	if w.model.isPushed(n) {
		return
	}
	w.idle() // a put that is under way would bring it back
	w.remove(h, n.ref)
	w.lose(n)
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		a := w.ask(request{name: n, blob: blob, method: method})
		w.must(a.status == http.StatusNotFound || a.err != nil, answersMean, n.String(), "neither the Store nor upstream has it: %v", a)
	}
	for _, tag := range tags {
		w.place(h, tag, w.model.reach(h, tag))
	}
}

// checkDeleted: a stored tag that upstream has deleted is served as stale, or refused where
// RefuseStale is set, also when the client who caused the check has left.
func (w *world) checkDeleted(one wish) {
	p := place{one.tenant, one.repo}
	n := name{p, one.tag}
	h, ok := w.model.home(p)
	w.idle()
	stored, err := w.store.look(w.t.Context(), w.repo(p), one.tag)
	if !ok || err != nil || len(w.model.localValues(n, time.Now())) > 0 || w.plan.setting.store == inSmallDir {
		return
	}
	w.remove(h, one.tag)
	w.Jump(25 * time.Hour)
	w.ask(request{name: n, method: http.MethodGet, mood: leavesAfterTime, amount: one.amount % 3000})
	a := w.ask(request{name: n, method: http.MethodGet})
	switch {
	case w.plan.refuseStale:
		w.must(a.status == http.StatusNotFound, tagsAreTrue, n.String(), "RefuseStale is set, and upstream has deleted the tag: %v", a)
	default:
		w.must(a.digest() == stored.Descriptor.Digest, tagsAreTrue, n.String(), "upstream has deleted the tag, and the Store has %s: %v", stored.Descriptor.Digest, a)
	}
	w.place(h, one.tag, w.model.reach(h, one.tag))
}

// everLost reports whether the Store has lost the digest at any time.
func (w *world) everLost(n name) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.wasLost[n]
}

// shutDown ends a proxy, which has so long for what runs.
func (w *world) shutDown(p *pullthrough.Proxy, long time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), long)
	defer cancel()
	start, ended := time.Now(), make(chan error, 1)
	go func() { ended <- p.Shutdown(ctx) }()
	select {
	case err := <-ended:
		w.note(everything, "Shutdown, given %v, takes %v: %v", long, time.Since(start), err)
		w.must(err == nil || ctx.Err() != nil, nothingLeft, everything, "Shutdown fails: %v", err)
	case <-time.After(long + w.endPatience()):
		w.must(false, nothingLeft, everything, "Shutdown does not end")
	}
}

// end ends the world. Goroutines and descriptors are counted when all of the test has ended.
func (w *world) end() {
	if w.violations.Load() == 0 {
		w.checkRoom()
	}
	w.idle()
	w.server.Close()
	w.client.CloseIdleConnections()
	w.shutDown(w.proxy(), w.endPatience())
	files := w.filesLeft()
	for wait := time.Now(); len(files) > 0 && time.Since(wait) < w.endPatience(); files = w.filesLeft() {
		time.Sleep(time.Millisecond) // what a dirstore evicts goes by way of its staging directory
	}
	w.must(len(files) == 0, nothingLeft, everything, "files are left: %q", files)
	err := w.closing()
	w.must(err == nil, nothingLeft, everything, "the Store does not close: %v", err)
	open := openBelow(w.dir)
	w.must(len(open) == 0, nothingLeft, everything, "descriptors are left: %q", open)
}

// checkRoom: all room for downloads is free, since a download that needs all of it works.
func (w *world) checkRoom() {
	p := place{0, "hub/full"}
	h, ok := w.model.home(p)
	if w.isDir() || !ok || w.plan.setting.makesRepos() {
		return
	}
	full := w.model.full
	w.ups[h.upstream].PushBlob(h.name, w.model.objects[full.Digest].content)
	n := name{p, full.Digest.String()}
	w.model.mu.Lock()
	w.model.pushed[n] = true
	w.model.mu.Unlock()
	a := w.ask(request{name: n, blob: true, method: http.MethodGet})
	w.must(a.status == http.StatusOK, nothingLeft, n.String(), "a download needs all SpoolBytes: %v", a)
}

// filesLeft are files of downloads that nobody needs any more.
func (w *world) filesLeft() (files []string) {
	_ = filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error { // what cannot be read is not there
		inStore := strings.HasPrefix(path, w.storesDir()+string(filepath.Separator))
		staged := strings.Contains(path, "/staging/")
		if err == nil && d.Type().IsRegular() && (!inStore || staged) {
			files = append(files, path)
		}
		return nil
	})
	return files
}

// openBelow are the open files below a directory, also those without a name, where the
// system tells.
func openBelow(dir string) (open []string) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if file, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(file, dir) {
			open = append(open, file)
		}
	}
	return open
}
