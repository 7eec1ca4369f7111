package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
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

	// actionCatalog is asked for once for the catalog, with a Repo that has no name.
	actionCatalog Action = "DescribeRepositories"
)

// Identity is the caller of a request, and the private registry that it asks.
type Identity struct {
	Account string
	Region  string
	Caller  string // opaque, for example a principal ARN; handed on in Request.Caller
}

// HostIdentity reads account and Region from the host name that the request was
// sent to, <account>.dkr.ecr.<region>.<any domain>, as Amazon ECR's registries
// are named: also with dkr.ecr-fips, and with dkr-ecr and dkr-ecr-fips, as those that
// speak IPv6, too. For other host names it returns the zero Identity. It never fails
// and knows no caller; it fits [Proxy.Identify].
func HostIdentity(r *http.Request) (Identity, error) {
	account, rest, _ := strings.Cut(r.Host, ".")
	rest, isRegistry := strings.CutPrefix(rest, "dkr")
	if !isRegistry || rest == "" || rest[0] != '.' && rest[0] != '-' {
		return Identity{}, nil
	}
	service, rest, _ := strings.Cut(rest[1:], ".")
	region, domain, _ := strings.Cut(rest, ".")
	if service != "ecr" && service != "ecr-fips" || domain == "" || len(account) != 12 || strings.Trim(account, "0123456789") != "" {
		return Identity{}, nil
	}
	return Identity{Account: account, Region: region}, nil
}

// authorize asks Proxy.Authorize, which may be nil. A refusal that is no [*Error] is
// an ErrDenied whose text the client reads.
func authorize(ctx context.Context, ask func(context.Context, Action, Request) error, a Action, r Request) (err error) {
	if ask == nil {
		return nil
	}
	err = hostcall.Guard("Authorize", func() error { return ask(ctx, a, r) })
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

// authorizeFetch asks for an action that causes a fetch. A refusal reads "not found",
// as in Amazon ECR, since a refusal would tell what exists upstream. errors.Is still
// finds the refusal.
func authorizeFetch(ctx context.Context, ask func(context.Context, Action, Request) error, a Action, r Request) error {
	err := authorize(ctx, ask, a, r)
	if errors.Is(err, ErrDenied) {
		return &Error{Kind: ErrNotFound, Err: err}
	}
	return err
}
