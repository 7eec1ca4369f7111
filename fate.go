package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// importBackoff is how long an object that failed in passing waits at most, each time
// before it is tried again.
var importBackoff = [...]time.Duration{time.Second, 3 * time.Second, 9 * time.Second, 27 * time.Second, 80 * time.Second}

const (
	// importPatience is for how long it is tried again.
	importPatience = 2 * time.Minute
	// maxBusyWait is the longest wait for room of our own, which does not count.
	maxBusyWait = time.Minute

	// maxNamed is how many missing objects the sentence of an error names, maxGapsTold how
	// many an event has.
	maxNamed    = 10
	maxGapsTold = 1000
)

// fate is what became of an object. The larger it is, the more there is left to do.
type fate int

const (
	kept          fate = iota // the Store has it
	absentForGood             // it cannot be had: upstream does not have it, or the Store does not want it
	absentForNow              // upstream has refused or failed: another import may bring it in
)

// gap is an object that the Store does not have.
type gap struct {
	descriptor ocispec.Descriptor
	fate       fate
	foreign    bool // the registry is not meant to have it
	err        error
}

// fateOf is what became of an object whose fetch has ended with err.
func fateOf(err error) fate {
	if err == nil {
		return kept
	}
	if e := errorOf(err); errors.Is(e.Kind, ErrNotFound) && e.Code == "" {
		return absentForGood
	}
	return absentForNow
}

// isRefused reports whether upstream does not give the object away: by its status, or by
// a redirect that is not followed.
func isRefused(err error) bool {
	e := errorOf(err)
	return e.Status >= http.StatusMultipleChoices && !isPassing(e)
}

// patience is what is left of it for one object.
type patience struct {
	since time.Time // when it failed first
	tries int
	busy  int
}

// next returns how long to wait after err until the next try. ok is false where there
// is none.
func (p *patience) next(err error, now time.Time) (wait time.Duration, ok bool) {
	e := errorOf(err)
	if isBusy(e) {
		p.busy++
		return min(e.RetryAfter<<min(p.busy-1, 4), maxBusyWait), true
	}
	if !isPassing(e) || p.tries == len(importBackoff) {
		return 0, false
	}
	if p.tries == 0 {
		p.since = now
	}
	limit := importBackoff[p.tries]
	p.tries++
	left := importPatience - now.Sub(p.since)
	wait = max(min(limit/2+rand.N(limit/2), left), e.RetryAfter)
	return wait, left > 0 && wait <= left
}

// persist calls try until it succeeds, or fails in a way that waiting does not mend. It
// sleeps in between, unless sleep fails.
func persist(try func() error, sleep func(time.Duration) error) error {
	var p patience
	for {
		err := try()
		if err == nil {
			return nil
		}
		wait, ok := p.next(err, time.Now()) // how long a failure lasts is real time
		if !ok {
			return err
		}
		if err := sleep(wait); err != nil {
			return err
		}
	}
}

// isBusy reports whether there was no room here, and may be later.
func isBusy(e *Error) bool { return errors.Is(e.Kind, errBusy) && e.RetryAfter > 0 }

// isPassing reports whether upstream has failed in a way that may be over soon.
func isPassing(e *Error) bool {
	switch {
	case errors.Is(e.Kind, ErrRateLimited):
		return true
	case !errors.Is(e.Kind, ErrUnavailable):
		return false
	case errors.Is(e.Kind, errBusy):
		return false
	case e.Host == "": // it was not upstream: the Policy is Offline, or a disk of ours is full
		return false
	}
	return e.Status == 0 || e.Status == http.StatusRequestTimeout || e.Status >= http.StatusInternalServerError
}

// missing is the error for the gaps of an image of so many objects, nil where they are
// nothing that the registry is meant to have. Its kind is that of the first gap that another
// import may close, or else of the first one.
func missing(gaps []gap, objects int) error {
	gaps = slices.DeleteFunc(slices.Clone(gaps), func(g gap) bool { return g.foreign })
	if len(gaps) == 0 {
		return nil
	}
	slices.SortStableFunc(gaps, func(a, b gap) int { return int(b.fate - a.fate) })
	first := errorOf(gaps[0].err)
	return &Error{
		Kind: first.Kind, Host: first.Host, Status: first.Status, RetryAfter: first.RetryAfter,
		Err: &incompleteError{gaps: gaps, objects: objects},
	}
}

// incompleteError names what is missing of an image.
type incompleteError struct {
	gaps    []gap
	objects int
}

// Error is a sentence with the digests and reasons.
func (e *incompleteError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "the image is not complete, %d of %d objects are missing", len(e.gaps), e.objects)
	for i, g := range e.gaps {
		if i == maxNamed {
			fmt.Fprintf(&b, "; and %d more", len(e.gaps)-i)
			break
		}
		fmt.Fprintf(&b, "; %s (%.100q): %v", g.descriptor.Digest, g.descriptor.MediaType, g.err)
	}
	return b.String()
}

// Unwrap makes errors.Is find each reason.
func (e *incompleteError) Unwrap() []error {
	errs := make([]error, len(e.gaps))
	for i, g := range e.gaps {
		errs[i] = g.err
	}
	return errs
}

// hold keeps a manifest from a Store that wants its parts first. A nil hold keeps
// nothing.
type hold struct {
	used  atomic.Bool // a fetch has waited for it, or does
	once  sync.Once
	done  chan struct{} // closed once parts is set
	parts fate
}

// release says what became of the parts. Only the first call counts.
func (h *hold) release(parts fate) {
	if h != nil {
		h.once.Do(func() { h.parts = parts; close(h.done) })
	}
}

// isUnused reports whether no fetch has come as far as the parts.
func (h *hold) isUnused() bool { return h != nil && !h.used.Load() }

func (h *hold) wait(ctx context.Context) fate {
	h.used.Store(true)
	select {
	case <-h.done:
		return h.parts
	case <-ctx.Done():
		return absentForNow
	}
}
