package upstream

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"
)

const (
	maxTokenBody = 64 << 10
	minTokenLife = time.Minute
	maxTokenLife = 24 * time.Hour
)

// token is a value for the Authorization header, Bearer or Basic.
type token struct {
	header     string
	fetched    time.Time
	expires    time.Time // when to fetch a new one; zero: never
	credential credentialID
	anonymous  bool // the credential was refused, and the token was had without it
}

// isUsable reports whether t may be sent. A clock that stands before the time of
// the fetch has been set back, and says nothing about the token's end.
func (t token) isUsable(now time.Time) bool {
	return t.header != "" && (t.expires.IsZero() || now.Before(t.expires) && !now.Before(t.fetched))
}

// tokenKey is all that a token depends on.
type tokenKey struct {
	target     any // Target.ID
	credential credentialID
	challenge  authChallenge
	scope      string
	guest      bool // for a registry that we were redirected to
}

// String names the token by its scope, for people.
func (k tokenKey) String() string { return k.scope }

func newTokenKey(t *Target, id credentialID, ch authChallenge) tokenKey {
	return tokenKey{target: t.ID, credential: id, challenge: ch, scope: ch.scope(t.Name)}
}

// tokenAnswer is what a token server gives.
type tokenAnswer struct {
	token   string
	refresh string        // the identity token to use from now on; "": the one we have
	life    time.Duration // how long to use token, from now
}

// parseToken reads a token server's answer. Nothing of it gets into the error, as
// its text could hold a token.
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
		return tokenAnswer{}, errors.New("not a token")
	}
	value := answer.AccessToken
	if value == "" {
		value = answer.Token
	}
	if !mayStandInHeader(value) {
		return tokenAnswer{}, errors.New("no usable token in it")
	}
	if !mayStandInHeader(answer.RefreshToken) {
		answer.RefreshToken = ""
	}
	return tokenAnswer{value, answer.RefreshToken, lifetime(answer.ExpiresIn)}, nil
}

// lifetime is how long to use a token that says it expires in so many seconds: a
// little less, so that it does not expire on its way. It counts from when we got
// the token, since the server's issued_at is by the server's clock.
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
