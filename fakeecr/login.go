package fakeecr

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
)

// loginLife is how long a password of GetAuthorizationToken can be used, and the URL of a
// layer.
const loginLife = 12 * time.Hour

// userName is the user of every login, as in Amazon ECR.
const userName = "AWS"

// tokenParameter is where the URL of a layer has its token: it is used without a login.
const tokenParameter = "token"

// logins makes passwords and checks them. A password says when it expires, and is signed:
// nothing is kept of those that were made. Those of another Server are not valid.
type logins struct {
	key [32]byte
	now func() time.Time
}

func newLogins(now func() time.Time) *logins {
	l := &logins{now: now}
	_, _ = rand.Read(l.key[:]) // never fails
	return l
}

// password fits [ecrapi.Images.Password].
func (l *logins) password(context.Context, pullthrough.Identity) (string, error) {
	return l.token(userName), nil
}

// token returns a token for what the purpose says, that expires after loginLife.
func (l *logins) token(purpose string) string {
	token := binary.BigEndian.AppendUint64(nil, uint64(l.now().Add(loginLife).Unix()))
	return base64.RawURLEncoding.EncodeToString(l.sign(token, purpose))
}

// sign appends the signature of the time and the purpose to the time.
func (l *logins) sign(expiry []byte, purpose string) []byte {
	mac := hmac.New(sha256.New, l.key[:])
	_, _ = mac.Write(expiry)
	_, _ = mac.Write([]byte(purpose))
	return mac.Sum(expiry)
}

// admit returns an error unless the request has a password, or is for the URL of a layer
// with its token.
func (l *logins) admit(r *http.Request) error {
	user, token, ok := r.BasicAuth()
	purpose := userName
	if !ok {
		user, token, purpose = userName, r.URL.Query().Get(tokenParameter), r.URL.Path
	}
	signed, err := base64.RawURLEncoding.DecodeString(token)
	if user != userName || err != nil || len(signed) != 8+sha256.Size || !hmac.Equal(signed, l.sign(signed[:8:8], purpose)) {
		return &pullthrough.Error{Kind: pullthrough.ErrUnauthorized}
	}
	if !l.now().Before(time.Unix(int64(binary.BigEndian.Uint64(signed)), 0)) {
		return &pullthrough.Error{
			Kind:    pullthrough.ErrUnauthorized,
			Message: "Your authorization token has expired. Reauthenticate and try again.",
		}
	}
	return nil
}

// layerURL fits [ecrapi.Images.LayerURL]. The URL is good without a login.
func (l *logins) layerURL(_ context.Context, registry string, repo pullthrough.Repo, layer digest.Digest) (string, error) {
	path := "/v2/" + repo.Name + "/blobs/" + layer.String()
	return registry + path + "?" + tokenParameter + "=" + l.token(path), nil
}
