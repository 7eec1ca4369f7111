package upstream

import (
	"context"
	"net/http"
)

// Probe tells whether a pull from the target would get anywhere now: it asks the
// registry for /v2/ (OCI distribution spec, "Determining Support"), with the
// credential of now if it is challenged. It uses nothing that other requests have
// learnt, as that may be out of date, and keeps nothing.
// [Options.AnonymousFallback] does not count: the credential is in question.
//
// The error Is [ErrDenied] when the registry or its token server refuses the
// credential, [ErrUnavailable] when the registry cannot be reached, and
// [ErrNotFound] when what answers is no registry.
func (c *Client) Probe(ctx context.Context, t *Target) error {
	ctx, cancel := context.WithTimeout(ctx, smallTimeout)
	defer cancel()
	strict := *t
	strict.Options.AnonymousFallback = false
	ping := object{method: http.MethodGet, kind: "probe", attempts: t.Options.attempts(Pull)}
	resp, err := c.request(ctx, &strict, c.auth.fresh(), t.Base.JoinPath("v2/").String(), ping)
	if err != nil {
		return err
	}
	defer drain(resp)
	switch {
	case resp.StatusCode != http.StatusOK:
		return statusError(t, resp)
	case isWebPage(resp):
		return t.fail(ErrNotFound, ErrNoRegistry)
	}
	return nil
}
