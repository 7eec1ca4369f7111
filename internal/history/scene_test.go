package history_test

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
)

// scene is what has happened since the world was at rest last. Every fetch of a scene
// begins and ends in it, so what goes wrong in a scene can only have causes in it.
type scene struct {
	lock    sync.Mutex
	began   time.Time
	weather weather
	trouble trouble
	events  map[string][]pullthrough.Event // of requests, by caller
	fetches []pullthrough.Event
	failed  []pullthrough.Event // of the Store
	answers []*answer           // those that were complete
	asked   int                 // requests of clients
	left    map[name]int        // requests whose client has left
	stored  map[name]bool       // blobs that the Store had when the scene began; nil: nobody has looked
	tags    map[name][]seen     // what tags were, over all scenes in which nothing but time can turn them back
}

// trouble is what has gone wrong in a scene.
type trouble struct {
	upstream  bool // some registry misbehaves
	limited   bool // some registry answers 429
	denied    bool // some registry answers 403
	store     bool
	restarted bool
	passwords [2]bool           // tenants whose password was wrong
	rules     map[ruleName]bool // that were changed
	lost      map[name]bool     // digests that the Store has lost
	pushed    map[name]bool     // tags that were pushed beside the proxy
}

// seen is one answer by tag.
type seen struct {
	from    home
	version int
	end     time.Time
}

func newScene(w weather) *scene {
	return &scene{
		began: time.Now(), weather: w, events: map[string][]pullthrough.Event{}, left: map[name]int{}, tags: map[name][]seen{},
		trouble: trouble{rules: map[ruleName]bool{}, lost: map[name]bool{}, pushed: map[name]bool{}},
	}
}

// next begins another scene.
func (s *scene) next(w weather) {
	s.lock.Lock()
	defer s.lock.Unlock()
	n := newScene(w)
	if s.steady() {
		n.tags = s.tags
	}
	s.began, s.weather, s.trouble, s.events, s.fetches, s.failed = n.began, n.weather, n.trouble, n.events, nil, nil
	s.answers, s.asked, s.left, s.stored, s.tags = nil, 0, n.left, nil, n.tags
}

// steady reports whether nothing in the scene can have turned back a stored tag. The lock
// is held.
func (s *scene) steady() bool {
	t := s.trouble
	return !t.store && !t.restarted && len(t.rules) == 0 && len(t.lost) == 0
}

// troubled changes what has gone wrong.
func (s *scene) troubled(f func(t *trouble)) {
	s.lock.Lock()
	defer s.lock.Unlock()
	f(&s.trouble)
}

// wrong is what has gone wrong so far.
func (s *scene) wrong() trouble {
	s.lock.Lock()
	defer s.lock.Unlock()
	t := s.trouble
	t.rules, t.lost, t.pushed = maps.Clone(t.rules), maps.Clone(t.lost), maps.Clone(t.pushed)
	return t
}

// start is when the scene began.
func (s *scene) start() time.Time {
	s.lock.Lock()
	defer s.lock.Unlock()
	return s.began
}

// isAnything reports whether anything at all has gone wrong.
func (t trouble) isAnything() bool {
	return t.upstream || t.limited || t.denied || t.store || t.restarted || t.passwords[0] || t.passwords[1] || len(t.rules) > 0 || len(t.lost) > 0
}

// fetchFailed reports whether an event told of a failed fetch in the place.
func (s *scene) fetchFailed(p place) bool {
	s.lock.Lock()
	defer s.lock.Unlock()
	return slices.ContainsFunc(s.fetches, func(e pullthrough.Event) bool { return e.Err != nil && placeOf(e.Request.Repo) == p })
}

// storeFailed counts the events that tell of failures of the Store in the place, for one
// of the refs if there are any.
func (s *scene) storeFailed(p place, refs ...string) (n int) {
	s.lock.Lock()
	defer s.lock.Unlock()
	for _, e := range s.failed {
		if placeOf(e.Request.Repo) == p && (len(refs) == 0 || slices.Contains(refs, e.Request.Ref)) {
			n++
		}
	}
	return n
}

// eventOf is what was told of a request; ok is false if nothing was.
func (s *scene) eventOf(caller string) (e pullthrough.Event, n int) {
	s.lock.Lock()
	defer s.lock.Unlock()
	if n = len(s.events[caller]); n > 0 {
		e = s.events[caller][n-1]
	}
	return e, n
}

// hear takes an event of the proxy.
func (w *world) hear(e pullthrough.Event) {
	w.secrets.Check(e)
	n := name{placeOf(e.Request.Repo), e.Request.Ref}
	w.note(n.String(), "event %s %v of %s: %s err=%v", e.Kind, e.Source, e.Request.Caller, short(e.Digest), e.Err)
	if e.WrongDigest && e.Digest != "" {
		w.model.mu.Lock()
		w.model.said[name{n.place, e.Digest}] = true
		w.model.mu.Unlock()
	}
	s := w.scene
	s.lock.Lock()
	defer s.lock.Unlock()
	switch e.Kind {
	case pullthrough.EventFetch:
		s.fetches = append(s.fetches, e)
	case pullthrough.EventStoreFailed:
		s.failed = append(s.failed, e)
	default:
		s.events[e.Request.Caller] = append(s.events[e.Request.Caller], e)
	}
}

// short is the beginning of a digest, for people.
func short(d string) string {
	if len(d) > 15 {
		return d[:15]
	}
	return d
}

// lookAtStore notes which blobs are stored, so that no one of them may be fetched.
func (w *world) lookAtStore() {
	stored := map[name]bool{}
	for tenant := range w.tenants() {
		for _, repo := range []string{"hub/app", "hub/base", "hub/tool", ownSecret(tenant)} {
			p := place{tenant, repo}
			for d, o := range w.model.objects {
				if _, up := p.parts(); o.mediaType == "" && o.home.name == up && w.store.has(w.t.Context(), w.repo(p), digest.Digest(d)) {
					stored[name{p, d.String()}] = true
				}
			}
		}
	}
	w.scene.lock.Lock()
	defer w.scene.lock.Unlock()
	w.scene.stored = stored
}
