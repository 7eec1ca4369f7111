package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/ecr-pullthrough/pullthrough/internal/ocierror"
)

const (
	maxTokenBody = 64 << 10
	clientID     = "pullthrough"
)

// fetchToken asks the token server, on a context of its own, and keeps what it
// gets.
func (a *authorizer) fetchToken(ctx context.Context, rt *route, s *site, d demand) (token, error) {
	cred, err := a.credential(ctx, rt, s)
	if err != nil {
		return token{}, err
	}
	key := keyOf(rt, a.generations.of(cred), d)
	if t, ok := a.tokens.Get(key); ok && t.usable(a.now()) {
		return t, nil // the secret is a new one, and somebody was here with it already
	}
	answer, err := a.requestToken(ctx, rt, key, cred)
	e, _ := errors.AsType[*Error](err)
	refused := e != nil && e.Kind == ErrDenied && e.Status != 0 // by the token server, not by us
	if refused && rt.policy.AnonymousFallback && !cred.anonymous() {
		a.upstream.log.Warn("credentials refused, going on without", "repository", rt.repo.Name, "err", err)
		answer, err = a.getToken(ctx, rt, key, Credential{})
	}
	if err != nil {
		return token{}, err
	}
	t := token{
		header: "Bearer " + answer.token, fetched: a.now(), generation: key.generation,
		anonymous: refused,
	}
	t.expires = t.fetched.Add(answer.life)
	a.tokens.Put(key, t)
	return t, nil
}

// requestToken asks in the ways that the credential allows, the better one first.
func (a *authorizer) requestToken(ctx context.Context, rt *route, key tokenKey, cred Credential) (tokenAnswer, error) {
	realm, err := url.Parse(key.demand.realm)
	if err != nil {
		return tokenAnswer{}, rt.error(ErrUnavailable, errors.New("token server is no URL"))
	}
	if !cred.anonymous() && !mayHaveCredentials(rt, realm) {
		return tokenAnswer{}, rt.error(ErrDenied, fmt.Errorf("token server %q may not have the rule's credentials: name it in Policy.RealmHosts to allow it", realm.Host))
	}
	if cred.IdentityToken == "" {
		return a.getToken(ctx, rt, key, cred)
	}
	answer, err := a.exchange(ctx, rt, key, cred)
	if e, ok := errors.AsType[*Error](err); ok && cred.hasPassword() {
		switch e.Status {
		case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusBadRequest, http.StatusUnauthorized:
			return a.getToken(ctx, rt, key, cred)
		}
	}
	return answer, err
}

// getToken is GET realm?service=…&scope=…; see "Token Authentication
// Specification" of distribution.
func (a *authorizer) getToken(ctx context.Context, rt *route, key tokenKey, cred Credential) (tokenAnswer, error) {
	return a.askTokenServer(ctx, rt, key, sameOrigin, func(realm *url.URL) (*http.Request, error) {
		q := realm.Query()
		q.Del("service")
		if key.demand.service != "" {
			q.Set("service", key.demand.service)
		}
		q["scope"] = strings.Fields(key.scope)
		realm.RawQuery = q.Encode()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
		if err == nil && cred.hasPassword() {
			req.Header.Set("Authorization", cred.basic())
		}
		return req, err
	})
}

// exchange is POST realm with a refresh token; see "OAuth2 Token Authentication"
// of distribution. A token server may answer with the next one: the old one is
// worth nothing then, also where another exchange was faster.
func (a *authorizer) exchange(ctx context.Context, rt *route, key tokenKey, cred Credential) (tokenAnswer, error) {
	r := rotation{key.rule, key.generation, key.demand.realm}
	defer a.queue(ctx, r)()
	mine := a.identityToken(r, cred)
	for {
		answer, err := a.postToken(ctx, rt, key, mine)
		if err == nil && answer.refresh != "" && answer.refresh != mine {
			a.rotate(ctx, rt, r, answer.refresh)
		}
		newest := a.identityToken(r, cred)
		if err == nil || newest == mine || !errors.Is(err, ErrDenied) {
			return answer, err
		}
		mine = newest
	}
}

