package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// clientID is what we call ourselves in an OAuth 2 exchange.
const clientID = "pullthrough"

// tokenServers asks token servers for tokens. It keeps none of them, only the
// identity tokens. It is safe for concurrent use.
type tokenServers struct {
	transport  *transport
	limiters   *limiters
	callbacks  *callbacks
	identities *identities
}

// request asks in the ways that the credential allows, the better one first: an
// identity token is exchanged, and user and password are tried only where the server
// does not take identity tokens or not this one. Anonymous is a way, too: many
// registries give anybody a token for public images.
func (s *tokenServers) request(ctx context.Context, t *Target, key tokenKey, cred Credential) (tokenAnswer, error) {
	realm, err := url.Parse(key.challenge.realm)
	if err != nil {
		return tokenAnswer{}, t.fail(ErrUnavailable, errors.New("token server is no URL"))
	}
	if !cred.isAnonymous() && !mayHaveCredentials(t, realm) {
		err := t.fail(ErrDenied, fmt.Errorf("token server %q may not have the rule's credentials: name it in Policy.RealmHosts to allow it", realm.Host))
		return tokenAnswer{}, s.transport.secretsOf(t).clean(err, t.Base.Host)
	}
	if cred.IdentityToken == "" {
		return s.get(ctx, t, key, cred)
	}
	answer, err := s.exchange(ctx, t, key, cred)
	if e, ok := errors.AsType[*Error](err); ok && cred.hasPassword() {
		switch e.Status {
		case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusBadRequest, http.StatusUnauthorized:
			return s.get(ctx, t, key, cred)
		}
	}
	return answer, err
}

// get is GET realm?service=…&scope=…, see "Token Authentication Specification" of
// distribution. The query that the realm has already is kept, except for its
// service. Each scope is a parameter of its own. The answer is worth as much as the
// credential, so it must not come from another origin.
func (s *tokenServers) get(ctx context.Context, t *Target, key tokenKey, cred Credential) (tokenAnswer, error) {
	return s.ask(ctx, t, key, sameOrigin, func(realm *url.URL) (*http.Request, error) {
		q := realm.Query()
		q.Del("service")
		if key.challenge.service != "" {
			q.Set("service", key.challenge.service)
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

// exchange is POST realm with an identity token, as [identities] tells. The old
// one may be worth nothing then, also where another exchange was faster.
func (s *tokenServers) exchange(ctx context.Context, t *Target, key tokenKey, cred Credential) (tokenAnswer, error) {
	identity := identityKey{key.target, key.credential, key.challenge.realm}
	defer s.identities.enterQueue(ctx, identity)()
	mine := s.identities.get(identity, cred)
	for {
		answer, err := s.post(ctx, t, key, mine)
		if err == nil && answer.refresh != "" && answer.refresh != mine {
			s.identities.put(identity, answer.refresh)
			s.callbacks.tellRotated(ctx, t, answer.refresh)
		}
		newest := s.identities.get(identity, cred)
		if err == nil || newest == mine || !errors.Is(err, ErrDenied) {
			return answer, err
		}
		mine = newest
	}
}

// post sends one identity token, see "OAuth2 Token Authentication" of distribution.
func (s *tokenServers) post(ctx context.Context, t *Target, key tokenKey, identityToken string) (tokenAnswer, error) {
	form := url.Values{
		"grant_type": {"refresh_token"}, "refresh_token": {identityToken}, "client_id": {clientID},
		"scope": {key.scope},
	}
	if key.challenge.service != "" {
		form.Set("service", key.challenge.service)
	}
	answer, err := s.ask(ctx, t, key, nowhere, func(realm *url.URL) (*http.Request, error) {
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

// ask sends the request that build makes, as often as the options allow, and reads
// the answer. build is called for each try, with the realm to send it to. Requests
// for guests have a limiter of their own, since they go to the token server of
// another registry.
func (s *tokenServers) ask(ctx context.Context, t *Target, key tokenKey, scope redirectScope, build func(realm *url.URL) (*http.Request, error)) (tokenAnswer, error) {
	kind := "tokens"
	if key.guest {
		kind = "tokens for guests"
	}
	realm, err := url.Parse(key.challenge.realm)
	if err != nil {
		return tokenAnswer{}, t.fail(ErrUnavailable, errors.New("token server is no URL"))
	}
	resp, err := retry(ctx, s.limiters.of(t, kind), t.Options.attempts(Pull), func() (*http.Response, error) {
		req, err := build(realm)
		if err != nil {
			return nil, t.fail(ErrUnavailable, redact(ctx, err))
		}
		return s.transport.send(t, req, scope)
	})
	if err != nil {
		return tokenAnswer{}, s.fail(t, err, realm.Host)
	}
	defer drain(resp)
	answer, err := readToken(t, resp)
	if err != nil {
		return tokenAnswer{}, s.fail(t, err, realm.Host)
	}
	s.transport.secretsOf(t).note(answer.token, answer.refresh)
	return answer, nil
}

// readToken reads the last answer of a token server.
func readToken(t *Target, resp *http.Response) (tokenAnswer, error) {
	if resp.StatusCode != http.StatusOK {
		return tokenAnswer{}, statusError(t, resp)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenBody+1))
	if len(body) > maxTokenBody {
		_ = resp.Body.Close() // enough of it
	}
	if err != nil {
		return tokenAnswer{}, t.fail(ErrUnavailable, redact(resp.Request.Context(), err))
	}
	answer, err := parseToken(body)
	if err != nil {
		if isPage(body) {
			err = fmt.Errorf("it is a web page: %w", err)
		}
		return tokenAnswer{}, t.fail(ErrUnavailable, fmt.Errorf("answer of type %.60q: %w", resp.Header.Get("Content-Type"), err))
	}
	return answer, nil
}

// fail names the token server in err. Its 404 does not mean that an image is missing, so it
// must not read as the registry's.
func (s *tokenServers) fail(t *Target, err error, host string) error {
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
	return s.transport.secretsOf(t).clean(e, t.Base.Host)
}

// isPage reports whether a web page was sent in place of an answer.
func isPage(body []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(body), []byte("<")) }
