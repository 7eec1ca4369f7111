//go:build unix

package dirstore_test

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/ecr-pullthrough/pullthrough/dirstore"
)

// powerLog is what a store has done to its directory, as a file system sees it: entries of
// directories, and contents of files, each of which a loss of power may undo until the
// directory or the file is synced.
type powerLog struct {
	mu    sync.Mutex
	dir   string
	nodes []*powerNode // the first one is the store's directory
	ops   []powerOp
	fail  func(dirstore.Step) error // nil: nothing fails

	opening bool // directories are made with those above them
}

// powerNode is a file or a directory as it is while the power is on.
type powerNode struct {
	staging bool           // nobody looks at its entries
	entries map[string]int // nil: a file
}

// powerOp is one change or one sync.
type powerOp struct {
	kind    string // "entry", "write", "sync", "done", "failed"
	node    int    // the directory, the file, what is synced
	name    string // of the entry; of what is done
	to      int    // the node that the entry leads to; -1: none
	content []byte
}

func newPowerLog(dir string) *powerLog {
	return &powerLog{dir: dir, opening: true, nodes: []*powerNode{{entries: map[string]int{}}}}
}

// done notes that a put has returned.
func (l *powerLog) done(what string) { l.ops = append(l.ops, powerOp{kind: "done", name: what}) }

// find returns the node, -1 if there is none.
func (l *powerLog) find(name string) int {
	at := 0
	for part := range strings.SplitSeq(name, "/") {
		next, ok := l.nodes[at].entries[part]
		switch {
		case part == ".":
		case !ok:
			return -1
		default:
			at = next
		}
	}
	return at
}

// set changes an entry.
func (l *powerLog) set(name string, to int) {
	parent := l.find(path.Dir(name))
	base := path.Base(name)
	if to < 0 {
		delete(l.nodes[parent].entries, base)
	} else {
		l.nodes[parent].entries[base] = to
	}
	if !l.nodes[parent].staging {
		l.ops = append(l.ops, powerOp{kind: "entry", node: parent, name: base, to: to})
	}
}

func (l *powerLog) add(name string, dir bool) {
	node := &powerNode{staging: strings.HasPrefix(name, "pullthrough/staging/") && strings.Count(name, "/") == 2}
	if dir {
		node.entries = map[string]int{}
	}
	l.nodes = append(l.nodes, node)
	l.set(name, len(l.nodes)-1)
}

func (l *powerLog) mkdir(name string, all bool) {
	if l.find(name) >= 0 {
		return
	}
	if parent := path.Dir(name); l.find(parent) < 0 {
		if !all {
			return // it fails
		}
		l.mkdir(parent, all)
	}
	l.add(name, true)
}

// record is a [dirstore.Store]'s probe.
func (l *powerLog) record(s dirstore.Step) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		if err := l.fail(s); err != nil {
			return err
		}
	}
	s.Name = strings.TrimPrefix(strings.TrimPrefix(s.Name, l.dir), "/")
	switch at := l.find(s.Name); s.Op {
	case "mkdir":
		l.mkdir(s.Name, l.opening)
	case "create":
		l.add(s.Name, false)
	case "sync", "close":
		content, err := os.ReadFile(filepath.Join(l.dir, s.Name))
		if err != nil {
			return err
		}
		l.ops = append(l.ops, powerOp{kind: "write", node: at, content: content})
		if s.Op == "sync" {
			l.ops = append(l.ops, powerOp{kind: "sync", node: at, name: s.Name})
		}
	case "syncdir":
		if at >= 0 {
			l.ops = append(l.ops, powerOp{kind: "sync", node: at, name: s.Name})
		}
	case "rename", "aside", "link":
		l.rename(s)
	case "remove":
		if at >= 0 {
			l.set(s.Name, -1)
		}
	}
	return nil
}

func (l *powerLog) rename(s dirstore.Step) {
	from, to := l.find(s.From), l.find(s.Name)
	switch {
	case s.Op == "aside":
		if to >= 0 {
			l.set(s.Name, -1)
		}
		return
	case from < 0 || l.find(path.Dir(s.Name)) < 0:
		return // it fails
	case to >= 0 && (len(l.nodes[to].entries) > 0 || s.Op == "link"):
		return
	}
	l.set(s.Name, from)
	if s.Op == "rename" {
		l.set(s.From, -1)
	}
}

// powerState is what is there after the power has come back: the content of each file, and
// each directory with a slash behind its name.
type powerState map[string]string

func (s powerState) key() string {
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintf(&b, "%s\x00%s\x00", name, s[name])
	}
	return b.String()
}

