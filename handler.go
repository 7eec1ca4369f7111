package pullthrough

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/referrerlist"
	"github.com/ecr-pullthrough/pullthrough/internal/serve"
)

// Handler puts the proxy before next, the host's own registry. It looks at GET and HEAD of
// manifests, blobs and lists of referrers; everything else is next's, untouched: pushes,
// lists of tags (but see [Policy.UpstreamTags]), the catalog, the version check at /v2/, and paths that are none of a
// registry's. It decides about a pull in this order. The path is parsed: one that next could
// read as another name is 400 (escapes, apart from the colon of a digest; an empty
// component; "." and ".."). The caller is identified: one whom [Proxy.Identify] refuses is
// refused (see [Proxy.PassUnidentified]). The rules are asked: what no rule covers is
// next's, untouched; a name, tag or digest outside its grammar is 400 where a rule covers
// the name; where the rules cannot be read, what is stored is served and all else is
// refused. Then next may have a say (see [Proxy.AskNext]), and then [Proxy.Authorize]. What
// these refuse never reaches next. From here on the proxy answers, with
// exceptions that are for clients that push to next. HEAD of a blob that is not stored is
// next's answer, although a GET would fetch it: a client leaves out of a push what seems to
// be there. And where nothing is stored and nothing comes from upstream, because it fails,
// does not have the object, or is not to be asked ([Policy.Offline]), a HEAD is next's
// answer, and so is a GET if that answer's status is below 400, or 401, or 403; else the
// client reads why the pull failed. HEAD of a manifest asks upstream, as GET does. A list of
// referrers has what next lists and what the proxy does, with one entry for each digest;
// where only one of them has a list, that is the answer. A nil next is a 404 for
// everything. docs/embedding.md has a section on all of this.
func (p *Proxy) Handler(next http.Handler) http.Handler {
	if next == nil {
		next = http.NotFoundHandler()
	}
	return &wrapper{p, next}
}

// TryServe is [Proxy.Handler] for a router that passes a request on in a way of its own, such
// as those of gin and echo. It answers a pull that a rule covers, and reports true. What the
// next handler would answer is the host's: then TryServe reports false, has written nothing,
// and r is as it was. The host's answers are not known here. So where neither the Store nor
// upstream has what a GET asks for, the client reads why the pull failed, and a list of
// referrers or tags has nothing of the host's. With AskNext every pull is 500: it needs Handler.
// With Mirror, what names another registry and is not served is 404.
func (p *Proxy) TryServe(w http.ResponseWriter, r *http.Request) (handled bool) {
	h := &wrapper{p, nil}
	next := h.serve(w, r)
	if next != nil && next.URL.Path != r.URL.Path { // r names another registry: its image is not the host's of that name
		h.refuse(w, next, asUnknownName(fs.ErrNotExist))
		return true
	}
	return next == nil
}

// wrapper is a proxy before another registry.
type wrapper struct {
	*Proxy
	next http.Handler // nil: the other registry answers later, if at all
}

func (h *wrapper) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r = h.serve(w, r); r != nil {
		h.next.ServeHTTP(w, r)
	}
}

// serve answers r, or returns the request that is next's, and has written nothing.
func (h *wrapper) serve(w http.ResponseWriter, r *http.Request) (next *http.Request) {
	path, err := ocipath.Split(r.URL)
	if err != nil || !namesHost(r.URL, path) || !h.Mirror && !isPullMethod(r.Method) {
		return h.decide(w, r, path, err, nil)
	}
	c := h.identify(r)
	if h.refuseUnknown(w, r, path, c) {
		return nil
	}
	own, meant, err := h.meant(r, path, c)
	if err != nil {
		h.refuse(w, r, err)
		return nil
	}
	return h.decide(w, own, meant, nil, &c)
}

// refuseUnknown refuses a caller whom Identify does not know, unless that is next's to do.
func (h *wrapper) refuseUnknown(w http.ResponseWriter, r *http.Request, path ocipath.Path, c caller) bool {
	if c.err == nil || h.PassUnidentified && errors.Is(c.err, ErrUnauthorized) {
		return false
	}
	h.refuseTo(w, r, path, c, c.err)
	return true
}

// refuseTo refuses a request before anything is looked up for it.
func (h *wrapper) refuseTo(w http.ResponseWriter, r *http.Request, path ocipath.Path, c caller, err error) {
	req := Request{Repo: Repo{c.Account, c.Region, path.Name}, Ref: path.Ref}
	h.refuse(w, r, h.engine().explain(r.Context(), req, outcome{}, err))
}

