package history_test

import (
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
)

// place is a repository of a tenant.
type place struct {
	tenant int
	repo   string
}

// name is a tag or digest in a repository of a tenant.
type name struct {
	place
	ref string
}

func (n name) String() string { return accounts[n.tenant] + "/" + n.repo + "@" + n.ref }

// parts are the prefix of the rule that covers the repository, and its name upstream.
func (p place) parts() (prefix, upstream string) {
	prefix, upstream, _ = strings.Cut(p.repo, "/")
	return prefix, upstream
}

// remote is a tag or digest of an upstream registry.
type remote struct {
	home
	ref string
}

// ruleName is a rule of a tenant.
type ruleName struct {
	tenant int
	prefix string
}

// noUpstream is where a rule leads that is not there.
const noUpstream = -1

// model is what was true in the world, and when. It knows nothing of the proxy.
type model struct {
	*library
	mu      sync.Mutex
	tags    map[remote]*timeline[digest.Digest] // "": it was deleted
	held    map[remote]*timeline[bool]          // whether upstream has the manifest or blob
	rules   map[ruleName]*timeline[int]         // where it leads
	reached map[remote]int                      // the newest version of a tag so far
	pushes  map[name][]push                     // by tag
	pushed  map[name]bool                       // by digest, what was pushed beside the proxy
	said    map[name]bool                       // digests that an event has called other than upstream's
}

// push is one push of a tag beside the proxy.
type push struct {
	digest     digest.Digest
	start, end time.Time // a zero end: it is under way, or has failed
}

func newModel() *model {
	return &model{
		library: theLibrary(), tags: map[remote]*timeline[digest.Digest]{}, held: map[remote]*timeline[bool]{}, rules: map[ruleName]*timeline[int]{}, reached: map[remote]int{},
		pushes: map[name][]push{}, pushed: map[name]bool{}, said: map[name]bool{},
	}
}

func timelineOf[K comparable, T any](all map[K]*timeline[T], key K) *timeline[T] {
	t := all[key]
	if t == nil {
		t = new(timeline[T])
		all[key] = t
	}
	return t
}

// change notes a change of a rule, a tag or content, which do makes.
func (m *model) change(do func(), note func(before, after time.Time)) {
	before := time.Now()
	do()
	after := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	note(before, after)
}

// placed notes that upstream has all of the image, and the tag.
func (m *model) placed(h home, tag string, e edition, before, after time.Time) {
	timelineOf(m.tags, remote{h, tag}).set(e.Digest, before, after)
	m.reached[remote{h, tag}] = max(m.reached[remote{h, tag}], e.version)
	manifests, blobs := parts(e.Image)
	for _, d := range append(manifests, blobs...) {
		if t := timelineOf(m.held, remote{h, d.String()}); !t.now() {
			t.set(true, before, after)
		}
	}
}

// deleted notes that upstream has lost a tag, or a manifest with its tags, or a blob.
func (m *model) deleted(h home, ref string, before, after time.Time) {
	if t := m.held[remote{h, ref}]; t != nil {
		t.set(false, before, after)
	}
	for _, tag := range tags {
		if t := m.tags[remote{h, tag}]; t != nil && (tag == ref || t.now().String() == ref) {
			t.set("", before, after)
		}
	}
}

// current is the edition that upstream has under the tag; ok is false if it has none, or
// if parts of it are gone.
func (m *model) current(h home, tag string) (e edition, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := timelineOf(m.tags, remote{h, tag}).now()
	for _, e := range m.editions[h][tag] {
		if e.Digest == d {
			manifests, blobs := parts(e.Image)
			for _, part := range append(manifests, blobs...) {
				ok = m.held[remote{h, part.String()}].now()
				if !ok {
					break
				}
			}
			return e, ok
		}
	}
	return edition{}, false
}

// home is where the rule of a place leads now; ok is false where there is no rule.
func (m *model) home(p place) (h home, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	prefix, up := p.parts()
	to := timelineOf(m.rules, ruleName{p.tenant, prefix}).now()
	return home{to, up}, to != noUpstream
}

