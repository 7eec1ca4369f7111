package history_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// patience is how long a request may take, whatever goes wrong.
const patience = 40 * time.Second

// request is one request of a client for an object.
type request struct {
	name
	blob   bool
	method string
	header http.Header
	mood   mood
	amount int64
}

// answer is what came of a request.
type answer struct {
	request
	caller     string
	tries      atomic.Int64 // net/http sends a request again whose connection ended before an answer began
	start, end time.Time
	status     int
	header     http.Header
	content    []byte
	left       bool  // the client did not wait for the end
	err        error // why the answer is not complete
}

func (a *answer) String() string {
	return fmt.Sprintf("%s %v %v: %d, %d bytes of %s, %s, err %v", a.method, a.name, a.request.header, a.status, len(a.content),
		a.header.Get("Content-Length"), short(a.header.Get("Docker-Content-Digest")), a.err)
}

// complete reports whether the client got all that the header announced.
func (a *answer) complete() bool { return a.err == nil && !a.left && a.status != 0 }

// digest is which content the answer says that it is.
func (a *answer) digest() digest.Digest { return digest.Digest(a.header.Get("Docker-Content-Digest")) }

var callers atomic.Int64

// url is where the proxy has the object.
func (r request) url() string {
	kind := "manifests"
	if r.blob {
		kind = "blobs"
	}
	return "/v2/" + r.repo + "/" + kind + "/" + r.ref
}

// send sends a request of a tenant.
func (w *world) send(ctx context.Context, method, url string, tenant int, header http.Header, body []byte) (*http.Response, string, error) {
	r, err := http.NewRequestWithContext(ctx, method, w.server.URL+url, bytes.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	caller := fmt.Sprintf("r%d", callers.Add(1))
	for key, values := range header {
		r.Header[key] = values
	}
	r.Header.Set(accountHeader, accounts[tenant])
	r.Header.Set(callerHeader, caller)
	w.scene.lock.Lock()
	w.asked++
	w.scene.lock.Unlock()
	resp, err := w.client.Do(r)
	return resp, caller, err
}

// ask sends a request, reads the answer as the mood is, and judges it.
func (w *world) ask(r request) *answer {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a := &answer{request: r, start: time.Now(), header: http.Header{}}
	if r.mood == leavesAfterTime {
		timer := time.AfterFunc(time.Duration(r.amount%100_000)*time.Microsecond, cancel)
		defer timer.Stop()
	}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { a.tries.Add(1) }})
	resp, caller, err := w.send(ctx, r.method, r.url(), r.tenant, r.header, nil)
	a.caller, a.err = caller, err
	if err == nil {
		a.status, a.header = resp.StatusCode, resp.Header
		a.read(resp.Body, cancel)
		_ = resp.Body.Close() // all that counts has been read
	}
	a.end = time.Now()
	if r.mood == leavesAfterTime && ctx.Err() == context.Canceled && a.err != nil {
		a.left = true
	}
	if a.left {
		w.scene.lock.Lock()
		w.left[r.name]++
		w.scene.lock.Unlock()
	}
	w.note(r.String(), "%s %s %v: %d %s left=%v err=%v", caller, r.method, r.header, a.status, short(a.digest().String()), a.left, a.err)
	w.judge(a)
	return a
}

// read reads the body as the mood is.
func (a *answer) read(body io.Reader, leave func()) {
	piece := int64(256 << 10)
	if a.mood == slow {
		piece = 100 << 10
	}
	var all bytes.Buffer
	for {
		_, err := io.CopyN(&all, body, piece)
		a.content = all.Bytes()
		switch {
		case err == io.EOF:
			return
		case err != nil:
			a.err = err
			return
		case a.mood == leavesAfterBytes && int64(len(a.content)) > a.amount:
			a.left = true
			leave()
			return
		case a.mood == slow:
			time.Sleep(time.Duration(a.amount%5000) * time.Microsecond)
		}
	}
}

// play does what a client wishes, one after the other.
func (w *world) play(wishes []wish) {
	for _, one := range wishes {
		time.Sleep(one.after)
		w.grant(one)
	}
}

// grant does one wish.
func (w *world) grant(one wish) {
	p := place{one.tenant, one.repo}
	base := request{name: name{p, one.tag}, method: http.MethodGet, mood: one.mood, amount: one.amount}
	h, _ := w.model.home(p)
	if h.upstream == noUpstream {
		h.upstream = public
	}
	switch one.kind {
	case pullImage:
		w.pull(base)
	case getTag, headTag, getManifest, headManifest, getBlob, headBlob, getRange, getIfNew:
		w.try(w.object(one, base, h))
	case getForeign:
		w.askForeign(one, base)
	case getAbsent:
		base.ref = "absent"
		w.ask(base)
	case listTags, listRepos:
		w.list(one)
	case listReferrers:
		w.listReferrers(one, h)
	case importImage:
		w.importImage(name{p, one.tag})
	case controlPlane:
		w.askControlPlane(one)
	case debugPage:
		w.askPage(one)
	case pushImage:
		if w.plan.store == inWrapped {
			w.push(one)
		}
	}
}

