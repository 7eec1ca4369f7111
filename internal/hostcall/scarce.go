package hostcall

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

const (
	// FilesWait is how long a call is repeated that fails for lack of descriptors.
	FilesWait = 5 * time.Second
	filesStep = 200 * time.Millisecond
	// MaxPatient is how many calls wait, where the process may have many files open:
	// else it is an eighth of these.
	MaxPatient = 256
)

// Scarce is calls that failed since the process has too many files open, and that wait
// for one to be closed. Each is for a client, whose connection is a descriptor, too. So
// few wait: one more sends the one away that has waited longest. The zero value is
// usable. It is safe for concurrent use.
type Scarce struct {
	mu      sync.Mutex
	waiting []chan struct{} // each closed to send its caller away; the oldest first
}

// Again repeats call, which has failed with err, until it fails for other reasons than
// the lack of descriptors, or not at all.
func Again[T any](ctx context.Context, s *Scarce, err error, call func() (T, error)) (T, error) {
	away := s.enter(int(min(MaxPatient, spool.OpenFileLimit()/8)))
	defer s.leave(away)
	var result T
	for range FilesWait / filesStep {
		select {
		case <-time.After(filesStep):
		case <-away:
			return result, err
		case <-ctx.Done():
			return result, context.Cause(ctx)
		}
		if result, err = call(); !spool.IsOutOfFiles(err) {
			break
		}
	}
	return result, err
}

func (s *Scarce) enter(most int) (away chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) > 0 && len(s.waiting) >= most {
		close(s.waiting[0])
		s.waiting = slices.Delete(s.waiting, 0, 1)
	}
	away = make(chan struct{})
	s.waiting = append(s.waiting, away)
	return away
}

func (s *Scarce) leave(away chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.waiting, away); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	}
}
