package pullthrough

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/challenge"
)

const (
	maxToken     = 16 << 10
	minTokenLife = time.Minute
	maxTokenLife = 24 * time.Hour
)

// tokenAnswer is what a token server gives.
type tokenAnswer struct {
	token   string
	refresh string        // the identity token to use from now on; "": the one we have
	life    time.Duration // how long to use token, from now
}

// parseToken reads a token server's answer. Nothing of it gets into the error.
func parseToken(body []byte) (tokenAnswer, error) {
	if len(body) > maxTokenBody {
		return tokenAnswer{}, fmt.Errorf("larger than %d bytes", maxTokenBody)
	}
	var answer struct {
		Token        string      `json:"token"`
		AccessToken  string      `json:"access_token"`
		RefreshToken string      `json:"refresh_token"`
		ExpiresIn    json.Number `json:"expires_in"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return tokenAnswer{}, errors.New("not a token") // its text could hold one
	}
	value := answer.AccessToken
	if value == "" {
		value = answer.Token
	}
	if !plausible(value) {
		return tokenAnswer{}, errors.New("no usable token in it")
	}
	if !plausible(answer.RefreshToken) {
		answer.RefreshToken = ""
	}
	return tokenAnswer{value, answer.RefreshToken, lifetime(answer.ExpiresIn)}, nil
}

// plausible reports whether a token may stand in a header.
func plausible(token string) bool {
	return token != "" && len(token) <= maxToken && !strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' })
}

// lifetime is how long to use a token that says it expires in so many seconds:
// a little less, so that it does not die on the way. It counts from when we got
// it: the server's issued_at is its clock's.
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

// guestDemand is what a registry that we were redirected to wants from anybody
// who pulls what we were redirected to.
func guestDemand(resp *http.Response) (d demand, scope string, ok bool) {
	all := challenge.Parse(resp.Header.Values("WWW-Authenticate"))
	d, _, ok = choose(resp.Request.URL, all, demand{})
	if !ok || d.scheme != bearerScheme {
		return demand{}, "", false
	}
	scope = d.opaque
	if name, ok := repositoryIn(resp.Request.URL.Path); ok {
		scope = strings.TrimSpace(scope + " " + fmt.Sprintf(pullScopeForm, name))
	}
	return d, scope, true
}

// repositoryIn is the name in another registry's path, whose grammar need not be
// ours.
func repositoryIn(path string) (string, bool) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	end := max(strings.LastIndex(rest, "/manifests/"), strings.LastIndex(rest, "/blobs/"))
	if !ok || end < 1 || end > 512 || !plausible(rest[:end]) {
		return "", false
	}
	return rest[:end], true
}
