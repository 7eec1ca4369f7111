package upstream

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"strconv"
	"time"
)

// Credential is what a registry is told about who asks. The zero value is
// anonymous. It goes to the registry itself (Basic) or to a token server that the
// [Target] allows (Bearer), and nowhere else. Printing it shows no secret.
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
	if c.isAnonymous() {
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

func (c Credential) isAnonymous() bool { return !c.hasPassword() && c.IdentityToken == "" }

// hasPassword is true of a user without a password too, but not if that user only
// stands beside an identity token.
func (c Credential) hasPassword() bool {
	return c.AccessToken != "" || c.Username != "" && c.IdentityToken == ""
}

// basic is the value of an Authorization header (RFC 7617).
func (c Credential) basic() string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.AccessToken))
}

// credentialID tells one credential of a target from the one after it, so that no
// token that was obtained with the old one is used with the new one. It reveals
// neither of them.
type credentialID [sha256.Size]byte

// fingerprinter makes credential IDs under a key that never leaves the process.
type fingerprinter struct{ key [32]byte }

func newFingerprinter() *fingerprinter {
	f := new(fingerprinter)
	_, _ = rand.Read(f.key[:]) // never fails
	return f
}

func (f *fingerprinter) id(c Credential) (id credentialID) {
	mac := hmac.New(sha256.New, f.key[:])
	for _, part := range []string{c.Username, c.AccessToken, c.IdentityToken} {
		// The length keeps "a", "bc" apart from "ab", "c".
		_, _ = mac.Write([]byte(strconv.Itoa(len(part)) + ":" + part))
	}
	mac.Sum(id[:0])
	return id
}
