package dirstore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/filing"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// scan is what a sweep finds in the directory: about 100 bytes of memory for each
// blob and each manifest.
//
// It looks at the content first and at the links later, and waits in between until
// those who commit are done. So a link that it misses was made after its content
// was looked at. A put that makes a link changes the time of the content, and of all
// that a new manifest refers to. Content whose time is another one when it is to be
// removed therefore stays, whatever the scan has found, and so does content that
// the scan has seen only by its link; no clock needs to be right for that.
type scan struct {
	store *Store
	ctx   context.Context
	began int64 // nanoseconds since 1970

	contents []content
	index    map[contentKey]int32         // into contents
	long     map[contentKey]digest.Digest // those that the key is too short for
	total    int64                        // bytes of all content

	places []place
	nodes  []node
	lists  []list // of referrers whose subjects are not there
	freed  int64  // bytes of lists that were removed
}

// list is a list of referrers that goes by itself.
type list struct {
	name string
	size int64
	used int64 // when it was written, in nanoseconds since 1970
}

// contentKey is a digest, short.
type contentKey struct {
	own bool // in the tree of that name
	sum [sha256.Size]byte
}

type content struct {
	key  contentKey
	refs int32 // nodes that need it
	size int64
	used int64 // nanoseconds since 1970
	late bool  // it came while the scan looked at the content, and is not counted
}

// place is a repository with its nodes.
type place struct {
	at          layout.Repository
	repo        pullthrough.Repo
	first, last int32                     // nodes[first:last]
	aliases     map[int32][]digest.Digest // links to a content by another digest
}

// node is what is evicted as one: a manifest of a repository, or a blob there
// that no manifest there refers to.
type node struct {
	place   int32
	own     bool // its home is in that tree
	blob    bool
	digest  digest.Digest
	used    int64   // nanoseconds since 1970, not before what needs it was used
	content int32   // its own
	refs    []int32 // contents that it needs, its own among them
	parents []int32 // nodes of the same place that need it
	list    int64   // bytes of its list of referrers
	gone    bool    // chosen, and later removed
	removed bool
}

func newScan(ctx context.Context, s *Store) *scan {
	return &scan{store: s, ctx: ctx, began: time.Now().UnixNano(), index: make(map[contentKey]int32), long: make(map[contentKey]digest.Digest)}
}

func (c *scan) run() error {
	for _, tree := range []layout.Tree{layout.Registry, layout.Own} {
		if err := c.readContents(tree); err != nil {
			return err
		}
	}
	if err := c.store.alone(func() error { return nil }); err != nil {
		return err
	}
	seen := make(map[string]bool)
	for _, tree := range []layout.Tree{layout.Registry, layout.Own} {
		err := c.store.repositories(c.ctx, tree, "", func(name string) error {
			if seen[name] {
				return nil
			}
			seen[name] = true
			return c.readPlace(name)
		})
		if err != nil {
			return err
		}
	}
	c.inherit()
	return nil
}

// algorithms are those that content may have.
var algorithms = []digest.Algorithm{digest.SHA256, digest.SHA512}

