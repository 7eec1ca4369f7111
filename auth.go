package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
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
	return upstream.Credential(c).String()
}

// GoString does not show the secret.
func (c Credential) GoString() string { return c.String() }

// LogValue does not show the secret.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Format does not show the secret, whatever the verb.
func (c Credential) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(c.String())) }

// Action is what a caller asks [Proxy.Authorize] for, spelled as the IAM
// action without its "ecr:".
type Action string

// The actions of a pull through a rule; see "Permissions required to use a
// pull through cache rule" in the Amazon ECR user guide.
const (
	ActionPull   Action = "BatchGetImage"
	ActionImport Action = "BatchImportUpstreamImage"
	ActionCreate Action = "CreateRepository" // where the Store is a RepoCreator and has no such repository
)

// Identity is who asks, and which private registry.
type Identity struct {
	Account string
	Region  string
	Caller  string // opaque, for example a principal ARN; handed on in Request.Caller
}

// HostIdentity reads account and Region from the host name that the request was
// sent to, <account>.dkr.ecr.<region>.<any domain>, as Amazon ECR's registries
// are named. For other host names it returns the zero Identity. It never fails
// and knows no caller; it fits [Proxy.Identify].
func HostIdentity(r *http.Request) (Identity, error) {
	account, rest, _ := strings.Cut(r.Host, ".")
	rest, isRegistry := strings.CutPrefix(rest, "dkr.ecr.")
	region, domain, _ := strings.Cut(rest, ".")
	if !isRegistry || domain == "" || len(account) != 12 || strings.Trim(account, "0123456789") != "" {
		return Identity{}, nil
	}
	return Identity{Account: account, Region: region}, nil
}

// gate asks the host who may do what.
type gate struct {
	authorize func(ctx context.Context, a Action, r Request) error // nil: everybody may
}

// admit checks the grammar of a request before anything else, then the right to
// pull. It is on the way of every hit.
func (g *gate) admit(ctx context.Context, r Request) error {
	err := ocipath.CheckName(r.Repo.Name)
	if err == nil {
		err = ocipath.CheckRef(r.Ref)
	}
	if err != nil {
		return invalid(r.Repo, r.Ref, err)
	}
	return g.may(ctx, ActionPull, r)
}

// admitDigest is admit for what has no tags: r.Ref must be a digest.
func (g *gate) admitDigest(ctx context.Context, r Request) (digest.Digest, error) {
	if err := g.admit(ctx, r); err != nil {
		return "", err
	}
	if !ocipath.ValidDigest(r.Ref) {
		return "", invalid(r.Repo, r.Ref, &ocipath.Error{Part: ocipath.Digest, Value: r.Ref})
	}
	return digest.Digest(r.Ref), nil
}

// may asks Proxy.Authorize. A refusal that is no [*Error] is an ErrDenied whose
// text the client reads.
func (g *gate) may(ctx context.Context, a Action, r Request) error {
	if g.authorize == nil {
		return nil
	}
	err := g.ask(ctx, a, r)
	if err == nil {
		return nil
	}
	_, typed := errors.AsType[*Error](err)
	_, panicked := errors.AsType[*hostcall.PanicError](err)
	switch {
	case typed, panicked, errors.Is(err, ErrUnauthorized), ctx.Err() != nil:
		return err
	}
	return &Error{Kind: ErrDenied, Message: err.Error(), Err: err}
}

func (g *gate) ask(ctx context.Context, a Action, r Request) (err error) {
	defer hostcall.Recover("Authorize", &err)
	return g.authorize(ctx, a, r)
}

// mayFetch asks for an action that causes a fetch. A refusal reads "not found", as
// in Amazon ECR, since a refusal would tell what exists upstream. errors.Is still
// finds the refusal.
func (g *gate) mayFetch(ctx context.Context, a Action, r Request) error {
	err := g.may(ctx, a, r)
	if errors.Is(err, ErrDenied) {
		return &Error{Kind: ErrNotFound, Err: err}
	}
	return err
}