// decide answers, or returns r for next. err is what Split said; known is the caller, nil if
// nobody has asked yet.
func (h *wrapper) decide(w http.ResponseWriter, r *http.Request, path ocipath.Path, err error, known *caller) *http.Request {
	isPull := isPullMethod(r.Method)
	if isPull && err == nil && path.Kind == ocipath.Tags && h.next != nil && h.listTags(w, r, path, h.callerOf(r, known)) {
		return nil
	}
	if !isPull || errors.Is(err, ocipath.ErrNotRegistry) || err == nil && !isPullKind(path.Kind) {
		return r
	}
	if err != nil {
		h.refuse(w, r, invalid(Repo{}, "", err))
		return nil
	}
	c := h.callerOf(r, known)
	repo := Repo{c.Account, c.Region, path.Name}
	if h.refuseUnknown(w, r, path, c) {
		return nil
	}
	covered, rulesErr := h.engine().covers(r.Context(), repo)
	if rulesErr == nil && !covered {
		return r
	}
	if err = c.err; err == nil {
		if bad := path.Check(); bad != nil {
			err = invalid(repo, path.Ref, bad)
		}
	}
	if err != nil {
		h.refuseTo(w, r, path, c, err)
		return nil
	}
	if h.AskNext && h.nextRefuses(w, r, path) {
		return nil
	}
	r = plain(r)
	if !h.answer(w, r, path.Kind, Request{repo, path.Ref, r.Method == http.MethodHead, c.Caller}, rulesErr) {
		return r
	}
	return nil
}

// callerOf is the sender of r.
func (h *wrapper) callerOf(r *http.Request, known *caller) caller {
	if known != nil {
		return *known
	}
	return h.identify(r)
}

// refuse answers with err, to a client that may read nothing.
func (h *wrapper) refuse(w http.ResponseWriter, r *http.Request, err error) {
	w, answer := h.engine().writes.Answer(w, r)
	refuse(w, r, err)
	answer.End()
}

// plain is r with the colon of a digest as it is, which some routers do not unescape.
func plain(r *http.Request) *http.Request {
	if r.URL.RawPath == "" {
		return r
	}
	u := *r.URL
	u.RawPath = ""
	own := r.WithContext(r.Context())
	own.URL = &u
	return own
}

// answer reports false where the answer is next's. rulesErr is why it is not known whether a
// rule covers the repository.
func (h *wrapper) answer(w http.ResponseWriter, r *http.Request, kind ocipath.Kind, req Request, rulesErr error) bool {
	switch {
	case kind == ocipath.Blob && req.Head:
		return h.headBlob(w, r, req, rulesErr)
	case kind == ocipath.Referrers:
		return h.listReferrers(w, r, req, rulesErr)
	}
	out, err := h.pull(w, r, kind, req)
	switch {
	case err == nil:
		h.engine().logUnread(r.Context(), req, rulesErr)
	case out.uncovered && rulesErr == nil, out.entered && req.Head && r.Context().Err() == nil:
		return false // the rule has gone since it was found, or nothing comes
	case out.entered && r.Context().Err() == nil && h.nextAnswers(w, r, isNoMiss):
	default:
		w, answer := h.engine().writes.Answer(w, r)
		refusePull(w, r, kind, err)
		answer.End()
	}
	return true
}

// headBlob reports false where the answer is next's.
func (h *wrapper) headBlob(w http.ResponseWriter, r *http.Request, req Request, rulesErr error) bool {
	b, err := h.engine().storedBlob(r.Context(), req)
	switch {
	case b != nil:
		h.engine().logUnread(r.Context(), req, rulesErr)
		WriteBlob(w, r, b)
	case err != nil:
		h.refuse(w, r, err)
	case rulesErr != nil:
		h.refuse(w, r, h.engine().explain(r.Context(), req, outcome{}, rulesErr))
	default:
		return false
	}
	return true
}