// readContents notes all content of a tree.
func (c *scan) readContents(tree layout.Tree) error {
	for _, algorithm := range algorithms {
		dir := path.Join(tree.Blobs(), algorithm.String())
		err := c.store.disk.list(dir, func(e fs.DirEntry) error {
			if !e.IsDir() {
				return nil
			}
			return c.readShelf(tree, algorithm, path.Join(dir, e.Name()))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// readShelf notes the content of the digests that begin with the same two digits.
func (c *scan) readShelf(tree layout.Tree, algorithm digest.Algorithm, dir string) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	below, err := c.store.disk.below(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = below.root.Close() }()
	return below.list(".", func(e fs.DirEntry) error {
		d := digest.NewDigestFromEncoded(algorithm, e.Name())
		if !ocipath.ValidDigest(string(d)) || tree.Data(d) != path.Join(dir, e.Name(), "data") {
			return nil // nothing of ours
		}
		info, err := below.stat(path.Join(e.Name(), "data"))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		c.add(c.key(tree, d), info)
		return nil
	})
}

func (c *scan) add(key contentKey, info fs.FileInfo) {
	c.index[key] = int32(len(c.contents))
	c.contents = append(c.contents, content{key: key, size: info.Size(), used: info.ModTime().UnixNano()})
	c.total += info.Size()
}

// addLate notes content of which only the link was found. Whoever counts content
// has counted it meanwhile.
func (c *scan) addLate(tree layout.Tree, d digest.Digest) (int32, error) {
	if _, err := c.store.disk.stat(tree.Data(d)); err != nil {
		return 0, err
	}
	i := int32(len(c.contents))
	key := c.key(tree, d)
	c.index[key] = i
	c.contents = append(c.contents, content{key: key, used: time.Now().UnixNano(), late: true})
	return i, nil
}

func (c *scan) key(tree layout.Tree, d digest.Digest) contentKey {
	key := contentKey{own: tree == layout.Own}
	if d.Algorithm() != digest.SHA256 {
		key.sum = sha256.Sum256([]byte(d))
		c.long[key] = d
		return key
	}
	_, _ = hex.Decode(key.sum[:], []byte(d.Encoded()))
	return key
}

func (c *scan) digest(key contentKey) digest.Digest {
	if d, ok := c.long[key]; ok {
		return d
	}
	return digest.NewDigestFromBytes(digest.SHA256, key.sum[:])
}

// find returns the content that d has in the tree.
func (c *scan) find(tree layout.Tree, d digest.Digest) (int32, bool) {
	key := contentKey{own: tree == layout.Own}
	if d.Algorithm() == digest.SHA256 {
		_, _ = hex.Decode(key.sum[:], []byte(d.Encoded()))
	} else {
		key.sum = sha256.Sum256([]byte(d))
	}
	i, ok := c.index[key]
	return i, ok
}

// readPlace notes the nodes of one repository.
func (c *scan) readPlace(name string) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	repo, _ := c.store.owner().Repo(name)
	p := place{at: layout.NewRepository(name), repo: repo, first: int32(len(c.nodes)), aliases: make(map[int32][]digest.Digest)}
	layers, err := c.readLayers(&p)
	if err != nil {
		return err
	}
	refs, err := c.readManifests(p)
	if err != nil {
		return err
	}
	needed := c.relate(p, layers, refs)
	for _, i := range layers {
		if !needed[i] {
			c.nodes = append(c.nodes, node{
				place: int32(len(c.places)), blob: true, digest: c.digest(c.contents[i].key),
				used: c.contents[i].used, content: i, refs: []int32{i},
			})
		}
	}
	p.last = int32(len(c.nodes))
	c.places = append(c.places, p)
	return c.readLists(p)
}

// readLists notes the sizes of the lists of referrers. Each goes with its subject.
func (c *scan) readLists(p place) error {
	subjects := make(map[digest.Digest]int32)
	for i := p.first; i < p.last; i++ {
		if !c.nodes[i].blob {
			subjects[c.nodes[i].digest] = i
		}
	}
	for _, algorithm := range algorithms {
		dir := path.Join(p.at.ReferrersDir(), algorithm.String())
		err := c.store.disk.list(dir, func(e fs.DirEntry) error {
			d := digest.NewDigestFromEncoded(algorithm, strings.TrimSuffix(e.Name(), ".json"))
			if !ocipath.ValidDigest(string(d)) {
				return nil
			}
			info, err := c.store.disk.stat(path.Join(dir, e.Name()))
			if err != nil || !info.Mode().IsRegular() {
				return ignoreMissing(err)
			}
			c.total += info.Size()
			if i, ok := subjects[d]; ok {
				c.nodes[i].list = info.Size()
			} else {
				c.lists = append(c.lists, list{path.Join(dir, e.Name()), info.Size(), info.ModTime().UnixNano()})
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// readLayers returns the contents that the repository has links to, by the digests
// of the links.
func (c *scan) readLayers(p *place) (map[digest.Digest]int32, error) {
	layers := make(map[digest.Digest]int32)
	err := c.digests(p.at.Layers(), func(d digest.Digest) error {
		target := d
		if d.Algorithm() != digest.SHA256 { // only such may be aliases
			var err error
			if target, err = c.store.readLink(p.at.Layer(d), d); errors.Is(err, fs.ErrNotExist) {
				return nil
			} else if err != nil {
				return err
			}
		}
		if i, ok := c.find(layout.Registry, target); ok {
			layers[d] = i
			if target != d {
				p.aliases[i] = append(p.aliases[i], d)
			}
		}
		return nil
	})
	return layers, err
}

// digests calls f for each digest that dir has an entry for, ALGORITHM/HEX.
func (c *scan) digests(dir string, f func(digest.Digest) error) error {
	for _, algorithm := range algorithms {
		err := c.store.disk.list(path.Join(dir, algorithm.String()), func(e fs.DirEntry) error {
			d := digest.NewDigestFromEncoded(algorithm, e.Name())
			if !e.IsDir() || !ocipath.ValidDigest(string(d)) {
				return nil
			}
			return f(d)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// readManifests adds a node for each manifest and returns what it refers to.
func (c *scan) readManifests(p place) (refs [][]digest.Digest, err error) {
	for _, home := range p.at.Homes() {
		err := c.digests(home.Revisions(), func(d digest.Digest) error {
			if err := c.ctx.Err(); err != nil {
				return err
			}
			n := node{place: int32(len(c.places)), own: home.Tree == layout.Own, digest: d}
			body, err := c.readManifest(home, &n)
			if errors.Is(err, fs.ErrNotExist) {
				return nil // the link leads to nothing
			}
			if err != nil {
				return err
			}
			n.used = max(c.contents[n.content].used, c.store.manifests.LastUse(p.repo, d))
			c.nodes = append(c.nodes, n)
			refs = append(refs, layout.References(body))
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return refs, nil
}

func (c *scan) readManifest(home layout.Repository, n *node) ([]byte, error) {
	target, err := c.store.readLink(home.Revision(n.digest), n.digest)
	if err != nil {
		return nil, err
	}
	own, ok := c.find(home.Tree, target)
	if !ok {
		if own, err = c.addLate(home.Tree, target); err != nil {
			return nil, err
		}
	}
	n.content = own
	body, _, err := c.store.readManifest(home.Tree.Data(target), n.digest)
	return body, err
}

// relate notes which contents and which other nodes the manifests of a place
// need, and returns all those contents.
func (c *scan) relate(p place, layers map[digest.Digest]int32, refs [][]digest.Digest) map[int32]bool {
	nodes := c.nodes[p.first:]
	byDigest := make(map[digest.Digest]int32, len(nodes))
	for i, n := range nodes {
		byDigest[n.digest] = int32(i)
	}
	needed := make(map[int32]bool)
	for i := range nodes {
		n := &nodes[i]
		n.refs = append(n.refs, n.content)
		for _, d := range refs[i] {
			n.refs = c.contentsOf(n.refs, d, layers)
			if child, ok := byDigest[d]; ok && int(child) != i {
				nodes[child].parents = append(nodes[child].parents, p.first+int32(i))
			}
		}
		slices.Sort(n.refs)
		n.refs = slices.Clip(slices.Compact(n.refs))
		for _, r := range n.refs {
			needed[r] = true
		}
	}
	return needed
}

// contentsOf appends what a manifest means by d, wherever it is.
func (c *scan) contentsOf(refs []int32, d digest.Digest, layers map[digest.Digest]int32) []int32 {
	if i, ok := layers[d]; ok {
		refs = append(refs, i)
	}
	for _, tree := range []layout.Tree{layout.Registry, layout.Own} {
		if i, ok := c.find(tree, d); ok {
			refs = append(refs, i)
		}
	}
	return refs
}

// inherit has each node used when what needs it was used, if that is later, and
// counts who needs which content. What seems to be used in the future, by a clock
// that was wrong, is not kept for ever: it goes first.
func (c *scan) inherit() {
	limit := time.Now().Add(filing.MarkEvery).UnixNano()
	for i := range c.nodes {
		if c.nodes[i].used > limit {
			c.nodes[i].used = 0
		}
		for _, r := range c.nodes[i].refs {
			c.contents[r].refs++
		}
	}
	done := make([]bool, len(c.nodes))
	var visit func(i int32)
	visit = func(i int32) {
		if done[i] {
			return
		}
		done[i] = true
		for _, parent := range c.nodes[i].parents {
			visit(parent)
			c.nodes[i].used = max(c.nodes[i].used, c.nodes[parent].used)
		}
	}
	for i := range c.nodes {
		visit(int32(i))
	}
}