func (a *authorizer) postToken(ctx context.Context, rt *route, key tokenKey, identityToken string) (tokenAnswer, error) {
	form := url.Values{
		"grant_type": {"refresh_token"}, "refresh_token": {identityToken}, "client_id": {clientID},
		"scope": {key.scope},
	}
	if key.demand.service != "" {
		form.Set("service", key.demand.service)
	}
	answer, err := a.askTokenServer(ctx, rt, key, nowhere, func(realm *url.URL) (*http.Request, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form.Encode()))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		return req, err
	})
	// OAuth 2 says "invalid_grant" with 400 (RFC 6749, section 5.2).
	if e, ok := errors.AsType[*Error](err); ok && e.Status == http.StatusBadRequest {
		e.Kind = ErrDenied
	}
	return answer, err
}

// askTokenServer sends one question for a token and reads the answer.
func (a *authorizer) askTokenServer(ctx context.Context, rt *route, key tokenKey, scope redirectScope, ask func(realm *url.URL) (*http.Request, error)) (tokenAnswer, error) {
	kind := "tokens"
	if key.guest {
		kind = "tokens for guests"
	}
	realm, err := url.Parse(key.demand.realm)
	if err != nil {
		return tokenAnswer{}, rt.error(ErrUnavailable, errors.New("token server is no URL"))
	}
	resp, err := a.upstream.persist(ctx, rt, kind, rt.policy.effort(), func() (*http.Response, error) {
		req, err := ask(realm)
		if err != nil {
			return nil, rt.error(ErrUnavailable, redacted(err))
		}
		return a.upstream.send(rt, req, scope)
	})
	if err != nil {
		return tokenAnswer{}, tokenServerError(err, realm.Host)
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusOK {
		return tokenAnswer{}, tokenServerError(statusError(rt, resp), realm.Host)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenBody+1))
	if len(body) > maxTokenBody {
		_ = resp.Body.Close() // enough of it
	}
	if err != nil {
		return tokenAnswer{}, tokenServerError(rt.error(ErrUnavailable, redacted(err)), realm.Host)
	}
	answer, err := parseToken(body)
	if err != nil {
		err = fmt.Errorf("answer of type %.60q%s: %w", resp.Header.Get("Content-Type"), page(body, resp.Request), err)
		return tokenAnswer{}, tokenServerError(rt.error(ErrUnavailable, err), realm.Host)
	}
	return answer, nil
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

// page says how a web page begins that was sent in place of an answer. Only what
// looks like one: anything else might be a token.
func page(body []byte, req *http.Request) string {
	if !strings.HasPrefix(strings.TrimSpace(string(body[:min(len(body), 256)])), "<") {
		return ""
	}
	return fmt.Sprintf(" that begins %q", ocierror.Excerpt(body, 64, secretsOf(req)))
}

// asGuest answers the challenge of another registry that we were redirected to,
// with a token for anybody, for this one request. Our credentials are none of
// its business.
func (a *authorizer) asGuest(ctx context.Context, rt *route, resp *http.Response) (*http.Response, error) {
	if resp.StatusCode != http.StatusUnauthorized || !away(rt, resp) {
		return resp, nil
	}
	d, scope, ok := guestDemand(resp)
	if !ok {
		return resp, nil
	}
	drain(resp)
	answer, err := a.getToken(ctx, rt, tokenKey{rule: rt.id, demand: d, scope: scope, guest: true}, Credential{})
	if err != nil {
		return nil, err
	}
	req := resp.Request.Clone(ctx)
	req.Header.Set("Authorization", "Bearer "+answer.token)
	return a.upstream.send(rt, req, anyOrigin)
}
