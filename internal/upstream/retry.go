package upstream

import (
	"context"
	"errors"
	"net/http"
)

// retry calls send until its answer is one to go on with, or a is used up: then it
// returns the last answer. It is the only place where a failed request is tried
// again. What else sends a request more than once has another reason: a challenge
// (authorizer.do), a manifest that came damaged, the rest of a [Transfer].
//
// There are two waits. After a 429, or a 503 that names a time, the limiter holds
// back this request together with all others of its kind. After any other failure
// this request alone backs off.
func retry(ctx context.Context, l *limiter, a attempts, send func() (*http.Response, error)) (*http.Response, error) {
	for try := 1; ; try++ {
		s, err := l.acquire(ctx, &a)
		if err != nil {
			return nil, err
		}
		resp, err := send()
		limited, tooLong := s.release(ctx, resp)
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

// mayPass reports whether the failure of a request may be over in a moment. Of the
// errors that is a connection that broke: a name that does not exist, a refused
// address or a certificate stays as it is, and a registry that did not answer in time
// has had its time.
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
