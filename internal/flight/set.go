package flight

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// Set is all groups of one owner. It closes them, waits for them and ends them
// together. The zero value is ready for use. It is safe for concurrent use and must
// not be copied.
type Set struct {
	mu      sync.Mutex
	closing context.Context // ends when Close is called; nil: nobody has asked for it
	close   context.CancelCauseFunc
	members []member
	running int           // calls of all groups
	idle    chan struct{} // closed when running becomes 0; nil: nobody waits
	alone   []*alone      // calls that nobody waits for and that linger, the oldest first
}

// member is a group of a set.
type member interface {
	closeWithSet()
	cancelAll()
	describe() []string
	lingering() []Lingerer
}

// Join makes the group one of the set's, under a name for [Set.Running]. It must be
// called before the group's first Do.
func (g *Group[K, V]) Join(s *Set, name string) {
	g.set, g.name = s, name
	s.mu.Lock()
	defer s.mu.Unlock()
	s.members = append(s.members, g)
}

// JoinInner is Join for a group that only the calls of other groups of the set ask.
// [Set.Close] leaves it open: a call that runs already needs it to end well, and a
// new one does not come that far.
func (g *Group[K, V]) JoinInner(s *Set, name string) {
	g.inner = true
	g.Join(s, name)
}

func (g *Group[K, V]) closeWithSet() {
	if !g.inner {
		g.Close()
	}
}

func (s *Set) begin() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running++
}

func (s *Set) end() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	if s.running == 0 && s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
}

// Idle waits until no call of any group runs. A call that another one has started
// is waited for, too. When ctx ends first it returns the context's cause.
func (s *Set) Idle(ctx context.Context) error {
	s.mu.Lock()
	if s.running == 0 {
		s.mu.Unlock()
		return nil
	}
	if s.idle == nil {
		s.idle = make(chan struct{})
	}
	idle := s.idle
	s.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Len returns the number of calls that run.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}

// Running returns what runs, each call as the name of its group and its key, in
// order.
func (s *Set) Running() (all []string) {
	for _, m := range s.all() {
		all = append(all, m.describe()...)
	}
	slices.Sort(all)
	return all
}

func (g *Group[K, V]) describe() (all []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.live {
		all = append(all, fmt.Sprintf("%s %v", g.name, c.key))
	}
	return all
}

func (s *Set) all() []member {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.members)
}

// UntilClosed returns a context that ends with ctx, and, because of [ErrClosed], when
// the set is closed. It is for what waits for its turn: only what has begun is brought
// to its end.
func (s *Set) UntilClosed(ctx context.Context) (context.Context, context.CancelFunc) {
	closing := s.closingContext()
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(closing, func() { cancel(context.Cause(closing)) })
	return ctx, func() { stop(); cancel(nil) }
}

func (s *Set) closingContext() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing == nil {
		s.closing, s.close = context.WithCancelCause(context.Background())
	}
	return s.closing
}

// Close refuses new calls in all groups but the inner ones. Running calls go on, and
// may be joined. Those that nobody waits for end.
func (s *Set) Close() {
	s.closingContext()
	s.close(ErrClosed)
	for _, m := range s.all() {
		m.closeWithSet()
	}
}

// Shutdown refuses new calls and waits for those that run. When ctx ends first it
// cancels what still runs, waits for that to end, and returns the context's cause.
func (s *Set) Shutdown(ctx context.Context) error {
	s.Close()
	err := s.Idle(ctx)
	if err == nil {
		return nil
	}
	for _, m := range s.all() {
		m.cancelAll()
	}
	_ = s.Idle(context.Background()) // that context does not end
	return err
}
