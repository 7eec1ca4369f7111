package fill

import (
	"context"
	"errors"
	"os"
	"sync"

	"github.com/ecr-pullthrough/pullthrough/internal/extent"
	"github.com/ecr-pullthrough/pullthrough/internal/shelf"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

// shelfDir is where the spools of [Options.Dir] stay that ended early.
const shelfDir = "pullthrough-partial"

// resume looks for what an earlier fill has left. giveBack lets go of it, if it has not
// become the fill's place.
func (f *Fill) resume(ctx context.Context) (giveBack func()) {
	f.kept = nil
	if f.job.Key == "" || f.isSmall() {
		return f.giveBack
	}
	if f.job.Resume != nil {
		f.kept = f.job.Resume(ctx, f.job.Key)
	}
	if f.kept == nil {
		f.kept = f.budget.resume(ctx, f.job.Key)
	}
	return f.giveBack
}

// isSmall reports whether the blob is known to be one of which nothing is kept.
func (f *Fill) isSmall() bool {
	if f.job.Size == nil {
		return false
	}
	size := f.job.Size()
	return size >= 0 && size < shelf.Least
}

func (f *Fill) giveBack() {
	if f.kept == nil || f.place != nil {
		return
	}
	kept := f.kept
	f.kept = nil
	soon(func() {
		kept.Keep()
		kept.Close()
		f.budget.countKept()
	})
}

// open asks for the blob, or for what is missing of one that is here in part.
func (f *Fill) open(ctx context.Context, w *windows) (Source, error) {
	if f.kept == nil {
		return f.job.Open(ctx, extent.Span{To: w.first}, -1)
	}
	size, have := f.kept.Have()
	missing := extent.Missing(size, have)
	if w.first > 0 {
		missing.To = min(missing.To, missing.From+w.first)
	}
	source, err := f.job.Open(ctx, missing, size)
	switch {
	case err != nil:
		return nil, err
	case source.Offset() == missing.From && source.Total() == size:
		w.used.Store(true) // there is something ahead
		return source, nil
	}
	f.kept.Abort() // all of it comes anew
	f.kept.Close()
	f.kept = nil
	return source, nil
}

// findPlace is where the content of a fill of that size goes; nil: where its spool likes. lent
// says that it is the owner's.
func (f *Fill) findPlace(ctx context.Context, size int64, l *lease) (place Place, lent bool) {
	if f.kept != nil { // it was found there
		_, own := f.kept.(*shelved)
		return f.kept, !own
	}
	place, err := l.wait(ctx)
	if err != nil && f.job.PlaceFailed != nil {
		f.job.PlaceFailed(ctx, err)
	}
	worth := f.job.Key != "" && size >= shelf.Least
	if keeper, ok := place.(interface{ Keeper() Keeper }); ok && worth {
		if f.kept = keeper.Keeper(); f.kept != nil {
			f.kept.KeepAs(f.job.Key, size)
		}
	}
	if place != nil || !worth {
		return place, place != nil
	}
	if own := f.budget.shelve(f.job.Key, size); own != nil {
		f.kept = own
		return own, false
	}
	return nil, false
}

// lend has a spool use the place, nil: its own.
func (f *Fill) lend(o *spool.Options, place Place) {
	if place == nil {
		return
	}
	o.Place, o.Sparse = place, place.Sparse()
	if f.kept != nil {
		_, o.Have = f.kept.Have()
		o.Sparse = true
	}
}

// isBroken reports whether the content of a fill that ended with err may be the first part of
// the blob: neither is it wrong, nor is the disk.
func isBroken(err error) bool {
	e, own := errors.AsType[*Error](err)
	return err != nil && (!own || e.Kind == ErrBroken)
}

// keptRoom is what the downloads on the shelf have of SpoolBytes.
type keptRoom struct {
	mu    sync.Mutex
	bytes int64
}

// openShelf finds what fills of earlier processes have left, if they were told where.
func (b *budget) openShelf() {
	if b.dir == "" {
		return
	}
	b.shelf = &shelf.Shelf{Path: b.dir, Dir: shelfDir, Now: b.now}
	if b.spoolBytes > 0 {
		b.shelf.Limit = func() int64 { return b.spoolBytes }
	}
	b.countKept()
}

// countKept counts what is on the shelf among SpoolBytes, and drops what has no room there.
func (b *budget) countKept() {
	if b.shelf == nil {
		return
	}
	b.kept.mu.Lock()
	defer b.kept.mu.Unlock()
	for {
		now := b.shelf.Tidy()
		if b.space.TryTake(now - b.kept.bytes) {
			b.space.Give(b.kept.bytes - now)
			b.kept.bytes = now
			return
		}
		if !b.shelf.DropOldest() {
			return // others have them: what has not been taken must not be given back
		}
	}
}

// makeRoom drops the oldest downloads on the shelf until n is free, which try takes. It drops
// none where there is room, and n has to wait for something else.
func (b *budget) makeRoom(n int64, try func(int64) bool) bool {
	for b.shelf != nil && b.spoolBytes > 0 {
		b.countKept() // other processes may have let go of theirs
		if try(n) {
			return true
		}
		if b.space.Free() >= n || !b.shelf.DropOldest() {
			return false
		}
	}
	return false
}

// resume takes a spool from the shelf.
func (b *budget) resume(ctx context.Context, key string) Keeper {
	if b.shelf == nil {
		return nil
	}
	it, err := b.shelf.Take(ctx, key)
	if err != nil {
		return nil
	}
	b.countKept()
	return &shelved{it}
}

// shelve makes a place on the shelf. nil: there is none, and the content is kept nowhere.
func (b *budget) shelve(key string, size int64) *shelved {
	if b.shelf == nil {
		return nil
	}
	it, err := b.shelf.Create(key, size)
	if err != nil {
		return nil
	}
	return &shelved{it}
}

// shelved is a spool's file that may outlive the fill.
type shelved struct{ *shelf.Item }

func (s *shelved) WriteAt(p []byte, off int64) (int, error) {
	n, err := s.File.WriteAt(p, off)
	if n > 0 {
		s.Wrote(off, int64(n))
	}
	return n, err
}

func (s *shelved) ReadAt(p []byte, off int64) (int, error) { return s.File.ReadAt(p, off) }

func (s *shelved) Open() (*os.File, error) { return spool.Reopen(s.File) }

func (s *shelved) Have() (int64, []extent.Span) { return s.Size(), s.Item.Have() }

func (s *shelved) Sparse() bool { return true }

func (s *shelved) KeepAs(string, int64) {} // it is

func (s *shelved) Keep() { s.Item.Keep() }

func (s *shelved) Abort() { s.Drop() }

func (s *shelved) Close() { _ = s.File.Close() } // what it says changes nothing
