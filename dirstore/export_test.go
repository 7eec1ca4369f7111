package dirstore

// SetProbe has f asked before each step on the disk; what it returns is what
// the step fails with. It must not be called while the store is used.
func (s *Store) SetProbe(f func(op, name string) error) {
	s.sweeper.mu.Lock()
	s.sweeper.stopRetryLocked() // it would come while f is set
	s.sweeper.mu.Unlock()
	s.WaitForSweep()
	s.disk.probe = f
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
func OpenProbed(dir string, f func(op, name string) error) (*Store, error) { return open(dir, f) }

// WaitForReads waits until no blob is read in full in the background.
func (s *Store) WaitForReads() { s.reads.Wait(); s.small.Wait() }