// listReferrers answers with one list of what next and the proxy list. next is asked
// although the caller may not import: then the proxy lists what is known. A list of next's
// that cannot be read is left out, as upstream's is. It reports false where the answer is
// next's alone.
func (h *wrapper) listReferrers(w http.ResponseWriter, r *http.Request, req Request, rulesErr error) bool {
	ours, out, err := h.engine().listReferrers(r.Context(), req, "")
	if out.uncovered && rulesErr == nil {
		return false // the rule has gone since it was found
	}
	lists := []*ocispec.Index{}
	if out.admitted && h.next != nil && r.Context().Err() == nil {
		index, status, failure := h.nextReferrers(r, req)
		switch {
		case index != nil:
			lists = append(lists, index)
		case failure != nil:
			h.engine().log.Warn("the list of referrers of the next handler is left out", "repository", req.Repo.Name, "subject", req.Ref, "err", failure)
		case isDenial(status) && (h.AskNext || err != nil && !isNoList(err)):
			if h.nextAnswers(w, question(r, r.Method, listPath(req)), isDenial) {
				return true
			}
		}
	}
	if err == nil {
		lists = append(lists, ours)
	}
	h.writeMerged(w, r, lists, err)
	return true
}

// writeMerged answers with one list of all, or with err where there is none.
func (h *wrapper) writeMerged(w http.ResponseWriter, r *http.Request, lists []*ocispec.Index, err error) {
	w, answer := h.engine().writes.Answer(w, r)
	merged, tooLong := referrerlist.Merge(lists...)
	switch {
	case len(lists) == 0:
		refusePull(w, r, ocipath.Referrers, err)
	case tooLong != nil:
		refuse(w, r, &Error{Kind: ErrTooLarge, Err: tooLong})
	default:
		writeReferrers(w, r, referrerlist.OfType(merged, r.URL.Query().Get("artifactType")))
	}
	answer.End()
}

// nextReferrers is the whole list that next has for the client of r. Without a list there is
// the status of next's answer, or an error where the list cannot be read.
func (h *wrapper) nextReferrers(r *http.Request, req Request) (index *ocispec.Index, status int, err error) {
	var all referrerlist.List
	status, err = h.readNext(r, listPath(req), all.Add)
	if err != nil || status != http.StatusOK {
		return nil, status, err
	}
	return all.Index(), status, nil
}

func listPath(req Request) ocipath.Path {
	return ocipath.Path{Kind: ocipath.Referrers, Name: req.Repo.Name, Ref: req.Ref}
}

// listTags answers with the tags that next lists and those that upstream has, where the
// Policy says so and the caller may pull and import. Where it reports false nothing has been
// written, and the list is next's alone.
func (h *wrapper) listTags(w http.ResponseWriter, r *http.Request, path ocipath.Path, c caller) bool {
	e := h.engine()
	req := Request{Repo: Repo{c.Account, c.Region, path.Name}, Head: r.Method == http.MethodHead, Caller: c.Caller}
	if c.err != nil || path.Check() != nil {
		return false
	}
	rt := e.tagLists.wanted(r.Context(), req.Repo)
	if rt == nil || authorize(r.Context(), e.authorize, ActionPull, req) != nil || e.mayImport(r.Context(), req) != nil {
		return false
	}
	tags, err := h.nextTags(r, path)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return false
	}
	w, answer := e.writes.Answer(w, r)
	e.writeList(w, r, path.Kind, req, func(page serve.Page) ([]string, error) {
		all, err := e.tagLists.withUpstream(r.Context(), rt, tags, err)
		if err != nil {
			return nil, err
		}
		return page.Of(w, r, all, nil)
	})
	answer.End()
	return true
}