// tagValues are the digests that upstream had for a tag between lo and hi, by the rules
// of that time.
func (m *model) tagValues(n name, lo, hi time.Time) map[digest.Digest]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	values := map[digest.Digest]bool{}
	prefix, up := n.parts()
	for _, rule := range m.rules[ruleName{n.tenant, prefix}].during(lo, hi) {
		for _, s := range m.tags[remote{home{rule.value, up}, n.ref}].during(lo, hi) {
			values[s.value] = true
		}
	}
	return values
}

// localValues are what was pushed under the tag, by pushes that began before hi.
func (m *model) localValues(n name, hi time.Time) (values []push) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.pushes[n] {
		if p.start.Before(hi) {
			values = append(values, p)
		}
	}
	return values
}

// lacked reports whether at any time between lo and hi there was no rule, or upstream did
// not have the tag or digest.
func (m *model) lacked(n name, lo, hi time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	prefix, up := n.parts()
	for _, rule := range m.rules[ruleName{n.tenant, prefix}].during(lo, hi) {
		at := remote{home{rule.value, up}, n.ref}
		if rule.value == noUpstream || m.tags[at] == nil && m.held[at] == nil {
			return true
		}
		for _, s := range m.tags[at].during(lo, hi) {
			if s.value == "" {
				return true
			}
		}
		held := m.held[at].during(lo, hi)
		for _, s := range held {
			if !s.value {
				return true
			}
		}
		if m.held[at] != nil && (len(held) == 0 || held[0].from.After(lo)) {
			return true // it came later
		}
	}
	return false
}

// uncovered reports whether at any time between lo and hi no rule covered the place.
func (m *model) uncovered(p place, lo, hi time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	prefix, _ := p.parts()
	for _, rule := range m.rules[ruleName{p.tenant, prefix}].during(lo, hi) {
		if rule.value == noUpstream {
			return true
		}
	}
	return false
}

// ledTo reports whether the rule of the place led to the upstream at any time between lo
// and hi.
func (m *model) ledTo(p place, upstream int, lo, hi time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	prefix, _ := p.parts()
	for _, rule := range m.rules[ruleName{p.tenant, prefix}].during(lo, hi) {
		if rule.value == upstream {
			return true
		}
	}
	return false
}

// mayHave reports whether the digest may be in the place at all: its rule has led to
// where the content is, or it was pushed there.
func (m *model) mayHave(n name) bool {
	o, known := m.objects[digest.Digest(n.ref)]
	m.mu.Lock()
	pushed, said := m.pushed[n], m.said[n]
	m.mu.Unlock()
	_, up := n.parts()
	switch {
	case pushed || said:
		return true
	case !known:
		return false
	case o.home.name == "":
		return len(o.content) < 3 // the empty config
	case o.home.upstream == private && n.repo != ownSecret(n.tenant):
		return false
	}
	return o.home.name == up && m.ledTo(n.place, o.home.upstream, time.Time{}, time.Now())
}

// version is the place of a digest in the life of a tag upstream; -1: it is not there.
func (m *model) version(h home, tag string, d digest.Digest) int {
	for _, e := range m.editions[h][tag] {
		if e.Digest == d {
			return e.version
		}
	}
	return -1
}

// placeOf is the place of a repository as the proxy names it.
func placeOf(r pullthrough.Repo) place {
	for tenant, account := range accounts {
		if r.Account == account {
			return place{tenant, r.Name}
		}
	}
	return place{0, r.Name} // a world with one tenant does not name it
}

// now is where a rule leads.
func (m *model) now(n ruleName) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return timelineOf(m.rules, n).now()
}

// isPushed reports whether the digest was pushed beside the proxy.
func (m *model) isPushed(n name) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pushed[n]
}

// reach is the newest version that a tag has had.
func (m *model) reach(h home, tag string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reached[remote{h, tag}]
}
