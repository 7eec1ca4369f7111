package dirstore

import (
	"cmp"
	"crypto/rand"
	"errors"
	"io/fs"
	"path"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

const (
	// batch is how many images or files are removed before those who commit get
	// their turn.
	batch = 64
	// orphanAge is for how long content may be without any link: another program
	// may be about to make one.
	orphanAge = time.Hour
)

// evict removes images until no more than target bytes are left, or nothing more
// may go. It returns how many bytes it has freed.
func (c *scan) evict(target int64) (freed int64, err error) {
	left, err := c.removeLists(c.total-c.sizeOrphans(), target)
	if err != nil {
		return c.freed, err
	}
	for _, victims := range c.choose(left, target) {
		if err = c.evictPlace(victims); err != nil {
			break
		}
	}
	// Links first, and all of them: content goes only when no link of any victim
	// can lead there any more.
	for i := range c.nodes {
		if c.nodes[i].gone && !c.nodes[i].removed {
			c.restore(&c.nodes[i])
		}
	}
	freed, removeErr := c.removeContents()
	c.store.safe.Clear() // it knows of what has gone
	return freed + c.freed, errors.Join(err, removeErr)
}

// removeLists removes lists of referrers whose subjects are not there, the oldest first,
// and returns how many bytes are left then.
func (c *scan) removeLists(left, target int64) (int64, error) {
	slices.SortFunc(c.lists, func(a, b list) int { return cmp.Compare(a.used, b.used) })
	for some := range slices.Chunk(c.lists, batch) {
		if left <= target {
			break
		}
		err := c.store.alone(func() error {
			for _, l := range some {
				info, err := c.store.disk.stat(l.name)
				if err == nil && info.ModTime().UnixNano() == l.used {
					err = c.store.disk.remove(l.name)
					left, c.freed = left-l.size, c.freed+l.size
				}
				if ignoreMissing(err) != nil {
					return err
				}
			}
			return nil
		})
		if err := errors.Join(err, c.ctx.Err()); err != nil {
			return left, err
		}
	}
	return left, nil
}

// sizeOrphans is the size of the content that nothing refers to. What is young is
// taken as needed: another program may be about to make a link.
func (c *scan) sizeOrphans() (size int64) {
	young := time.Now().Add(-orphanAge).UnixNano()
	for i := range c.contents {
		switch t := &c.contents[i]; {
		case t.refs > 0:
		case t.used > young:
			t.refs++
		default:
			size += t.size
		}
	}
	return size
}

// choose picks who goes, the one used least recently first, and groups them by
// place. What needs others comes before them, so that those can go, too.
func (c *scan) choose(left, target int64) (victims [][]int32) {
	order := make([]int32, len(c.nodes))
	for i := range order {
		order[i] = int32(i)
	}
	depths := c.depths()
	slices.SortFunc(order, func(a, b int32) int {
		return cmp.Or(cmp.Compare(c.nodes[a].used, c.nodes[b].used), cmp.Compare(depths[a], depths[b]), cmp.Compare(a, b))
	})
	group := make(map[int32]int)
	for _, i := range order {
		if left <= target {
			break
		}
		n := &c.nodes[i]
		if c.neededBy(n) || c.busy(n) {
			continue
		}
		left -= c.release(n)
		g, ok := group[n.place]
		if !ok {
			g = len(victims)
			group[n.place], victims = g, append(victims, nil)
		}
		victims[g] = append(victims[g], i)
	}
	return victims
}

// depths are how many nodes stand above each, at most.
func (c *scan) depths() []int32 {
	depths := make([]int32, len(c.nodes))
	var depth func(i int32) int32
	depth = func(i int32) int32 {
		if depths[i] == 0 {
			depths[i] = 1
			for _, parent := range c.nodes[i].parents {
				depths[i] = max(depths[i], depth(parent)+1)
			}
		}
		return depths[i]
	}
	for i := range c.nodes {
		depth(int32(i))
	}
	return depths
}

// neededBy reports whether an index that stays refers to the node.
func (c *scan) neededBy(n *node) bool {
	return slices.ContainsFunc(n.parents, func(p int32) bool { return !c.nodes[p].gone })
}

// busy reports whether this Store is downloading something that the manifest
// refers to. When that cannot be found out, it is.
func (c *scan) busy(n *node) bool {
	at := c.places[n.place].at
	if n.blob || !c.store.staged.any(at) {
		return false
	}
	body, _, err := c.store.readManifest(c.file(n.content), n.digest)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	return slices.ContainsFunc(layout.References(body), func(d digest.Digest) bool { return c.store.staged.has(at, d) })
}

// release takes the node out, and returns how many bytes nobody needs any more.
func (c *scan) release(n *node) (size int64) {
	n.gone, size = true, n.list
	for _, i := range n.refs {
		if c.contents[i].refs--; c.contents[i].refs == 0 {
			size += c.contents[i].size
		}
	}
	return size
}

func (c *scan) restore(n *node) {
	n.gone = false
	for _, i := range n.refs {
		c.contents[i].refs++
	}
}

// file is where the content is.
func (c *scan) file(i int32) string {
	key, tree := c.contents[i].key, layout.Registry
	if key.own {
		tree = layout.Own
	}
	return tree.Data(c.digest(key))
}

// evictPlace removes the victims of one repository.
func (c *scan) evictPlace(victims []int32) error {
	p := &c.places[c.nodes[victims[0]].place]
	tags, err := c.tags(p, victims)
	if err != nil {
		return err
	}
	needed := make(map[int32]int) // by so many that are in the repository still
	for _, n := range c.nodes[p.first:p.last] {
		for _, i := range n.refs {
			needed[i]++
		}
	}
	for some := range slices.Chunk(victims, batch) {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		err := c.store.alone(func() error {
			for _, i := range some {
				if err := c.evictNode(p, &c.nodes[i], tags, needed); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// tags are the tags of the victims, by digest.
func (c *scan) tags(p *place, victims []int32) (map[digest.Digest][]string, error) {
	tags := make(map[digest.Digest][]string)
	for _, i := range victims {
		if !c.nodes[i].blob {
			tags[c.nodes[i].digest] = nil
		}
	}
	if len(tags) == 0 {
		return nil, nil
	}
	err := c.store.tags(c.ctx, p.at, func(tag string) error {
		d, err := c.store.readLink(p.at.Tag(tag), "")
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if of, ok := tags[d]; ok && err == nil {
			tags[d] = append(of, tag)
		}
		return err
	})
	return tags, err
}

// evictNode removes one image, unless it has been used since. Names go one by one,
// each in one step, from the tag to the blobs: whatever is left leads somewhere. A
// blob goes with the last image that needs it: one that is to go may yet stay.
func (c *scan) evictNode(p *place, n *node, tags map[digest.Digest][]string, needed map[int32]int) error {
	if used, err := c.usedSince(p, n); used || err != nil {
		c.restore(n)
		return err
	}
	if n.blob {
		if err := c.removeLayer(p, n.content); err != nil {
			return err
		}
		n.removed = true
		return nil
	}
	defer c.store.manifests.Forget(p.repo, append(tags[n.digest], string(n.digest))...)
	if err := c.removeManifest(p, n, tags[n.digest]); err != nil {
		return err
	}
	for _, i := range n.refs {
		if needed[i]--; i == n.content || needed[i] > 0 {
			continue
		}
		if err := c.removeLayer(p, i); err != nil {
			return err
		}
	}
	n.removed = true
	return nil
}

// usedSince reports whether somebody has asked for the node since it was chosen.
func (c *scan) usedSince(p *place, n *node) (bool, error) {
	if c.neededBy(n) || c.busy(n) {
		return true, nil
	}
	if !n.blob && c.store.manifests.LastUse(p.repo, n.digest) > max(n.used, c.began) {
		return true, nil
	}
	changed, err := c.changed(n.content)
	return changed, err
}

// changed reports whether the content is another than the scan has seen, or has
// been used or linked since.
func (c *scan) changed(i int32) (bool, error) {
	if c.contents[i].late {
		return true, nil
	}
	info, err := c.store.disk.stat(c.file(i))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && info.ModTime().UnixNano() != c.contents[i].used, err
}

func (c *scan) removeManifest(p *place, n *node, tags []string) error {
	for _, tag := range tags {
		dir := p.at.Tag(tag)
		d, err := c.store.readLink(dir, "")
		if err == nil && d == n.digest {
			err = c.removeDir(path.Dir(dir))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	home := p.at
	if n.own {
		home.Tree = layout.Own
	}
	if err := c.removeDir(home.Revision(n.digest)); err != nil {
		return err
	}
	err := c.store.disk.remove(p.at.Referrers(n.digest))
	if err == nil {
		c.freed += n.list
	}
	return ignoreMissing(err)
}

// removeLayer removes the repository's links to a blob, unless it has got a new one.
func (c *scan) removeLayer(p *place, i int32) error {
	if changed, err := c.changed(i); changed || err != nil {
		return err
	}
	for _, d := range append(p.aliases[i], c.digest(c.contents[i].key)) {
		if err := c.removeDir(p.at.Layer(d)); err != nil {
			return err
		}
	}
	return nil
}

func (c *scan) removeDir(dir string) error {
	return c.store.disk.removeAll(dir, path.Join(c.store.staging, rand.Text()))
}

// removeContents removes what nobody needs.
func (c *scan) removeContents() (freed int64, err error) {
	var unneeded []int32
	for i := range c.contents {
		if c.contents[i].refs == 0 {
			unneeded = append(unneeded, int32(i))
		}
	}
	for some := range slices.Chunk(unneeded, batch) {
		if err := c.ctx.Err(); err != nil {
			return freed, err
		}
		err := c.store.alone(func() error {
			for _, i := range some {
				n, err := c.removeContent(i)
				if freed += n; err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return freed, err
		}
	}
	return freed, nil
}

func (c *scan) removeContent(i int32) (freed int64, err error) {
	name := c.file(i)
	if changed, err := c.changed(i); changed || err != nil {
		return 0, err
	}
	if err := c.store.disk.remove(name); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		}
		return 0, err
	}
	_ = c.store.disk.remove(path.Dir(name)) // it is empty, or somebody's
	return c.contents[i].size, nil
}
