package upstream

import (
	"context"
	"errors"
	"net/http"
)

// retry has send repeated until its answer is one to go on with, or a is used up:
// then it returns the last answer. It is the only place where a request is tried
// again, but for a [Transfer], which resumes.
func retry(ctx context.Context, l *limiter, a attempts, send func() (*http.Response, error)) (*http.Response, error) {
	for try := 1; ; try++ {
		s, err := l.acquire(ctx, &a)
		if err != nil {
			return nil, err
		}
		resp, err := send()
		limited, tooLong := s.release(resp)
		if try >= a.requests || tooLong || limited && a.waits == 0 || !mayPass(ctx, resp, err) {
			return resp, err
		}
		if resp != nil {
			drain(resp)
		}
		if limited {
			continue // the limiter says when
		}
		if err := sleep(ctx, backoff(try)); err != nil {
			return nil, err
		}
	}
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
