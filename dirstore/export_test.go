package dirstore

import "sync"

// SetProbe has f asked before each step on the disk; what it returns is what
// the step fails with. It must not be called while the store is used.
func (s *Store) SetProbe(f func(op, name string) error) {
	s.sweeper.mu.Lock()
	s.sweeper.stopRetryLocked() // it would come while f is set
	s.sweeper.mu.Unlock()
	s.WaitForSweep()
	s.disk.probe = probe(f)
}

// probe is f as a disk takes it. The syncs of one put run at a time; f is asked about them
// one after the other.
func probe(f func(op, name string) error) func(step) error {
	if f == nil {
		return nil
	}
	var mu sync.Mutex
	return func(s step) error {
		if s.op == "look" {
			return nil
		}
		if s.op == "sync" || s.op == "close" || s.op == "syncdir" {
			mu.Lock()
			defer mu.Unlock()
		}
		return f(s.op, s.name)
	}
}

// Step is a step on the disk.
type Step struct {
	Op, Name, From string
	Walks          int
}

// OpenRecorded is Open with what [Store.Record] sets, from the first step on.
func OpenRecorded(dir string, f func(Step) error) (*Store, error) {
	return open(dir, func(s step) error { return f(Step{s.op, s.name, s.from, s.walks}) })
}

// Record has f told of each step before it is made. Syncs run at a time.
func (s *Store) Record(f func(Step) error) {
	s.disk.probe = func(s step) error { return f(Step{s.op, s.name, s.from, s.walks}) }
}

// Staging returns the directory of this store's staging files.
func (s *Store) Staging() string { return s.staging }

// WaitForSweep waits until no sweep runs in the background.
func (s *Store) WaitForSweep() {
	s.sweeper.mu.Lock()
	ended := s.sweeper.ended
	s.sweeper.mu.Unlock()
	if ended != nil {
		<-ended
	}
}

// OpenProbed is Open with what [Store.SetProbe] sets, from the first step on.
func OpenProbed(dir string, f func(op, name string) error) (*Store, error) {
	return open(dir, probe(f))
}

// WaitForReads waits until no blob is read in full in the background.
func (s *Store) WaitForReads() { s.reads.Wait(); s.small.Wait() }

// KeptDirs is how many directories stay open.
func (s *Store) KeptDirs() int {
	s.disk.kept.mu.Lock()
	defer s.disk.kept.mu.Unlock()
	return s.disk.kept.order.Len()
}
