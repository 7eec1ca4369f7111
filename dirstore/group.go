package dirstore

import (
	"errors"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	// maxTogether is how many puts one pass syncs for.
	maxTogether = 64
	// syncsAtOnce is how many syncs of a pass run at a time. Most of them wait for the same
	// write of the file system's journal.
	syncsAtOnce = 8
	// quickSync is how long a sync takes at most that did not wait for a disk.
	quickSync = 100 * time.Microsecond
	// maxBytesTogether is how many bytes of files one pass syncs, unless the first put
	// has more.
	maxBytesTogether = 8 << 20
)

// group has the puts that wait for the disk wait together. Whoever comes first leads a
// pass, which syncs for all that are there; who comes meanwhile waits for the next
// one, which one of them leads. Nothing of it runs while nobody puts.
type group struct {
	mu      sync.Mutex
	led     bool // somebody leads a pass
	waiting []*barrier
}

// barrier is what one put wants to be on the disk before it goes on.
type barrier struct {
	changes
	turn chan bool // true: it leads the next pass; false: it is over
	errs []error
}

// sync returns when all changes are on the disk. The files are closed, whatever happens. A
// file that fails is the error of its own put; a directory that fails is one for all
// puts of the pass that have something in it.
func (g *group) sync(d *disk, c *changes) error {
	if len(c.files)+len(c.dirs) == 0 {
		return nil
	}
	b := &barrier{changes: *c, turn: make(chan bool, 1)}
	*c = changes{}
	if g.enter(b) || <-b.turn {
		pass := g.take()
		d.syncAll(pass)
		g.leave(pass, b)
	}
	return errors.Join(b.errs...)
}

// enter reports whether the put leads.
func (g *group) enter(b *barrier) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting = append(g.waiting, b)
	leads := !g.led
	g.led = true
	return leads
}

func (g *group) take() []*barrier {
	g.mu.Lock()
	defer g.mu.Unlock()
	n, bytes := 0, int64(0)
	for n < min(len(g.waiting), maxTogether) && (n == 0 || bytes+g.waiting[n].bytes <= maxBytesTogether) {
		bytes += g.waiting[n].bytes
		n++
	}
	pass := g.waiting[:n:n]
	g.waiting = slices.Clone(g.waiting[n:])
	return pass
}

// leave has the next put lead, and those of the pass go on.
func (g *group) leave(pass []*barrier, leader *barrier) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.led = len(g.waiting) > 0; g.led {
		g.waiting[0].turn <- true
	}
	for _, b := range pass {
		if b != leader {
			b.turn <- false
		}
	}
}

// syncAll syncs and closes the files, and syncs the directories, each once.
func (d *disk) syncAll(pass []*barrier) {
	var mu sync.Mutex // guards errs of all
	var jobs []func()
	dirs := make(map[string][]*barrier)
	for _, b := range pass {
		for _, f := range b.files {
			startWriting(f)
			jobs = append(jobs, func() { b.fail(&mu, d.syncAndClose(f)) })
		}
		for _, dir := range b.dirs {
			dirs[dir] = append(dirs[dir], b)
		}
	}
	inParallel(jobs)
	jobs = nil
	for _, b := range pass {
		for _, dir := range b.dirs {
			all := dirs[dir]
			if delete(dirs, dir); all == nil {
				continue
			}
			jobs = append(jobs, func() {
				err := d.syncDir(dir)
				for _, b := range all {
					b.fail(&mu, err)
				}
			})
		}
	}
	inParallel(jobs)
}

func (b *barrier) fail(mu *sync.Mutex, err error) {
	if err != nil {
		mu.Lock()
		defer mu.Unlock()
		b.errs = append(b.errs, err)
	}
}

func (d *disk) syncAndClose(f *os.File) error { return errors.Join(d.sync(f), d.close(f)) }

// inParallel runs the jobs, and returns when all have ended. Where one has to wait for the
// disk, the others run at the same time, some at a time.
func inParallel(jobs []func()) {
	for i, job := range jobs {
		start := time.Now()
		if job(); time.Since(start) > quickSync {
			jobs = jobs[i+1:]
			break
		}
		if i == len(jobs)-1 {
			return
		}
	}
	next := make(chan func(), len(jobs))
	for _, job := range jobs {
		next <- job
	}
	close(next)
	work := func() {
		for job := range next {
			job()
		}
	}
	var wg sync.WaitGroup
	for range min(len(jobs), syncsAtOnce) - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
}
