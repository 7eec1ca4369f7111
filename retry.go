package pullthrough

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"time"
)

const (
	defaultRetries = 3
	retryBase      = 200 * time.Millisecond
	retryCap       = 5 * time.Second
	// maxRetryWait is how long a pull waits because upstream asks it to.
	maxRetryWait = 10 * time.Second
)

// effort is how hard a request tries. This is the only layer that tries again,
// but for a download that broke off, whose tries are its own.
type effort struct {
	tries  int // requests at most
	rounds int // times to wait because upstream asks for it
}

var (
	checking = effort{tries: 1}            // of what is stored anyhow
	resuming = effort{tries: 1, rounds: 1} // the rest of a download
)

// effort is what a first pull is worth.
func (pol Policy) effort() effort {
	retries := pol.Retries
	if retries == 0 {
		retries = defaultRetries
	}
	retries = max(retries, 0)
	return effort{tries: retries + 1, rounds: retries}
}

// persist has send repeated until its answer is one to go on with, or e is used
// up: then it returns the last one.
func (u *upstream) persist(ctx context.Context, rt *route, kind string, e effort, send func() (*http.Response, error)) (*http.Response, error) {
	pace := u.pace(rt, kind)
	for try := 1; ; try++ {
		turn, err := pace.enter(ctx, &e)
		if err != nil {
			return nil, hosted(rt, err)
		}
		resp, err := send()
		limited, hopeless := turn.leave(resp)
		if try >= e.tries || hopeless || limited && e.rounds == 0 || !mayPass(ctx, resp, err) {
			return resp, err
		}
		if resp != nil {
			drain(resp)
		}
		if limited {
			continue // the pace is everybody's
		}
		if err := sleep(ctx, backoff(try)); err != nil {
			return nil, err
		}
	}
}

// hosted names the upstream in an error that has none yet.
func hosted(rt *route, err error) error {
	if e, ok := errors.AsType[*Error](err); ok && e.Host == "" {
		e.Host = rt.base.Host
	}
	return err
}

// mayPass reports whether the failure of a request may be over in a moment.
func mayPass(ctx context.Context, resp *http.Response, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		_, ok := errors.AsType[*brokenError](err)
		return ok
	}
	return mayPassStatus(resp.StatusCode)
}

func mayPassStatus(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// backoff is how long to wait after so many tries: full jitter, since clients
// that failed together must not come back together.
func backoff(tries int) time.Duration {
	limit := retryCap
	if tries < 6 {
		limit = min(retryCap, retryBase<<(tries-1))
	}
	return rand.N(limit)
}

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
