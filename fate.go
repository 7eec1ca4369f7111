package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
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
// has a slot, which it gives back, and has none while it waits.
func (w *walk) persist(ctx context.Context, try func() error) error {
	var p patience
	for {
		err := try()
		w.giveSlot()
		if err == nil || ctx.Err() != nil {
			return err
		}
		wait, ok := p.next(err, time.Now()) // how long a failure lasts is real time
		if !ok {
			return err
		}
		if cause := w.sleep(ctx, wait); cause != nil {
			return cause
		}
		if err := w.takeSlot(ctx); err != nil {
			return err
		}
	}
}

// sleep ends early with ctx, and when the proxy is shut down.
func (w *walk) sleep(ctx context.Context, d time.Duration) error {
	ctx, stop := w.im.flights.UntilClosed(ctx)
	defer stop()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
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

// missing is the error for what the Store does not have, nil where that is nothing that
// the registry is meant to have. Its kind is that of the first gap that another import
// may close, or else of the first one.
func (w *walk) missing() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	gaps := slices.DeleteFunc(slices.Clone(w.gaps), func(g gap) bool { return g.foreign })
	if len(gaps) == 0 {
		return nil
	}
	slices.SortStableFunc(gaps, func(a, b gap) int { return int(b.fate - a.fate) })
	first := errorOf(gaps[0].err)
	return &Error{
		Kind: first.Kind, Host: first.Host, Status: first.Status, RetryAfter: first.RetryAfter,
		Err: &incompleteError{gaps: gaps, objects: len(w.visits)},
	}
}

// tellMissing reports what is missing, as an event of the whole image.
func (w *walk) tellMissing(ctx context.Context, m *Manifest, err error) {
	w.mu.Lock()
	missing := make([]ocispec.Descriptor, 0, min(len(w.gaps), maxGapsTold))
	for _, g := range w.gaps[:cap(missing)] {
		missing = append(missing, g.descriptor)
	}
	w.mu.Unlock()
	if len(missing) == 0 {
		return
	}
	d := m.Descriptor.Digest.String()
	if err != nil {
		err = outcome{}.words(context.Background(), w.rt.repo, d, err)
	}
	w.im.tell(ctx, Event{
		Kind: EventFetch, Request: Request{Repo: w.rt.repo, Ref: d}, Part: true, Rule: w.rt.prefix(), Digest: d,
		Source: SourceFill, Duration: w.im.now().Sub(w.begun), Err: err, Missing: missing,
	})
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
		fmt.Fprintf(&b, "; %s (%.100s): %v", g.descriptor.Digest, g.descriptor.MediaType, g.err)
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
