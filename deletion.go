package pullthrough

import (
	"context"
	"errors"
	"io/fs"
	"sync"

	"github.com/ecr-pullthrough/pullthrough/internal/lru"
)

// maxDeletions is how many of the last deletions are known. A fetch that began before so
// many others may bring back what was deleted.
const maxDeletions = 4096

// errDeleted is for what is not stored since it was deleted after its fetch began.
var errDeleted = errors.New("it was deleted while it was being fetched")

// deletions keep a fetch from bringing back what was deleted after it began. Deletions are
// counted, and a fetch knows the count of its beginning. A deletion, step by step:
//
//  1. It gets a number, and fetches that run are unlinked: who asks from now on does not
//     join them.
//  2. Puts that are under way end. Those of older fetches are refused from now on.
//  3. The Store deletes.
//  4. It gets another number, for the fetches that have found in the Store what was about
//     to go. If they are putting, the Store deletes once more when they have ended.
type deletions struct {
	mu    sync.Mutex
	count uint64
	last  *lru.Cache[deleted, uint64] // the number of its last deletion
	puts  map[*putting]struct{}       // under way
}

// deleted is what was deleted: a tag, a manifest, or, if ref is "", a repository.
type deleted struct {
	repo Repo
	ref  string
}

// beginning is where a fetch brings something, and the number of the last deletion before
// it began.
type beginning struct {
	repo  Repo
	since uint64
}

// putting is a put under way. A put of nothing but content has no refs.
type putting struct {
	repo Repo
	refs [2]string
	done chan struct{}
}

func newDeletions() *deletions {
	return &deletions{last: lru.New[deleted, uint64](maxDeletions), puts: map[*putting]struct{}{}}
}

// now is the number of the last deletion.
func (d *deletions) now() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.count
}

// put calls f, which puts what a fetch has brought. If some of it was deleted since that
// began, f is not called, and the error is errDeleted.
func (d *deletions) put(b beginning, refs [2]string, f func() error) error {
	p := &putting{b.repo, refs, make(chan struct{})}
	if !d.begin(b.since, p) {
		return errDeleted
	}
	defer d.end(p)
	return f()
}

func (d *deletions) begin(since uint64, p *putting) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, ref := range [...]string{"", p.refs[0], p.refs[1]} {
		if last, ok := d.last.Get(deleted{p.repo, ref}); ok && last > since {
			return false
		}
	}
	d.puts[p] = struct{}{}
	return true
}

func (d *deletions) end(p *putting) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.puts, p)
	close(p.done)
}

// note numbers a deletion, and returns the puts that it has to wait for.
func (d *deletions) note(what deleted) (puts []*putting) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count++
	d.last.Put(what, d.count)
	for p := range d.puts {
		if p.repo == what.repo && (what.ref == "" || p.refs[0] == what.ref || p.refs[1] == what.ref) {
			puts = append(puts, p)
		}
	}
	return puts
}

// delete calls f, which deletes. unlink has nobody join the fetches that run.
func (d *deletions) delete(ctx context.Context, what deleted, unlink func(), f func() error) error {
	if err := d.settle(ctx, what, unlink); err != nil {
		return err
	}
	err := f()
	puts := d.note(what)
	unlink()
	if len(puts) == 0 {
		return err
	}
	if late := await(ctx, puts); late != nil {
		return late
	}
	if again := f(); again == nil || !errors.Is(again, fs.ErrNotExist) {
		return again
	}
	return err
}

// settle numbers the deletion and returns when no put is under way that it would meet.
func (d *deletions) settle(ctx context.Context, what deleted, unlink func()) error {
	puts := d.note(what)
	unlink()
	return await(ctx, puts)
}

func await(ctx context.Context, puts []*putting) error {
	for _, p := range puts {
		select {
		case <-p.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