// nextTags is the whole list of tags that next has for the client of r. An error that Is
// ErrNotFound says that next has no such repository, another one that there is no list.
func (h *wrapper) nextTags(r *http.Request, path ocipath.Path) (tags []string, err error) {
	status, err := h.readNext(r, path, func(page []byte) error {
		var document struct{ Tags []string }
		err := json.Unmarshal(page, &document)
		tags = append(tags, document.Tags...)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case status == http.StatusNotFound:
		return nil, asUnknownName(fs.ErrNotExist)
	case status != http.StatusOK:
		return nil, fmt.Errorf("status %d", status)
	}
	return tags, nil
}

// readNext reads a list of next's to its end, page by page, as the client of r. Without a list
// it returns the status of next's answer, or an error where the list cannot be read.
func (h *wrapper) readNext(r *http.Request, path ocipath.Path, add func(page []byte) error) (status int, err error) {
	query := ""
	for range referrerlist.MaxPages {
		page := serve.NewKept(referrerlist.MaxBytes)
		ask := question(r, http.MethodGet, path)
		ask.Header.Del("Accept-Encoding") // it is we who read the answer
		ask.URL.RawQuery = query
		ask.RequestURI = ask.URL.RequestURI()
		at := *ask.URL
		err := hostcall.Guard("the next handler", func() error { h.next.ServeHTTP(page, ask); return nil })
		switch {
		case err != nil:
			return 0, err
		case page.Status()/100 == 5 && page.Status() != http.StatusNotImplemented, query != "" && page.Status() != http.StatusOK:
			return 0, fmt.Errorf("status %d", page.Status())
		case page.Status() != http.StatusOK:
			return page.Status(), nil
		}
		to, err := addPage(add, &at, page)
		if err != nil {
			return 0, err
		}
		if to == nil {
			return http.StatusOK, nil
		}
		query = to.RawQuery
	}
	return 0, fmt.Errorf("more than %d pages", referrerlist.MaxPages)
}

// addPage adds the page at that URL to a list, and returns where the next one is. Another
// origin may be next's own name for itself.
func addPage(add func(page []byte) error, at *url.URL, page *serve.Kept) (next *url.URL, err error) {
	if coding := page.Header().Get("Content-Encoding"); coding != "" && coding != "identity" {
		return nil, errors.New("the list has a content coding")
	}
	body, err := page.Body()
	if err == nil {
		err = add(body)
	}
	if err != nil {
		return nil, err
	}
	return referrerlist.Next(at, page.Header())
}

// nextAnswers lets next answer r if it does so with a status that passes. Where it reports
// false, nothing has been written.
func (h *wrapper) nextAnswers(w http.ResponseWriter, r *http.Request, passes func(status int) bool) bool {
	if h.next == nil {
		return false
	}
	s := serve.NewSieve(w, func(status int, _ http.Header) bool { return passes(status) })
	h.next.ServeHTTP(s, r)
	return s.End()
}

// errNoNext is said of a Proxy that is to ask a next handler, and has none.
const errNoNext = unsetError("Proxy.AskNext is set, and TryServe has no next handler to ask: use Proxy.Handler, or check the login before TryServe and unset AskNext")

// isNoMiss is about an answer of next's where the pull has failed: content, and a refusal,
// say more than our error does.
func isNoMiss(status int) bool { return status < http.StatusBadRequest || isDenial(status) }

// isDenial is about an answer of next's to a client who may not have it.
func isDenial(status int) bool {
	return status == http.StatusUnauthorized || status == http.StatusForbidden
}

// isRefusal is about next's answer to the question whether a caller may pull. A failure of
// next's is no permission.
func isRefusal(status int) bool {
	return status >= http.StatusBadRequest && status != http.StatusNotFound
}

// isNoLogin is about next's answer at /v2/. A registry answers 200 there to whom it knows; a
// redirect or 404 comes from a router, and says nothing of the caller.
func isNoLogin(status int) bool { return status/100 != 2 }

// conditions are the headers that make an answer about the object into one about a part or
// a version of it: 412 and 416 would be taken for refusals.
var conditions = []string{"Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"}

// question is a request of ours to next, for what the client of r asks for, or for what that
// depends on.
func question(r *http.Request, method string, path ocipath.Path) *http.Request {
	ask := r.Clone(r.Context())
	ask.Method, ask.Body, ask.ContentLength, ask.TransferEncoding = method, http.NoBody, 0, nil
	for _, name := range conditions {
		ask.Header.Del(name)
	}
	ask.URL.Path, ask.URL.RawPath, ask.URL.RawQuery = path.String(), "", ""
	ask.RequestURI = ask.URL.Path
	return ask
}

// nextRefuses asks next whether the caller may have the object. If not, the client has
// got next's answer. Where next cannot be asked, nobody may.
func (h *wrapper) nextRefuses(w http.ResponseWriter, r *http.Request, path ocipath.Path) bool {
	if h.next == nil {
		h.refuse(w, r, h.engine().explain(r.Context(), Request{}, outcome{}, errNoNext))
		return true
	}
	if path.Kind == ocipath.Referrers {
		path.Kind = ocipath.Manifest
	}
	if h.LoginSuffices {
		path = ocipath.Path{}
	}
	ask := question(r, r.Method, path)
	if h.LoginSuffices { // GET, as docker login does; a client that sent HEAD gets no body
		ask.Method = http.MethodGet
		return h.nextAnswers(w, ask, isNoLogin)
	}
	if r.Method == http.MethodGet {
		refused := false
		ask.Method = http.MethodHead
		h.nextAnswers(w, ask, func(status int) bool { refused = isRefusal(status); return false })
		if !refused {
			return false
		}
		ask.Method = http.MethodGet // once more, for the body of the refusal
	}
	return h.nextAnswers(w, ask, isRefusal)
}