// object is the request for the one object that is wished for.
func (w *world) object(one wish, r request, h home) request {
	switch one.kind {
	case headTag:
		r.method = http.MethodHead
	case getManifest, headManifest:
		r.ref = w.pickOf(h, one.pick, true).String()
	case getBlob, headBlob, getRange:
		r.blob = true
		r.ref = w.pickOf(h, one.pick, false).String()
	case getIfNew:
		known := w.pickOf(h, one.pick, true).String()
		r.header = http.Header{"If-None-Match": {`"` + known + `"`}}
		if one.amount%2 == 0 {
			r.ref = known
		}
	}
	switch one.kind {
	case headManifest, headBlob:
		r.method = http.MethodHead
	case getRange:
		size := int64(len(w.model.objects[digest.Digest(r.ref)].content))
		r.header = http.Header{"Range": {rangeOf(one.pick, one.amount, size)}}
	}
	return r
}

// rangeOf is some Range of content.
func rangeOf(pick uint64, amount, size int64) string {
	from := amount % (size + 1)
	switch pick / 7 % 6 {
	case 0:
		return fmt.Sprintf("bytes=%d-%d", from, from+amount%70_000)
	case 1:
		return fmt.Sprintf("bytes=-%d", 1+amount%100_000)
	case 2:
		return fmt.Sprintf("bytes=%d-", from)
	case 3:
		return fmt.Sprintf("bytes=%d-%d", size+1, size+amount+1)
	case 4:
		return "bytes=0-0,5-9"
	}
	return fmt.Sprintf("bytes=0-%d", size-1)
}

// try sends a request, and once more if its client has left.
func (w *world) try(r request) *answer {
	a := w.ask(r)
	if a.left {
		r.mood = patient
		a = w.ask(r)
	}
	return a
}

// pull pulls a whole image, as it is described to the client.
func (w *world) pull(r request) {
	a := w.try(r)
	if a.status != http.StatusOK || !a.complete() {
		return
	}
	var doc struct {
		Config            *struct{ Digest digest.Digest }
		Layers, Manifests []struct{ Digest digest.Digest }
	}
	if json.Unmarshal(a.content, &doc) != nil {
		return // what the digest means was judged already
	}
	for _, m := range doc.Manifests {
		child := r
		child.ref = m.Digest.String()
		w.pull(child)
	}
	blobs := doc.Layers
	if doc.Config != nil {
		blobs = append(blobs, *doc.Config)
	}
	for _, b := range blobs {
		part := r
		part.ref, part.blob = b.Digest.String(), true
		w.try(part)
	}
}

// askForeign asks for what only the other tenant may have: in the repository where it is,
// and by its digest in a repository of the tenant's own.
func (w *world) askForeign(one wish, r request) {
	if w.tenants() == 1 {
		return
	}
	h := home{private, strings.TrimPrefix(ownSecret(1-one.tenant), "priv/")}
	digestOf := w.pickOf(h, one.pick, one.pick%3 == 0)
	r.blob = one.pick%3 != 0
	r.ref = digestOf.String()
	if one.pick%2 == 0 {
		r.repo = ownSecret(1 - one.tenant)
	}
	w.ask(r)
}

// importImage imports an image in Go.
func (w *world) importImage(n name) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w.scene.lock.Lock()
	w.asked += 4
	w.scene.lock.Unlock()
	start := time.Now()
	m, err := w.proxy().Import(ctx, pullthrough.Request{Repo: w.repo(n.place), Ref: n.ref, Caller: "import"}, pullthrough.ImportOptions{})
	if m != nil {
		w.note(n.String(), "import: %s err=%v", short(m.Descriptor.Digest.String()), err)
	}
	w.judgeImport(n, m, err, start)
}

// push pushes an image to the wrapped registry through the proxy, as clients do: what the
// registry says that it has is not sent.
func (w *world) push(one wish) {
	img := w.model.local[one.pick%uint64(len(w.model.local))]
	p := place{0, "hub/app"}
	if one.pick/64%2 == 0 {
		p.repo = fmt.Sprintf("hub/pushed-%d", one.pick/128%3)
	}
	tag := append(tags, "mine")[one.pick/32%3]
	w.pushing(p, tag, img, func() error {
		err := w.pushOver(p, tag, img)
		w.judgePush(p, tag, img, err)
		return err
	})
}

func (w *world) pushOver(p place, tag string, img *pullthroughtest.Image) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	do := func(method, url string, header http.Header, body []byte) (*http.Response, error) {
		resp, _, err := w.send(ctx, method, url, p.tenant, header, body)
		if err == nil {
			_ = resp.Body.Close() // the status says all
		}
		return resp, err
	}
	for _, b := range img.Blobs() {
		base := "/v2/" + p.repo + "/blobs/"
		resp, err := do(http.MethodHead, base+b.Digest.String(), nil, nil)
		if err != nil || resp.StatusCode == http.StatusOK {
			continue
		}
		if resp, err = do(http.MethodPost, base+"uploads/", nil, nil); err != nil {
			return err
		}
		resp, err = do(http.MethodPut, resp.Header.Get("Location")+"?digest="+b.Digest.String(), nil, w.model.objects[b.Digest].content)
		if err != nil || resp.StatusCode != http.StatusCreated {
			return fmt.Errorf("upload of %s: %v %w", b.Digest, resp, err)
		}
	}
	resp, err := do(http.MethodPut, "/v2/"+p.repo+"/manifests/"+tag, http.Header{"Content-Type": {img.MediaType}}, img.Content)
	if err == nil && resp.StatusCode != http.StatusCreated {
		err = fmt.Errorf("push of the manifest: %s", resp.Status)
	}
	return err
}
