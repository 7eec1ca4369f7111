package upstream

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	// smallTimeout bounds a whole exchange whose body is small.
	smallTimeout = time.Minute

	defaultRetries = 3
	retryBase      = 200 * time.Millisecond
	retryCap       = 5 * time.Second
)

// Effort is how hard a request tries.
type Effort int

const (
	// Pull is the effort for content that is not there yet. What failed in passing is
	// tried again, as [Options.Retries] says, and when the registry asks us to wait
	// the request waits.
	Pull Effort = iota
	// Check is the effort for content that is stored anyhow: one try, and no wait. A
	// challenge is answered all the same, and a token is fetched with the effort of
	// Pull, since other requests need it, too.
	Check
)

// attempts is an effort in numbers.
type attempts struct {
	requests int  // at most
	waits    int  // because the registry asks for it
	extra    bool // it can be done without: it is not sent while others wait
}

// resuming is what the rest of a download is worth each time. How often it is
// asked for is the [Transfer]'s to count.
var resuming = attempts{requests: 1, waits: 1}

// attempts is what an effort means with these options.
func (o Options) attempts(e Effort) attempts {
	if e == Check {
		return attempts{requests: 1}
	}
	retries := o.Retries
	if retries == 0 {
		retries = defaultRetries
	}
	retries = max(retries, 0)
	return attempts{requests: retries + 1, waits: retries}
}

// backoff is how long to wait after so many failures: full jitter, since clients
// that failed together must not come back together.
func backoff(failures int) time.Duration {
	limit := retryCap
	if failures < 6 {
		limit = min(retryCap, retryBase<<(failures-1))
	}
	return rand.N(limit)
}

// sleep returns the cause of ctx if that ends first.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
