package history_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
)

// setting is what a world is made of.
type setting struct {
	store       string // one of stores
	catalog     bool   // the control plane stands around the Store
	fill        pullthrough.FillMode
	everyPull   bool
	keepLocal   bool
	refuseStale bool
}

// The Stores of worlds. In all but the last the proxy is a registry of its own; the last
// one is wrapped by it, and takes pushes beside it.
const (
	inMemory    = "memstore"
	inDir       = "dirstore"
	inSmallDir  = "dirstore that evicts"
	inHandler   = "handlerstore"
	inWrapped   = "wrapped registry"
	inSmallSize = 6 << 20
)

// settings are all worlds there are.
func settings() (all []setting) {
	fills := []pullthrough.FillMode{pullthrough.FillLazy, pullthrough.FillBackground, pullthrough.FillEager}
	for _, store := range []string{inMemory, inDir, inSmallDir, inHandler, inWrapped} {
		for _, fill := range fills {
			if (store == inHandler || store == inWrapped) && fill != pullthrough.FillEager {
				continue // it checks what a manifest refers to
			}
			for bits := range 8 {
				s := setting{store: store, fill: fill, everyPull: bits&1 != 0, keepLocal: bits&2 != 0, refuseStale: bits&4 != 0}
				s.catalog = s.owns() && (bits+int(fill))%2 == 0
				all = append(all, s)
			}
		}
	}
	return all
}

// owns reports whether the Store is one of ours, and no registry.
func (s setting) owns() bool { return s.store == inMemory || s.isDir() }

func (s setting) isDir() bool { return s.store == inDir || s.store == inSmallDir }

// makesRepos reports whether the Store says which repositories there are.
func (s setting) makesRepos() bool { return s.isDir() || s.catalog }

// tenants is how many accounts the world has.
func (s setting) tenants() int {
	if s.store == inWrapped {
		return 1
	}
	return 2
}

func (s setting) String() string {
	words := []string{s.store, map[pullthrough.FillMode]string{0: "lazy", 1: "background", 2: "eager"}[s.fill]}
	for word, is := range map[string]bool{"catalog": s.catalog, "every pull": s.everyPull, "keep local": s.keepLocal, "refuse stale": s.refuseStale} {
		if is {
			words = append(words, word)
		}
	}
	slices.Sort(words[2:])
	return strings.Join(words, ", ")
}

// plan is one history before it has happened.
type plan struct {
	seed  uint64
	world int
	setting
	acts []act
}

// weather is what goes wrong in an act.
type weather int

const (
	calm     weather = iota // nothing
	upstorm                 // upstream registries
	diskwind                // the Store
	rulefog                 // rules and credentials, while upstream is slow
	chaos                   // all of that, and the proxy is restarted
	weathers
)

func (w weather) String() string {
	return [...]string{"calm", "upstream faults", "store faults", "rules change", "chaos"}[w]
}

// act is a part of a history. When it is over the world comes to rest.
type act struct {
	weather
	steps   []step   // the operator's, in order
	clients [][]wish // what each client does, in order
	rest    []wish   // what is asked of the world at rest
}

// step is one thing that the operator does.
type step struct {
	after time.Duration // since the step before
	what  deed
	pick  uint64
	size  int64
}

// wish is one thing that a client does.
type wish struct {
	after  time.Duration // since the wish before
	kind   kind
	tenant int
	repo   string
	tag    string
	pick   uint64 // chooses among what there is
	mood   mood
	amount int64 // of bytes or microseconds, for the mood
}

// kind is what a client wants.
type kind int

const (
	pullImage kind = iota // a tag, and all that it leads to
	getTag
	headTag
	getManifest // by digest
	headManifest
	getBlob
	headBlob
	getRange
	getIfNew
	getForeign // what only the other tenant may have
	getAbsent
	listTags
	listRepos
	listReferrers
	importImage
	controlPlane
	debugPage
	pushImage // beside the proxy
	kinds
)

var kindNames = [...]string{
	"pull", "get tag", "head tag", "get manifest", "head manifest", "get blob", "head blob", "get range", "get if new",
	"get foreign", "get absent", "list tags", "list repositories", "list referrers", "import", "control plane", "debug page", "push",
}

func (k kind) String() string { return kindNames[k] }

// mood is how a client reads.
type mood int

const (
	patient mood = iota
	slow         // a little at a time
	leavesAfterBytes
	leavesAfterTime
)

// weights are how often clients want what.
var weights = [kinds]int{12, 6, 5, 5, 4, 12, 4, 8, 4, 3, 2, 1, 1, 2, 3, 2, 1, 2}

// newPlan plans history number world of the seed.
func newPlan(seed uint64, world int) plan {
	all := settings()
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	rng := rand.New(rand.NewPCG(seed, uint64(world)+1))
	p := plan{seed: seed, world: world, setting: all[world%len(all)]}
	for i := range 4 {
		w := weather(rng.IntN(int(weathers)))
		if i == 0 && rng.IntN(2) == 0 {
			w = calm
		}
		p.acts = append(p.acts, p.newAct(rng, w))
	}
	return p
}

func (p plan) String() string {
	return fmt.Sprintf("seed %d, world %d (%v)", p.seed, p.world, p.setting)
}

func (p plan) newAct(rng *rand.Rand, w weather) act {
	a := act{weather: w}
	for range 4 + rng.IntN(8) {
		a.steps = append(a.steps, step{time.Duration(rng.IntN(40)) * time.Millisecond, pickDeed(rng, w), rng.Uint64(), rng.Int64N(3 << 20)})
	}
	hasty := w != calm || rng.IntN(2) == 0
	focus := p.newWish(rng, false) // several clients want the same
	for range 3 + rng.IntN(5) {
		var wishes []wish
		for range 2 + rng.IntN(6) {
			one := p.newWish(rng, hasty)
			if rng.IntN(2) == 0 {
				one.repo, one.tag, one.pick, one.tenant = focus.repo, focus.tag, focus.pick, focus.tenant
			}
			wishes = append(wishes, one)
		}
		a.clients = append(a.clients, wishes)
	}
	for range 5 {
		one := p.newWish(rng, false)
		one.after = 0
		a.rest = append(a.rest, one)
	}
	return a
}

// repoNames are the repositories that tenants ask for.
var repoNames = []string{"hub/app", "hub/app", "hub/base", "hub/tool", "priv/a/secret", "priv/b/secret"}

func (p plan) newWish(rng *rand.Rand, hasty bool) wish {
	one := wish{
		after: time.Duration(rng.IntN(20)) * time.Millisecond, kind: pickKind(rng), tenant: rng.IntN(p.tenants()),
		tag: tags[rng.IntN(len(tags))], pick: rng.Uint64(), amount: rng.Int64N(1 << 20),
	}
	one.repo = repoNames[rng.IntN(len(repoNames))]
	if strings.HasPrefix(one.repo, "priv/") {
		one.repo = ownSecret(one.tenant)
	}
	switch {
	case hasty && rng.IntN(4) == 0:
		one.mood = leavesAfterBytes + mood(rng.IntN(2))
	case rng.IntN(6) == 0:
		one.mood = slow
	}
	return one
}

// ownSecret is the repository that a tenant alone may pull.
func ownSecret(tenant int) string { return []string{"priv/a/secret", "priv/b/secret"}[tenant] }

func pickKind(rng *rand.Rand) kind {
	sum := 0
	for _, w := range weights {
		sum += w
	}
	n := rng.IntN(sum)
	for k, w := range weights {
		if n -= w; n < 0 {
			return kind(k)
		}
	}
	return pullImage
}
