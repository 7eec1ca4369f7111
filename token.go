package pullthrough

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	maxTokenBody = 64 << 10
	maxToken     = 16 << 10
	minTokenLife = time.Minute
	maxTokenLife = 24 * time.Hour
)

// fetchToken asks the token server, on a context of its own.
func (a *authorizer) fetchToken(ctx context.Context, rt *route, key tokenKey) (token, error) {
	req, err := a.tokenRequest(ctx, rt, key)
	if err != nil {
		return token{}, err
	}
	resp, err := a.upstream.send(req, sameOrigin)
	if err != nil {
		return token{}, err
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusOK {
		err := statusError(rt, resp)
		return token{}, tokenServerError(err, req.URL.Host)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenBody+1))
	if err != nil {
		return token{}, tokenServerError(rt.error(ErrUnavailable, redacted(err)), req.URL.Host)
	}
	t, err := parseToken(body, a.now())
	if err != nil {
		err = fmt.Errorf("answer of type %.60q: %w", resp.Header.Get("Content-Type"), err)
		return token{}, tokenServerError(rt.error(ErrUnavailable, err), req.URL.Host)
	}
	return t, nil
}

// tokenServerError names the token server. Its 404 does not mean that an image
// is missing, so it must not read as the registry's.
func tokenServerError(err error, host string) error {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return err
	}
	e.Host = host
	if e.Kind == ErrNotFound {
		e.Kind = ErrUnavailable
	}
	if e.Err == nil {
		e.Err = errors.New("refused")
	}
	e.Err = fmt.Errorf("token server: %w", e.Err)
	return e
}

// tokenRequest is GET realm?service=…&scope=…, with the rule's credentials if
// they may go there; see "Token Authentication Specification" of distribution.
func (a *authorizer) tokenRequest(ctx context.Context, rt *route, key tokenKey) (*http.Request, error) {
	realm, err := url.Parse(key.demand.realm)
	if err != nil {
		return nil, rt.error(ErrUnavailable, redacted(err))
	}
	cred, err := a.credential(ctx, rt)
	if err != nil {
		return nil, err
	}
	if !cred.anonymous() && !mayHaveCredentials(rt, realm) {
		return nil, rt.error(ErrDenied, fmt.Errorf("token server %q may not have the rule's credentials: name it in Policy.RealmHosts to allow it", realm.Host))
	}
	q := realm.Query()
	q.Del("service")
	if key.demand.service != "" {
		q.Set("service", key.demand.service)
	}
	q["scope"] = strings.Fields(key.scope)
	realm.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
	if err != nil {
		return nil, rt.error(ErrUnavailable, redacted(err))
	}
	if !cred.anonymous() {
		req.Header.Set("Authorization", cred.basic())
	}
	return req, nil
}

// parseToken reads a token server's answer. The lifetime counts from now, on
// our clock; without a plausible one a token lives a minute.
func parseToken(body []byte, now time.Time) (token, error) {
	if len(body) > maxTokenBody {
		return token{}, fmt.Errorf("larger than %d bytes", maxTokenBody)
	}
	var answer struct {
		Token       string      `json:"token"`
		AccessToken string      `json:"access_token"`
		ExpiresIn   json.Number `json:"expires_in"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return token{}, errors.New("not a token") // its text could hold one
	}
	value := answer.AccessToken
	if value == "" {
		value = answer.Token
	}
	if value == "" || len(value) > maxToken || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return token{}, errors.New("no usable token in it")
	}
	return token{header: "Bearer " + value, expires: now.Add(lifetime(answer.ExpiresIn))}, nil
}

// lifetime is how long to use a token that says it expires in so many seconds:
// a little less, so that it does not die on the way.
func lifetime(expiresIn json.Number) time.Duration {
	seconds, err := expiresIn.Float64()
	if err != nil || math.IsNaN(seconds) {
		seconds = 0
	}
	life := maxTokenLife
	if seconds < maxTokenLife.Seconds() {
		life = max(minTokenLife, time.Duration(seconds)*time.Second)
	}
	early := min(max(life/10, 5*time.Second), 30*time.Second)
	return life - early
}
