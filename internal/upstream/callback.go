package upstream

import (
	"context"
	"log/slog"

	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
)

// callbacks calls the functions of a target. Such a function may panic, block or
// ignore its context. It runs on a goroutine of its own, so that the caller can leave
// when the context ends. See package hostcall for how many such calls may run.
type callbacks struct {
	calls hostcall.Lookups
	log   *slog.Logger
}

// credentialError marks an error of Target.Credential on its way to
// [authorizer.authorization], which hands on the error in it.
type credentialError struct{ error }

// askCredential asks the target. The error is a *credentialError.
func (c *callbacks) askCredential(ctx context.Context, t *Target) (Credential, error) {
	if t.Credential == nil {
		return Credential{}, nil
	}
	cred, err := hostcall.Do(ctx, &c.calls, "Credentials", nil, t.Credential)
	if err != nil {
		return Credential{}, &credentialError{err}
	}
	return cred, nil
}

// tellRotated tells the target of a new identity token.
func (c *callbacks) tellRotated(ctx context.Context, t *Target, identityToken string) {
	if t.Rotated == nil {
		return
	}
	_, err := hostcall.Do(ctx, &c.calls, "Rotated", nil, func(ctx context.Context) (struct{}, error) {
		t.Rotated(ctx, identityToken)
		return struct{}{}, nil
	})
	if err != nil {
		c.log.Error("the host could not be told of a new identity token", "err", err)
	}
}
