package hostcall

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	// MaxPuts is how many puts a [Puts] has under way at a time, unless it says another
	// number.
	MaxPuts = 8
	// MaxWaiting is how many more wait for their turn.
	MaxWaiting = 1000
	// PutPatience is how long a put waits for its turn while none of those under way
	// reads or ends.
	PutPatience = time.Minute
	// putGrace is for a put to notice that its context has ended.
	putGrace = time.Second
)

// Puts gives puts their turn. A put that is under way is never given up: however
// slow a Store is, it may finish, and only the end of the put's context ends the
// wait for it. What is bounded is the queue behind it. The zero value is ready for
// use. It is safe for concurrent use and must not be copied.
type Puts struct {
	Most int // how many puts are under way at a time; 0: [MaxPuts]

	mu      sync.Mutex
	running int
	queue   []chan struct{} // those that wait, the oldest first; closed when it is their turn
	moved   time.Time       // when a put last began, read or ended
}

// Do calls put when it is its turn, in a goroutine of its own, and waits for it.
// put calls progress whenever it gets somewhere: whenever it reads.
//
// A put waits for its turn as long as any put under way reads or ends. It is not
// made, and the error Is [ErrNotCalled] and [ErrStuck], when none has for
// [PutPatience], or when [MaxWaiting] others wait. When ctx ends while put is under
// way, put has a second to notice; then Do returns the context's cause, and the
// put keeps its place among those under way until it returns.
func (p *Puts) Do(ctx context.Context, what string, put func(ctx context.Context, progress func()) error) error {
	if err := p.enter(ctx); err != nil {
		return fmt.Errorf("%s %w: %w", what, ErrNotCalled, err)
	}
	if err := context.Cause(ctx); err != nil { // it ended in the moment of the turn
		p.leave()
		return fmt.Errorf("%s %w: %w", what, ErrNotCalled, err)
	}
	done := make(chan error, 1)
	go func() {
		err := errEnded // unless the put returns
		defer func() {
			p.leave()
			done <- err
		}()
		err = Guard(what, func() error { return put(ctx, p.progress) })
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	grace := time.NewTimer(putGrace)
	defer grace.Stop()
	select {
	case err := <-done:
		return err
	case <-grace.C:
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
}

// progress notes that a put under way gets somewhere.
func (p *Puts) progress() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moved = time.Now()
}

// enter waits for the put's turn.
func (p *Puts) enter(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	turn, err := p.line()
	if turn == nil {
		return err
	}
	patience := time.NewTimer(PutPatience - p.still())
	defer patience.Stop()
	for {
		select {
		case <-turn:
			return nil
		case <-ctx.Done():
			return p.quit(turn, context.Cause(ctx))
		case <-patience.C:
		}
		still := p.still()
		if still >= PutPatience {
			return p.quit(turn, ErrStuck)
		}
		patience.Reset(PutPatience - still)
	}
}

// line takes a place among those under way, or in the queue behind them.
func (p *Puts) line() (turn chan struct{}, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.running < cmp.Or(p.Most, MaxPuts):
		p.running++
		p.moved = time.Now()
		return nil, nil
	case len(p.queue) >= MaxWaiting:
		return nil, ErrStuck
	}
	turn = make(chan struct{})
	p.queue = append(p.queue, turn)
	return turn, nil
}

// still is how long no put under way has got anywhere.
func (p *Puts) still() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.moved)
}

// quit leaves the queue for the given reason. A turn that came in this very moment
// is taken all the same, and quit returns nil.
func (p *Puts) quit(turn chan struct{}, why error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, other := range p.queue {
		if other == turn {
			p.queue = append(p.queue[:i:i], p.queue[i+1:]...)
			return why
		}
	}
	return nil
}

// leave gives the place of a put that has returned to the oldest that waits.
func (p *Puts) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moved = time.Now()
	if len(p.queue) == 0 {
		p.running--
		return
	}
	close(p.queue[0])
	p.queue = p.queue[1:]
}
