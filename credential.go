package pullthrough

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/quota"
)

// Credential is what an upstream registry is told for one rule. The zero value
// is anonymous. It goes to the upstream registry itself (Basic) or to a token
// server that the rule allows (Bearer), and nowhere else; printing it shows no
// secret.
//
// In Amazon ECR it comes from a secret {"username": …, "accessToken": …} in
// Secrets Manager.
type Credential struct {
	Username    string
	AccessToken string // the password or token that belongs to Username
	// IdentityToken is a refresh token, which token servers take in place of user
	// and password (POST with grant_type=refresh_token). Where one does not, Username
	// and AccessToken are tried once, if they are there. "": none.
	IdentityToken string
	ExpiresAt     time.Time // when to ask for a new one; zero: it does not expire
}

// String does not show the secret.
func (c Credential) String() string {
	if c.anonymous() {
		return "anonymous"
	}
	return "credential(redacted)"
}

// GoString does not show the secret.
func (c Credential) GoString() string { return c.String() }

// LogValue does not show the secret.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Format does not show the secret, whatever the verb.
func (c Credential) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(c.String())) }

func (c Credential) anonymous() bool { return !c.hasPassword() && c.IdentityToken == "" }

// hasPassword is true of a user without one too, but not if that user only stands
// beside an identity token.
func (c Credential) hasPassword() bool {
	return c.AccessToken != "" || c.Username != "" && c.IdentityToken == ""
}

func (c Credential) basic() string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.AccessToken))
}

// generation tells one credential of a rule from the one after it, so that
// nothing obtained with the old one is used with the new. It reveals neither.
type generation [sha256.Size]byte

// generations makes them under a key of this process.
type generations struct{ key [32]byte }

func newGenerations() *generations {
	g := new(generations)
	_, _ = rand.Read(g.key[:]) // never fails
	return g
}

func (g *generations) of(c Credential) (id generation) {
	mac := hmac.New(sha256.New, g.key[:])
	for _, part := range []string{c.Username, c.AccessToken, c.IdentityToken} {
		_, _ = mac.Write([]byte(strconv.Itoa(len(part)) + ":" + part))
	}
	mac.Sum(id[:0])
	return id
}

// credential asks the host. Its failure refuses the pull as Amazon ECR does
// when it cannot read a rule's secret. An ErrDenied of the host's is no trouble
// with a secret but a way into the upstream registry that there is not.
func (a *authorizer) credential(ctx context.Context, rt *route, s *site) (cred Credential, err error) {
	if a.credentials != nil {
		err = guarded("Credentials", func() (err error) {
			cred, err = a.credentials(ctx, rt.repo, rt.rule)
			return err
		})
	}
	switch {
	case errors.Is(err, ErrDenied):
		return Credential{}, rt.error(ErrDenied, fmt.Errorf("credentials of the rule: %w", err))
	case err != nil:
		return Credential{}, rt.error(ErrDenied, fmt.Errorf("%w: %w", errSecret, err))
	}
	s.renew(a.generations.of(cred))
	return cred, nil
}

// rotation is where an identity token goes that has been exchanged for another.
type rotation struct {
	rule       routeID
	generation generation
	realm      string
}

// queue has exchanges of one identity token wait for each other: the first may
// use it up. A token server that hangs is not waited for. The caller calls leave.
func (a *authorizer) queue(ctx context.Context, r rotation) (leave func()) {
	turn := a.exchanges.GetOrPut(r, func() *quota.Quota { return quota.New(1) })
	ctx, cancel := context.WithTimeout(ctx, probeWait)
	defer cancel()
	if turn.Take(ctx, 1) != nil {
		return func() {}
	}
	return func() { turn.Give(1) }
}

// identityToken is what to send to the realm: the host's, or what came of it.
func (a *authorizer) identityToken(r rotation, cred Credential) string {
	if newer, ok := a.rotated.Get(r); ok {
		return newer
	}
	return cred.IdentityToken
}

// rotate keeps a new identity token, and tells the host of it.
func (a *authorizer) rotate(ctx context.Context, rt *route, r rotation, identityToken string) {
	a.rotated.Put(r, identityToken)
	if a.onRotated == nil {
		return
	}
	err := guarded("Rotated", func() error { a.onRotated(ctx, rt.repo, rt.rule, identityToken); return nil })
	if err != nil {
		a.upstream.log.Error("the host could not be told of a new identity token", "err", err)
	}
}
