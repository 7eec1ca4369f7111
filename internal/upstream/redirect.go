package upstream

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
)

const (
	maxRedirects = 5
	userAgent    = "pullthrough (+https://github.com/ecr-pullthrough/pullthrough)"
)

// redirectScope says how far a request may be redirected.
type redirectScope int

const (
	anyOrigin  redirectScope = iota
	sameOrigin               // a request for a token: the answer is worth as much as the secret
	nowhere                  // a refresh token in the body: net/http's own client would send it again
)

// send carries out req and follows redirects, at most maxRedirects of them. Every
// request of the package goes through here. A redirect without a Location is an
// answer like any other.
func (x *transport) send(t *Target, req *http.Request, scope redirectScope) (*http.Response, error) {
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", userAgent)
	for hop := 0; ; hop++ {
		resp, err := x.roundTrip(t, req)
		if err != nil {
			return nil, err
		}
		if !isRedirect(resp.StatusCode) || resp.Header.Get("Location") == "" {
			return resp, nil
		}
		next, err := redirect(req, resp, scope)
		_ = resp.Body.Close() // unread: it may never come
		if err == nil && hop == maxRedirects {
			err = &RedirectError{fmt.Sprintf("more than %d redirects", maxRedirects)}
		}
		if err != nil {
			return nil, x.secretsOf(t).clean(&Error{Kind: ErrUnavailable, Host: req.URL.Host, Status: resp.StatusCode, Err: err}, t.Base.Host)
		}
		req = next
	}
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// redirect returns the request that follows resp's Location, or why it must not be
// sent. A request that leaves its origin loses its credentials for good, even if a
// later hop comes back: each hop is made from the headers of the one before.
func redirect(req *http.Request, resp *http.Response, scope redirectScope) (*http.Request, error) {
	to, err := req.URL.Parse(resp.Header.Get("Location"))
	if err != nil {
		return nil, &RedirectError{"redirected to what is no URL"}
	}
	to.RawQuery = strings.ReplaceAll(to.RawQuery, " ", "%20") // a blank would end the request's URL
	if err := checkRedirect(req.URL, to, scope); err != nil {
		return nil, &RedirectError{err.Error()}
	}
	next := req.Clone(req.Context())
	to.Host = strings.Clone(to.Host) // pools of connections keep it longer than the Location
	next.URL, next.Host = to, ""
	if origin(to) != origin(req.URL) {
		for _, h := range []string{"Authorization", "Cookie", "Proxy-Authorization", "Referer"} {
			next.Header.Del(h)
		}
	}
	return next, nil
}

// maxHost is how many bytes a host with its port has: a name of the DNS has 253.
const maxHost = 320

// checkRedirect returns why a redirect must not be followed. Where it leads is the
// registry's word, which may be hostile. The addresses behind the host name are
// judged when they are dialled, see [Target.addressesFor].
func checkRedirect(from, to *url.URL, scope redirectScope) error {
	switch {
	case scope == nowhere:
		return errors.New("redirected with a token in the request")
	case to.Scheme != "https" && to.Scheme != "http", to.Host == "", len(to.Host) > maxHost:
		return errors.New("redirected to what is no http URL")
	case to.User != nil:
		return errors.New("redirected to a URL with credentials in it")
	case from.Scheme == "https" && to.Scheme == "http":
		return errors.New("redirected from https to http")
	case scope == sameOrigin && origin(to) != origin(from):
		return fmt.Errorf("token request redirected to another origin, %.200s", origin(to))
	}
	return nil
}

// isElsewhere reports whether resp comes from an origin other than the target's:
// the registry has redirected us there.
func isElsewhere(t *Target, resp *http.Response) bool {
	return resp.Request != nil && origin(resp.Request.URL) != origin(t.Base)
}

// origin is scheme, host and port.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}