// after returns what is there when the power goes after the first n operations and those
// of the loose ones that lost names are lost. Of a file that is not synced something else may be there.
func (l *powerLog) after(ops []powerOp, loose []int, lost func(i int) bool, torn int) powerState {
	entries := make(map[int]map[string]int)
	contents := make(map[int][]byte)
	isLost := make(map[int]bool, len(loose))
	for i, op := range loose {
		isLost[op] = lost(i)
	}
	for i, op := range ops {
		switch {
		case op.kind == "write" && isLost[i]:
			if _, ok := contents[op.node]; !ok {
				contents[op.node] = [][]byte{nil, op.content[:len(op.content)/2], make([]byte, len(op.content))}[(torn+i)%3]
			}
		case op.kind == "write":
			contents[op.node] = op.content
		case op.kind == "entry" && !isLost[i]:
			if entries[op.node] == nil {
				entries[op.node] = make(map[string]int)
			}
			if entries[op.node][op.name] = op.to; op.to < 0 {
				delete(entries[op.node], op.name)
			}
		}
	}
	state := make(powerState)
	var walk func(node int, name string)
	walk = func(node int, name string) {
		if l.nodes[node].entries == nil {
			state[name] = string(contents[node])
			return
		}
		if node > 0 {
			state[name+"/"] = ""
		}
		for base, to := range entries[node] {
			walk(to, path.Join(name, base))
		}
	}
	walk(0, "")
	return state
}

// loose are the operations that the power may undo: what was not synced since.
func loosePowerOps(ops []powerOp) (loose []int) {
	synced := make(map[int]bool)
	for i := len(ops) - 1; i >= 0; i-- {
		switch op := ops[i]; {
		case op.kind == "sync":
			synced[op.node] = true
		case (op.kind == "entry" || op.kind == "write") && !synced[op.node]:
			loose = append(loose, i)
		}
	}
	return loose
}

// powerSearch calls f for each state once, with what was done by then.
type powerSearch struct {
	log  *powerLog
	seen map[string]bool
	torn int
	f    func(s powerState, done []string) bool
}

func (l *powerLog) search(f func(s powerState, done []string) bool) *powerSearch {
	return &powerSearch{log: l, seen: make(map[string]bool), f: f}
}

// try is a loss of power after ops, which takes some of the loose ones.
func (p *powerSearch) try(ops []powerOp, loose []int, lost func(i int) bool) bool {
	var done []string
	for _, op := range ops {
		if op.kind == "done" {
			done = append(done, op.name)
		}
	}
	p.torn++
	s := p.log.after(ops, loose, lost, p.torn)
	key := fmt.Sprint(len(done), s.key())
	if p.seen[key] {
		return true
	}
	p.seen[key] = true
	return p.f(s, done)
}

// states calls f for what may be there when the power goes at any moment: all
// of it where few operations are loose, else each one, or with pairs each two of them, lost or kept
// alone, and samples. It ends when f returns false.
func (l *powerLog) states(ops []powerOp, samples int, pairs bool, f func(s powerState, done []string) bool) {
	search, r := l.search(f), rand.New(rand.NewPCG(1, 2))
	for n := range len(ops) + 1 {
		loose := loosePowerOps(ops[:n])
		if !powerSubsets(len(loose), samples, pairs, r, func(lost func(i int) bool) bool { return search.try(ops[:n], loose, lost) }) {
			return
		}
	}
}

// statesWithout calls f for what is missing when the power goes at some moment after from, and
// takes what was done to the node: all of it, or one operation. It ends when f returns
// false.
func (l *powerLog) statesWithout(ops []powerOp, node, from int, f func(s powerState, done []string) bool) {
	search := l.search(f)
	for n := len(ops); n >= from; n-- {
		loose := loosePowerOps(ops[:n])
		of := slices.DeleteFunc(slices.Clone(loose), func(i int) bool { return ops[i].node != node })
		for range 3 { // what is torn is so in three ways
			if !search.try(ops[:n], loose, func(i int) bool { return ops[loose[i]].node == node }) {
				return
			}
		}
		for _, one := range of {
			if !search.try(ops[:n], loose, func(i int) bool { return loose[i] == one }) {
				return
			}
		}
	}
}

func powerSubsets(n, samples int, pairs bool, r *rand.Rand, try func(lost func(i int) bool) bool) bool {
	if n <= 6 {
		for bits := range 1 << n {
			if !try(func(i int) bool { return bits>>i&1 == 1 }) {
				return false
			}
		}
		return true
	}
	for a := range n {
		for b := range a + 1 {
			if a != b && !pairs {
				continue
			}
			if !try(func(i int) bool { return i == a || i == b }) || !try(func(i int) bool { return i != a && i != b }) {
				return false
			}
		}
	}
	for range samples {
		bits := make([]bool, n)
		for i := range bits {
			bits[i] = r.IntN(2) == 0
		}
		if !try(func(i int) bool { return bits[i] }) {
			return false
		}
	}
	return true
}
